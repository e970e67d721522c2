"""The progress bar of a run: finished problems, accuracy or mean reward, speed, time left.

Several threads may use it.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Sequence
from statistics import fmean
from types import TracebackType
from typing import Any

from tqdm import tqdm

from ets.evaluation.intervals import accuracy
from ets.evaluation.journal import Record
from ets.types import Chain, Policy, StepFn

INTERVAL = 0.1
"""Seconds between two updates of the numbers, whose mean over many problems costs time."""
EARLY = 0.1
"""The time left is shown from this share of the work on, and not before a chain has ended."""


class Progress:
    """A bar over a method's chains.

    Parameters
    ----------
    label : str
    problems, samples : int
        The number of problems, and of chains for each problem.
    known : iterable of Record
        The records of finished chains.
    policies : sequence of Policy
        The bar shows the tokens per second in the policies' ledgers.
    shown : bool
    texts : int
        Texts whose grades a record's grade is the mean of.
    """

    def __init__(
        self,
        label: str,
        problems: int,
        samples: int,
        known: Iterable[Record],
        policies: Sequence[Policy],
        shown: bool,
        texts: int = 1,
    ) -> None:
        self.problems, self.samples, self.texts, self.policies = problems, samples, texts, policies
        self.right: dict[str, list[float]] = {}
        self.guide_steps: list[int] = []  # of each ended chain
        self._running: dict[tuple[str, int], int] = {}  # guide steps of each chain under way
        self.rewards: list[float] = []  # of texts without a grade
        self._answered = True
        self._lock = threading.RLock()
        for record in known:
            self._note(record)
        self._before, self._begun, self._described = self._generated, time.monotonic(), -math.inf
        self._stale = False  # True while a finished chain is missing from the numbers
        self._known, total = self._ended, problems * samples
        looks: dict[str, Any] = {"desc": label, "disable": not shown, "bar_format": _bar()}
        self._bar: Any = tqdm(total=total, initial=min(total, self._known), **looks)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._describe()
        self._bar.close()

    def shown_at_each(self, step: StepFn) -> StepFn:
        """The step function, which updates the bar at every step: chains end together, and late."""

        def stepped(policy: Policy, chains: Sequence[Chain]) -> list[Chain]:
            if self._stale and not self._bar.disable:
                self._show()
            advanced = step(policy, chains)
            with self._lock:
                self._running |= {(chain.problem.id, chain.sample): len(chain.trace) for chain in advanced}
            if self._due:
                self._show()
            return advanced

        return stepped

    def ended(self, record: Record) -> None:
        """Count a finished chain."""
        with self._lock:
            self._note(record)
            self._stale = True
            if self._due:
                self._show()

    def _note(self, record: Record) -> None:
        self._running.pop((record["problem"], record["sample"]), None)
        self.guide_steps.append(record.get("guide_steps", 1))
        self.right.setdefault(record["problem"], []).append(float(record["correct"] or 0))
        if record["correct"] is None:
            self._answered = False
            rewards = [text.get("reward") for text in record.get("texts", [record])]
            self.rewards += [reward for reward in rewards if reward is not None]

    @property
    def _ended(self) -> int:
        return sum(map(len, self.right.values()))

    @property
    def _done(self) -> float:
        """Ended chains, and the shares of those under way, by the mean guide steps of an ended chain."""
        lengths: Sequence[int] = getattr(self.policies[0], "lengths", ())
        steps = fmean(self.guide_steps) if self.guide_steps else max(1, len(lengths) - 1)
        return self._ended + sum(min(number / (steps + 1), 1.0) for number in self._running.values())

    @property
    def _generated(self) -> int:
        return sum(policy.ledger.generated for policy in self.policies)

    @property
    def _due(self) -> bool:
        return not self._bar.disable and time.monotonic() - self._described >= INTERVAL

    def _show(self) -> None:
        with self._lock:
            self._describe()
            self._bar.refresh()

    def _describe(self) -> None:
        self._described, self._stale = time.monotonic(), False
        done = sum(len(values) >= self.samples for values in self.right.values())
        parts = [f"{done}/{self.problems} problems"]
        if self.rewards:
            parts.append(f"mean reward {fmean(self.rewards):.3f}")
        if self.right and self._answered:
            found = accuracy([fmean(values) for values in self.right.values()], self.samples * self.texts)
            parts.append(f"accuracy {found.mean:.1%} ({found.low:.1%} to {found.high:.1%})")
        seconds = self._described - self._begun
        if generated := self._generated - self._before:
            parts.append(f"{generated / max(seconds, 1e-9):,.0f} tokens/s")
        self._bar.set_postfix_str(", ".join(parts), refresh=False)
        total, new, rest = self._bar.total, self._done - self._known, self._bar.total - self._known
        self._bar.n = min(total, self._known + new)
        timed = self._ended > self._known and new >= EARLY * rest
        left = f"<{tqdm.format_interval(max(0.0, seconds * (rest / new - 1)))}" if timed else ""
        self._bar.bar_format = _bar(str(min(total, self._ended)), left)


def _bar(ended: str = "{n}", left: str = "") -> str:
    return f"{{l_bar}}{{bar}}| {ended}/{{total}} [{{elapsed}}{left}{{postfix}}]"
