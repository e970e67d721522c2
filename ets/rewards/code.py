"""Does the program in a text pass its problem's tests? Judged in the sandbox."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ets.rewards.lifting import TextReward
from ets.types import InputError, Problem


def code_verifier(
    tests: Callable[[Problem], str] | None = None, *, seconds: float = 5.0, unsafe: bool = False
) -> TextReward:
    """1 for a text whose program passes the problem's tests, 0 for others and for texts without a program.

    The text is read as `ets.sandbox.code_answers.program_of` does: a continuation of the problem's `doc["prompt"]`, which is a
    function's head and docstring, or the whole function `doc["entry_point"]`, also in a fence. Program and tests run in
    sandboxes of their own (`ets.sandbox.process.run_judged`): a program can neither read its tests nor pass by exiting early.
    Equal programs run once, and as many at a time as there are cores.

    It is a fixed function of (problem, text), up to programs that draw random numbers, read the clock, or need about
    as long as they may take; so the law p* ∝ p_ref · exp(r/λ) holds for it.

    Parameters
    ----------
    tests : callable, optional
        Source text that defines `check(candidate)`, which raises if the function `candidate` is wrong. By default
        `doc["test"]`: in HumanEval these are the hidden tests, so that the reward is an oracle. To compare methods,
        give tests that the prompt shows.
    seconds : float
        For all the tests of one program.
    unsafe : bool
        Run programs without a sandbox, see `ets.sandbox.process`.

    Raises
    ------
    InputError
        If there is no sandbox on this machine and `unsafe` is not set. When texts are scored, for a problem whose `doc`
        lacks what is needed.
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
