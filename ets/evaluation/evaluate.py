"""Run methods on a task's problems, and add up what they reached and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from typing import Any, Protocol, runtime_checkable

from ets import baselines
from ets.diagnostics import RatioSummary
from ets.evaluation.budget import Budget
from ets.evaluation.hosted import digest
from ets.evaluation.intervals import Accuracy, accuracy
from ets.evaluation.journal import Journal, Record
from ets.evaluation.methods import AVERAGED, DETERMINISTIC, METHODS, Method, Settings, needs_samples
from ets.evaluation.progress import Progress
from ets.evaluation.ratios import total_ratios
from ets.evaluation.traces import effective_sizes
from ets.groups import run_in_groups
from ets.readouts import vote
from ets.rewards import likelihood
from ets.runner import run
from ets.tasks.task import Slow, Task
from ets.types import Chain, Policy, Problem, StepFn

PILOT_PROBLEMS = 32
"""A pilot draws samples for so many problems."""


@runtime_checkable
class Scored(Protocol):
    """A task that has further scores of a text beside `grade`, by name."""

    def scores(self, problem: Problem, text: str) -> Mapping[str, float]: ...


@runtime_checkable
class Shareable(Protocol):
    """A policy over an engine that several threads may draw from."""

    def load(self) -> None:
        """Load the engine, unless it is loaded."""
        ...

    def beside(self) -> Policy:
        """Another policy of the same law over the same engine, for a thread of its own."""
        ...


@dataclass(frozen=True)
class Row:
    """A method's line in the table.

    Tokens, positions and seconds are those of one use of the method on a problem, the reading of the prompt included:
    with avg@k (`repeats`), means over the k uses. Seconds are one process's, however many share the problems. `scores`
    are further scores beside our own accuracy, their means over all samples; `ratios` sums up the importance ratios of
    a method that has any, and `target` is the law that its draws are weighed towards, if not the policy's.
    `row_forwards` are those of masked diffusion; `key` is the method's name among the records. `readout` says which
    text of a chain is graded: `last`, the text that was sampled, or `vote`, the first rollout with the majority answer.
    """

    method: str
    label: str
    accuracy: Accuracy
    generated: float
    positions: float
    seconds: float
    scores: Mapping[str, float] = field(default_factory=dict)
    repeats: int = 1
    ratios: RatioSummary | None = None
    row_forwards: float = 0.0
    target: str = ""
    key: str = ""
    readout: str = "last"


@dataclass(frozen=True)
class Evaluation:
    """One run: what is asked, of whom, and where its results go; the settings are those of `METHODS`, if it uses them.

    `repeats` is the k of avg@k: every method that draws at random samples each problem so often. `own` holds, by name,
    the policies of methods that do not sample from `policy`; `noted` says what records keep of a chain beside what all
    records do; `kept` is told each chain that has ended, before its record is written.
    """

    task: Task
    policy: Policy
    problems: Sequence[Problem]
    journal: Journal
    width: int
    seed: int
    settings: Settings | None = None
    progress: bool = True
    repeats: int = 1
    own: Mapping[str, Policy] = field(default_factory=dict)
    noted: Callable[[Chain], Mapping[str, Any]] = lambda chain: {}
    kept: Callable[[Method, Chain], None] = lambda method, chain: None

    def __post_init__(self) -> None:
        """Raise `InputError` if the journal answers another problem under one of these ids."""
        self.journal.require_asked({problem.id: digest([problem]) for problem in self.problems})

    def compare(self, names: Sequence[str], budget: Budget | int) -> list[Row]:
        """Run the named methods, those without guide steps with the samples that cost what ETS costs.

        Parameters
        ----------
        names : sequence of str
            Keys of `METHODS`; the rows come in this order. The row of a vote follows its method's.
        budget : Budget or int
            What finds the number of samples for the others, and then ETS must be among the methods; or that number.
        """
        assert self.settings is not None
        methods: dict[str, Method] = {}
        samples = budget if isinstance(budget, int) else None
        for name in sorted(names, key=lambda name: name != "ets"):
            if needs_samples(name, self.settings, self.repeats) and not isinstance(budget, int):
                samples = samples or budget.samples(self.records(methods["ets"]), self._pilot)
            methods[name] = self.method(name, samples or 1)
            if needs_samples(name, self.settings, self.repeats):
                self._tell_other_numbers(methods[name])
            self.run(methods[name])
        return [row for name in names for row in self.rows(methods[name], self.records(methods[name]))]

    def _tell_other_numbers(self, method: Method) -> None:
        """Say that a folder that grows holds a method's chains of another number of samples, which are not used."""
        parts = {record["method"]: record["method"].rpartition("-") for record in self.journal.records.values()}
        own = method.key.rpartition("-")[0]
        others = [key for key, (name, _, number) in parts.items() if name == own != "" and number.isdigit()]
        if others and method.key not in parts:
            self.journal.ranks.say(
                f"note: {method.label} is drawn anew, as the folder holds it with another number of samples "
                f"({', '.join(sorted(others))}); set samples to keep that number"
            )

    def method(self, name: str, samples: int) -> Method:
        """A key of `METHODS`, with so many samples if it has no guide steps and the settings name no size."""
        assert self.settings is not None
        samples = self.settings.sizes.get(name, samples)
        if self.repeats == 1 or name in DETERMINISTIC:
            return METHODS[name](self.task, self.settings, samples)
        if name in AVERAGED:  # the score is a mean over single samples in any case
            return METHODS[name](self.task, self.settings, self.repeats)
        method = METHODS[name](self.task, self.settings, samples)
        return replace(method, label=f"{method.label}{self._mean}")

    @property
    def _mean(self) -> str:
        """What a label ends with where a score is a mean over repeats."""
        return "" if self.repeats == 1 else f", mean of {self.repeats}"

    def chains(self, method: Method) -> int:
        """Chains of a method per problem."""
        return 1 if method.name in DETERMINISTIC else max(method.samples, self.repeats)

    def records(self, method: Method) -> list[Record]:
        """A method's records of these problems; the journal may hold further ones, which another run has drawn."""
        return self._of(method, self.problems, self.chains(method))

    def _of(self, method: Method, problems: Sequence[Problem], chains: int) -> list[Record]:
        ids = {problem.id for problem in problems}
        found = self.journal.of(method.key)
        return [record for record in found if record["sample"] < chains and record["problem"] in ids]

    def run(self, method: Method) -> None:
        """Sample and journal what the journal lacks."""
        self.draw(method, range(self.chains(method)))

    def draw(self, method: Method, samples: range) -> None:
        """Some of a method's samples of each problem. They share the work on its prompt; those drawn earlier do not."""
        self._run(method, self.problems, samples)

    def _pilot(self, samples: int) -> list[Record]:
        """Records of so many samples for each of the first problems, journalled as a method of its own."""
        step = baselines.best_of_n(likelihood(), samples=samples)
        method = Method("pilot", f"pilot ({samples} samples)", step, options=(samples,))
        first = self.problems[:PILOT_PROBLEMS]
        self._run(method, first, range(1))
        return self._of(method, first, 1)

    def _run(self, method: Method, problems: Sequence[Problem], samples: range) -> None:
        """Sample what the journal lacks; of several processes each does its share, and then knows what all have."""
        self._run_own(method, self.journal.ranks.share(problems), samples)
        self.journal.exchange()

    def _run_own(self, method: Method, problems: Sequence[Problem], samples: range) -> None:
        """Sample, with a progress bar."""
        ids = {problem.id for problem in problems}
        done = [r for r in self.journal.of(method.key) if r["sample"] in samples and r["problem"] in ids]
        known = {(r["problem"], r["sample"]): r for r in done}
        left_out = {(id, sample) for id in ids for sample in range(samples.start)}
        policies = self._policies(self.own.get(method.name, self.policy))
        if isinstance(policies[0], Shareable) and len(known) < len(samples) * len(problems):
            policies[0].load()  # before the clock starts
        options: dict[str, Any] = {"width": self.width * method.samples, "seed": self.seed, "samples": samples.stop}
        with self._progress(method.label, len(problems), len(samples), known.values(), policies) as progress:
            step = progress.observed(self._prepared(method.step))
            with closing(_chains(policies, step, problems, done=known.keys() | left_out, **options)) as chains:
                for chain in chains:
                    self.kept(method, chain)
                    record = self._record(method, chain, len(policies))
                    self.journal.append(record)
                    progress.ended(record)

    def _progress(
        self, label: str, problems: int, samples: int, known: Iterable[Record], policies: Sequence[Policy]
    ) -> Progress:
        """A bar for the first process's share."""
        ranks = self.journal.ranks
        label = label if ranks.size == 1 else f"{label}, process 1 of {ranks.size}"
        return Progress(label, problems, samples, known, policies, self.progress and ranks.first)

    def _policies(self, policy: Policy) -> list[Policy]:
        """Two where threads may share an engine, so that one draws while the other waits for its slowest rollout."""
        if not isinstance(policy, Shareable) or getattr(self.task, "main_thread", False):
            return [policy]
        return [policy, policy.beside()]

    def _prepared(self, step: StepFn) -> StepFn:
        """The step function; a slow task then looks in parallel at the texts that have ended."""
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

    def _record(self, method: Method, chain: Chain, groups: int) -> Record:
        """What the journal keeps; a group's seconds pass for the other groups too."""
        text, cost = chain.state.text, replace(chain.cost, seconds=chain.cost.seconds / groups)
        return {
            "method": method.key,
            "problem": chain.problem.id,
            "sample": chain.sample,
            "asked": digest([chain.problem]),
            "answer": self.task.extract(chain.problem, text),
            "correct": bool(self.task.grade(chain.problem, text)),
            "valid": chain.valid,
            "guide_steps": len(chain.trace),
            "effective": effective_sizes(chain.trace),
            "sample_tokens": fmean(len(text.tokens) for row in chain.trace[0].rollouts for text in row),
            "cost": asdict(cost),
            "scores": self._scores(chain.problem, text),
            "text": text,
            **({"ratios": method.ratios(chain.trace)} if method.ratios else {}),
            **({"vote": self._vote(chain)} if method.votes else {}),
            **self.noted(chain),
        }

    def _vote(self, chain: Chain) -> Mapping[str, Any]:
        """The vote's answer, its text, and whether that is right; without an answer the text is the chain's."""
        found = vote(self.task.extract, chain)
        text = chain.state.text if found.text is None else found.text.text
        return {
            "answer": found.winner,
            "correct": bool(self.task.grade(chain.problem, text)),
            "scores": self._scores(chain.problem, text),
            "text": text,
        }

    def _scores(self, problem: Problem, text: str) -> dict[str, float]:
        """A text's further scores, if the task has any."""
        return dict(self.task.scores(problem, text)) if isinstance(self.task, Scored) else {}

    def rows(self, method: Method, records: Sequence[Record]) -> list[Row]:
        """A method's row, and the row of its vote if its rollouts vote: the same chains, read out in another way."""
        last = self.row(method, records)
        if not method.votes:
            return [last]
        voted = [{**record, **record["vote"]} for record in records]
        label = f"{last.label.removesuffix(self._mean)}, vote{self._mean}"
        return [last, replace(self.row(method, voted), label=label, readout="vote", ratios=None, target="")]

    def row(self, method: Method, records: Sequence[Record]) -> Row:
        """What a method's records add up to."""
        scores: dict[str, list[float]] = {}
        for record in records:
            scores.setdefault(record["problem"], []).append(record["correct"])
        count = len(scores)
        uses = count if method.name in DETERMINISTIC else count * self.repeats

        def each(name: str) -> float:
            return float(sum(record["cost"][name] for record in records)) / uses

        apart = isinstance(self.own.get(method.name, self.policy), Shareable)  # each row pays for what it reads
        prompt = each("prompt") if apart else _read_once(records) / count
        positions = prompt + sum(each(name) for name in ("candidate", "rollout", "scored"))
        mean = accuracy([fmean(values) for values in scores.values()], self.chains(method))
        further = {name: fmean(r["scores"][name] for r in records) for name in records[0].get("scores", {})}
        costs = each("generated"), positions, each("seconds")
        ratios = total_ratios([record["ratios"] for record in records]) if method.ratios else None
        own = each("row_forwards"), method.target, method.key
        return Row(method.name, method.label, mean, *costs, further, self.repeats, ratios, *own)


def _read_once(records: Sequence[Record]) -> int:
    """Tokens of all prompts: a problem's samples share the reading, which an interrupted run may have done again."""
    prompts: dict[str, int] = {}
    for record in records:
        prompts[record["problem"]] = max(prompts.get(record["problem"], 0), record["cost"]["prompt"])
    return sum(prompts.values())


def _chains(
    policies: Sequence[Policy], step: StepFn, problems: Sequence[Problem], **options: Any
) -> Generator[Chain, None, None]:
    """Of `run`, or of several policies at once, which may share the step: our methods' hold nothing of a chain."""
    if len(policies) == 1:
        yield from run(policies[0], step, problems, **options)
    else:
        yield from run_in_groups([(policy, step) for policy in policies], problems, **options)
