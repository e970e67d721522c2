"""Verifiers: rewards of 1 for a right answer, and for a program that passes its tests in the sandbox."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ets.rewards.lifting import Extract, TextReward, as_extract
from ets.types import InputError, Problem


def verifier(extract: Extract, check: Callable[[Problem, object], bool]) -> TextReward:
    """1 for a text whose extracted answer passes `check(problem, answer)`, 0 for other answers and no answer.

    `extract` takes a text, or a problem and a text. The reward is a fixed function of (problem, text), so the law
    p* ∝ p_ref · exp(r/λ) holds.
    """
    read = as_extract(extract)

    def judged(problem: Problem, text: str) -> float:
        answer = read(problem, text)
        return float(answer is not None and check(problem, answer))

    return TextReward(lambda problem, texts: [judged(problem, text) for text in texts])


def code_verifier(
    tests: Callable[[Problem], str] | None = None, *, seconds: float = 5.0, unsafe: bool = False
) -> TextReward:
    """1 for a text whose program passes the problem's tests, 0 for other texts and for texts without a program.

    `ets.sandbox.code_answers.program_of` reads the program: a continuation of the problem's `doc["prompt"]` (a
    function's head and docstring), or the whole function `doc["entry_point"]`, also in a fence. Program and tests run
    in separate sandboxes (`ets.sandbox.process.run_judged`): a program can neither read the tests nor pass by an early
    exit. Equal programs run once, in parallel over the cores.

    The reward is a fixed function of (problem, text), so the law p* ∝ p_ref · exp(r/λ) holds, except for programs that
    draw random numbers, read the clock, or run for about `seconds`.

    Parameters
    ----------
    tests : callable, optional
        Source text that defines `check(candidate)`, which raises if the function `candidate` is wrong. By default
        `doc["test"]`: in HumanEval the hidden tests, which make the reward an oracle. To compare methods, pass tests
        that the prompt shows.
    seconds : float
        Limit for all tests of a program.
    unsafe : bool
        Run programs without a sandbox, see `ets.sandbox.process`.

    Raises
    ------
    InputError
        If this machine has no sandbox and `unsafe` is False. At the first score, if `doc` lacks a field.
    """
    from ets.sandbox.process import in_parallel, require_sandbox

    if not unsafe:
        require_sandbox()

    def score_texts(problem: Problem, texts: Sequence[str]) -> list[float]:
        from ets.sandbox.code_answers import program_of
        from ets.sandbox.examination import passes

        prompt, entry_point = _field(problem, "prompt"), _field(problem, "entry_point")
        judge = _field(problem, "test") if tests is None else tests(problem)
        options: dict[str, Any] = {"prelude": prompt, "tests": judge, "entry_point": entry_point}
        options |= {"seconds": seconds, "unsafe": unsafe}
        programs = [program_of(prompt, entry_point, text) for text in texts]
        distinct = list(dict.fromkeys(program for program in programs if program is not None))
        passed = in_parallel(lambda program: passes(program, **options), distinct)
        right = {program for program, good in zip(distinct, passed, strict=True) if good}
        return [float(program in right) for program in programs]

    return TextReward(score_texts)


def _field(problem: Problem, name: str) -> str:
    value = problem.doc.get(name)
    if not isinstance(value, str):
        raise InputError(f"doc[{name!r}] of problem {problem.id!r} is {value!r}; the code verifier needs its text")
    return value
