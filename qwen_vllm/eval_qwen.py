"""The paper's command, through vLLM: python qwen_vllm/eval_qwen.py --tasks … --model qwen-ets --model_args …"""

from ets.commands.paper import main

if __name__ == "__main__":
    raise SystemExit(main(engine="vllm"))
