"""Chains that a redesign must not change: `python scripts/fixed_chains.py record FILE`, later `check FILE`.

215 chains of the embedded models, of both families, with and without a proposal, and by several baselines. A chain is
its choices and its tokens. In float32 another type of CPU may round differently and change a token, so record and
check on one machine. A run takes about half a minute of one core.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import ets
from ets import baselines
from ets.importance import ImportanceSampling
from ets.policies.registry import fast_sampler_of
from ets.rewards import likelihood, majority
from ets.tasks import Arithmetic
from ets.tasks.arithmetic import Sums
from ets.types import Chain, Policy, StepFn

Setting: TypeAlias = tuple[Policy, StepFn]
ARITHMETIC, SUMS = Arithmetic(), Sums()
LAM = 0.2


def short(prompt: str, text: str) -> float:
    """A fixed reward: shorter texts are better."""
    return -0.01 * len(text)


def autoregressive() -> Iterator[tuple[str, Setting]]:
    """Settings of the embedded autoregressive models, by name."""
    law, horizon = ets.Sampling(temperature=1.3), ets.Horizon(block_size=16, max_length=64)
    reference, small = (
        ets.TransformersPolicy(ets.Checkpoint(ets.demo.model_path(name)), law, horizon)
        for name in ("reference", "small")
    )
    numbers: dict[str, Any] = {"candidates": 3, "rollouts": 2, "lam": LAM}
    yield "ets, fixed reward", (reference, ets.energy_guided(short, **numbers))
    yield "ets, majority", (reference, ets.energy_guided(majority(ARITHMETIC.extract), **numbers))
    for name, reward in (("fixed reward", short), ("majority", majority(ARITHMETIC.extract))):
        pair = ImportanceSampling(reference, small, (0.01, 100))
        yield f"ets-is, {name}", (pair, ets.energy_guided(reward, **numbers))
    steps: dict[str, StepFn] = {
        "plain": baselines.plain(),
        "one step": baselines.one_step(short, samples=6, lam=LAM),
        "best of n": baselines.best_of_n(likelihood(per_token=True), samples=4),
        "weighted majority": baselines.weighted_majority(ARITHMETIC.extract, likelihood(), samples=4, lam=LAM),
        "retained rollouts": baselines.retained_rollouts(short, **numbers),
        "iterated sir": baselines.iterated_sir(short, samples=3, iterations=2, lam=LAM),
        "look-ahead": baselines.lookahead(short, particles=3, rollouts=2, lam=LAM),
        "particle filter": baselines.particle_filter(short, particles=4, lam=LAM),
        "power sampling": baselines.power_sampling(alpha=2.0, moves=3),
        "greedy": baselines.greedy(),
        "beam": baselines.beam(3),
    }
    yield from ((name, (reference, step)) for name, step in steps.items())


def masked_diffusion() -> Iterator[tuple[str, Setting]]:
    """Settings of the embedded masked-diffusion model, by name."""
    checkpoint = ets.Checkpoint(ets.demo.model_path("diffusion"))
    exact = ets.MaskedDiffusionPolicy(checkpoint, ets.Unmasking(temperature=1.5), ets.Schedule(24, 24, 8, 4))
    largest = ets.MaskedDiffusionPolicy(checkpoint, ets.Unmasking(1.5, "largest"), ets.Schedule(24, 24, 8, 4))
    numbers: dict[str, Any] = {"candidates": 3, "rollouts": 2, "lam": LAM}
    step = ets.energy_guided(majority(SUMS.extract, minimum=2), **numbers)
    yield "diffusion, ets, majority", (exact, step)
    yield "diffusion, ets, fixed reward", (exact, ets.energy_guided(short, **numbers))
    yield "diffusion, level 0", (fast_sampler_of(exact, "0", cache="dual", threshold=0.9), step)
    yield "diffusion, level 1", (fast_sampler_of(largest, "1", cache="dual"), step)
    yield "diffusion, level 1F", (fast_sampler_of(exact, "1F", cache="prefix"), step)
    yield "diffusion, one step", (exact, baselines.one_step(short, samples=6, lam=LAM))
    yield "diffusion, retained rollouts", (exact, baselines.retained_rollouts(short, **numbers))
    yield "diffusion, beam", (exact, baselines.beam(2))


def chains() -> dict[str, list[Any]]:
    """By setting: for each chain its problem, sample, choices and tokens, in the order of problem and sample."""
    found: dict[str, list[Any]] = {}
    for task, settings in ((ARITHMETIC, autoregressive()), (SUMS, masked_diffusion())):
        problems = task.problems(5, 0)
        for name, (policy, step) in settings:
            samples = 1 if name.rpartition(", ")[2] in ("greedy", "beam") else 2
            drawn = ets.run(policy, step, problems, width=5, seed=7, samples=samples)
            found[name] = sorted(map(_recorded, drawn))
            print(f"{name}: {len(found[name])} chains", file=sys.stderr)
    return found


def _recorded(chain: Chain) -> list[Any]:
    choices = [int(step.choice) for step in chain.trace]
    return [chain.problem.id, chain.sample, choices, [int(token) for token in chain.state.tokens]]


def record(path: Path) -> int:
    """Write the chains."""
    found = chains()
    path.write_text(json.dumps(found) + "\n", encoding="utf-8")
    print(f"{sum(map(len, found.values()))} chains in {path}")
    return 0


def check(path: Path) -> int:
    """Compare with the chains of a file; exit status 1 where one differs."""
    wanted, found = json.loads(path.read_text(encoding="utf-8")), chains()
    differing = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
    for name in differing:
        print(f"differs: {name}")
    print(f"{len(found) - len(differing)} of {len(found)} settings as recorded in {path}")
    return 1 if differing else 0


def main() -> int:
    """Record or check."""
    commands: dict[str, Callable[[Path], int]] = {"record": record, "check": check}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=commands)
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    return commands[options.command](options.file)


if __name__ == "__main__":
    sys.exit(main())
