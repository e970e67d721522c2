"""What a run will take: at most, by formula, and as expected after real guide steps on this machine."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from statistics import fmean
from typing import Any

import numpy as np

from ets import baselines
from ets.evaluation.methods import AVERAGED, DETERMINISTIC, METHODS, Method, Settings, needs_samples
from ets.evaluation.sizes import PILOTS, size_for
from ets.evaluation.tables import aligned
from ets.evaluation.work import CanvasWork, TokenWork, Work, formula_of
from ets.importance import ImportanceSampling
from ets.path_weights import PathWeights
from ets.policies.autoregressive.engine import EnginePolicy
from ets.policies.checkpoint import Checkpoint
from ets.policies.memory import cache_bytes
from ets.randomness import derive
from ets.rewards import likelihood
from ets.runner import run
from ets.tasks.task import Task
from ets.types import Chain, Cost, Policy, Problem

PILOT = 128
"""Plain samples whose lengths are looked at, each of another problem."""
PILOT_ROWS = 32
"""As many of them are drawn together."""
SHARING = 4
"""Problems that advance together where numbers of samples are tried: few, so that several numbers are."""
OWN_LENGTHS = ("greedy", "ets-is")
"""Methods whose texts are not drawn as plain samples are."""


@dataclass(frozen=True)
class Estimate:
    """A method's line: of the whole run, all problems and repeats together.

    Parameters
    ----------
    label : str
    most : Work
        Never exceeded, with so many samples as the label says.
    cache : float or None
        Bytes that the caches of the rows under way hold at most; None for an engine that keeps its own.
    expected : Work or None
    seconds : float or None
        Without a calibration, None.
    """

    label: str
    most: Work
    cache: float | None
    expected: Work | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Measured:
    """Chains on their way or ended, and the seconds that their guide steps took."""

    chains: Sequence[Chain]
    seconds: float

    @property
    def cost(self) -> Cost:
        return Cost.total(chain.cost for chain in self.chains)

    @property
    def lengths(self) -> list[int]:
        """Of complete texts drawn from the start: a first guide step's rollouts are plain samples."""
        return [len(text.tokens) for chain in self.chains for row in chain.trace[0].rollouts for text in row]


@dataclass(frozen=True)
class Estimation:
    """A run that has not begun; most parameters are those of `ets.evaluation.evaluate.Evaluation`.

    Parameters
    ----------
    prompts : sequence of int
        Their lengths in tokens, in the order of the problems.
    """

    task: Task
    policy: Policy
    problems: Sequence[Problem]
    prompts: Sequence[int]
    settings: Settings
    width: int
    seed: int
    repeats: int = 1
    own: Mapping[str, Policy] = field(default_factory=dict)

    def estimates(self, names: Sequence[str], samples: int | None, seconds: float) -> list[Estimate]:
        """Of the named methods, in this order.

        Parameters
        ----------
        names : sequence of str
            Keys of `ets.evaluation.methods.METHODS`.
        samples : int, optional
            N of the methods without guide steps; by default about as many as cost what ETS is expected to.
        seconds : float
            Of calibration in all, shared evenly by the methods, of which each takes at least one guide step; 0 for
            none.
        """
        found: dict[str, Estimate] = {}
        share = seconds / (len(names) + 1)
        lengths = self._pilot(share) if seconds and isinstance(self._formula, TokenWork) else []
        for name in sorted(names, key=lambda name: name != "ets"):
            if samples is None and needs_samples(name, self.settings, self.repeats):
                samples = self._matching(found["ets"], lengths, share)
            estimation = self._of(name, samples or 1)
            found[name] = estimation.estimate(lengths, estimation.measured(share) if seconds else None)
        return [found[name] for name in names]

    def spread(self, number: int) -> list[Problem]:
        """All problems, so that the first `number`, the next and so on each come from everywhere in the task."""
        apart = max(1, len(self.problems) // number)
        return [problem for begin in range(apart) for problem in self.problems[begin::apart]]

    def _pilot(self, seconds: float) -> list[int]:
        """Lengths of plain samples, one of each of a few problems."""
        problems, lengths, begun = self.spread(PILOT)[:PILOT], list[int](), time.perf_counter()
        keys = derive(np.array(self.seed % 2**64, np.uint64), np.arange(len(problems)))
        for at in range(0, len(problems), PILOT_ROWS):
            states = self.policy.start(problems[at : at + PILOT_ROWS])
            draws = self.policy.finish(states, keys[at : at + PILOT_ROWS])
            lengths += [len(draw.text.tokens) for draw in draws]
            if time.perf_counter() - begun > seconds:
                break
        return lengths

    @property
    def _formula(self) -> TokenWork | CanvasWork:
        return formula_of(self.policy, self.prompts, alone=self.width == 1)

    def _of(self, name: str, samples: int) -> _Estimation:
        number = self.repeats if name in AVERAGED and self.repeats > 1 else self.settings.sizes.get(name, samples)
        method = METHODS[name](self.task, self.settings, number)
        return _Estimation(self, method, 1 if name == "greedy" else number)

    def _matching(self, ets: Estimate, lengths: Sequence[int], seconds: float) -> int:
        """How many samples cost what ETS costs, as far as is known: in positions or in tokens, as `ets eval` counts."""
        spent, chains = ets.expected or ets.most, len(self.problems) * self.repeats
        formula = self._formula
        if isinstance(formula, TokenWork):
            return max(1, round(spent.generated / chains / fmean(lengths or [formula.longest])))
        one = fmean(formula.samples(prompt, 1).positions for prompt in self.prompts)
        first = max(1, round(spent.positions / chains / one))
        return self._sharing(spent.positions, first, seconds) if seconds else first

    def _sharing(self, positions: float, first: int, seconds: float) -> int:
        """How many samples of each problem are expected to take so many positions in all, from a first guess.

        Measured, as canvases that are equal go through the model once: a sample among others costs less than one alone.
        Once the time is up, costs are in proportion to the number.
        """
        known, begun = dict[int, float](), time.perf_counter()
        plan = replace(self, width=min(self.width, SHARING))

        def share_of(number: int) -> float:
            if known and time.perf_counter() - begun > seconds:
                return known[max(known)] * number / max(known)
            pilot = _Estimation(plan, Method("pilot", "", baselines.best_of_n(likelihood(), samples=number)), number)
            known[number] = pilot.expected((), pilot.measured(seconds / PILOTS)).positions / positions
            return known[number]

        return size_for(share_of, first)[0]


@dataclass(frozen=True)
class _Estimation:
    """Of one method; `number` are the samples that a problem gets without guide steps."""

    plan: Estimation
    method: Method
    number: int

    @property
    def policy(self) -> Policy:
        return self.plan.own.get(self.method.name, self.plan.policy)

    @property
    def formula(self) -> TokenWork | CanvasWork:
        return formula_of(self.policy, self.plan.prompts, alone=self.plan.width == 1)

    @property
    def uses(self) -> int:
        """How often the method runs on a problem."""
        return 1 if self.method.name in (*DETERMINISTIC, *AVERAGED) else self.plan.repeats

    @property
    def shape(self) -> tuple[int, int] | None:
        """M and K; None without guide steps."""
        settings = self.plan.settings
        if self.method.name == "ets-is" and settings.proposing is not None:
            return settings.proposing.candidates, settings.rollouts
        return (settings.candidates, settings.rollouts) if self.method.name == "ets" else None

    def estimate(self, lengths: Sequence[int], measured: Measured | None) -> Estimate:
        """With the lengths of plain samples and what was measured of the method itself, if there are any."""
        most = self._total(None)
        if measured is None:
            return Estimate(self.method.label, most, self._cache())
        cost, expected = measured.cost, self.expected(lengths, measured)
        share = expected.generated / cost.generated if self._by_length else expected.positions / cost.positions
        return Estimate(self.method.label, most, self._cache(), expected, measured.seconds * share)

    def expected(self, lengths: Sequence[int], measured: Measured) -> Work:
        """By the lengths of texts, or by the share of the bound that was needed of what was measured."""
        if self._by_length:
            return self._total(measured.lengths if self.method.name in OWN_LENGTHS else lengths)
        return _scaled(self._total(None), measured.cost, self._most_of(measured))

    @property
    def _by_length(self) -> bool:
        return isinstance(self.formula, TokenWork) and self.method.name != "beam"

    @property
    def _rows(self) -> int:
        """Rows of a use of a method without guide steps: its samples, or its beams."""
        return (self.plan.settings.beams or 1) if self.method.name == "beam" else self.number

    def measured(self, seconds: float) -> Measured:
        """Take guide steps on some problems, at the run's own width, until the time is up."""
        plan, method, chains = self.plan, self.method, dict[tuple[str, int], Chain]()
        policy, problems = self.policy, plan.spread(plan.width)
        policy.extend(policy.start(plan.problems[:1]), np.zeros(1, np.uint64))  # what is loaded is not measured
        taken: list[float] = []

        def timed(policy: Policy, active: Sequence[Chain]) -> list[Chain]:
            if sum(taken) >= seconds and taken:
                raise _Enough
            begun = time.perf_counter()
            advanced = method.step(policy, active)
            taken.append(time.perf_counter() - begun)
            chains.update({(chain.problem.id, chain.sample): chain for chain in advanced})
            return advanced

        samples = method.samples if method.name in AVERAGED else self.uses
        with suppress(_Enough):
            for _ in run(policy, timed, problems, width=self._width, seed=plan.seed, samples=samples):
                pass
        return Measured(list(chains.values()), sum(taken))

    @property
    def _width(self) -> int:
        return self.plan.width * self.method.samples

    def _total(self, lengths: Sequence[int] | None) -> Work:
        """Of all problems; at most, where no lengths are given."""
        total, shared = Work(), not getattr(self.formula, "requests", False)
        for prompt, problems in Counter(self.plan.prompts).items():
            steps = self._steps(prompt, lengths)
            work = sum(steps, Work())
            uses = work * self.uses
            total += (replace(uses, prompt=work.prompt) if shared else uses) * problems
        return total

    def _steps(self, prompt: int, lengths: Sequence[int] | None) -> list[Work]:
        """Of one use of the method, by guide step."""
        formula, drawn = self.formula, lengths
        if isinstance(formula, TokenWork):
            drawn = drawn or [formula.longest]
            if self.method.name == "beam":
                return [formula.beams(prompt, self._rows)]
        if self.shape is None:
            return [formula.samples(prompt, self._rows, drawn or ())]
        return formula.steps(prompt, *self.shape, drawn or ())

    def _most_of(self, measured: Measured) -> Work:
        """The bound for the guide steps that were taken, and for those that chains which have ended did not need."""
        lengths = {problem.id: n for problem, n in zip(self.plan.problems, self.plan.prompts, strict=True)}
        total = Work()
        for chain in measured.chains:
            steps = self._steps(lengths[chain.problem.id], None)
            total += sum(steps if chain.state.done else steps[: len(chain.trace)], Work())
        return total * (1 / self.method.samples)

    def _cache(self) -> float | None:
        """Bytes, at most: of the rows of as many chains as advance together."""
        prompt, formula, policy = max(self.plan.prompts), self.formula, self.policy
        if isinstance(policy, EnginePolicy):
            return None
        together = min(self.plan.width, len(self.plan.prompts) * self.uses)
        if self.shape is None:
            columns = formula.sample_columns(prompt, self._rows)
        else:
            columns = formula.columns(prompt, *self.shape, apart=together > 1)
        return float(together * columns * sum(map(_bytes_per_token, models_of([policy]))))


class _Enough(Exception):
    """The time is up."""


def models_of(policies: Iterable[Any]) -> list[Checkpoint]:
    """The models of policies, each once: of a pair both, of a weighed sampler its own."""
    found: dict[int, Checkpoint] = {}
    for policy in policies:
        if isinstance(policy, ImportanceSampling):
            found |= {id(model): model for model in models_of([policy.reference, policy.proposal])}
        else:
            drawing: Any = policy.sampler if isinstance(policy, PathWeights) else policy
            found[id(drawing.checkpoint)] = drawing.checkpoint
    return list(found.values())


def _bytes_per_token(checkpoint: Checkpoint) -> int:
    return cache_bytes(checkpoint.config.get_text_config(), checkpoint.number_type.itemsize)


def _scaled(most: Work, measured: Cost, bound: Work) -> Work:
    """A bound times the share of it that was needed of the same bound for what was measured."""
    amounts = {f.name: (getattr(most, f.name), getattr(bound, f.name), getattr(measured, f.name)) for f in fields(Work)}
    return Work(**{name: whole * used / part if part else 0.0 for name, (whole, part, used) in amounts.items()})


def table(estimates: Sequence[Estimate]) -> str:
    """A Markdown table of the whole run; expected numbers and bounds beside each other."""
    calibrated = estimates[0].expected is not None
    forwards = any(estimate.most.row_forwards for estimate in estimates)
    kinds = ("generated", "positions", *(("row_forwards",) if forwards else ()))
    names = {"generated": "tokens", "positions": "positions", "row_forwards": "row-forwards"}
    heads = [h for kind in kinds for h in ((names[kind], "at most") if calibrated else (f"{names[kind]}, at most",))]
    lines = [("method", *heads, "rows' cache, at most", *(("time",) if calibrated else ()))]
    return aligned([*lines, *(_cells(estimate, kinds) for estimate in estimates)])


def _cells(estimate: Estimate, kinds: Sequence[str]) -> tuple[str, ...]:
    both = [work for work in (estimate.expected, estimate.most) if work is not None]
    amounts = [f"{getattr(work, kind):,.0f}" for kind in kinds for work in both]
    cache = "the engine's own" if estimate.cache is None else size(estimate.cache)
    return (estimate.label, *amounts, cache, *(() if estimate.seconds is None else (duration(estimate.seconds),)))


def size(amount: float) -> str:
    """Bytes, readable."""
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.3g} {unit}"
        amount /= 1024
    return f"{amount:,.1f} GiB"


def duration(seconds: float) -> str:
    """Seconds, readable."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 100 else f"{minutes / 60:,.1f} h"
