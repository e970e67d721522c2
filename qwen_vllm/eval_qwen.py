"""The paper's command, through vLLM: python qwen_vllm/eval_qwen.py --tasks … --model qwen-ets --model_args …"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from paper_command import main

if __name__ == "__main__":
    raise SystemExit(main(engine="vllm"))
