#!/usr/bin/env bash
# Measures ETS on a masked-diffusion model (LLaDA). Every hyper-parameter stands in this file, under the paper's
# names in capitals: edit it, or set the variable for one run:
#
#   bash llada/eval.sh                                                          the embedded demonstration
#   NUM_CANDIDATES=8 MONTE_CARLO_NUM=1 GUIDE_STEPS=2 bash llada/eval.sh         with other hyper-parameters
#   MODEL_PATH=GSAI-ML/LLaDA-8B-Instruct SHOTS=4 TEMPERATURE=0.5 GEN_LENGTH=64 STEPS=64 bash llada/eval.sh    your model
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PRESET="${1:-demo}"

case "$PRESET" in
demo)
    TASK=${TASK:-sums}                        # the problems
    NUM_PROBLEMS=${NUM_PROBLEMS:-100}         # how many of them
    SHOTS=${SHOTS:-0}                         # solved examples in each prompt; a model that was not trained on them needs some
    MODEL_PATH=${MODEL_PATH:-embedded}        # embedded, a checkpoint's folder or its hub name
    METHODS=${METHODS:-plain,majority,one-step,ets}
    NUM_CANDIDATES=${NUM_CANDIDATES:-4}       # M, candidates per guide step
    MONTE_CARLO_NUM=${MONTE_CARLO_NUM:-2}     # K, rollouts per candidate
    ENERGY_WEIGHT=${ENERGY_WEIGHT:-0.1}       # lambda; the reward is a share of votes, from 0 to 1
    POOL=${POOL:-chain}                       # whose votes count: those of this step, or of the chain so far
    GEN_LENGTH=${GEN_LENGTH:-24}              # tokens of the canvas
    STEPS=${STEPS:-24}                        # denoising steps in all
    BLOCK_LENGTH=${BLOCK_LENGTH:-8}           # tokens of a block; blocks are filled from left to right
    GUIDE_STEPS=${GUIDE_STEPS:-4}             # I, guide steps; they split the denoising steps evenly
    TEMPERATURE=${TEMPERATURE:-2.4}           # high, so that single samples of the embedded model err at random
    CFG=${CFG:-0}                             # classifier-free guidance; 0: none
    REMASKING=${REMASKING:-low_confidence}    # which positions are revealed first: low_confidence, random, margin or entropy
    SAMPLES=${SAMPLES:-}                      # of the other methods; empty: as many as compute ETS's token positions
    SEED=${SEED:-0}
    WIDTH=${WIDTH:-16}                        # problems that advance together; results depend on it by rounding errors alone
    MEMORY_GIB=${MEMORY_GIB:-}                # for the rows of one forward pass; empty: half of what is free
    OUT=${OUT:-}                              # results folder; empty: results/TASK-HASH, by the configuration
    ;;
*)
    echo "error: unknown preset '$PRESET'; the presets that work are: demo" >&2
    exit 2
    ;;
esac

if [ $# -gt 1 ]; then
    echo "error: unexpected argument '$2'; set hyper-parameters as variables, for example: NUM_CANDIDATES=5 bash llada/eval.sh" >&2
    exit 2
fi
REAL="MODEL_PATH=GSAI-ML/LLaDA-8B-Instruct SHOTS=4 TEMPERATURE=0.5 GEN_LENGTH=64 STEPS=64 bash llada/eval.sh"
note() { if [ "$MODEL_PATH" = embedded ]; then echo "$1"; fi; }

note "This is the embedded demonstration: a model of 1 million parameters on made-up problems. With a real model, on the same problems: $REAL"
source "$ROOT/scripts/setup.sh" eval
export TRANSFORMERS_VERBOSITY=error HF_HUB_DISABLE_PROGRESS_BARS=1
"$PYTHON" -P -m ets eval --engine masked-diffusion --task "$TASK" --model "$MODEL_PATH" --count "$NUM_PROBLEMS" --shots "$SHOTS" \
    --methods "$METHODS" --candidates "$NUM_CANDIDATES" --rollouts "$MONTE_CARLO_NUM" --lam "$ENERGY_WEIGHT" --pool "$POOL" \
    --gen-length "$GEN_LENGTH" --steps "$STEPS" --block-length "$BLOCK_LENGTH" --guide-steps "$GUIDE_STEPS" \
    --temperature "$TEMPERATURE" --cfg "$CFG" --remasking "$REMASKING" ${SAMPLES:+--samples "$SAMPLES"} --seed "$SEED" \
    --width "$WIDTH" --results "$ROOT/results" ${MEMORY_GIB:+--memory-gib "$MEMORY_GIB"} ${OUT:+--out "$OUT"}
note "That was the embedded demonstration, which shows the method and its cost, not what it does for a real model. With one: $REAL"
