"""Walks over texts that redraw the ends of texts: a text with its states at the guide boundaries, and its redraws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ets.randomness import derive
from ets.types import Cost, Draw, InputError, Keys, Policy, Problem, State, Text


@dataclass(frozen=True)
class WalkPath:
    """A generation with the states `[n + 1]`, the texts and the drawn tokens at all guide boundaries.

    The first boundary is the empty text.
    """

    states: tuple[State, ...]
    texts: tuple[Text, ...]
    drawn: tuple[int, ...]

    @classmethod
    def start(cls, state: State) -> WalkPath:
        """The path without guide steps of a policy's start state."""
        return cls((state,), (Text(state.tokens, state.text, 0.0, state.done),), (0,))

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.states[-1].tokens

    @property
    def text(self) -> str:
        return self.states[-1].text

    @property
    def done(self) -> bool:
        return self.states[-1].done

    @property
    def steps(self) -> int:
        """Guide steps taken, n."""
        return len(self.states) - 1

    def cut(self, boundary: int) -> WalkPath:
        """The path up to a boundary; 0 is the empty text."""
        kept = boundary + 1
        return WalkPath(self.states[:kept], self.texts[:kept], self.drawn[:kept])


def drawn_on(
    policy: Policy, paths: Sequence[WalkPath], keys: Keys, goes_on: Callable[[int, WalkPath], bool] | None = None
) -> list[tuple[WalkPath, list[Cost]]]:
    """Extend paths `[R]` by keys `[R]`, a guide step of each path per call, until they are complete.

    A path stops earlier where `goes_on(row, path)` is False. Returns the paths and the costs of their draws.
    """
    grown, costs = list(paths), list[list[Cost]]([] for _ in paths)
    stopped: set[int] = set()
    while True:
        rows = [n for n, path in enumerate(grown) if not path.done and n not in stopped]
        stopped |= {n for n in rows if goes_on is not None and not goes_on(n, grown[n])}
        rows = [n for n in rows if n not in stopped]
        if not rows:
            return list(zip(grown, costs, strict=True))
        begun = [grown[n] for n in rows]
        block_keys = derive(keys[rows], np.array([path.steps for path in begun]))
        draws = policy.extend([path.states[-1] for path in begun], block_keys)
        for n, path, draw in zip(rows, begun, draws, strict=True):
            drawn = path.drawn[-1] + draw.cost.generated
            grown[n] = WalkPath((*path.states, draw.state), (*path.texts, draw.text), (*path.drawn, drawn))
            costs[n].append(draw.cost)


@dataclass(frozen=True, eq=False)
class Recorded:
    """A policy whose states are `WalkPath`: any step function on it returns the states at all guide boundaries."""

    policy: Policy

    @property
    def ledger(self) -> Cost:
        return self.policy.ledger

    @property
    def deterministic(self) -> bool:
        return self.policy.deterministic

    def start(self, problems: Sequence[Problem]) -> list[State]:
        return [WalkPath.start(state) for state in self.policy.start(problems)]

    def extend(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        paths = _paths(states)
        return _draws(paths, drawn_on(self.policy, paths, keys, lambda n, path: path.steps == paths[n].steps))

    def finish(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        paths = _paths(states)
        return _draws(paths, drawn_on(self.policy, paths, keys))


def _paths(states: Sequence[State]) -> list[WalkPath]:
    return [state for state in states if isinstance(state, WalkPath)]


def _draws(before: Sequence[WalkPath], after: Sequence[tuple[WalkPath, list[Cost]]]) -> list[Draw]:
    return [
        Draw(path, path.texts[-1], path.texts[-1].logp - begun.texts[-1].logp, Cost.total(costs))
        for begun, (path, costs) in zip(before, after, strict=True)
    ]


@dataclass(frozen=True)
class Lengths:
    """Bounds on the generated tokens of a policy's texts, from its attributes `lengths` and `step_length`.

    Parameters
    ----------
    least : tuple of int
        Of an open text at each guide boundary, from the empty text on.
    most : int
        Of a complete text.
    step : int
        The most tokens of a guide step.
    """

    least: tuple[int, ...]
    most: int
    step: int

    def next_step(self, path: WalkPath) -> int:
        """The most tokens that the next guide step of an open path generates."""
        return min(self.step, self.most - path.drawn[-1])


def lengths_of(policy: Policy) -> Lengths:
    """The bounds of a policy, which budgets of tokens need. Raises `InputError` for a policy without `lengths`."""
    lengths = tuple(getattr(policy, "lengths", ()))
    if len(lengths) < 2:
        raise InputError(
            f"{type(policy).__name__} has no attribute lengths, which a budget of tokens needs; add the least tokens "
            "of an open text at each guide boundary, from 0 on, and the most of a complete text"
        )
    return Lengths(lengths[:-1], lengths[-1], getattr(policy, "step_length", lengths[-1]))
