"""The paper's command: accelerate launch qwen/eval_qwen.py --tasks … --model qwen-ets --model_args model_path=…"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from paper_command import main

if __name__ == "__main__":
    raise SystemExit(main())
