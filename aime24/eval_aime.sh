#!/usr/bin/env bash
# AIME 2024 or 2025, avg@32: every method draws REPEATS samples of each problem, each with its own seed, and the interval
# is one over problems. Edit the numbers, or set a variable for one run:
#
#   bash aime24/eval_aime.sh
#   bash aime24/eval_aime.sh aime25                                     the problems of 2025, which the paper does not have
#   SMALL_MODEL_PATH=Qwen/Qwen3-1.7B bash aime24/eval_aime.sh           with ETS-IS among the methods
#   TOKENS=200000 bash aime24/eval_aime.sh                              every method at so many generated tokens per sample
#   ENGINE=vllm bash aime24/eval_aime.sh                                through vLLM, which has no beam search and no ETS-IS
#   ENDPOINT=http://localhost:8000/v1 bash aime24/eval_aime.sh          through a server that serves MODEL_PATH: docs/clusters.md
#   CHAT=1 THINKING=off bash aime24/eval_aime.sh                        prompts by the checkpoint's chat template: docs/chat.md
#   DATA=/data/AIME-2024 METHODS=plain,ets REPEATS=4 bash aime24/eval_aime.sh
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$ROOT/scripts/run_eval.sh"
choose_engine                                 # ENGINE: transformers or vllm; or ENDPOINT: the address of a server
FURTHER=aime25                                # a preset that the paper does not have
choose_preset "aime24" "$@"

TASK=$PRESET
MODEL_PATH=${MODEL_PATH:-Qwen/Qwen3-8B}       # a checkpoint's folder or its hub name; also embedded
                                              # Qwen3-8B answers chats, and is prompted without its template, as in the paper; with it: CHAT=1
SMALL_MODEL_PATH=${SMALL_MODEL_PATH:-}        # draws ETS-IS's rollouts, with the model's own tokens; empty: METHODS are without ets-is
refuse_without_proposal
TOKENS=${TOKENS:-}                            # the budget in generated tokens per sample, in place of M; empty: what ETS costs at M_CANDIDATES
if [ -n "$TOKENS" ]; then                     # the sizes of all methods follow from it
    refuse_set "the budget is TOKENS" M_CANDIDATES
    SIZES=${SIZES-} IS_M_CANDIDATES=${IS_M_CANDIDATES-}
fi
METHODS=${METHODS:-base,plain,greedy,${TRANSFORMERS:+beam,}best-of-n,majority,one-step,ets${SMALL_MODEL_PATH:+,ets-is}$(moves)}
REPEATS=${REPEATS:-32}                        # samples of each problem that are averaged, for every method
M_CANDIDATES=${M_CANDIDATES:-5}               # M, candidates per guide step
K_MONTE_CARLO=${K_MONTE_CARLO:-3}             # K, rollouts per candidate
LAMBDA_PARAM=${LAMBDA_PARAM:-0.1}             # lambda, in units of the reward
REWARD=${REWARD:-majority}                    # of one-step, ets, ets-is, refined: majority, 1 for the majority answer (the paper's); share, of votes; likelihood…
POOL=${POOL:-chain}                           # whose votes count: those of this step, or of the chain so far
BEST_BY=${BEST_BY:-majority}                  # reward of best-of-n: majority, share, likelihood-per-token, likelihood (favours short texts)
MINIMUM_VOTES=${MINIMUM_VOTES:-}              # that an answer needs to be the majority's; empty: 1
SIZES=${SIZES-best-of-n=$M_CANDIDATES,one-step=20} # N of single methods; the paper's best-of-N for AIME is one-step ETS of 20. The others, and all if empty: as many as cost what ETS costs
BASE_TEMPERATURE=${BASE_TEMPERATURE:-0.7}     # of the row base, which is the paper's "Base"; the row plain is at ETS's own law, for equal cost
BASE_TOP_K=${BASE_TOP_K:-20}                  # none: all tokens
BASE_TOP_P=${BASE_TOP_P:-0.8}                 # none: all tokens
MAX_LENGTH=${MAX_LENGTH:-6144}                # tokens in all
BLOCK_SIZE=${BLOCK_SIZE:-2048}                # tokens per guide step: I = MAX_LENGTH / BLOCK_SIZE, rounded up
TEMPERATURE=${TEMPERATURE:-0.7}
TOP_K=${TOP_K-${TRANSFORMERS:+checkpoint}}    # checkpoint: its generation_config's, as in the paper's transformers runs, and for a small model its own; empty: all tokens
TOP_P=${TOP_P-${TRANSFORMERS:+checkpoint}}    # the same; through vLLM the paper's runs have neither
NUM_BEAMS=${NUM_BEAMS:-50}                    # of beam search
IS_M_CANDIDATES=${IS_M_CANDIDATES-$M_CANDIDATES} # M of ETS-IS
IS_BLOCK_SIZE=${IS_BLOCK_SIZE:-1536}           # tokens per guide step of ETS-IS
PROPOSAL_TEMPERATURE=${PROPOSAL_TEMPERATURE:-$TEMPERATURE} # of the small model
PROPOSAL_ENGINE=${PROPOSAL_ENGINE:-}          # of the small model: vllm; empty: transformers
PROPOSAL_UTILIZATION=${PROPOSAL_UTILIZATION:-} # PROPOSAL_ENGINE=vllm: the share of a GPU's memory that it may take; empty: 0.3
CLIP=${CLIP:-}                                # LOW,HIGH, bounds on ETS-IS's importance ratios, such as 0.1,10; empty: none
NUM_PROBLEMS=${NUM_PROBLEMS:-}                # empty: all
SHOTS=${SHOTS:-}                              # solved examples in each prompt; empty: the task's own number
CHAT=${CHAT:-}                                # 1: prompts by the checkpoint's chat template; or the name or the file of one; empty: bare text
SYSTEM=${SYSTEM:-}                            # CHAT: the text of the system turn; empty: none
THINKING=${THINKING:-}                        # CHAT: on or off, where the template knows enable_thinking; empty: its own choice
FEWSHOT_AS_MULTITURN=${FEWSHOT_AS_MULTITURN:-} # CHAT: 1: worked examples as turns; empty: in the user's turn
CHAT_STOP=${CHAT_STOP:-}                      # CHAT: a string that ends a text; empty: none, the task's are dropped
DATA=${DATA:-}                                # the problems, a folder or a file; empty: from the hub
SAMPLES=${SAMPLES:-}                          # N of best-of-n and majority; empty: as many as generate ETS's tokens
SEED=${SEED:-0}
WIDTH=${WIDTH:-16}                            # samples that advance together; results depend on it by rounding errors alone
PROCESSES=${PROCESSES:-1}                     # transformers: processes that share the problems, each on a GPU of its own: docs/clusters.md
DTYPE=${DTYPE:-}                              # of the weights: float32, bfloat16, float16; empty: float32 on a CPU, else the checkpoint's
MEMORY_GIB=${MEMORY_GIB:-}                    # for the cache of rows under way; empty: half of what is free; vLLM: by UTILIZATION, on a CPU 2
GEN_DP=${GEN_DP:-1}                           # vLLM: copies of the model
GEN_TP=${GEN_TP:-1}                           # vLLM: GPUs of each copy, which share its weights
UTILIZATION=${UTILIZATION:-0.9}               # vLLM: the share of a GPU's memory that it may take
SERVED_MODEL=${SERVED_MODEL:-}                # ENDPOINT: the server's name for the model; empty: the only one that it serves
CONNECTIONS=${CONNECTIONS:-}                  # ENDPOINT: requests under way at once; empty: 256
ROW_SECONDS=${ROW_SECONDS:-}                  # ENDPOINT: how long a row may take before it is asked for again; empty: 1800
OUT=${OUT:-}                                  # results folder; empty: results/TASK-HASH, by the configuration
WANDB=${WANDB:-}                              # a project of Weights & Biases that the results are logged to; empty: none

run_eval "$ENGINE" $(budget_of "$M_CANDIDATES") --rollouts "$K_MONTE_CARLO" --lam "$LAMBDA_PARAM" --beams "$NUM_BEAMS" \
    --max-length "$MAX_LENGTH" --block-size "$BLOCK_SIZE" --base-temperature "$BASE_TEMPERATURE" \
    --base-top-k "$BASE_TOP_K" --base-top-p "$BASE_TOP_P" ${TOP_K:+--top-k "$TOP_K"} ${TOP_P:+--top-p "$TOP_P"} \
    ${SMALL_MODEL_PATH:+--proposal "$SMALL_MODEL_PATH" --proposal-temperature "$PROPOSAL_TEMPERATURE"} \
    ${SMALL_MODEL_PATH:+${PROPOSAL_ENGINE:+--proposal-engine "$PROPOSAL_ENGINE" ${PROPOSAL_UTILIZATION:+--proposal-utilization "$PROPOSAL_UTILIZATION"}}} \
    ${SMALL_MODEL_PATH:+${IS_M_CANDIDATES:+--is-candidates "$IS_M_CANDIDATES"} --is-block-size "$IS_BLOCK_SIZE"} \
    ${CLIP:+--clip="$CLIP"} ${VLLM:+--replicas "$GEN_DP" --tensor-parallel "$GEN_TP" --utilization "$UTILIZATION"} \
    ${SERVED:+--endpoint "$ENDPOINT"} ${SERVED_MODEL:+--served-model "$SERVED_MODEL"} \
    ${CONNECTIONS:+--connections "$CONNECTIONS"} ${ROW_SECONDS:+--seconds "$ROW_SECONDS"}
