"""What a benchmark is to the evaluation."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

from ets.tasks.answers import answer_in
from ets.thinking import THINKING, Tags, begun
from ets.types import InputError, Problem


class Task(Protocol):
    """A benchmark: its problems, the answer in a text, and whether an answer is right."""

    @property
    def name(self) -> str: ...

    def problems(self, count: int | None = None, shots: int | None = None) -> list[Problem]:
        """The first `count` problems, or all; prompts open with `shots` solved examples, or the task's own number."""
        ...

    def extract(self, problem: Problem, text: str) -> Hashable | None:
        """The answer in a text, equal answers comparing equal; None if there is none."""
        ...

    def grade(self, problem: Problem, text: str) -> bool:
        """Whether the text solves the problem."""
        ...


def opened_in(problem: Problem, tags: Tags | None) -> str:
    """The opening tag if a problem's prompt is text that ends with it: its generations then begin in a section."""
    return begun(problem.prompt, tags) if isinstance(problem.prompt, str) else ""


@runtime_checkable
class Slow(Protocol):
    """A task that takes time over a text, as it runs code: it looks at many in parallel, and remembers them."""

    def extract_all(self, texts: Iterable[tuple[Problem, str]]) -> list[Hashable | None]:
        """`extract` of each (problem, text)."""
        ...

    def grade_all(self, texts: Iterable[tuple[Problem, str]]) -> list[bool]:
        """`grade` of each (problem, text)."""
        ...


class Benchmark(ABC):
    """A benchmark whose problems and prompts lm-eval makes; beside lm-eval's own score, this one is ours.

    A problem's `doc` is the dataset's row as lm-eval passes it on.
    """

    name: ClassVar[str]
    lm_eval: ClassVar[str]
    """The name of lm-eval's task."""
    packages: ClassVar[tuple[str, ...]] = ()
    """What grades its answers, beside this library and lm-eval."""
    main_thread: ClassVar[bool] = False
    """Whether answers are compared under limits on time that work in the main thread alone."""

    mark: ClassVar[re.Pattern[str] | None] = None
    """What stands before an answer in the benchmark's own format."""
    box_decides: ClassVar[bool] = False
    """Whether a last box that holds no answer means that there is none."""
    thinking: Tags | None = THINKING
    """The tags around thinking sections, in which no answer is looked for; None if there are none."""

    def require(self) -> None:  # noqa: B027  most need nothing
        """Raise `InputError` if one of its packages is not installed."""

    def problems(self, count: int | None = None, shots: int | None = None) -> list[Problem]:
        raise InputError(f"the problems of {self.name} are made by lm-eval's task {self.lm_eval}; open it there")

    def extract(self, problem: Problem, text: str) -> Hashable | None:
        """The answer in a text by the ladder of `ets.tasks.answers`; equal answers compare equal."""
        return answer_in(opened_in(problem, self.thinking) + text, self)

    @abstractmethod
    def whole(self, said: str) -> Hashable | None:
        """The answer that the whole of a string is; None if it is none."""

    def boxed(self, content: str) -> Hashable | None:
        """The answer in a box."""
        return self.whole(content)

    def fallback(self, text: str) -> Hashable | None:
        """The answer in a text that neither boxes nor states one; None if there is none."""
        return None

    @abstractmethod
    def truth(self, row: Mapping[str, Any]) -> Hashable:
        """The right answer. Raises `InputError` for a row that has none."""

    def grade(self, problem: Problem, text: str) -> bool:
        """Whether the text's answer equals the row's."""
        answer = self.extract(problem, text)
        return answer is not None and answer == self.truth(problem.doc)

    def no_truth(self, row: Mapping[str, Any], wanted: str) -> InputError:
        """The error to raise for a row without an answer."""
        return InputError(f"a row of {self.name} has no {wanted}: {str(dict(row))[:200]!r}; mend the data")
