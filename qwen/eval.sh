#!/usr/bin/env bash
# Measures ETS on an autoregressive model, through transformers or, as qwen_vllm/eval.sh, vLLM. Every hyper-parameter stands in this file: edit it, or set the
# variable for one run:
#
#   bash qwen/eval.sh                                                   the embedded demonstration
#   M_CANDIDATES=5 K_MONTE_CARLO=2 BLOCK_SIZE=16 bash qwen/eval.sh      with other hyper-parameters
#   MODEL_PATH=Qwen/Qwen3-1.7B-Base SHOTS=4 TEMPERATURE=1.0 bash qwen/eval.sh           your model (a folder or hub name)
#   bash qwen/eval.sh demo-is                                           the same with ETS-IS: a small model draws its rollouts
#   bash qwen/eval.sh math500                                           a benchmark of the paper: gsm8k, humaneval, gpqa
#   DATA=/data/MATH-500 NUM_PROBLEMS=50 bash qwen/eval.sh math500       from local files, some of the problems
#   MODEL_PATH=/models/rl METHODS=greedy bash qwen/eval.sh math500      the paper's comparison: a checkpoint trained with RL
#   TOKENS=20000 bash qwen/eval.sh math500                              every method at so many generated tokens per problem
#   SMALL_MODEL_PATH=Qwen/Qwen3-1.7B bash qwen/eval.sh math500          with ETS-IS among the methods, as in the paper
#   CHAT=1 THINKING=off bash qwen/eval.sh gsm8k                         prompts by the checkpoint's chat template: docs/chat.md
#   bash qwen/eval.sh all                                               the benchmarks of the paper, one after the other
#   DATA=HumanEvalPlus.jsonl.gz bash qwen/eval.sh humaneval-plus        further benchmarks: mbpp-plus, ifeval, see docs/tasks.md
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$ROOT/scripts/run_eval.sh"
choose_engine                                 # ENGINE: transformers or vllm; or ENDPOINT: the address of a server
FURTHER="humaneval-plus mbpp-plus ifeval"     # presets that the paper does not have
choose_preset "demo${TRANSFORMERS:+ demo-is} math500 gsm8k humaneval gpqa" "$@"

if [ "$PRESET" = demo-is ]; then SMALL_MODEL_PATH=${SMALL_MODEL_PATH:-embedded-small}; fi # all else is as in demo
SMALL_MODEL_PATH=${SMALL_MODEL_PATH:-}        # draws ETS-IS's rollouts, with the model's own tokens; empty: METHODS are without ets-is
refuse_without_proposal
TOKENS=${TOKENS:-}                            # the budget in generated tokens per problem, in place of M; empty: what ETS costs at M_CANDIDATES
if [ -n "$TOKENS" ]; then                     # the sizes of all methods follow from it
    refuse_set "the budget is TOKENS" M_CANDIDATES
    SIZES=${SIZES-} IS_M_CANDIDATES=${IS_M_CANDIDATES-}
fi

case "$PRESET" in # what the presets differ in; the benchmarks' numbers are the paper's
demo | demo-is)
    TASK=${TASK:-arithmetic}                  # the problems
    NUM_PROBLEMS=${NUM_PROBLEMS:-$(problems_of 200)}         # how many of them
    SHOTS=${SHOTS:-0}                         # solved examples in each prompt; a model that was not trained on them needs some
    MODEL_PATH=${MODEL_PATH:-embedded}        # embedded, embedded-small, a checkpoint's folder or its hub name
    METHODS=${METHODS:-plain,majority,one-step,ets${SMALL_MODEL_PATH:+,ets-is}$(moves)}
    M_CANDIDATES=${M_CANDIDATES:-8}
    MAX_LENGTH=${MAX_LENGTH:-96}
    BLOCK_SIZE=${BLOCK_SIZE:-16}
    TEMPERATURE=${TEMPERATURE:-1.9}           # high, so that single samples of the embedded model err at random
    TOP_K=${TOP_K:-} TOP_P=${TOP_P:-}
    ;;
math500)
    TASK=${TASK:-math500}
    BLOCK_SIZE=${BLOCK_SIZE:-64}
    IS_BLOCK_SIZE=${IS_BLOCK_SIZE:-128}       # of ETS-IS
    TEMPERATURE=${TEMPERATURE:-0.7}
    ;;
gsm8k)
    TASK=${TASK:-gsm8k}
    BLOCK_SIZE=${BLOCK_SIZE:-128}
    TEMPERATURE=${TEMPERATURE:-1.5}
    ;;
humaneval | humaneval-plus | mbpp-plus)
    TASK=${TASK:-$PRESET}
    STOPS=${STOPS:-${CHAT:+answer}}
    STOPS=${STOPS:-completion}                # where a text ends: completion, with the function's body; answer, nowhere, for one in words and fences
    M_CANDIDATES=${M_CANDIDATES:-20}
    IS_M_CANDIDATES=${IS_M_CANDIDATES-10}    # of ETS-IS
    BLOCK_SIZE=${BLOCK_SIZE:-64}
    TEMPERATURE=${TEMPERATURE:-0.25}
    ;;
gpqa)
    TASK=${TASK:-gpqa}
    SHOTS=${SHOTS:-5}
    NUM_BEAMS=${NUM_BEAMS:-50}
    BLOCK_SIZE=${BLOCK_SIZE:-64}
    TEMPERATURE=${TEMPERATURE:-0.25}
    ;;
ifeval)
    TASK=${TASK:-ifeval}
    REWARD=${REWARD:-ets.tasks.ifeval:ifeval} # the share of the prompt's instructions that a text follows; there is no vote
    METHODS=${METHODS:-base,plain,greedy,${TRANSFORMERS:+beam,}best-of-n,one-step,ets${SMALL_MODEL_PATH:+,ets-is}$(moves)}
    BEST_BY=${BEST_BY:-$REWARD}
    MAX_LENGTH=${MAX_LENGTH:-1280}            # lm-eval's
    BLOCK_SIZE=${BLOCK_SIZE:-320}
    TEMPERATURE=${TEMPERATURE:-0.7}
    ;;
esac

# What they share.
MODEL_PATH=${MODEL_PATH:-Qwen/Qwen3-8B}       # a checkpoint's folder or its hub name; also embedded, embedded-small
                                              # Qwen3-8B answers chats, and the presets prompt it without its template, as the paper does;
                                              # with it: CHAT=1 THINKING=off, or a longer MAX_LENGTH and THINKING=on
METHODS=${METHODS:-base,plain,greedy,${TRANSFORMERS:+beam,}best-of-n,majority,ets${SMALL_MODEL_PATH:+,ets-is}$(moves)} # also one-step
M_CANDIDATES=${M_CANDIDATES:-15}              # M, candidates per guide step
K_MONTE_CARLO=${K_MONTE_CARLO:-3}             # K, rollouts per candidate
LAMBDA_PARAM=${LAMBDA_PARAM:-0.1}             # lambda, in units of the reward
REWARD=${REWARD:-majority}                    # of one-step, ets, ets-is, refined: majority, 1 for the majority answer (the paper's); share, of votes; likelihood…
POOL=${POOL:-chain}                           # whose votes count: those of this step, or of the chain so far
BEST_BY=${BEST_BY:-majority}                  # reward of best-of-n: majority, share, likelihood-per-token, likelihood (favours short texts)
MINIMUM_VOTES=${MINIMUM_VOTES:-}              # that an answer needs to be the majority's; empty: 1
SIZES=${SIZES-best-of-n=$M_CANDIDATES}        # N of single methods; best-of-n=M is the paper's. The others, and all if empty: as many as cost what ETS costs
BASE_TEMPERATURE=${BASE_TEMPERATURE:-0.7}     # of the row base, which is the paper's "Base"; the row plain is at ETS's own law, for equal cost
BASE_TOP_K=${BASE_TOP_K:-20}                  # none: all tokens
BASE_TOP_P=${BASE_TOP_P:-0.8}                 # none: all tokens
MAX_LENGTH=${MAX_LENGTH:-512}                 # tokens in all; I = MAX_LENGTH / BLOCK_SIZE guide steps, rounded up
TOP_K=${TOP_K-${TRANSFORMERS:+checkpoint}}    # checkpoint: its generation_config's, as in the paper's transformers runs, and for a small model its own; empty: all tokens
TOP_P=${TOP_P-${TRANSFORMERS:+checkpoint}}    # the same; through vLLM the paper's runs have neither
NUM_BEAMS=${NUM_BEAMS:-20}                    # of beam search
IS_M_CANDIDATES=${IS_M_CANDIDATES-$M_CANDIDATES} # M of ETS-IS
IS_BLOCK_SIZE=${IS_BLOCK_SIZE:-$BLOCK_SIZE}   # tokens per guide step of ETS-IS
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
DATA=${DATA:-}                                # the benchmark's data, a folder or a file; empty: from the hub, which humaneval-plus and mbpp-plus are not on
SAMPLES=${SAMPLES:-}                          # of the methods without guide steps; empty: as many as generate ETS's tokens
REPEATS=${REPEATS:-}                          # samples of each problem that every method's score is a mean of; empty: 1
SEED=${SEED:-0}
WIDTH=${WIDTH:-16}                            # problems that advance together; results depend on it by rounding errors alone
PROCESSES=${PROCESSES:-1}                     # transformers: processes that share the problems, each on a GPU of its own: docs/clusters.md
DTYPE=${DTYPE:-}                              # of the weights: float32, bfloat16, float16; empty: float32 on a CPU, else the checkpoint's
MEMORY_GIB=${MEMORY_GIB:-}                    # for the cache of rows under way; empty: half of what is free; vLLM: by UTILIZATION, on a CPU 2
GEN_DP=${GEN_DP:-1}                           # vLLM: copies of the model
GEN_TP=${GEN_TP:-1}                           # vLLM: GPUs of each copy, which share its weights
UTILIZATION=${UTILIZATION:-0.9}               # vLLM: the share of a GPU's memory that it may take
SERVED_MODEL=${SERVED_MODEL:-}                # ENDPOINT: the server's name for the model; empty: the only one that it serves
CONNECTIONS=${CONNECTIONS:-}                  # ENDPOINT: requests under way at once; empty: 256
ROW_SECONDS=${ROW_SECONDS:-}                  # ENDPOINT: how long a row may take before it is asked for again; empty: 1800
STOPS=${STOPS:-}                              # of the benchmarks of code alone, see humaneval
UNSAFE_CODE=${UNSAFE_CODE:-}                  # 1: run generated code without the sandbox
OUT=${OUT:-}                                  # results folder; empty: results/TASK-HASH, by the configuration
WANDB=${WANDB:-}                              # a project of Weights & Biases that the results are logged to; empty: none

REAL="MODEL_PATH=Qwen/Qwen3-1.7B-Base SHOTS=4 TEMPERATURE=1.0 bash qwen${VLLM:+_vllm}${SERVED:+_vllm}/eval.sh"
REAL="${SERVED:+ENDPOINT=http://its.server/v1 }$REAL"
note "This is the embedded demonstration: a model of 1.7 million parameters on made-up problems. With a real model, on the same problems: $REAL"
run_eval "$ENGINE" $(budget_of "$M_CANDIDATES") --rollouts "$K_MONTE_CARLO" --lam "$LAMBDA_PARAM" --beams "$NUM_BEAMS" \
    --max-length "$MAX_LENGTH" --block-size "$BLOCK_SIZE" --base-temperature "$BASE_TEMPERATURE" \
    --base-top-k "$BASE_TOP_K" --base-top-p "$BASE_TOP_P" ${TOP_K:+--top-k "$TOP_K"} ${TOP_P:+--top-p "$TOP_P"} \
    ${SMALL_MODEL_PATH:+--proposal "$SMALL_MODEL_PATH" --proposal-temperature "$PROPOSAL_TEMPERATURE"} \
    ${SMALL_MODEL_PATH:+${PROPOSAL_ENGINE:+--proposal-engine "$PROPOSAL_ENGINE" ${PROPOSAL_UTILIZATION:+--proposal-utilization "$PROPOSAL_UTILIZATION"}}} \
    ${SMALL_MODEL_PATH:+${IS_M_CANDIDATES:+--is-candidates "$IS_M_CANDIDATES"} --is-block-size "$IS_BLOCK_SIZE"} \
    ${CLIP:+--clip="$CLIP"} ${VLLM:+--replicas "$GEN_DP" --tensor-parallel "$GEN_TP" --utilization "$UTILIZATION"} \
    ${SERVED:+--endpoint "$ENDPOINT"} ${SERVED_MODEL:+--served-model "$SERVED_MODEL"} \
    ${CONNECTIONS:+--connections "$CONNECTIONS"} ${ROW_SECONDS:+--seconds "$ROW_SECONDS"}
note "That was the embedded demonstration, which shows the method and its cost, not what it does for a real model. With one: $REAL"
