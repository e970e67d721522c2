"""Kernels at equal generated tokens on the embedded autoregressive model, by fixed rewards.

    python benchmarks/worth_demo.py                     prints the tables of docs/worth.md
    python benchmarks/worth_demo.py --samples 2         fewer samples of each problem

The tokens are those of ETS with K 1 and a few candidates. For a kernel with the law q the tables show the mean reward,
and E_q[r] - λ KL of the laws of the reward under q and p_ref. That divergence is at most KL(q ‖ p_ref), and equal to it
where q depends on a text through its reward alone, as p* does.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from choosing_demo import BLOCK, LENGTH, REWARDS, TASK, TEMPERATURE, WIDTH, model

import ets
from ets.baselines import iterated_sir, one_step, particle_filter, plain, retained_rollouts
from ets.policies.registry import policy_of
from ets.report.tables import aligned
from ets.rewards import likelihood
from ets.runner import run
from ets.step import reads_prefixes, score
from ets.types import Chain, Floats, Policy, Problem, Reward, StepFn

PLAIN = 256
"""Samples of p_ref for each problem."""
RESAMPLES = 2_000
"""Of the bootstrap."""
Made = Callable[[float], StepFn]
"""A step function of a size."""


@dataclass(frozen=True)
class Case:
    """A fixed reward, λ, and the number of decimals that make a class of rewards."""

    reward: Reward
    lam: float
    digits: int


CASES = {
    "verifier": Case(REWARDS["right answer"], 0.2, 6),
    "graded": Case(ets.of_prefixes(REWARDS["graded"]), 0.05, 6),
    "likelihood": Case(ets.of_prefixes(likelihood()), 1 / 3, -1),
}


def kernels(case: Case, budget: float, length: float) -> Iterator[tuple[str, Made, float]]:
    """Name, step function by size, and a first guess of the size that spends the budget."""
    reward, lam = case.reward, case.lam

    def unread(problem: Problem, rollouts: Sequence[ets.Text], chain: Chain) -> Sequence[float]:
        return reward(problem, rollouts, chain)

    texts = budget / length
    yield (
        "ETS, K = 3",
        lambda m: ets.energy_guided(reward, candidates=max(1, round(m)), rollouts=3, lam=lam),
        0.21 * texts,
    )
    yield (
        "retained rollouts, K = 1",
        lambda m: retained_rollouts(reward, candidates=max(2, round(m)), rollouts=1, lam=lam),
        0.6 * texts,
    )
    yield "one step", lambda n: one_step(reward, samples=round(n), lam=lam), texts
    yield (
        "iterated resampling (4)",
        lambda n: iterated_sir(reward, samples=round((n - 1) / 4) + 1, iterations=4, lam=lam),
        texts,
    )
    yield "refined", lambda b: ets.refined(unread, lam=lam, budget=round(b)), 1.1 * budget
    yield "refined, 4 tries", lambda b: ets.refined(unread, lam=lam, budget=round(b), tries=4), 1.2 * budget
    if reads_prefixes(reward):
        yield "particle filter", lambda n: particle_filter(reward, particles=round(n), lam=lam), texts
        yield "refined, reward of prefixes", lambda b: ets.refined(reward, lam=lam, budget=round(b)), 1.1 * budget


@dataclass(frozen=True)
class Drawn:
    """The rewards of a kernel's texts `[problems, samples]`, and its mean tokens."""

    rewards: Floats
    tokens: float


def drawn(policy: Policy, case: Case, step: StepFn, problems: Sequence[Problem], samples: int, seed: int = 1) -> Drawn:
    found: dict[str, list[float]] = {problem.id: [] for problem in problems}
    tokens = []
    for chain in run(policy, step, problems, width=WIDTH, seed=seed, samples=samples):
        found[chain.problem.id].append(rewarded(case, chain))
        tokens.append(chain.cost.generated)
    return Drawn(np.array(list(found.values())), float(np.mean(tokens)))


def rewarded(case: Case, chain: Chain) -> float:
    """r of the text of a chain."""
    text = next(
        text for step in reversed(chain.trace) for row in step.rollouts for text in row
        if text.done and text.tokens == chain.state.tokens
    )  # fmt: skip
    return float(score(case.reward, 1.0, chain, [(text,)])[0][0, 0])


def matched(policy: Policy, case: Case, made: Made, guess: float, budget: float, problems: Sequence[Problem]) -> float:
    """The size whose mean cost is nearest to the budget, by a pilot of four samples."""
    spent = drawn(policy, case, made(guess), problems, 4, seed=2).tokens
    return round(guess) * budget / spent


def objective(rewards: Floats, reference: Floats, case: Case) -> float:
    """Mean over problems of E[r] - λ KL of the laws of the reward, with the correction of Miller and Madow."""
    values = []
    for row, plain_row in zip(rewards, reference, strict=True):
        classes, known = (Counter(np.round(each, case.digits).tolist()) for each in (row, plain_row))
        total = len(plain_row) + len(classes.keys() - known.keys())
        divergence = sum(
            count / len(row) * math.log(count / len(row) * total / max(known[value], 1))
            for value, count in classes.items()
        ) - (len(classes) - 1) / (2 * len(row))
        values.append(float(np.mean(row)) - case.lam * max(0.0, divergence))
    return float(np.mean(values))


def cell(of: Callable[..., float], *rewards: Floats) -> str:
    """A statistic with its 95% percentile interval, by a bootstrap over the samples of each problem."""
    rng, found = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        drawn_again = [
            each[np.arange(len(each))[:, None], rng.integers(each.shape[1], size=each.shape)] for each in rewards
        ]
        found.append(of(*drawn_again))
    low, high = np.percentile(found, [2.5, 97.5])
    return f"{of(*rewards):.3f} ({low:.3f} to {high:.3f})"


def table(name: str, case: Case, problems: Sequence[Problem], samples: int, candidates: int) -> str:
    """The table of one reward."""
    policy = policy_of(model, block_size=BLOCK, max_length=LENGTH, temperature=TEMPERATURE)
    reference = drawn(policy, case, plain(), problems, PLAIN, seed=3)
    guided = drawn(
        policy, case, ets.energy_guided(case.reward, candidates=candidates, rollouts=1, lam=case.lam), problems, samples
    )
    rows = [("p_ref", reference), ("ETS, K = 1", guided)]
    for kernel, made, guess in kernels(case, guided.tokens, reference.tokens):
        size = matched(policy, case, made, guess, guided.tokens, problems)
        rows.append((f"{kernel} ({round(size):,})", drawn(policy, case, made(size), problems, samples)))
        print(name, rows[-1][0], rows[-1][1].tokens, float(rows[-1][1].rewards.mean()), flush=True)
    lines = [("kernel (size)", "mean reward (95%)", "E[r] - λ KL (95%)", "tokens")]
    for kernel, found in rows:
        both = found.rewards, reference.rewards
        objectives = cell(lambda r, known: objective(r, known, case), *both) if kernel != "p_ref" else ""
        lines.append((kernel, cell(lambda r: float(r.mean()), found.rewards), objectives, f"{found.tokens:,.0f}"))
    return f"### {name}, λ = {case.lam:.2g}, at the tokens of M {candidates}, K 1\n\n{aligned(lines)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=6)
    parser.add_argument("--samples", type=int, default=32, help="of each problem")
    parser.add_argument("--candidates", type=int, default=3, help="M of ETS with K 1, whose tokens are the budget")
    parser.add_argument("--rewards", default=",".join(CASES))
    options = parser.parse_args()
    problems = TASK.problems(options.problems, shots=0)
    for name in options.rewards.split(","):
        print(table(name, CASES[name], problems, options.samples, options.candidates), flush=True)


if __name__ == "__main__":
    main()
