#!/usr/bin/env bash
# Sets up, then builds the documentation site into site/, strictly: bash scripts/docs.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh docs
rm -rf site
"$PYTHON" -m zensical build --strict --clean
echo "The site begins at site/index.html. Its search needs a server: $PYTHON -m http.server --directory site"
