"""The paper's command: accelerate launch llada/eval_llada.py --tasks … --model llada_dist --model_args model_path=…"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from paper_command import main

if __name__ == "__main__":
    raise SystemExit(main())
