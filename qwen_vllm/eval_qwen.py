"""The paper's command, through vLLM: python qwen_vllm/eval_qwen.py --tasks … --model qwen-ets --model_args …"""

from ets.evaluation.paper_command import main

if __name__ == "__main__":
    raise SystemExit(main(engine="vllm"))
