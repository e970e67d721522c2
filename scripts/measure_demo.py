"""Measure an embedded model: single-sample accuracy, and majority voting over many samples, by temperature.

`python scripts/measure_demo.py --model ets/demo/assets/reference --temperatures 1.0 1.5 --samples 64 --count 200`
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from ets import baselines
from ets.evaluation.intervals import Accuracy, accuracy
from ets.policies.autoregressive import Horizon, Sampling
from ets.policies.checkpoint import Checkpoint
from ets.policies.transformers import TransformersPolicy
from ets.runner import run
from ets.tasks import Arithmetic
from ets.types import Chain, Problem

TASK = Arithmetic()


def majority_is_right(problem: Problem, chains: Sequence[Chain]) -> float:
    """1 if the commonest answer is right; a tie counts as the share of right ones among the tied."""
    votes = Counter(answer for chain in chains if (answer := TASK.extract(chain.state.text)) is not None)
    tied = [answer for answer, n in votes.items() if n == max(votes.values())]
    return fmean(answer == problem.doc["answer"] for answer in tied) if tied else 0.0


def measure(policy: TransformersPolicy, count: int, samples: int) -> tuple[Accuracy, Accuracy, float]:
    """Single-sample accuracy, majority's accuracy, and mean tokens of a sample."""
    groups: dict[str, list[Chain]] = {}
    for chain in run(policy, baselines.plain(), TASK.problems(count, 0), width=8 * samples, seed=0, samples=samples):
        groups.setdefault(chain.problem.id, []).append(chain)
    single = [fmean(TASK.grade(c.problem, c.state.text) for c in chains) for chains in groups.values()]
    voted = [majority_is_right(chains[0].problem, chains) for chains in groups.values()]
    length = fmean(c.cost.generated for chains in groups.values() for c in chains)
    return accuracy(single, samples), accuracy(voted), length


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--temperatures", type=float, nargs="+", required=True)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--max-length", type=int, default=96)
    options = parser.parse_args()
    checkpoint = Checkpoint(options.model)
    print(f"| temperature | single sample (95%) | majority of {options.samples} (95%) | tokens per sample |")
    print("| ---: | ---: | ---: | ---: |")
    for temperature in options.temperatures:
        policy = TransformersPolicy(checkpoint, Sampling(temperature), Horizon(options.max_length, options.max_length))
        single, voted, length = measure(policy, options.count, options.samples)
        cells = [f"{a.mean:.1%} ({a.low:.1%} to {a.high:.1%})" for a in (single, voted)]
        print(f"| {temperature:g} | {cells[0]} | {cells[1]} | {length:.0f} |", flush=True)


if __name__ == "__main__":
    main()
