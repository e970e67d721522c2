#!/usr/bin/env bash
# qwen/eval.sh through vLLM: its presets, its numbers and its variables, all of which stand there. Where there is no NVIDIA
# driver, vLLM's CPU build is installed. vLLM has no beam search, and no ETS-IS from this script.
#
#   bash qwen_vllm/eval.sh                                              the embedded demonstration
#   bash qwen_vllm/eval.sh math500                                      a benchmark of the paper: gsm8k, humaneval, gpqa; or all
#   bash qwen_vllm/eval.sh minerva_math500                              the same by lm-eval's name
#   bash qwen_vllm/eval.sh minerva_math500 math500 Qwen/Qwen3-8B out    the paper's form, TASK DATASET MODEL OUT: ETS alone, with
#                                                                       the numbers below for every task; also aime24 and aime25
#   ENDPOINT=http://localhost:8000/v1 bash qwen_vllm/eval.sh math500    through a server, here or elsewhere, that serves MODEL_PATH:
#                                                                       vLLM is not installed, see docs/clusters.md
#   GEN_DP=4 UTILIZATION=0.85 bash qwen_vllm/eval.sh math500            four copies of the model, each on a GPU of its own
#   GEN_DP=2 GEN_TP=4 bash qwen_vllm/eval.sh math500                    two copies, each shared by four GPUs
set -euo pipefail
export ENGINE=vllm CALLED="$0"
FOLDER="$(dirname "${BASH_SOURCE[0]}")/.."
source "$FOLDER/scripts/run_eval.sh"

help=
case "${!#}" in -h | --help) help=--help && set -- "${@:1:$#-1}" ;; esac
if [ $# -ge 2 ]; then # TASK DATASET [MODEL] [OUT]
    if [ $# -gt 4 ]; then refuse "unexpected argument '$5'; give TASK DATASET MODEL OUT, such as minerva_math500 math500 Qwen/Qwen3-8B out"; fi
    if [ "$(preset_of "$1")" != "$(preset_of "$2")" ]; then refuse "the task $1 and the dataset $2 differ; give two names of one benchmark, such as minerva_math500 math500, and hyper-parameters as variables"; fi
    METHODS=${METHODS:-ets$(moves)}
    if [ -z "${TOKENS:-}" ]; then M_CANDIDATES=${M_CANDIDATES:-15}; fi
    K_MONTE_CARLO=${K_MONTE_CARLO:-3}
    BLOCK_SIZE=${BLOCK_SIZE:-64}
    MAX_LENGTH=${MAX_LENGTH:-512}
    TEMPERATURE=${TEMPERATURE:-0.7}
    MODEL_PATH=${3:-${MODEL_PATH:-Qwen/Qwen3-8B}}
    OUT=${4:-${OUT:-}}
    export METHODS M_CANDIDATES K_MONTE_CARLO BLOCK_SIZE MAX_LENGTH TEMPERATURE MODEL_PATH OUT
    if [ "$(preset_of "$1")" = gpqa ]; then export SHOTS=${SHOTS:-0}; fi # lm-eval's own number
    if [ -z "${ENDPOINT:-}" ]; then export GEN_DP=${GEN_DP:-8} UTILIZATION=${UTILIZATION:-0.8}; fi
fi
PRESET=$(preset_of "${1:-}")
case "$PRESET" in aime24 | aime25) exec bash "$FOLDER/aime24/eval_aime.sh" "$PRESET" $help ;; esac
exec bash "$FOLDER/qwen/eval.sh" ${PRESET:+"$PRESET"} $help
