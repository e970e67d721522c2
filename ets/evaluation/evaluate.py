"""Run methods on a task's problems, and add up what they reached and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from tqdm import tqdm

from ets import baselines
from ets.evaluation.budget import Budget
from ets.evaluation.intervals import Accuracy, accuracy
from ets.evaluation.journal import Journal, Record
from ets.evaluation.methods import METHODS, Method, Settings
from ets.runner import run
from ets.tasks.task import Task
from ets.types import Chain, Policy, Problem

PILOT_PROBLEMS = 16
"""A pilot draws samples for so many problems."""


@dataclass(frozen=True)
class Row:
    """A method's line in the table. Tokens, positions and seconds are per problem, all its samples together."""

    method: str
    label: str
    accuracy: Accuracy
    generated: float
    positions: float
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """One run: what is asked, of whom, and where its results go. The rest of the settings are the methods'."""

    task: Task
    policy: Policy
    problems: Sequence[Problem]
    settings: Settings
    journal: Journal
    budget: Budget
    width: int
    seed: int
    progress: bool = True

    def compare(self, names: Sequence[str], samples: int | None = None) -> list[Row]:
        """Run the named methods, those without guide steps with the samples that cost what ETS costs.

        Parameters
        ----------
        names : sequence of str
            Keys of `METHODS`; the rows come in this order.
        samples : int, optional
            Samples per problem for the others; by default the number that costs as much as ETS by the run's
            budget. ETS must then be among the methods.
        """
        ordered = sorted(names, key=lambda name: name != "ets")
        methods = {}
        for name in ordered:
            if name != "ets" and samples is None:
                samples = self.budget.samples(self.journal.of("ets"), self._pilot)
            methods[name] = METHODS[name](self.task, self.settings, samples or 1)
            self._run(methods[name], self.problems)
        return [self._row(methods[name]) for name in names]

    def _pilot(self, samples: int) -> list[Record]:
        """Records of so many samples for each of the first problems, journalled as a method of its own."""
        step = baselines.majority(self.task.extract, samples=samples)
        method = Method(f"pilot-{samples}", f"pilot ({samples} samples)", step)
        self._run(method, self.problems[:PILOT_PROBLEMS])
        return self.journal.of(method.name)

    def _run(self, method: Method, problems: Sequence[Problem]) -> None:
        """Sample what the journal lacks, with a progress bar that shows the accuracy so far."""
        known = {(r["problem"], r["sample"]): r for r in self.journal.of(method.name)}
        total = len(problems) * method.samples
        correct = [r["correct"] for r in known.values()]
        chains = run(
            self.policy,
            method.step,
            problems,
            width=self.width * method.samples,
            seed=self.seed,
            samples=method.samples,
            done=known,
        )
        with tqdm(total=total, initial=min(total, len(known)), desc=method.label, disable=not self.progress) as bar:
            for chain in chains:
                record = self._record(method, chain)
                self.journal.append(record)
                correct.append(record["correct"])
                bar.set_postfix_str(f"accuracy {fmean(correct):.1%}", refresh=False)
                bar.update()

    def _record(self, method: Method, chain: Chain) -> Record:
        text = chain.state.text
        return {
            "method": method.name,
            "problem": chain.problem.id,
            "sample": chain.sample,
            "answer": self.task.extract(text),
            "correct": self.task.grade(chain.problem, text),
            "valid": chain.valid,
            "guide_steps": len(chain.trace),
            "sample_tokens": fmean(len(text.tokens) for row in chain.trace[0].rollouts for text in row),
            "cost": asdict(chain.cost),
            "text": text,
        }

    def _row(self, method: Method) -> Row:
        records = self.journal.of(method.name)
        scores: dict[str, list[float]] = {}
        for record in records:
            scores.setdefault(record["problem"], []).append(record["correct"])
        count = len(scores)

        def each(name: str) -> float:
            return float(sum(record["cost"][name] for record in records)) / count

        # Samples share the reading of their prompt; a run that was interrupted may have read it again.
        prompts: dict[str, int] = {}
        for record in records:
            prompts[record["problem"]] = max(prompts.get(record["problem"], 0), record["cost"]["prompt"])
        positions = sum(prompts.values()) / count + sum(each(name) for name in ("candidate", "rollout", "scored"))
        mean = accuracy([fmean(values) for values in scores.values()], method.samples)
        return Row(method.name, method.label, mean, each("generated"), positions, each("seconds"))
