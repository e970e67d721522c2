"""Measure an embedded model: single-sample accuracy, and majority voting over many samples, by temperature.

`python scripts/measure_demo.py --model ets/demo/assets/reference --temperatures 1.0 1.5 --samples 64 --count 200`

For the masked-diffusion model add `--task sums --max-length 24 --block-length 8`.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from ets import baselines
from ets.evaluation.intervals import Accuracy, accuracy
from ets.policies.checkpoint import Checkpoint
from ets.policies.registry import policy_of
from ets.runner import run
from ets.tasks import TASKS, Task, task_named
from ets.types import Chain, Policy, Problem


def majority_is_right(task: Task, problem: Problem, chains: Sequence[Chain]) -> float:
    """1 if the commonest answer is right; a tie counts as the share of right ones among the tied."""
    votes = Counter(answer for chain in chains if (answer := task.extract(chain.problem, chain.state.text)) is not None)
    tied = [answer for answer, n in votes.items() if n == max(votes.values())]
    return fmean(answer == problem.doc["answer"] for answer in tied) if tied else 0.0


def measure(policy: Policy, task: Task, count: int, samples: int) -> tuple[Accuracy, Accuracy, float]:
    """Single-sample accuracy, majority's accuracy, and mean tokens of a sample."""
    groups: dict[str, list[Chain]] = {}
    for chain in run(policy, baselines.plain(), task.problems(count, 0), width=8 * samples, seed=0, samples=samples):
        groups.setdefault(chain.problem.id, []).append(chain)
    single = [fmean(task.grade(c.problem, c.state.text) for c in chains) for chains in groups.values()]
    voted = [majority_is_right(task, chains[0].problem, chains) for chains in groups.values()]
    length = fmean(c.cost.generated for chains in groups.values() for c in chains)
    return accuracy(single, samples), accuracy(voted), length


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--temperatures", type=float, nargs="+", required=True)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--max-length", type=int, default=96)
    parser.add_argument("--task", choices=TASKS, default="arithmetic")
    parser.add_argument("--steps", type=int, help="denoising steps of a masked-diffusion model")
    parser.add_argument("--block-length", type=int, help="of a masked-diffusion model")
    options = parser.parse_args()
    checkpoint = Checkpoint(options.model)
    print(f"| temperature | single sample (95%) | majority of {options.samples} (95%) | tokens per sample |")
    print("| ---: | ---: | ---: | ---: |")
    for temperature in options.temperatures:
        policy = policy_of(
            lambda: checkpoint,
            block_size=options.max_length,
            max_length=options.max_length,
            temperature=temperature,
            steps=options.steps,
            block_length=options.block_length,
        )
        single, voted, length = measure(policy, task_named(options.task), options.count, options.samples)
        cells = [f"{a.mean:.1%} ({a.low:.1%} to {a.high:.1%})" for a in (single, voted)]
        print(f"| {temperature:g} | {cells[0]} | {cells[1]} | {length:.0f} |", flush=True)


if __name__ == "__main__":
    main()
