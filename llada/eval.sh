#!/usr/bin/env bash
# Measures ETS on a masked-diffusion model (LLaDA, iLLaDA, Dream, DiffuCoder). Every hyper-parameter stands in this file, under the paper's
# names in capitals: edit it, or set the variable for one run:
#
#   bash llada/eval.sh                                                          the embedded demonstration
#   NUM_CANDIDATES=8 MONTE_CARLO_NUM=1 GUIDE_STEPS=2 bash llada/eval.sh         with other hyper-parameters
#   MODEL_PATH=GSAI-ML/LLaDA-8B-Instruct SHOTS=4 TEMPERATURE=0.5 GEN_LENGTH=64 STEPS=64 bash llada/eval.sh    your model
#   MODEL_PATH=google/diffusiongemma-26B-A4B-it CHAT=1 GEN_LENGTH=512 bash llada/eval.sh gsm8k    uniform diffusion instead
#   bash llada/eval.sh demo-is                                  the same with ETS-IS: on a fast sampler, with a cache
#   LEVEL=1 bash llada/eval.sh demo-is                          its samples weighed towards the exact sampler
#   bash llada/eval.sh math500                                  a benchmark of the paper: gsm8k, humaneval, gpqa
#   DATA=/data/MATH-500 NUM_PROBLEMS=50 bash llada/eval.sh math500    from local files, some of the problems
#   IS_ACCELERATE_AVAILABLE=True bash llada/eval.sh math500     with ETS-IS among the methods: LEVEL 0, the dual cache
#   CHAT=1 bash llada/eval.sh gsm8k                             prompts by the checkpoint's chat template: docs/chat.md
#   TOKENS=100000 bash llada/eval.sh math500                    every method at so many computed token positions per problem
#   bash llada/eval.sh all                                      the benchmarks of the paper, one after the other
#   DATA=HumanEvalPlus.jsonl.gz bash llada/eval.sh humaneval-plus    further benchmarks: mbpp-plus, ifeval, see docs/tasks.md
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$ROOT/scripts/run_eval.sh"
MASKED="TEMPERATURE STEPS BLOCK_LENGTH CFG REMASKING QUOTAS EPS ALG_TEMP LOGITS_EOS_INF CONFIDENCE_EOS_EOT_INF STOP_AT_END CACHE REFRESH THRESHOLD FACTOR LEVEL CLIP FAST_CACHE \
    FAST_REFRESH FAST_THRESHOLD FAST_FACTOR FAST_REMASKING FAST_TEMPERATURE IS_NUM_CANDIDATES IS_ACCELERATE_AVAILABLE NUM_BEAMS"
UNIFORM="MAX_DENOISING_STEPS T_MAX T_MIN ENTROPY_BOUND STABILITY_THRESHOLD CONFIDENCE_THRESHOLD"
if [ -n "${ENDPOINT:-}" ]; then refuse "ENDPOINT is set, but no server runs diffusion; leave it out, or use qwen_vllm/eval.sh"; fi
refuse_set "diffusion has no top-k and top-p, and no row base" TOP_K TOP_P BASE_TEMPERATURE BASE_TOP_K BASE_TOP_P
FURTHER="humaneval-plus mbpp-plus ifeval" # presets that the paper does not have
choose_preset "demo demo-is math500 gsm8k humaneval gpqa" "$@"
if [ "$PRESET" = ifeval ]; then REWARD=${REWARD:-ets.tasks.ifeval:ifeval}; fi # the share of the prompt's instructions that a text follows; there is no vote
TOKENS=${TOKENS:-}                        # the budget in computed token positions per problem, in place of M; empty: what ETS costs at NUM_CANDIDATES
if [ -n "$TOKENS" ]; then                 # the sizes of all methods follow from it
    refuse_set "the budget is TOKENS" NUM_CANDIDATES
    SIZES=${SIZES-} IS_NUM_CANDIDATES=${IS_NUM_CANDIDATES-}
fi
FAMILY=$(diffusion_family "${MODEL_PATH:-embedded}")
case "$FAMILY" in # the presets' blocks are LLaDA's; other families have blocks of their own
diffusion_gemma) ENGINE=${ENGINE:-uniform-diffusion} ;;
llada) ;;
sdar | sdar_moe | llada2_moe | Fast_dLLM_Qwen) BLOCK_LENGTH=${BLOCK_LENGTH-} FAST_CACHE=${FAST_CACHE-} ;; # their cache is exact
*) BLOCK_LENGTH=${BLOCK_LENGTH-} ;;
esac
ENGINE=${ENGINE:-masked-diffusion}        # or uniform-diffusion, by the checkpoint
case "$ENGINE" in
masked-diffusion) refuse_set "$ENGINE has no such setting (ENGINE=uniform-diffusion)" $UNIFORM ;;
uniform-diffusion)
    refuse_set "$ENGINE has no such setting; its checkpoint or $UNIFORM set its law" $MASKED
    if [ "$PRESET" = demo-is ]; then refuse "$ENGINE has no faster sampler, which demo-is compares; choose demo"; fi
    METHODS=${METHODS:-plain,$(if [ "$PRESET" != ifeval ]; then echo majority,; fi)best-of-n,one-step,ets$(moves)}
    ;;
*) refuse "ENGINE is '$ENGINE'; set it to masked-diffusion or uniform-diffusion" ;;
esac

if [ "$PRESET" = demo-is ]; then IS_ACCELERATE_AVAILABLE=${IS_ACCELERATE_AVAILABLE:-True}; fi # all else is as in demo
case ",${METHODS:-}," in *,ets-is,*) IS_ACCELERATE_AVAILABLE=${IS_ACCELERATE_AVAILABLE:-True} ;; esac
IS_ACCELERATE_AVAILABLE=${IS_ACCELERATE_AVAILABLE:-${LEVEL:+True}} # True: METHODS are with ets-is; so they are with a LEVEL
case "$IS_ACCELERATE_AVAILABLE" in
True | 1) ;;
"" | False | 0) IS_ACCELERATE_AVAILABLE= ;;
*) refuse "IS_ACCELERATE_AVAILABLE is '$IS_ACCELERATE_AVAILABLE'; set it to True, or leave it empty" ;;
esac
LEVEL=${LEVEL:-0}                         # of ETS-IS: 0, its p_ref is the fast sampler; 1, 1F or 2, it is weighed towards the exact one

case "$PRESET" in # what the presets differ in; the benchmarks' numbers are the paper's
demo | demo-is)
    TASK=${TASK:-sums}                        # the problems
    NUM_PROBLEMS=${NUM_PROBLEMS:-$(problems_of 100)}         # how many of them
    SHOTS=${SHOTS:-0}                         # solved examples in each prompt; a model that was not trained on them needs some
    MODEL_PATH=${MODEL_PATH:-embedded}        # embedded, a checkpoint's folder or its hub name
    METHODS=${METHODS:-plain,majority,one-step,ets${IS_ACCELERATE_AVAILABLE:+,ets-is}$(moves)}
    NUM_CANDIDATES=${NUM_CANDIDATES:-4}
    MONTE_CARLO_NUM=${MONTE_CARLO_NUM:-2}
    GEN_LENGTH=${GEN_LENGTH:-24}
    BLOCK_LENGTH=${BLOCK_LENGTH-8}
    TEMPERATURE=${TEMPERATURE:-2.4}           # high, so that single samples of the embedded model err at random
    if [ "$LEVEL" != 1F ] && [ -z "${FAST_FACTOR:-}" ]; then FAST_THRESHOLD=${FAST_THRESHOLD-0.9}; fi # level 1F has none
    ;;
math500)
    TASK=${TASK:-math500}
    GEN_LENGTH=${GEN_LENGTH:-256}
    BLOCK_LENGTH=${BLOCK_LENGTH-32}
    TEMPERATURE=${TEMPERATURE:-0.5}
    ;;
gsm8k)
    TASK=${TASK:-gsm8k}
    GEN_LENGTH=${GEN_LENGTH:-256}
    BLOCK_LENGTH=${BLOCK_LENGTH-8}
    TEMPERATURE=${TEMPERATURE:-1.0}
    ;;
humaneval | humaneval-plus | mbpp-plus)
    TASK=${TASK:-$PRESET}
    STOPS=${STOPS:-answer}                    # where a text ends: completion, with the function's body; answer, nowhere, for one in words and fences
    GEN_LENGTH=${GEN_LENGTH:-512}
    BLOCK_LENGTH=${BLOCK_LENGTH-32}
    TEMPERATURE=${TEMPERATURE:-0.5}
    ;;
gpqa)
    TASK=${TASK:-gpqa}
    SHOTS=${SHOTS:-5}
    GEN_LENGTH=${GEN_LENGTH:-64}
    BLOCK_LENGTH=${BLOCK_LENGTH-8}
    TEMPERATURE=${TEMPERATURE:-0.5}
    ;;
ifeval)
    TASK=${TASK:-ifeval}
    METHODS=${METHODS:-plain,greedy,best-of-n,one-step,ets${IS_ACCELERATE_AVAILABLE:+,ets-is}$(moves)}
    BEST_BY=${BEST_BY:-$REWARD}
    GEN_LENGTH=${GEN_LENGTH:-512}
    BLOCK_LENGTH=${BLOCK_LENGTH-32}
    TEMPERATURE=${TEMPERATURE:-0.5}
    ;;
esac

# What they share.
MODEL_PATH=${MODEL_PATH:-GSAI-ML/LLaDA-8B-Instruct} # a checkpoint's folder or its hub name; also embedded
                                          # It answers chats, and the presets prompt it without its template, as the paper does; with it: CHAT=1
METHODS=${METHODS:-plain,greedy,best-of-n,majority,ets${IS_ACCELERATE_AVAILABLE:+,ets-is}$(moves)} # also one-step, beam
NUM_CANDIDATES=${NUM_CANDIDATES:-15}      # M, candidates per guide step
MONTE_CARLO_NUM=${MONTE_CARLO_NUM:-3}     # K, rollouts per candidate
GUIDE_STEPS=${GUIDE_STEPS:-4}             # I, guide steps; they split the denoising steps evenly
ENERGY_WEIGHT=${ENERGY_WEIGHT:-0.1}       # lambda, in units of the reward
REWARD=${REWARD:-majority}                # of one-step, ets, ets-is, refined: majority, 1 for the majority answer (the paper's); share, of votes; likelihood…
POOL=${POOL:-chain}                       # whose votes count: those of this step, or of the chain so far
MINIMUM_VOTES=${MINIMUM_VOTES:-2}         # that an answer needs: no reward while no answer occurs twice, as in the authors' code for LLaDA
NUM_BEAMS=${NUM_BEAMS:-$NUM_CANDIDATES}   # of beam search over denoising paths
BEST_BY=${BEST_BY:-majority}              # reward of best-of-n: majority, share, likelihood-per-token, likelihood (favours short texts)
SIZES=${SIZES-best-of-n=$NUM_CANDIDATES}  # N of single methods; best-of-n=M is the paper's. The others, and all if empty: as many as cost what ETS costs
STEPS=${STEPS:-$GEN_LENGTH}               # denoising steps in all, for the GEN_LENGTH tokens of the canvas
CFG=${CFG:-0}                             # classifier-free guidance; 0: none
REMASKING=${REMASKING:-low_confidence}    # which positions are revealed first: low_confidence, largest, random, margin, entropy or
                                          # sequential; Dream's: origin, maskgit_plus, topk_margin, neg_entropy (its name there is entropy)
ALG_TEMP=${ALG_TEMP:-}                    # Dream's noise in the order of positions; empty: none
QUOTAS=${QUOTAS:-}                        # positions that each step reveals: even, or Dream's time; empty: the model family's
EPS=${EPS:-}                              # the last time of QUOTAS=time; empty: 0.001
LOGITS_EOS_INF=${LOGITS_EOS_INF:-}        # True: the end token is never drawn
CONFIDENCE_EOS_EOT_INF=${CONFIDENCE_EOS_EOT_INF:-} # True: drawn end tokens are revealed last, as in LLaDA's own evaluation
STOP_AT_END=${STOP_AT_END:-}              # True: leave out the blocks after one that holds an end token; the law of texts is the same
CACHE=${CACHE:-}                          # dual or prefix: all methods sample with a cache; empty: none
REFRESH=${REFRESH:-}                      # denoising steps of a block after which the whole canvas is computed; empty: once a block
THRESHOLD=${THRESHOLD:-}                  # all methods reveal every position whose confidence reaches it; empty: the family's, LLaDA has none; none
FACTOR=${FACTOR:-}                        # the same, by the factor rule; empty: none
FAST_CACHE=${FAST_CACHE-dual}             # the same four for ETS-IS alone; empty: those above
FAST_REFRESH=${FAST_REFRESH:-}
FAST_THRESHOLD=${FAST_THRESHOLD:-}
FAST_FACTOR=${FAST_FACTOR:-}
case "$LEVEL,$REMASKING" in 1,low_confidence | 1,maskgit_plus) FAST_REMASKING=${FAST_REMASKING:-largest} ;; esac
FAST_REMASKING=${FAST_REMASKING:-}        # of ETS-IS; empty: REMASKING. At level 1 drawn tokens must not decide: largest
FAST_TEMPERATURE=${FAST_TEMPERATURE:-}    # of ETS-IS; empty: TEMPERATURE
IS_NUM_CANDIDATES=${IS_NUM_CANDIDATES-$NUM_CANDIDATES} # M of ETS-IS
CLIP=${CLIP:-}                            # LOW,HIGH, bounds on the ratios of levels 1 and 1F, such as 0.1,10; empty: none
MAX_DENOISING_STEPS=${MAX_DENOISING_STEPS:-} # of a canvas; this and the next five are of uniform diffusion alone
T_MAX=${T_MAX:-}                          # temperature of a canvas's first denoising step; empty, here and below: the checkpoint's
T_MIN=${T_MIN:-}                          # to which it falls linearly
ENTROPY_BOUND=${ENTROPY_BOUND:-}          # nats of the positions that a step accepts
STABILITY_THRESHOLD=${STABILITY_THRESHOLD:-} # steps with the same most probable tokens before a canvas ends early
CONFIDENCE_THRESHOLD=${CONFIDENCE_THRESHOLD:-} # mean entropy below which a canvas ends early; 0: never
NUM_PROBLEMS=${NUM_PROBLEMS:-}            # empty: all
SHOTS=${SHOTS:-}                          # solved examples in each prompt; empty: the task's own number
CHAT=${CHAT:-}                            # 1: prompts by the checkpoint's chat template; or the name or the file of one; empty: bare text
SYSTEM=${SYSTEM:-}                        # CHAT: the text of the system turn; empty: none
THINKING=${THINKING:-}                    # CHAT: on or off, where the template knows enable_thinking; empty: its own choice
FEWSHOT_AS_MULTITURN=${FEWSHOT_AS_MULTITURN:-} # CHAT: 1: worked examples as turns; empty: in the user's turn
CHAT_STOP=${CHAT_STOP:-}                  # CHAT: a string that ends a text; empty: none, the task's are dropped
DATA=${DATA:-}                            # the benchmark's data, a folder or a file; empty: from the hub
SAMPLES=${SAMPLES:-}                      # of the methods without guide steps; empty: as many as compute ETS's token positions
REPEATS=${REPEATS:-}                      # samples of each problem that every method's score is a mean of; empty: 1
SEED=${SEED:-0}
WIDTH=${WIDTH:-16}                        # problems that advance together; results depend on it by rounding errors alone
PROCESSES=${PROCESSES:-1}                 # processes that share the problems, each on a GPU of its own: docs/clusters.md
DTYPE=${DTYPE:-}                          # of the weights: float32, bfloat16, float16; empty: float32 on a CPU, else the checkpoint's
MEMORY_GIB=${MEMORY_GIB:-}                # for the rows of one forward pass; empty: half of what is free
STOPS=${STOPS:-}                          # of the benchmarks of code alone, see humaneval
UNSAFE_CODE=${UNSAFE_CODE:-}              # 1: run generated code without the sandbox
OUT=${OUT:-}                              # results folder; empty: results/TASK-HASH, by the configuration
WANDB=${WANDB:-}                          # a project of Weights & Biases that the results are logged to; empty: none

REAL="MODEL_PATH=GSAI-ML/LLaDA-8B-Instruct SHOTS=4 TEMPERATURE=0.5 GEN_LENGTH=64 STEPS=64 bash llada/eval.sh"
note "This is the embedded demonstration: a model of 1 million parameters on made-up problems. With a real model, on the same problems: $REAL"
if [ "$ENGINE" = uniform-diffusion ]; then
    unset TEMPERATURE # it has T_MIN and T_MAX
    run_eval "$ENGINE" $(budget_of "$NUM_CANDIDATES") --rollouts "$MONTE_CARLO_NUM" --lam "$ENERGY_WEIGHT" \
        --gen-length "$GEN_LENGTH" --guide-steps "$GUIDE_STEPS" \
        ${MAX_DENOISING_STEPS:+--max-denoising-steps "$MAX_DENOISING_STEPS"} \
        ${T_MAX:+--t-max "$T_MAX"} ${T_MIN:+--t-min "$T_MIN"} ${ENTROPY_BOUND:+--entropy-bound "$ENTROPY_BOUND"} \
        ${STABILITY_THRESHOLD:+--stability-threshold "$STABILITY_THRESHOLD"} \
        ${CONFIDENCE_THRESHOLD:+--confidence-threshold "$CONFIDENCE_THRESHOLD"}
    exit
fi
set -- # what ETS-IS has of its own
if [ -n "$IS_ACCELERATE_AVAILABLE" ]; then
    set -- --level "$LEVEL" ${IS_NUM_CANDIDATES:+--is-candidates "$IS_NUM_CANDIDATES"} ${CLIP:+--clip="$CLIP"} \
        ${FAST_CACHE:+--fast-cache "$FAST_CACHE"} ${FAST_REFRESH:+--fast-refresh "$FAST_REFRESH"} \
        ${FAST_THRESHOLD:+--fast-threshold "$FAST_THRESHOLD"} ${FAST_FACTOR:+--fast-factor "$FAST_FACTOR"} \
        ${FAST_REMASKING:+--fast-remasking "$FAST_REMASKING"} ${FAST_TEMPERATURE:+--fast-temperature "$FAST_TEMPERATURE"}
fi
run_eval "$ENGINE" $(budget_of "$NUM_CANDIDATES") --rollouts "$MONTE_CARLO_NUM" --lam "$ENERGY_WEIGHT" --beams "$NUM_BEAMS" \
    --gen-length "$GEN_LENGTH" --steps "$STEPS" ${BLOCK_LENGTH:+--block-length "$BLOCK_LENGTH"} --guide-steps "$GUIDE_STEPS" \
    --cfg "$CFG" --remasking "$REMASKING" ${STOP_AT_END:+--stop-at-end "$STOP_AT_END"} \
    ${CACHE:+--cache "$CACHE"} ${REFRESH:+--refresh "$REFRESH"} ${THRESHOLD:+--threshold "$THRESHOLD"} \
    ${FACTOR:+--factor "$FACTOR"} ${ALG_TEMP:+--alg-temp "$ALG_TEMP"} ${QUOTAS:+--quotas "$QUOTAS"} ${EPS:+--eps "$EPS"} \
    ${LOGITS_EOS_INF:+--logits-eos-inf "$LOGITS_EOS_INF"} \
    ${CONFIDENCE_EOS_EOT_INF:+--confidence-eos-eot-inf "$CONFIDENCE_EOS_EOT_INF"} "$@"
note "That was the embedded demonstration, which shows the method and its cost, not what it does for a real model. With one: $REAL"
