"""The variables of a script such as qwen/eval.sh: `check SCRIPT` refuses others.

`help SCRIPT TOP` prints them with the values of the environment, under the comment of TOP, the script that was called.

A script sets a variable by a line such as `WIDTH=${WIDTH:-8}  # problems that advance together`.
"""

import difflib
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPTS = ("qwen/eval.sh", "llada/eval.sh", "aime24/eval_aime.sh", "scripts/real.sh")
SET = re.compile(r"\b([A-Z][A-Z0-9_]*)=\$\{\1(?::?-[^}]*)?\}")
ENGINE = re.compile(r"^choose_engine *# ([A-Z]*): ([^;]*); or ([A-Z]*): (.*)", re.MULTILINE)
PAIRS = (
    ("M_CANDIDATES", "NUM_CANDIDATES"),
    ("K_MONTE_CARLO", "MONTE_CARLO_NUM"),
    ("LAMBDA_PARAM", "ENERGY_WEIGHT"),
    ("MAX_LENGTH", "GEN_LENGTH"),
    ("BLOCK_SIZE", "BLOCK_LENGTH"),
    ("IS_M_CANDIDATES", "IS_NUM_CANDIDATES"),
    ("NUM_PROMPTS", "NUM_PROBLEMS"),
    ("BUDGETS", "TOKENS"),
    ("MODEL", "MODEL_PATH"),
    ("M", "M_CANDIDATES"),
    ("M", "NUM_CANDIDATES"),
    ("CANDIDATES", "M_CANDIDATES"),
    ("CANDIDATES", "NUM_CANDIDATES"),
    ("K", "K_MONTE_CARLO"),
    ("K", "MONTE_CARLO_NUM"),
    ("ROLLOUTS", "K_MONTE_CARLO"),
    ("ROLLOUTS", "MONTE_CARLO_NUM"),
    ("LAM", "LAMBDA_PARAM"),
    ("LAM", "ENERGY_WEIGHT"),
    ("LAMBDA", "LAMBDA_PARAM"),
    ("LAMBDA", "ENERGY_WEIGHT"),
)
"""One setting by its names: in scripts of different families, and as an option of `ets`."""
ALSO = "PRINT_ONLY"
SIMILAR, LEAST = 0.8, 6
"""The similarity of a misspelt name, and the letters of the shortest name that is compared."""


def settable(script: Path) -> dict[str, str]:
    """Comment by variable; the variables of all presets, which begin a line, stand first."""
    first: dict[str, str] = {}
    further: dict[str, str] = {}
    for line in script.read_text(encoding="utf-8").splitlines():
        comment = line.partition(" # ")[2].strip()
        for name in SET.findall(line):
            (first if line.startswith(f"{name}=") else further).setdefault(name, comment)
    return first | {name: found for name, found in further.items() if name not in first}


def print_help(script: Path, top: Path, values: Mapping[str, str]) -> None:
    """The comment at the top of the script that was called, and the variables of a script with their values."""
    lines = settable(script)
    if engine := ENGINE.search(script.read_text(encoding="utf-8")):
        lines |= {engine[1]: engine[2], engine[3]: engine[4]}
    lines[ALSO] = "1: print the command of ets instead of running it"
    opening = re.match(r"#!.*\n((?:#.*\n)*)", top.read_text(encoding="utf-8"))
    print(re.sub(r"^# ?", "", opening[1] if opening else "", flags=re.MULTILINE))
    preset = f" for the preset {values['PRESET']}; PRESET --help shows those of another" if "PRESET" in values else ""
    print(f"Variables, with their defaults{preset}:")
    for name, comment in lines.items():
        print(f"  {name + '=' + values.get(name, ''):32} {comment}".rstrip())


def problem(script: Path, environment: dict[str, str]) -> str:
    """What is wrong with the first variable of the environment that the script does not have; empty if nothing is."""
    content = "\n".join(path.read_text(encoding="utf-8") for path in (script, ROOT / "scripts/setup.sh"))
    code = re.sub(r"(^|\s)#.*", "", content, flags=re.MULTILINE)
    own = {*settable(script), ALSO, *re.findall(r"\b(?:ENGINE|ENDPOINT)\b", script.read_text(encoding="utf-8"))}
    known = {*own, *re.findall(r"\b[A-Z][A-Z0-9_]*\b", code)}
    elsewhere = {name for other in SCRIPTS for name in settable(ROOT / other)}
    for name in sorted(environment):
        if not environment[name] or name in known or not re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
            continue
        candidates = [each for each in own if len(each) >= LEAST] if len(name) >= LEAST else []
        twins = [other for pair in PAIRS if name in pair for other in pair if other != name and other in own]
        near = twins or difflib.get_close_matches(name, candidates, 1, SIMILAR)
        if near:
            return f"{name} is no variable of this script; set {near[0]}"
        if name in elsewhere:
            return f"{name} is no variable of this script but of another one; leave it out"
    return ""


def main() -> int:
    action, script = sys.argv[1], Path(sys.argv[2])
    if action == "help":
        print_help(script, Path(sys.argv[3]), os.environ)
        return 0
    if found := problem(script, dict(os.environ)):
        print(f"error: {found}", file=sys.stderr)
    return 2 if found else 0


if __name__ == "__main__":
    sys.exit(main())
