#!/usr/bin/env bash
# qwen/eval.sh through vLLM: its presets, its numbers and its variables, all of which stand there. Where there is no NVIDIA
# driver, vLLM's CPU build is installed. vLLM has no beam search, and no ETS-IS from this script.
#
#   bash qwen_vllm/eval.sh                                              the embedded demonstration
#   bash qwen_vllm/eval.sh math500                                      a benchmark of the paper: gsm8k, humaneval, gpqa; or all
#   ENDPOINT=http://localhost:8000/v1 bash qwen_vllm/eval.sh math500    through a server, here or elsewhere, that serves MODEL_PATH:
#                                                                       vLLM is not installed, see docs/clusters.md
#   GEN_DP=4 UTILIZATION=0.85 bash qwen_vllm/eval.sh math500            four copies of the model, each on a GPU of its own
set -euo pipefail
export ENGINE=vllm
exec bash "$(dirname "${BASH_SOURCE[0]}")/../qwen/eval.sh" "$@"
