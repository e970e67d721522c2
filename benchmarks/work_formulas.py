"""The work of guided sampling by formula: expected for a law of text lengths, and at most.

Symbols: M candidates, K rollouts per candidate, P tokens of the prompt, L the longest generation (or the
canvas), B tokens of a guide step, I guide steps of S = T / I of the T denoising steps. The bounds count every text as
long as L and every canvas as different.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from ets.policies.autoregressive.scoring import COLUMNS
from ets.policies.diffusion.policy import MaskedDiffusionPolicy
from ets.types import Floats


@dataclass(frozen=True)
class Work:
    """Amounts as in `ets.types.Cost`; expected amounts are means."""

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
        ETS-IS: the proposal also reads the prompt and the candidates that continue, and the model reads the rollouts
        in slices of 16 columns (`ets.policies.autoregressive.scoring`).
    """

    block: int
    longest: int
    proposed: bool = False

    def steps(self, prompt: int, candidates: int, rollouts: int, lengths: Sequence[int]) -> list[Work]:
        """The work of each guide step."""
        begins = range(0, self.longest, self.block)
        return [self._step(prompt, begin, candidates, rollouts, np.asarray(lengths, float)) for begin in begins]

    def _step(self, prompt: int, begin: int, candidates: int, rollouts: int, n: Floats) -> Work:
        end = min(begin + self.block, self.longest)
        going, over = (n > begin) * 1.0, (n > end) * 1.0
        drawn, rest = np.clip(n - begin, 0, end - begin), np.clip(n - end, 0, None)
        read = drawn - (going - over)
        followed = rest - over
        asked = (begin == 0) * (going + self.proposed * over)  # read once for all rows
        padded = np.minimum(np.ceil((rest - over) / COLUMNS) * COLUMNS, max(rest.max() - 1, 0))
        scored = over * (end - begin) + rollouts * padded if self.proposed else np.zeros(len(n))
        each = (read, rollouts * followed, scored, drawn + rollouts * rest)
        return Work(prompt * float(asked.mean()), *(candidates * float(part.mean()) for part in each))


@dataclass(frozen=True)
class CanvasWork:
    """A masked-diffusion policy whose problems advance one by one: at most, and exact if all canvases differ.

    Rows that share a canvas go through the model once. A guide step's first denoising step takes one row-forward for
    its M candidates in the first guide step, and none later, because the rollouts of the last step have read the
    canvas. The first denoising step of the M·K rollouts takes M row-forwards, every other step one per row:

        row-forwards = 1 + I M (S - 1) + Σ_{i=1}^{I-1} [M + M K (T - iS - 1)].

    A row-forward is P + L positions, or a cache's window between refreshes; guidance doubles both counts.
    """

    policy: MaskedDiffusionPolicy

    def steps(self, prompt: int, candidates: int, rollouts: int) -> list[Work]:
        """The work of each guide step."""
        plan = self.policy.schedule
        each, total = plan.steps_per_guide_step, plan.steps
        length = prompt + plan.gen_length
        positions = np.array([self._positions(step, length) for step in range(total)])
        found = []
        for begin in range(0, total, each):
            end, rows = begin + each, np.zeros((2, total))
            rows[0, begin], rows[0, begin + 1 : end] = begin == 0, candidates
            if end < total:
                rows[1, end], rows[1, end + 1 :] = candidates, candidates * rollouts
            drawn = candidates * (self._revealed(begin, end) + rollouts * self._revealed(end, total))
            candidate, rollout = (rows @ positions).tolist()
            forwards = self._passes * float(rows.sum())
            found.append(Work(0.0, candidate, rollout, 0.0, drawn, forwards))
        return found

    @property
    def _passes(self) -> int:
        return 2 if self.policy.unmasking.cfg else 1

    def _positions(self, step: int, length: int) -> int:
        """Token positions of a denoising step on a canvas that has `length` tokens with its prompt."""
        policy, plan = self.policy, self.policy.schedule
        if policy.caching is None or policy.last_refresh(step) == step:
            return self._passes * length
        first, last = policy.caching.window(plan.block_of(step), plan.gen_length)
        return last - first + policy.reader.shift

    def _revealed(self, begin: int, end: int) -> int:
        return sum(map(self.policy.schedule.quota, range(begin, end)))
