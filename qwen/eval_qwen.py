"""The paper's command: accelerate launch qwen/eval_qwen.py --tasks … --model qwen-ets --model_args model_path=…"""

from ets.commands.paper import main

if __name__ == "__main__":
    raise SystemExit(main())
