"""The protocols of a task, and the base classes of the benchmarks of lm-eval."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

from ets.tasks.answers import answer_in
from ets.thinking import THINKING, Tags, begun
from ets.types import InputError, Problem


class Task(Protocol):
    """A benchmark: its problems, the answer in a text, and whether an answer is right.

    A task with an attribute `answers = False` has no answers to compare (`has_answers`). With `graded = True` its texts
    are right or wrong all the same (`is_graded`).
    """

    @property
    def name(self) -> str: ...

    def problems(self, count: int | None = None, shots: int | None = None) -> list[Problem]:
        """The first `count` problems, or all; prompts open with `shots` solved examples (default: the task's)."""
        ...

    def extract(self, problem: Problem, text: str) -> Hashable | None:
        """The answer in a text, or None. Equal answers compare equal."""
        ...

    def grade(self, problem: Problem, text: str) -> bool:
        """Whether the text solves the problem."""
        ...


def has_answers(task: Task) -> bool:
    """Whether texts state answers, which votes compare; without them a reward of texts steers the methods."""
    return bool(getattr(task, "answers", True))


def is_graded(task: Task) -> bool:
    """Whether `grade` decides which texts are right; else the mean reward compares the methods."""
    return bool(getattr(task, "graded", has_answers(task)))


def right_answer(task: Task, problem: Problem) -> str:
    """The right answer as a text; empty if the problem's data hold none."""
    benchmark = getattr(task, "task", task)  # lm-eval hosts a benchmark under this name
    found = benchmark.truth(problem.doc) if isinstance(benchmark, AnswerBenchmark) else problem.doc.get("answer", "")
    return str(found)


def opened_in(problem: Problem, tags: Tags | None) -> str:
    """The opening tag if the prompt is text that ends with this tag: generations then begin in a thinking section."""
    return begun(problem.prompt, tags) if isinstance(problem.prompt, str) else ""


@runtime_checkable
class Slow(Protocol):
    """A task that runs code: `extract_all` and `grade_all` work on many texts in parallel and cache the results."""

    def extract_all(self, texts: Iterable[tuple[Problem, str]]) -> list[Hashable | None]:
        """`extract` of each (problem, text)."""
        ...

    def grade_all(self, texts: Iterable[tuple[Problem, str]]) -> list[bool]:
        """`grade` of each (problem, text)."""
        ...


class Benchmark(ABC):
    """A benchmark with problems and prompts from lm-eval, and grades from this class.

    A problem's `doc` is the row of the dataset as lm-eval passes the row on.
    """

    name: ClassVar[str]
    lm_eval: ClassVar[str]
    """The name of lm-eval's task."""
    packages: ClassVar[tuple[str, ...]] = ()
    """The packages that grade answers, in addition to this library and lm-eval."""
    main_thread: ClassVar[bool] = False
    """Whether the time limits of comparisons work in the main thread only."""
    thinking: Tags | None = THINKING
    """The tags around thinking sections, which hold no answers, or None."""

    def require(self) -> None:  # noqa: B027  most benchmarks need no package
        """Raise `InputError` if a package of `packages` is not installed."""

    def problems(self, count: int | None = None, shots: int | None = None) -> list[Problem]:
        raise InputError(
            f"the problems of {self.name} are made by lm-eval's task {self.lm_eval}; run the task through lm-eval"
        )

    @abstractmethod
    def extract(self, problem: Problem, text: str) -> Hashable | None:
        """The answer in a text, or None. Equal answers compare equal."""

    @abstractmethod
    def grade(self, problem: Problem, text: str) -> bool:
        """Whether the text solves the problem."""


class AnswerBenchmark(Benchmark):
    """A benchmark whose texts state an answer, which is found by the steps of `ets.tasks.answers`."""

    mark: ClassVar[re.Pattern[str] | None] = None
    """The mark before an answer in the benchmark's format."""
    box_decides: ClassVar[bool] = False
    """Whether a last box without an answer means that the text has no answer."""

    def extract(self, problem: Problem, text: str) -> Hashable | None:
        return answer_in(opened_in(problem, self.thinking) + text, self)

    @abstractmethod
    def whole(self, stated: str) -> Hashable | None:
        """The answer that the whole string is, or None."""

    def boxed(self, content: str) -> Hashable | None:
        """The answer in a box."""
        return self.whole(content)

    def fallback(self, text: str) -> Hashable | None:
        """The answer in a text without a box and without a statement, or None."""
        return None

    @abstractmethod
    def truth(self, row: Mapping[str, Any]) -> Hashable:
        """The right answer. Raises `InputError` for a row without an answer."""

    def grade(self, problem: Problem, text: str) -> bool:
        """Whether the text's answer equals the row's."""
        answer = self.extract(problem, text)
        return answer is not None and answer == self.truth(problem.doc)

    def no_truth(self, row: Mapping[str, Any], wanted: str) -> InputError:
        """The error for a row without an answer."""
        return InputError(f"a row of {self.name} has no {wanted}: {str(dict(row))[:200]!r}; correct the data")
