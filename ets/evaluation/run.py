"""A run: methods sample a task's problems, and the journal keeps a record of each chain that has ended."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any, Protocol, runtime_checkable

from ets.evaluation.journal import Journal, Record
from ets.evaluation.progress import Progress
from ets.evaluation.ratios import recorded_ratios
from ets.evaluation.serial_depth import metered
from ets.evaluation.traces import effective_sizes
from ets.groups import run_in_groups
from ets.readouts import vote
from ets.runner import run
from ets.step import score
from ets.tasks.task import Slow, Task, is_graded
from ets.types import Chain, Policy, Problem, Reward, StepFn, Text


def problem_digest(problem: Problem) -> str:
    """16 hexadecimal digits of a hash of everything that a problem asks and holds."""
    values = [problem.id, problem.prompt, problem.stop, problem.doc, problem.messages, problem.thinking]
    return hashlib.sha256(json.dumps(values, default=str, sort_keys=True).encode()).hexdigest()[:16]


@runtime_checkable
class FurtherScores(Protocol):
    """A task that scores a text by further metrics than `grade`, by name."""

    def scores(self, problem: Problem, text: str) -> Mapping[str, float]: ...


@runtime_checkable
class Loadable(Protocol):
    """A policy whose weights or engine can be loaded before the first draw, so that no row's seconds include it."""

    def load(self) -> None:
        """Load the weights or the engine, unless they are loaded."""
        ...


@runtime_checkable
class Shareable(Loadable, Protocol):
    """A policy over an engine that several threads may draw from."""

    def beside(self) -> Policy:
        """Another policy of the same law over the same engine, for a second thread."""
        ...


@runtime_checkable
class Joinable(Loadable, Protocol):
    """A policy whose rows for several problems can advance in one batch, with a thread for each problem."""

    @property
    def joins(self) -> bool:
        """Whether that takes less time than steps of all problems together."""
        ...

    def joined(self, members: int) -> list[Policy]:
        """As many policies of the same law, whose draws wait for one another."""
        ...

    def paused(self) -> AbstractContextManager[None]:
        """A context in which none of the joined policies' threads runs."""
        ...


@dataclass(frozen=True)
class Drawing:
    """A step function with its policy and its key in the journal.

    Parameters
    ----------
    key : str
        The method and its settings: records of other settings have other keys.
    label : str
        The name in tables and progress bars.
    step : StepFn
    policy : Policy
    votes : bool
        Whether records keep the vote over all rollouts, a second readout of the same chain.
    weighed : bool
        Whether records keep a summary of the importance ratios.
    clip : (float, float), optional
        Bounds of the ratios.
    note : callable, optional
        Further values of a chain's record. By default it is the readout of the chain's text.
    texts : int
        Texts whose grades a record's grade is the mean of.
    reward : Reward, optional
        A fixed reward, whose value at each graded text the records keep.
    together : bool
        Whether the problems under way go from step to step together, as in a search.
    """

    key: str
    label: str
    step: StepFn
    policy: Policy
    votes: bool = False
    weighed: bool = False
    clip: tuple[float, float] | None = None
    note: Callable[[Chain], Mapping[str, Any]] | None = None
    texts: int = 1
    reward: Reward | None = None
    together: bool = False


@dataclass(frozen=True)
class Run:
    """The problems of a task, and the journal of the chains that answer them.

    Parameters
    ----------
    task : Task
    problems : sequence of Problem
    journal : Journal
    width, seed : int
        As for `ets.runner.run`.
    per_token : float
        Model calls in a row that a token takes: 1, or denoising steps over tokens.
    progress : bool
        Show progress bars.
    kept : callable
        Receives each chain that has ended, with its key, before its record is written.
    """

    task: Task
    problems: Sequence[Problem]
    journal: Journal
    width: int
    seed: int
    per_token: float = 1.0
    progress: bool = True
    kept: Callable[[str, Chain], None] = lambda key, chain: None
    _depths: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise `InputError` if the journal has damaged records, or answers another problem under one of these ids."""
        self.journal.require_records()
        self.journal.require_asked({problem.id: problem_digest(problem) for problem in self.problems})

    def records(self, drawing: Drawing, problems: Sequence[Problem], repeats: int) -> list[Record]:
        """The records of `repeats` chains of each problem, sampled where the journal lacks them.

        One chain of all problems is sampled after the other. So the chains of a problem share no work, and each is
        charged the full cost of one use of the method.
        """
        for sample in range(repeats):
            self._draw(drawing, problems, sample)
        wanted = {(problem.id, sample) for problem in problems for sample in range(repeats)}
        return [r for r in self.journal.of(drawing.key) if (r["problem"], r["sample"]) in wanted]

    def _draw(self, drawing: Drawing, problems: Sequence[Problem], sample: int) -> None:
        """Sample what the journal lacks. Of several processes each samples its share, then all exchange records."""
        known = self.journal.records
        if any((drawing.key, problem.id, sample) not in known for problem in problems):
            self._draw_share(drawing, self.journal.ranks.share(problems), sample)
        self.journal.exchange()

    def _draw_share(self, drawing: Drawing, problems: Sequence[Problem], sample: int) -> None:
        ids = {problem.id for problem in problems}
        done = [r for r in self.journal.of(drawing.key) if r["sample"] == sample and r["problem"] in ids]
        finished = {(r["problem"], sample) for r in done} | {(id, earlier) for id in ids for earlier in range(sample)}
        policies = self._policies(drawing, len(problems) - len(done))
        if isinstance(policies[0], Loadable) and len(done) < len(problems):
            policies[0].load()  # before the clock starts
        ranks = self.journal.ranks
        label = drawing.label if ranks.size == 1 else f"{drawing.label}, process 1 of {ranks.size}"
        shown = self.progress and ranks.first
        options: dict[str, Any] = {"width": self.width, "seed": self.seed, "samples": sample + 1, "done": finished}
        with Progress(label, len(problems), 1, done, policies, shown, drawing.texts) as progress:
            step = progress.shown_at_each(self._graded_in_parallel(metered(drawing.step, self._depths)))
            with closing(_chains(policies, step, problems, **options)) as chains:
                for chain in chains:
                    self.kept(drawing.key, chain)
                    with policies[0].paused() if isinstance(policies[0], Joinable) else nullcontext():
                        record = self._record(drawing, chain)
                    self.journal.append(record)
                    progress.ended(record)

    def _policies(self, drawing: Drawing, problems: int) -> list[Policy]:
        """A policy for each problem under way where threads may share an engine: no problem waits for another one.

        A slow task grades the texts of all problems in parallel, which must then end together.
        """
        policy, members = drawing.policy, min(self.width, problems)
        if members < 2 or getattr(self.task, "main_thread", False):
            return [policy]
        if isinstance(policy, Joinable):
            together = drawing.together or isinstance(self.task, Slow) or not policy.joins
            return [policy] if together else policy.joined(members)
        return [policy, *(policy.beside() for _ in range(members - 1))] if isinstance(policy, Shareable) else [policy]

    def _graded_in_parallel(self, step: StepFn) -> StepFn:
        """The step function; a slow task then grades the texts that have ended in parallel, and remembers them."""
        task = self.task
        if not isinstance(task, Slow):
            return step

        def stepped(policy: Policy, chains: Sequence[Chain]) -> list[Chain]:
            advanced = step(policy, chains)
            ended = [(chain.problem, chain.state.text) for chain in advanced if chain.state.done]
            task.extract_all(ended)
            task.grade_all(ended)
            return advanced

        return stepped

    def _record(self, drawing: Drawing, chain: Chain) -> Record:
        """The journal's record of a chain."""
        searched = min(len(chain.state.tokens), chain.cost.generated)
        depth = self._depths.pop(chain.key, 0) or searched  # a search neither extends nor finishes states
        return {
            "method": drawing.key,
            "problem": chain.problem.id,
            "sample": chain.sample,
            "asked": problem_digest(chain.problem),
            "valid": chain.valid,
            "guide_steps": len(chain.trace),
            "effective": effective_sizes(chain.trace),
            "sample_tokens": fmean(len(text.tokens) for row in chain.trace[0].rollouts for text in row),
            "depth": depth * self.per_token,
            "cost": asdict(chain.cost),
            **({"ratios": recorded_ratios(chain.trace, drawing.clip)} if drawing.weighed else {}),
            **({"vote": self._vote(chain, drawing.reward)} if drawing.votes else {}),
            **(drawing.note(chain) if drawing.note else self._graded_end(chain, drawing.reward)),
        }

    def graded(self, problem: Problem, text: str) -> dict[str, Any]:
        """A text with its answer, whether it is correct, and its further scores; None where no text is right."""
        if not is_graded(self.task):
            return {"answer": None, "correct": None, "scores": {}, "text": text}
        return {
            "answer": self.task.extract(problem, text),
            "correct": bool(self.task.grade(problem, text)),
            "scores": dict(self.task.scores(problem, text)) if isinstance(self.task, FurtherScores) else {},
            "text": text,
        }

    def _graded_end(self, chain: Chain, reward: Reward | None) -> dict[str, Any]:
        ended = ended_text(chain)
        rewarded = {} if ended is None else rewards_of(reward, chain, [ended])[0]
        return {**self.graded(chain.problem, chain.state.text), **rewarded}

    def _vote(self, chain: Chain, reward: Reward | None) -> dict[str, Any]:
        """The majority over the chain's rollouts, graded by its first text; without any answer, the chain's text."""
        found = vote(self.task.extract, chain)
        if found.text is None:
            return {**self._graded_end(chain, reward), "answer": None}
        rewarded = rewards_of(reward, chain, [found.text])[0]
        return {**self.graded(chain.problem, found.text.text), **rewarded, "answer": found.winner}


def ended_text(chain: Chain) -> Text | None:
    """The trace's record of the chain's text: the choice of the last step, or the latest text with equal tokens.

    It is None if the step function kept another text in the trace.
    """
    last = chain.trace[-1]
    chosen = [last.candidates[last.choice], last.rollouts[last.choice][last.rollout or 0]]
    kept = [text for step in reversed(chain.trace) for row in step.rollouts for text in row]
    return next((text for text in [*chosen, *kept] if text.done and text.tokens == chain.state.tokens), None)


def rewards_of(reward: Reward | None, chain: Chain, texts: Sequence[Text]) -> list[dict[str, Any]]:
    """By text `{"reward": r}`, the value None standing for -inf, which JSON lacks; without a reward `{}`."""
    if reward is None:
        return [{} for _ in texts]
    values = score(reward, 1.0, chain, [[text] for text in texts])[0][:, 0].tolist()
    return [{"reward": None if math.isinf(value) else value} for value in values]


def _chains(
    policies: Sequence[Policy], step: StepFn, problems: Sequence[Problem], **options: Any
) -> Generator[Chain, None, None]:
    """The chains of `run`, or of several policies in threads, which share the step: a step keeps nothing of a chain."""
    if len(policies) == 1:
        yield from run(policies[0], step, problems, **options)
    else:
        yield from run_in_groups([(policy, step) for policy in policies], problems, **options)
