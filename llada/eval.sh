#!/usr/bin/env bash
# Measures ETS on a masked-diffusion model (LLaDA). Every hyper-parameter stands in this file, under the paper's
# names in capitals: edit it, or set the variable for one run:
#
#   bash llada/eval.sh                                                          the embedded demonstration
#   NUM_CANDIDATES=8 MONTE_CARLO_NUM=1 GUIDE_STEPS=2 bash llada/eval.sh         with other hyper-parameters
#   MODEL_PATH=GSAI-ML/LLaDA-8B-Instruct SHOTS=4 TEMPERATURE=0.5 GEN_LENGTH=64 STEPS=64 bash llada/eval.sh    your model
#   bash llada/eval.sh math500                                  a benchmark of the paper: gsm8k, humaneval, gpqa
#   DATA=/data/MATH-500 NUM_PROBLEMS=50 bash llada/eval.sh math500    from local files, some of the problems
#   bash llada/eval.sh all                                      the benchmarks, one after the other
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$ROOT/scripts/run_eval.sh"
choose_preset "demo math500 gsm8k humaneval gpqa" "$@"

case "$PRESET" in # what the presets differ in; the benchmarks' numbers are the paper's
demo)
    TASK=${TASK:-sums}                        # the problems
    NUM_PROBLEMS=${NUM_PROBLEMS:-100}         # how many of them
    SHOTS=${SHOTS:-0}                         # solved examples in each prompt; a model that was not trained on them needs some
    MODEL_PATH=${MODEL_PATH:-embedded}        # embedded, a checkpoint's folder or its hub name
    METHODS=${METHODS:-plain,majority,one-step,ets}
    NUM_CANDIDATES=${NUM_CANDIDATES:-4}
    MONTE_CARLO_NUM=${MONTE_CARLO_NUM:-2}
    GEN_LENGTH=${GEN_LENGTH:-24}
    BLOCK_LENGTH=${BLOCK_LENGTH:-8}
    TEMPERATURE=${TEMPERATURE:-2.4}           # high, so that single samples of the embedded model err at random
    ;;
math500)
    TASK=${TASK:-math500}
    GEN_LENGTH=${GEN_LENGTH:-256}
    BLOCK_LENGTH=${BLOCK_LENGTH:-32}
    TEMPERATURE=${TEMPERATURE:-0.5}
    ;;
gsm8k)
    TASK=${TASK:-gsm8k}
    GEN_LENGTH=${GEN_LENGTH:-256}
    BLOCK_LENGTH=${BLOCK_LENGTH:-8}
    TEMPERATURE=${TEMPERATURE:-1.0}
    ;;
humaneval)
    TASK=${TASK:-humaneval}
    STOPS=${STOPS:-answer}                    # where a text ends: completion, with the function's body; answer, nowhere, for one in words and fences
    GEN_LENGTH=${GEN_LENGTH:-512}
    BLOCK_LENGTH=${BLOCK_LENGTH:-32}
    TEMPERATURE=${TEMPERATURE:-0.5}
    ;;
gpqa)
    TASK=${TASK:-gpqa}
    SHOTS=${SHOTS:-5}
    GEN_LENGTH=${GEN_LENGTH:-64}
    BLOCK_LENGTH=${BLOCK_LENGTH:-8}
    TEMPERATURE=${TEMPERATURE:-0.5}
    ;;
esac

# What they share.
MODEL_PATH=${MODEL_PATH:-GSAI-ML/LLaDA-8B-Instruct} # a checkpoint's folder or its hub name; also embedded
METHODS=${METHODS:-plain,greedy,best-of-n,majority,ets} # also one-step
NUM_CANDIDATES=${NUM_CANDIDATES:-15}      # M, candidates per guide step
MONTE_CARLO_NUM=${MONTE_CARLO_NUM:-3}     # K, rollouts per candidate
GUIDE_STEPS=${GUIDE_STEPS:-4}             # I, guide steps; they split the denoising steps evenly
ENERGY_WEIGHT=${ENERGY_WEIGHT:-0.1}       # lambda; the reward is a share of votes, from 0 to 1
BEST_BY=${BEST_BY:-likelihood-per-token}  # reward of best-of-n; also likelihood (favours short texts), self-consistency
POOL=${POOL:-chain}                       # whose votes count: those of this step, or of the chain so far
STEPS=${STEPS:-$GEN_LENGTH}               # denoising steps in all, for the GEN_LENGTH tokens of the canvas
CFG=${CFG:-0}                             # classifier-free guidance; 0: none
REMASKING=${REMASKING:-low_confidence}    # which positions are revealed first: low_confidence, random, margin or entropy
STOP_AT_END=${STOP_AT_END:-}              # True: leave out the blocks after one that holds an end token; the law of texts is the same
NUM_PROBLEMS=${NUM_PROBLEMS:-}            # empty: all
SHOTS=${SHOTS:-}                          # solved examples in each prompt; empty: the task's own number
DATA=${DATA:-}                            # the benchmark's data, a folder or a file; empty: from the hub
SAMPLES=${SAMPLES:-}                      # of the methods without guide steps; empty: as many as compute ETS's token positions
REPEATS=${REPEATS:-}                      # samples of each problem that every method's score is a mean of; empty: 1
SEED=${SEED:-0}
WIDTH=${WIDTH:-16}                        # problems that advance together; results depend on it by rounding errors alone
MEMORY_GIB=${MEMORY_GIB:-}                # for the rows of one forward pass; empty: half of what is free
STOPS=${STOPS:-}                          # of HumanEval alone, see there
UNSAFE_CODE=${UNSAFE_CODE:-}              # 1: run HumanEval's generated code without the sandbox
OUT=${OUT:-}                              # results folder; empty: results/TASK-HASH, by the configuration

REAL="MODEL_PATH=GSAI-ML/LLaDA-8B-Instruct SHOTS=4 TEMPERATURE=0.5 GEN_LENGTH=64 STEPS=64 bash llada/eval.sh"
note "This is the embedded demonstration: a model of 1 million parameters on made-up problems. With a real model, on the same problems: $REAL"
run_eval masked-diffusion --candidates "$NUM_CANDIDATES" --rollouts "$MONTE_CARLO_NUM" --lam "$ENERGY_WEIGHT" \
    --gen-length "$GEN_LENGTH" --steps "$STEPS" --block-length "$BLOCK_LENGTH" --guide-steps "$GUIDE_STEPS" \
    --cfg "$CFG" --remasking "$REMASKING" ${STOP_AT_END:+--stop-at-end "$STOP_AT_END"}
note "That was the embedded demonstration, which shows the method and its cost, not what it does for a real model. With one: $REAL"
