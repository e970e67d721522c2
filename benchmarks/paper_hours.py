"""What the paper's runs take, by formula: the tables of docs/paper.md.

    python benchmarks/paper_hours.py
    python benchmarks/paper_hours.py --vllm 9000          with what your machine draws, in tokens per second

Hyper-parameters are those of the presets, asked of the scripts themselves; amounts are the bounds of
`work_formulas.py`, for texts of full length and different canvases. Lengths of prompts and speeds are assumed, not
measured.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

from work_formulas import CanvasWork, TokenWork, Work

from ets import Checkpoint, demo
from ets.cli import parser_of
from ets.commands.evaluate import Plan, plan_of
from ets.policies.registry import fast_sampler_of, policy_of
from ets.report.tables import aligned

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Speeds:
    """Assumed of one H100 with 80 GB in bf16, for many rows at a time, in numbers per second.

    Parameters
    ----------
    vllm, transformers, small : float
        Tokens that are drawn by Qwen3-8B through vLLM and through transformers, and by Qwen3-1.7B through transformers.
    reading : float
        Positions that Qwen3-8B reads, of prompts and of texts that it scores: 16.4 GFLOP each (2 for each parameter),
        at two fifths of the card's 989 TFLOP/s.
    canvas : float
        Positions of LLaDA-8B: 14.5 GFLOP each (its layers, and their attention), at as large a share.
    """

    vllm: float = 6000.0
    transformers: float = 2500.0
    small: float = 5000.0
    reading: float = 24000.0
    canvas: float = 27000.0


@dataclass(frozen=True)
class Benchmark:
    """Its problems, the samples of each, and the assumed length of its prompts with the task's own worked examples."""

    title: str
    preset: str
    problems: int
    prompt: int
    repeats: int = 1


BENCHMARKS = (
    Benchmark("MATH500", "math500", 500, 700),
    Benchmark("GSM8K", "gsm8k", 1319, 850),
    Benchmark("HumanEval", "humaneval", 164, 150),
    Benchmark("GPQA Diamond", "gpqa", 198, 1500),
)
AIME = Benchmark("AIME 2024, avg@32", "aime24", 30, 200, repeats=32)
SMALL = "SMALL_MODEL_PATH=Qwen/Qwen3-1.7B METHODS=ets-is bash"
QWEN = {"ETS": "METHODS=ets bash qwen_vllm/eval.sh", "ETS-IS": f"{SMALL} qwen/eval.sh"}
OF_AIME = {"ETS": "ENGINE=vllm METHODS=ets bash aime24/eval_aime.sh", "ETS-IS": f"{SMALL} aime24/eval_aime.sh"}
LLADA = {"ETS": "METHODS=ets bash llada/eval.sh", "ETS-IS": "METHODS=ets-is bash llada/eval.sh"}
"""What runs a method; the preset stands behind it."""


def plan_for(command: str) -> Plan:
    """The plan of the shell command."""
    words = command.split()
    at = words.index("bash")
    given = dict(word.split("=", 1) for word in words[:at]) | {"PRINT_ONLY": "1"}
    done = subprocess.run(words[at:], cwd=ROOT, env={**os.environ, **given}, capture_output=True, text=True, check=True)
    return plan_of(parser_of().parse_args(shlex.split(done.stdout)[4:]))


def token_work(plan: Plan, prompt: int) -> Work:
    """Of one sample of a problem, at most: an autoregressive model."""
    proposed, values, settings = "ets-is" in plan.methods, plan.values, plan.settings
    block = values["is_block_size" if proposed else "block_size"]
    candidates = settings.is_candidates if proposed and settings.is_candidates else settings.candidates
    formula, longest = TokenWork(block, values["max_length"], proposed), values["max_length"]
    return sum(formula.steps(prompt, candidates, settings.rollouts, [longest]), Work())


def token_seconds(work: Work, proposed: bool, speeds: Speeds) -> float:
    """With a proposal, the candidates are the large model's draws and the rollouts the small one's."""
    read = (work.prompt + work.scored) / speeds.reading
    if proposed:
        return work.candidate / speeds.transformers + work.rollout / speeds.small + read
    return work.generated / speeds.vllm + read


@cache
def _diffusion() -> Checkpoint:
    """Any masked-diffusion checkpoint: the formula looks at the schedule, not at the model."""
    return Checkpoint(demo.model_path("diffusion"))


def canvas_work(plan: Plan, prompt: int) -> Work:
    """Of one sample of a problem, at most: LLaDA."""
    names = ("temperature", "max_length", "guide_steps", "steps", "block_length", "cfg", "remasking")
    law = {name: plan.values[name] for name in names}
    policy = policy_of(_diffusion, engine="masked-diffusion", **law)
    if "ets-is" in plan.methods:
        policy = fast_sampler_of(policy, plan.values["level"], cache=plan.values["fast_cache"])
    formula = CanvasWork(policy)
    return sum(formula.steps(prompt, plan.settings.candidates, plan.settings.rollouts), Work())


def row(benchmark: Benchmark, commands: dict[str, str], speeds: Speeds) -> tuple[str, ...]:
    """The cells of a benchmark."""
    cells = [f"{benchmark.title} (`{benchmark.preset}`)", f"{benchmark.problems:,}", f"{benchmark.prompt:,}"]
    for method, command in commands.items():
        plan = plan_for(f"{command} {benchmark.preset}")
        if commands is LLADA:
            work = canvas_work(plan, benchmark.prompt)
            amount, seconds = work.positions, work.positions / speeds.canvas
        else:
            work = token_work(plan, benchmark.prompt)
            amount, seconds = work.generated, token_seconds(work, method == "ETS-IS", speeds)
        hours = seconds * benchmark.problems * benchmark.repeats / 3600
        cells += [f"{amount:,.0f}", f"{hours:,.1f}"]
    return tuple(cells)


def tables(speeds: Speeds) -> list[str]:
    """A Markdown table for each model."""
    found = []
    for model, unit in (("Qwen3-8B", "tokens"), ("LLaDA-8B", "positions")):
        heads = (model, "problems", "prompt", f"ETS: {unit}", "hours", f"ETS-IS: {unit}", "hours")
        commands = LLADA if model == "LLaDA-8B" else QWEN
        rows = [row(benchmark, commands, speeds) for benchmark in BENCHMARKS]
        rows += [row(AIME, OF_AIME, speeds)] * (model == "Qwen3-8B")
        found.append(aligned([heads, *rows]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for speed in fields(Speeds):
        parser.add_argument(f"--{speed.name}", type=float, default=speed.default, help="per second (%(default)s)")
    print("\n\n".join(tables(Speeds(**vars(parser.parse_args())))))


if __name__ == "__main__":
    main()
