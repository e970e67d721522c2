"""What M, K, I and λ do on the embedded autoregressive model, measured: rewards, right answers, tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from statistics import fmean

from demo_rewards import graded, right_answer
from work_formulas import TokenWork

import ets
from ets.evaluation.intervals import accuracy
from ets.rewards import as_reward, majority
from ets.tasks import Arithmetic
from ets.types import Chain, Problem, Reward
from ets.weights import effective_sample_size

TASK, LENGTH, BLOCK, TEMPERATURE = Arithmetic(), 96, 16, 1.9
WIDTH = 64
LAMS = (0.02, 0.1, 0.3, 1.0, 3.0)
LAM = {"right answer": 0.2, "graded": 0.05, "consensus": 0.1}
"""Of the comparisons at one λ."""
PAIRS = ((12, 1), (6, 2), (4, 3), (2, 6))
"""M and K at the same number of rollouts."""
BLOCKS = (96, 32, 16, 8)
CANDIDATES = 8
"""In a guide step of 16 tokens; with longer or shorter ones, as many as cost the same."""

REWARDS: dict[str, Reward] = {
    "right answer": right_answer,
    "graded": as_reward(graded),
    "consensus": majority(TASK.extract, pool="chain"),
}


@dataclass(frozen=True)
class Measured:
    """One setting on some problems, a sample of each.

    Parameters
    ----------
    reward : str
    lam : float
    candidates, rollouts, block : int
    mean : float
        Of the reward of the sampled texts; for the consensus, which is no function of the text, of their last step's.
    right, low, high : float
        The share of right answers, with Wilson's 95% interval.
    effective : float
        The effective sample size of a guide step's candidates over their number, a mean over all steps.
    tokens, formula : float
        Generated per problem, and expected by formula from the lengths of plain samples.
    """

    reward: str
    lam: float
    candidates: int
    rollouts: int
    block: int
    mean: float
    right: float
    low: float
    high: float
    effective: float
    tokens: float
    formula: float


def figures(count: int) -> dict[str, object]:
    """All numbers, by question, on so many problems."""
    problems = TASK.problems(count, shots=0)
    alone = sampled(problems, "graded", 1.0, 1, 1, LENGTH)
    lengths = [len(chain.state.tokens) for chain in alone]

    def found(name: str, lam: float, candidates: int, rollouts: int, block: int) -> dict[str, object]:
        numbers = (lam, candidates, rollouts, block)
        return asdict(summary(sampled(problems, name, *numbers), lengths, name, *numbers))

    fixed = ("graded", "right answer")
    return {
        "problems": count,
        "plain": asdict(summary(alone, lengths, "graded", 1.0, 1, 1, LENGTH)),
        "lam": [found(name, lam, CANDIDATES, 1, BLOCK) for name in fixed for lam in LAMS],
        "pairs": [found(name, LAM[name], *pair, BLOCK) for name in LAM for pair in PAIRS],
        "steps": [found(name, LAM[name], affordable(block, lengths), 1, block) for name in fixed for block in BLOCKS],
    }


def affordable(block: int, lengths: Sequence[int]) -> int:
    """Candidates, with one rollout each, expected to cost what `CANDIDATES` of them cost at `BLOCK`."""
    return round(formula(CANDIDATES, 1, BLOCK, lengths) / formula(1, 1, block, lengths))


def formula(candidates: int, rollouts: int, block: int, lengths: Sequence[int]) -> float:
    """Tokens that a problem is expected to generate (`work_formulas`)."""
    return sum(step.generated for step in TokenWork(block, LENGTH).steps(1, candidates, rollouts, lengths))


@cache
def model() -> ets.Checkpoint:
    return ets.Checkpoint(ets.demo.model_path())


def sampled(
    problems: Sequence[Problem], name: str, lam: float, candidates: int, rollouts: int, block: int
) -> list[Chain]:
    """A chain for each problem."""
    policy = ets.TransformersPolicy(model(), ets.Sampling(temperature=TEMPERATURE), ets.Horizon(block, LENGTH))
    step = ets.energy_guided(REWARDS[name], candidates=candidates, rollouts=rollouts, lam=lam)
    return list(ets.run(policy, step, problems, width=WIDTH, seed=0))


def summary(
    chains: Sequence[Chain],
    lengths: Sequence[int],
    name: str,
    lam: float,
    candidates: int,
    rollouts: int,
    block: int,
) -> Measured:
    right = accuracy([float(TASK.grade(chain.problem, chain.state.text)) for chain in chains])
    shares = [effective_sample_size(step.log_weights) / candidates for chain in chains for step in chain.trace]
    return Measured(
        name,
        lam,
        candidates,
        rollouts,
        block,
        fmean(_reward(chain, lam) for chain in chains),
        right.mean,
        right.low,
        right.high,
        fmean(shares),
        fmean(chain.cost.generated for chain in chains),
        formula(candidates, rollouts, block, lengths),
    )


def _reward(chain: Chain, lam: float) -> float:
    """Of the text: in the last step the chosen candidate is complete."""
    last = chain.trace[-1]
    return float(last.log_rewards[last.choice, 0] * lam)
