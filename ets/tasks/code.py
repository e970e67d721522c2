"""Tasks of code: a program answers a problem, and hidden tests grade the program in the sandbox.

Votes and rewards never see the hidden tests: `extract` and `visible_examples` run the examples that the prompt shows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from ets.sandbox.code_answers import COMPLETION_STOPS, program_of
from ets.sandbox.examination import values
from ets.sandbox.process import in_parallel, require_sandbox
from ets.tasks.task import opened_in
from ets.thinking import THINKING, Tags
from ets.types import Chain, InputError, Problem, Text

SECONDS = 5.0
"""Time limit for all examples of an answer."""


@dataclass(frozen=True)
class Example:
    """An expression that a prompt shows, and its value as `values` writes the value (None without a literal)."""

    expression: str
    expected: str | None


class CodeTask(ABC):
    """Problems whose answers are programs.

    Parameters
    ----------
    stop : tuple of str, optional
        Stop strings; by default those of a completion, `completion_stops`. Pass () for a model that answers in words
        and fences.
    seconds : float
        Time limit for all examples of an answer, and for its hidden tests (see `grade`).
    unsafe : bool
        Run generated programs without a sandbox; see `ets.sandbox.process`.
    thinking : (str, str), optional
        The tags around thinking sections, which hold no answers, or None.
    """

    name: ClassVar[str]
    completion_stops: ClassVar[tuple[str, ...]] = COMPLETION_STOPS
    """Strings that end the text of a model that continues the prompt."""

    def __init__(
        self,
        *,
        stop: tuple[str, ...] | None = None,
        seconds: float = SECONDS,
        unsafe: bool = False,
        thinking: Tags | None = THINKING,
    ) -> None:
        self.stop = self.completion_stops if stop is None else stop
        self.seconds, self.unsafe, self.thinking = seconds, unsafe, thinking

    @abstractmethod
    def rows(self) -> Sequence[Mapping[str, Any]]:
        """The rows of all problems, each with `prompt` and `entry_point`. Raises `InputError` if they are missing."""

    @abstractmethod
    def examples(self, row: Mapping[str, Any]) -> tuple[Example, ...]:
        """The examples that a row's prompt shows."""

    @abstractmethod
    def grade(self, problem: Problem, text: str) -> bool:
        """Whether the code passes the hidden tests, within the time limit."""

    def head(self, row: Mapping[str, Any]) -> str:
        """The code that a text continues, for `program_of`: a valid program that defines the entry point."""
        return str(row["prompt"])

    def stop_by(self, name: str) -> None:
        """Set the stop strings: "completion" for `completion_stops`, or "answer" for none."""
        known = {"completion": self.completion_stops, "answer": ()}
        if name not in known:
            raise InputError(f"stops is {name!r}; choose from {', '.join(known)}")
        self.stop = known[name]

    def problems(self, count: int | None = None, shots: int | None = None) -> list[Problem]:
        """The first `count` problems, or all.

        Raises
        ------
        InputError
            For worked examples, or a count out of range; if the rows or the sandbox are missing.
        """
        if shots:
            raise InputError(f"shots is {shots}, but {self.name} has no worked examples; set it to 0")
        if not self.unsafe:
            require_sandbox()
        every = self.rows()
        if count is not None and not 0 < count <= len(every):
            raise InputError(f"{count} problems of {self.name} asked for; choose 1 to {len(every)}")
        return [
            Problem(f"{self.name}-{number}", row["prompt"], self.stop, row, thinking=self.thinking)
            for number, row in enumerate(every[:count])
        ]

    def extract(self, problem: Problem, text: str) -> Hashable | None:
        """The values of the prompt's examples, in order; None if the code does not run or every example raises.

        Texts with the same behaviour are equal. Where a prompt shows no example, all code that runs is equal.
        """
        behaviour = self._behaviour(problem, text)
        if behaviour and all(value.startswith("!") for value in behaviour):
            return None
        return behaviour

    def visible_examples(self, problem: Problem, rollouts: Sequence[Text], chain: Chain) -> list[float]:
        """A reward: the share of the prompt's examples that a rollout's code gets right, from 0 to 1.

        Without a value in the prompt, 1 for code that runs. A fixed function of (problem, text) unless the code
        draws random numbers or reads the clock, so the law p* ∝ p_ref · exp(r/λ) holds for it.
        """
        texts = [rollout.text for rollout in rollouts]
        self.extract_all((problem, text) for text in texts)
        return [self._share(problem, text) for text in texts]

    def extract_all(self, texts: Iterable[tuple[Problem, str]]) -> list[Hashable | None]:
        """`extract` of each (problem, text), in parallel. `extract` then returns the cached results."""
        return _of_each(self.extract, list(texts))

    def grade_all(self, texts: Iterable[tuple[Problem, str]]) -> list[bool]:
        """`grade` of each (problem, text), in parallel. `grade` then returns the cached results."""
        return _of_each(self.grade, list(texts))

    def program(self, problem: Problem, text: str) -> str | None:
        """The program in a text, or None."""
        written = opened_in(problem, self.thinking) + text
        return program_of(self.head(problem.doc), problem.doc["entry_point"], written, self.thinking)

    def _behaviour(self, problem: Problem, text: str) -> tuple[str, ...] | None:
        program = self.program(problem, text)
        if program is None:
            return None
        expressions = tuple(example.expression for example in self.examples(problem.doc))
        return _values(program, expressions, self.seconds, self.unsafe)

    def _share(self, problem: Problem, text: str) -> float:
        behaviour = self._behaviour(problem, text)
        if behaviour is None:
            return 0.0
        examples = self.examples(problem.doc)
        right = [value == shown.expected for value, shown in zip(behaviour, examples, strict=True) if shown.expected]
        return sum(right) / len(right) if right else 1.0


def _of_each(function: Callable[[Problem, str], Any], texts: list[tuple[Problem, str]]) -> list[Any]:
    """The function of each distinct (problem, text). The key holds the problem's id: problems cannot be hashed."""
    distinct = {(problem.id, text): (problem, text) for problem, text in texts}
    known = dict(zip(distinct, in_parallel(lambda pair: function(*pair), distinct.values()), strict=True))
    return [known[problem.id, text] for problem, text in texts]


@lru_cache(maxsize=2**14)
def _values(program: str, expressions: tuple[str, ...], seconds: float, unsafe: bool) -> tuple[str, ...] | None:
    found = values(program, expressions, seconds=seconds, unsafe=unsafe)
    return None if found is None else tuple(found)
