#!/usr/bin/env bash
# Measures ETS on an autoregressive model. Every hyper-parameter stands in this file: edit it, or set the
# variable for one run:
#
#   bash qwen/eval.sh                                                   the embedded demonstration
#   M_CANDIDATES=5 K_MONTE_CARLO=2 BLOCK_SIZE=16 bash qwen/eval.sh      with other hyper-parameters
#   MODEL_PATH=Qwen/Qwen3-1.7B-Base SHOTS=4 TEMPERATURE=1.0 bash qwen/eval.sh           your model (a folder or hub name)
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PRESET="${1:-demo}"

case "$PRESET" in
demo)
    TASK=${TASK:-arithmetic}                  # the problems
    NUM_PROBLEMS=${NUM_PROBLEMS:-200}         # how many of them
    SHOTS=${SHOTS:-0}                         # solved examples in each prompt; a model that was not trained on them needs some
    MODEL_PATH=${MODEL_PATH:-embedded}        # embedded, embedded-small, a checkpoint's folder or its hub name
    METHODS=${METHODS:-plain,majority,one-step,ets}
    M_CANDIDATES=${M_CANDIDATES:-8}           # M, candidates per guide step
    K_MONTE_CARLO=${K_MONTE_CARLO:-3}         # K, rollouts per candidate
    LAMBDA_PARAM=${LAMBDA_PARAM:-0.1}         # lambda; the reward is a share of votes, from 0 to 1
    POOL=${POOL:-chain}                       # whose votes count: those of this step, or of the chain so far
    MAX_LENGTH=${MAX_LENGTH:-96}              # tokens in all
    BLOCK_SIZE=${BLOCK_SIZE:-16}              # tokens per guide step: I = MAX_LENGTH / BLOCK_SIZE, rounded up
    TEMPERATURE=${TEMPERATURE:-1.9}            # high, so that single samples of the embedded model err at random
    TOP_K=${TOP_K:-}                          # empty: all tokens
    TOP_P=${TOP_P:-}                          # empty: all tokens
    SAMPLES=${SAMPLES:-}                      # of the other methods; empty: as many as generate ETS's tokens
    SEED=${SEED:-0}
    WIDTH=${WIDTH:-16}                        # problems that advance together; results depend on it by rounding errors alone
    MEMORY_GIB=${MEMORY_GIB:-}                # for the cache of rows under way; empty: half of what is free
    OUT=${OUT:-}                              # results folder; empty: results/TASK-HASH, by the configuration
    ;;
*)
    echo "error: unknown preset '$PRESET'; the presets that work are: demo" >&2
    exit 2
    ;;
esac

if [ $# -gt 1 ]; then
    echo "error: unexpected argument '$2'; set hyper-parameters as variables, for example: M_CANDIDATES=5 bash qwen/eval.sh" >&2
    exit 2
fi
REAL="MODEL_PATH=Qwen/Qwen3-1.7B-Base SHOTS=4 TEMPERATURE=1.0 bash qwen/eval.sh"
note() { if [ "$MODEL_PATH" = embedded ]; then echo "$1"; fi; }

note "This is the embedded demonstration: a model of 1.7 million parameters on made-up problems. With a real model, on the same problems: $REAL"
source "$ROOT/scripts/setup.sh" eval
export TRANSFORMERS_VERBOSITY=error HF_HUB_DISABLE_PROGRESS_BARS=1
"$PYTHON" -P -m ets eval --task "$TASK" --model "$MODEL_PATH" --count "$NUM_PROBLEMS" --shots "$SHOTS" --methods "$METHODS" \
    --candidates "$M_CANDIDATES" --rollouts "$K_MONTE_CARLO" --lam "$LAMBDA_PARAM" --pool "$POOL" \
    --max-length "$MAX_LENGTH" --block-size "$BLOCK_SIZE" --temperature "$TEMPERATURE" \
    ${TOP_K:+--top-k "$TOP_K"} ${TOP_P:+--top-p "$TOP_P"} ${SAMPLES:+--samples "$SAMPLES"} --seed "$SEED" \
    --width "$WIDTH" --results "$ROOT/results" ${MEMORY_GIB:+--memory-gib "$MEMORY_GIB"} ${OUT:+--out "$OUT"}
note "That was the embedded demonstration, which shows the method and its cost, not what it does for a real model. With one: $REAL"
