#!/usr/bin/env bash
# Sets up, then checks style and types and runs the tests: bash scripts/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh eval benchmarks vllm endpoint gguf peft real serve docs dev
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
# Several processes share the tests, one for each core, with one thread each: four at most, for their memory.
export OMP_NUM_THREADS=1
"$PYTHON" -m pytest --numprocesses auto --maxprocesses 4 --dist loadgroup --no-loadscope-reorder "$@"
