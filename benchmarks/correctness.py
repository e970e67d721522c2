"""Write docs/correctness.md: what is exact, what is a limit, and how far off it is. `python benchmarks/correctness.py`

Everything is computed on a model of three tokens, small enough to be enumerated; it takes some minutes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from ets import kernel
from ets.kernel import energy_guided
from ets.rewards import agreement_share, majority, per_text
from ets.rewards.self_consistency import VotePool
from ets.runner import run
from ets.testing import Law, TabularPolicy, frequencies, judge_law, optimal_law, total_variation
from ets.types import Problem, Reward
from ets.weights import log_mean_exp
from tests.laws.kernel import kernel_law
from tests.laws.voting import agreement_share_law, majority_law, majority_limit_law

PROBLEM = Problem("p", (1,))
LENGTH, LAM, LEVEL = 4, 0.2, 1e-4
TEMPLATE = Path(__file__).with_name("correctness_template.md")
OUT = Path(__file__).parents[1] / "docs" / "correctness.md"


def liking(text: str) -> float:
    """The fixed reward: it likes a's and short texts, and the two pull against each other."""
    return 0.3 * text.count("a") - 0.15 * len(text)


def spelled(function: Callable[[str], object]) -> Callable[[tuple[int, ...]], object]:
    """A function of text as one of token tuples."""
    return lambda tokens: function(TabularPolicy.spelled(tokens))


def policy(guide_steps: int, seed: int = 0, temperature: float = 1.0) -> TabularPolicy:
    return TabularPolicy(3, LENGTH // guide_steps, LENGTH, temperature=temperature, seed=seed)


def exact(guide_steps: int, candidates: int, rollouts: int, seed: int = 0) -> tuple[Law, Law]:
    """The kernel's law at finite M and K, and p*."""
    oracle = policy(guide_steps, seed).oracle
    reward = spelled(liking)
    law = kernel_law(oracle, PROBLEM, reward, lam=LAM, candidates=candidates, rollouts=rollouts)  # type: ignore[arg-type]
    return law, optimal_law(oracle.finish_law(PROBLEM, ()), reward, LAM)  # type: ignore[arg-type]


def distance(guide_steps: int, candidates: int, rollouts: int) -> float:
    """Total variation to p*, exactly, averaged over five tables of next-token laws."""
    return float(np.mean([total_variation(*exact(guide_steps, candidates, rollouts, seed)) for seed in range(5)]))


def sampled(
    guide_steps: int, candidates: int, rollouts: int, draws: int, temperature: float = 1.0
) -> list[tuple[int, ...]]:
    model = policy(guide_steps, temperature=temperature)
    reward = per_text(lambda _, text: liking(text))
    step = energy_guided(reward, candidates=candidates, rollouts=rollouts, lam=LAM)
    return [c.state.tokens for c in run(model, step, [PROBLEM], width=5000, seed=0, samples=draws)]


def noise_floor(law: Law, draws: int) -> float:
    """The mean total variation between a law and the frequencies of so many draws from it."""
    p = np.array(list(law.values()))
    counts = np.random.default_rng(0).multinomial(draws, p / p.sum(), size=1000)
    return float(np.mean(0.5 * np.abs(counts / draws - p).sum(axis=1)))


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---:"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def by_candidates() -> str:
    rows = [
        [str(m), *(f"{distance(i, m, k):.4f}" for i in (1, 2, 4) for k in ((1,) if i == 1 else (1, 3)))]
        for m in (1, 2, 4, 8, 16, 32, 64)
    ]
    return table(["M", "I = 1", "I = 2, K = 1", "I = 2, K = 3", "I = 4, K = 1", "I = 4, K = 3"], rows)


def at_fixed_rollouts() -> str:
    pairs = [(32, 1), (16, 2), (8, 4), (4, 8), (2, 16)]
    rows = [[str(m), str(k), f"{distance(2, m, k):.4f}", f"{distance(4, m, k):.4f}"] for m, k in pairs]
    return table(["M", "K", "I = 2", "I = 4"], rows)


def against_simulation(draws: int = 20_000) -> str:
    rows = []
    for i, m, k in ((1, 2, 1), (2, 2, 2), (4, 3, 2), (2, 16, 1)):
        law, optimal = exact(i, m, k)
        drawn = sampled(i, m, k, draws)
        verdict = judge_law(drawn, law, level=LEVEL)
        far = [f"{total_variation(frequencies(drawn), target):.4f}" for target in (law, optimal)]
        rows.append(
            [
                str(m),
                str(k),
                str(i),
                far[0],
                f"{noise_floor(law, draws):.4f}",
                f"{min(verdict.p_g, verdict.p_tv):.3f}",
                far[1],
            ]
        )
    return table(["M", "K", "I", "to the exact law", "noise floor", "smaller p", "to p*"], rows)


def with_a_proposal(candidates: int = 64) -> str:
    """Total variation to p* against K, exactly: without a proposal, with one, and with the reference code's ratio."""
    rows = []
    for k in (1, 2, 4, 8, 16, 32):
        distances = [_proposed_distances(candidates, k, seed) for seed in range(5)]
        rows.append([str(k), *(f"{value:.4f}" for value in np.mean(distances, axis=0))])
    return table(["K", "no proposal", "proposal", "proposal, the reference code's ratio"], rows)


def _proposed_distances(candidates: int, rollouts: int, seed: int, temperature: float = 0.7) -> list[float]:
    reference, proposal = (policy(2, number, temperature).oracle for number in (seed, 100 + seed))
    untempered = [policy(2, number) for number in (seed, 100 + seed)]

    def over_all_tokens(candidate: object, tokens: tuple[int, ...]) -> float:
        """All generated tokens, the reference's own included, at temperature 1."""
        p, q = ([m.next_token(PROBLEM, tokens[:n])[t] for n, t in enumerate(tokens)] for m in untempered)
        return float(np.sum(np.log(p)) - np.sum(np.log(q)))

    optimal = optimal_law(reference.finish_law(PROBLEM, ()), spelled(liking), LAM)  # type: ignore[arg-type]
    ways: list[dict[str, Any]] = [{}, {"proposal": proposal}, {"proposal": proposal, "log_ratio": over_all_tokens}]
    numbers: dict[str, Any] = {"lam": LAM, "candidates": candidates, "rollouts": rollouts}
    return [
        total_variation(kernel_law(reference, PROBLEM, spelled(liking), **numbers, **way), optimal)  # type: ignore[arg-type]
        for way in ways
    ]


averaging = partial(patch.object, kernel, "log_mean_exp")
"""The kernel with another average over rollouts, a function of r/λ `[M, K]` and `axis`."""
choosing = partial(patch.object, kernel, "choose")
"""The kernel with another choice in the place of its own."""


def mutations(draws: int = 40_000) -> str:
    law, _ = exact(4, 3, 2)
    cases = {
        "none: the kernel as it is": averaging(log_mean_exp),
        "1/λ dropped": averaging(lambda log_rewards, axis: log_mean_exp(log_rewards * LAM, axis)),
        "exp of the mean reward, not mean of the exp": averaging(np.mean),
        "the best candidate, not one in proportion": choosing(lambda weights, number: int(np.argmax(weights))),
    }
    verdicts = {}
    for label, mutated in cases.items():
        with mutated:
            verdicts[label] = judge_law(sampled(4, 3, 2, draws), law, level=LEVEL)
    verdicts["a temperature 5% too high"] = judge_law(sampled(4, 3, 2, draws, temperature=1.05), law, level=LEVEL)
    rows = [
        [label, f"{verdict.p_g:.1e}", f"{verdict.p_tv:.1e}", "passes" if verdict.passed else "red"]
        for label, verdict in verdicts.items()
    ]
    return table(["mutation", "p of the G-test", "p of total variation", f"at level {LEVEL:g}"], rows)


def count_of_b(text: str) -> int | None:
    """The answer of the two rewards that count votes; a text without a b has none."""
    return text.count("b") or None


ANSWER: Callable[[Any], Any] = spelled(count_of_b)
POOLS: tuple[VotePool, ...] = ("step", "chain")
STEADY, TURNING = policy(4, 5), policy(4, 9)
"""The most frequent answer of one table leads the votes of every chain; in the other, prefixes have other modes."""


def guided(model: TabularPolicy, reward: Reward, candidates: int, rollouts: int, draws: int) -> list[tuple[int, ...]]:
    step = energy_guided(reward, candidates=candidates, rollouts=rollouts, lam=LAM)
    return [chain.state.tokens for chain in run(model, step, [PROBLEM], width=1000, seed=0, samples=draws)]


def majority_at_finite_size(draws: int = 3_000) -> str:
    """Chains against the law by enumeration; and how far from it two faulty laws are."""
    rows = []
    for m, k in ((2, 1), (2, 2)):
        sizes: dict[str, Any] = {"lam": LAM, "candidates": m, "rollouts": k}
        laws = {pool: majority_law(STEADY.oracle, PROBLEM, ANSWER, pool=pool, **sizes) for pool in POOLS}
        for pool in POOLS:
            drawn = guided(STEADY, majority(count_of_b, pool=pool), m, k, draws)
            by_share = frequencies(guided(STEADY, agreement_share(count_of_b, pool=pool), m, k, draws))
            verdict, exact_law = judge_law(drawn, laws[pool], level=LEVEL), laws[pool]
            far = [total_variation(frequencies(drawn), exact_law), noise_floor(exact_law, draws)]
            faults = [total_variation(laws["step"], laws["chain"]), total_variation(by_share, exact_law)]
            p = f"{min(verdict.p_g, verdict.p_tv):.3f}"
            rows.append([pool, str(m), str(k), *(f"{x:.4f}" for x in far), p, *(f"{x:.4f}" for x in faults)])
    distances = ["the other pool to it", "chains of the share to it"]
    return table(["pool", "M", "K", "to the exact law", "noise floor", "smaller p", *distances], rows)


def voting(draws: int = 1_500) -> str:
    """Chains at M = 64 against the limits of a reward, and both against p* of the mode."""
    cases: list[tuple[str, TabularPolicy, str, Any, Any]] = [
        ("steady", STEADY, "majority", majority, majority_limit_law),
        ("turning", TURNING, "majority", majority, majority_limit_law),
        ("steady", STEADY, "share", agreement_share, agreement_share_law),
    ]
    rows = []
    for label, model, name, make, limit in cases:
        limits = {pool: limit(model.oracle, PROBLEM, ANSWER, lam=LAM, pool=pool) for pool in POOLS}
        optimal = of_the_mode(model)
        for pool in POOLS:
            seen = frequencies(guided(model, make(count_of_b, pool=pool), 64, 2, draws))
            cells = [total_variation(seen, law) for law in limits.values()]
            cells += [noise_floor(limits[pool], draws), total_variation(limits[pool], optimal)]
            rows.append([label, name, pool, *(f"{x:.4f}" for x in cells)])
    headings = ["table", "reward", "pool", "to the limit for `step`", "to the limit for `chain`", "noise floor"]
    return table([*headings, "from its limit to p* of the mode"], rows)


def of_the_mode(model: TabularPolicy) -> Law:
    """p* of the fixed reward 1[answer = the most frequent answer of p_ref]."""
    prior, shares = model.oracle.finish_law(PROBLEM, ()), dict[Any, float]()
    for outcome, p in prior.items():
        shares[ANSWER(outcome)] = shares.get(ANSWER(outcome), 0.0) + p
    mode = max((answer for answer in shares if answer is not None), key=lambda answer: shares[answer])
    return optimal_law(prior, lambda outcome: float(ANSWER(outcome) == mode), LAM)


def main() -> None:
    tables = {
        "by_candidates": by_candidates(),
        "at_fixed_rollouts": at_fixed_rollouts(),
        "against_simulation": against_simulation(),
        "mutations": mutations(),
        "with_a_proposal": with_a_proposal(),
        "majority_at_finite_size": majority_at_finite_size(),
        "voting": voting(),
    }
    OUT.write_text(TEMPLATE.read_text(encoding="utf-8").format(**tables), encoding="utf-8")
    print(f"wrote {OUT.name}")


if __name__ == "__main__":
    main()
