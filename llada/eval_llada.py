"""The paper's command: accelerate launch llada/eval_llada.py --tasks … --model llada_dist --model_args model_path=…"""

from ets.commands.paper import main

if __name__ == "__main__":
    raise SystemExit(main())
