"""`python -m ets` is `ets`."""

import sys

from ets.cli import main

sys.exit(main())
