"""What a method computes, by formula: for a law of text lengths, and at most.

Symbols: M candidates, K rollouts per candidate, N samples, P tokens of the prompt, L the longest generation (or the
canvas), B tokens of a guide step, T denoising steps, of which each of I guide steps takes S = T / I.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np

from ets.importance import ImportanceSampling
from ets.path_weights import PathWeights
from ets.policies.autoregressive.engine import EnginePolicy
from ets.policies.autoregressive.scoring import COLUMNS
from ets.policies.autoregressive.transformers import TransformersPolicy
from ets.policies.diffusion.canvas import PADDING
from ets.policies.diffusion.levels import LevelWeigher
from ets.policies.diffusion.policy import MaskedDiffusionPolicy
from ets.types import Floats, Policy


@dataclass(frozen=True)
class Work:
    """Amounts as in `ets.types.Cost`; expected ones are no whole numbers."""

    prompt: float = 0.0
    candidate: float = 0.0
    rollout: float = 0.0
    scored: float = 0.0
    generated: float = 0.0
    row_forwards: float = 0.0

    @property
    def positions(self) -> float:
        """Token positions computed in all."""
        return self.prompt + self.candidate + self.rollout + self.scored

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Work)))

    def __mul__(self, factor: float) -> Work:
        return Work(*(getattr(self, f.name) * factor for f in fields(Work)))


class Formula(Protocol):
    """What one chain takes of a policy, if it reads its prompt itself."""

    def steps(self, prompt: int, candidates: int, rollouts: int, lengths: Sequence[int]) -> list[Work]:
        """Each guide step of energy-guided sampling; of those that a chain does not reach, nothing."""
        ...

    def samples(self, prompt: int, number: int, lengths: Sequence[int]) -> Work:
        """So many complete samples."""
        ...

    def columns(self, prompt: int, candidates: int, rollouts: int, apart: bool) -> int:
        """Tokens that the caches of a chain's rows hold at once, at most.

        `apart` says that chains may stand at different guide steps, whose rows then share a cache.
        """
        ...

    def sample_columns(self, prompt: int, number: int) -> int:
        """The same for so many complete samples."""
        ...


@dataclass(frozen=True)
class TokenWork:
    """An autoregressive policy, for texts whose lengths n (the end token included) are drawn from `lengths`.

    Guide step i goes from s = iB to e = min(s + B, L). Its M candidates draw min(n, e) - s tokens each where n > s, and
    read all of them but the last of one that ends; their M·K rollouts draw n - e each where n > e, and read all but the
    last. The prompt is read once. With lengths = [L] (no text ends) this is exact, and the most that any run takes:

        generated = M Σ_i [(e - s) + K (L - e)],   candidate = M (L - 1),   rollout = M K Σ_{e < L} (L - e - 1).

    Otherwise it is a mean over `lengths`, as if the guided chain's length had the law of a plain sample's.

    Parameters
    ----------
    block : int
        B.
    longest : int
        L.
    proposed : bool
        With a proposal (ETS-IS): it reads the prompt too, and the candidates that go on, and the model reads the
        rollouts, in slices of 16 columns (`ets.policies.autoregressive.scoring`).
    requests : bool
        An engine behind requests: each row is charged for all that it goes on from. What the engine's prefix cache
        holds is less.
    """

    block: int
    longest: int
    proposed: bool = False
    requests: bool = False

    def steps(self, prompt: int, candidates: int, rollouts: int, lengths: Sequence[int]) -> list[Work]:
        begins = range(0, self.longest, self.block)
        return [self._step(prompt, begin, candidates, rollouts, np.asarray(lengths, float)) for begin in begins]

    def _step(self, prompt: int, begin: int, candidates: int, rollouts: int, n: Floats) -> Work:
        end = min(begin + self.block, self.longest)
        going, over = (n > begin) * 1.0, (n > end) * 1.0
        drawn, rest = np.clip(n - begin, 0, end - begin), np.clip(n - end, 0, None)
        read = drawn - (going if self.requests else going - over) + self.requests * begin * going
        followed = rest - over + self.requests * end * over
        once = (begin == 0) * (going + self.proposed * over)  # by one row, for all
        asked = candidates * (going + rollouts * over) if self.requests else once
        padded = np.minimum(np.ceil((rest - over) / COLUMNS) * COLUMNS, max(rest.max() - 1, 0))
        scored = over * (end - begin) + rollouts * padded if self.proposed else np.zeros(len(n))
        each = (read, rollouts * followed, scored, drawn + rollouts * rest)
        return Work(prompt * float(asked.mean()), *(candidates * float(part.mean()) for part in each))

    def samples(self, prompt: int, number: int, lengths: Sequence[int]) -> Work:
        mean = float(np.mean(lengths))
        return Work(prompt * (number if self.requests else 1), rollout=number * (mean - 1), generated=number * mean)

    def columns(self, prompt: int, candidates: int, rollouts: int, apart: bool) -> int:
        """The rollouts, each with room to its end, beside the candidates that they go on from and the chosen one."""
        last = (self.longest - 1) // self.block * self.block  # where the last guide step begins
        spread = max(0, last - self.block) if apart else 0
        completing = candidates * rollouts * (prompt + self.longest + spread) if last else 0
        return completing + candidates * (prompt + (last or self.longest)) + prompt + max(0, last - self.block)

    def sample_columns(self, prompt: int, number: int) -> int:
        return number * (prompt + self.longest) + prompt

    def beams(self, prompt: int, number: int) -> Work:
        """Beam search: each forward pass of the search is charged for every beam; at most L of them."""
        if number == 1:
            return self.samples(prompt, 1, [self.longest])
        return Work(prompt, rollout=number * self.longest, generated=number * self.longest)


@dataclass(frozen=True)
class CanvasWork:
    """A masked-diffusion policy: at most, and exactly so if no two canvases are equal that need not be.

    Rows that share a canvas go through the model once. So a guide step's first denoising step is one row-forward for M
    candidates (none after the first guide step, as the chosen candidate's rollouts have read it), and the first one of
    their M·K rollouts M; every other takes as many as there are rows:

        row-forwards = 1 + I M (S - 1) + Σ_{i=1}^{I-1} [M + M K (T - iS - 1)].

    A row-forward is P + L positions, padded to the longest of its batch (at most 9/8 of the shortest), or a cache's
    window where nothing is refreshed; with guidance there are twice as many of both.

    Parameters
    ----------
    policy : MaskedDiffusionPolicy
    together : sequence of int
        The lengths of the prompts in the run.
    alone : bool
        Whether problems advance one by one, so that nothing is padded.
    exact : MaskedDiffusionPolicy, optional
        The policy that reads the drawn paths at levels 1 and 1F: at most once for each denoising step of each row.
    """

    policy: MaskedDiffusionPolicy
    together: Sequence[int]
    alone: bool
    exact: MaskedDiffusionPolicy | None = None

    def steps(self, prompt: int, candidates: int, rollouts: int, lengths: Sequence[int] = ()) -> list[Work]:
        plan = self.policy.schedule
        each, total = plan.steps_per_guide_step, plan.steps
        found = []
        for begin in range(0, total, each):
            end, rows = begin + each, np.zeros((2, total))
            rows[0, begin], rows[0, begin + 1 : end] = begin == 0, candidates
            if end < total:
                rows[1, end], rows[1, end + 1 :] = candidates, candidates * rollouts
            drawn = [candidates * self._revealed(begin, end), candidates * rollouts * self._revealed(end, total)]
            paths = [candidates * each, candidates * rollouts * (total - end)]
            found.append(self._work(prompt, rows, sum(drawn), sum(paths)))
        return found

    def samples(self, prompt: int, number: int, lengths: Sequence[int] = ()) -> Work:
        rows = np.zeros((2, self.policy.schedule.steps))
        rows[1, 0], rows[1, 1:] = 1, number
        return self._work(prompt, rows, number * self.policy.schedule.gen_length, 0)

    def _revealed(self, begin: int, end: int) -> int:
        return sum(map(self.policy.schedule.quota, range(begin, end)))

    def _work(self, prompt: int, rows: Floats, drawn: float, weighed: float) -> Work:
        """Of row-forwards `[2, T]`, for candidates and for rollouts."""
        length = self._padded(prompt)
        each = [self.policy.forward_positions(step, length) for step in range(rows.shape[1])]
        candidate, rollout = (rows @ np.array(each)).tolist()
        forwards, scored = self.policy.reader.passes * float(rows.sum()), 0.0
        if self.exact is not None:
            passes = self.exact.reader.passes
            scored, forwards = weighed * passes * length, forwards + weighed * passes
        return Work(0.0, candidate, rollout, scored, drawn, forwards)

    def _padded(self, prompt: int) -> int:
        canvas = self.policy.schedule.gen_length
        longest = prompt if self.alone else max(self.together)
        return min(int(PADDING * (prompt + canvas)), longest + canvas)

    def columns(self, prompt: int, candidates: int, rollouts: int, apart: bool) -> int:
        """Without a cache nothing is kept of a row."""
        return self.sample_columns(prompt, candidates * rollouts + candidates)

    def sample_columns(self, prompt: int, number: int) -> int:
        return 0 if self.policy.caching is None else (number + 1) * (prompt + self.policy.schedule.gen_length)


def formula_of(policy: Policy, prompts: Sequence[int], alone: bool) -> TokenWork | CanvasWork:
    """What a policy's chains take.

    Parameters
    ----------
    policy : Policy
        As `ets eval` makes them.
    prompts : sequence of int
        The lengths of the prompts in the run.
    alone : bool
        Whether problems advance one by one.
    """
    if isinstance(policy, PathWeights):
        weigher = policy.weigher
        assert isinstance(weigher, LevelWeigher) and isinstance(policy.sampler, MaskedDiffusionPolicy)
        return CanvasWork(policy.sampler, prompts, alone, weigher.exact)
    if isinstance(policy, MaskedDiffusionPolicy):
        return CanvasWork(policy, prompts, alone)
    proposed = isinstance(policy, ImportanceSampling)
    drawing = policy.reference if isinstance(policy, ImportanceSampling) else policy
    assert isinstance(drawing, TransformersPolicy | EnginePolicy)
    horizon, requests = drawing.horizon, isinstance(drawing, EnginePolicy)
    return TokenWork(horizon.block_size, horizon.max_length, proposed, requests)
