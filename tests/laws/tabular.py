"""A tabular policy with the optional methods of a policy: proposals, scoring, greedy decoding and beam search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ets.step import require_counts
from ets.testing import TabularPolicy
from ets.testing.tabular import total_cost
from ets.types import Cost, Draw, Followed, InputError, Keys, Policy, Scored, State


@dataclass
class TabularModel(TabularPolicy):
    """The optional methods, by the table."""

    def require_proposal(self, proposal: Policy) -> None:
        """Raise InputError unless the proposal is a table with the same vocabulary and length."""
        if not isinstance(proposal, TabularPolicy):
            raise InputError(f"a {type(proposal).__name__} has other states than a table; choose a TabularPolicy")
        for name in ("vocabulary", "max_length"):
            if (mine := getattr(self, name)) != (other := getattr(proposal, name)):
                raise InputError(f"{name} is {mine} here and {other} in the proposal; make them equal")

    def follow(self, own: Sequence[Any], foreign: Sequence[State]) -> list[Followed]:
        """Costs the positions that a model would read."""
        followed = []
        for before, after in zip(own, foreign, strict=True):
            new, logp = self._read(before, after)
            state = self._drawn(before, after.tokens, logp, "candidate").state
            followed.append(Followed(state, Cost(scored=0 if after.done else new)))
        self.ledger += total_cost(followed)
        return followed

    def logp(self, starts: Sequence[State], ends: Sequence[State]) -> list[Scored]:
        """Costs the positions that a model would read: all but the last token."""
        read = [self._read(*row) for row in zip(starts, ends, strict=True)]
        scored = [Scored(logp, Cost(scored=new - 1)) for new, logp in read]
        self.ledger += total_cost(scored)
        return scored

    def _read(self, before: Any, after: State) -> tuple[int, float]:
        """The number of tokens after the first state, and their log-probability."""
        begun, problem = len(before.tokens), before.problem
        if after.tokens[:begun] != before.tokens:
            raise InputError(f"the tokens {after.tokens} do not go on from {before.tokens}")
        steps = [(after.tokens[:n], after.tokens[n]) for n in range(begun, len(after.tokens))]
        return len(steps), float(sum(np.log(self.next_token(problem, prefix)[token]) for prefix, token in steps))

    def greedy(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        """The most probable token at each position, of the tempered law."""
        return self.beam(states, 1)

    def beam(self, states: Sequence[State], beams: int) -> list[Draw]:
        """Beam search by the sum of log-probabilities; with a beam for every prefix it is exact."""
        require_counts(beams=beams)
        draws = [self._search(state, beams) for state in states]
        self.ledger += total_cost(draws)
        return draws

    def _search(self, state: Any, beams: int) -> Draw:
        """Stops once the best ended text beats every running prefix, since longer texts are less probable."""
        running, ended, extended = [(0.0, state.tokens)], [(-np.inf, ())], 0
        while running and running[0][0] > max(ended)[0]:
            extended += len(running)
            longer = [
                (logp + float(np.log(p)), (*tokens, token))
                for logp, tokens in running
                for token, p in enumerate(self.next_token(state.problem, tokens))
            ]
            longer.sort(reverse=True)
            ended += [beam for beam in longer[:beams] if self._ended(beam[1])]
            running = [beam for beam in longer if not self._ended(beam[1])][:beams]
        logp, tokens = max(ended)
        return replace(self._drawn(state, tokens, logp, "rollout"), cost=Cost(rollout=extended, generated=extended))
