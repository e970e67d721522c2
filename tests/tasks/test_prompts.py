"""Tasks of prompts with a reward: the file, the refusals, and the tables without accuracy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ets.chat import Chat
from ets.cli import main, parser_of
from ets.commands.evaluate import plan_of
from ets.evaluation.methods import METHODS, MethodSettings
from ets.evaluation.setup import RunSettings, open_setup
from ets.tasks import Prompts, has_answers, task_named
from ets.types import InputError
from tests.conftest import Refused

ANSWERED = {"majority", "confident-majority", "weighted-majority", "adaptive-majority", "ets-stopped"}
CODE = """
from ets.rewards import RowReward
from ets.tasks import Prompts
from ets.testing import TabularPolicy


def table(model, *, max_length=3, block_size=1):
    return TabularPolicy(vocabulary=4, max_length=max_length, block_size=block_size, seed=len(model))


@RowReward
def share(row, text):
    return text.count(row["letter"]) / 3 - 0.5


@RowReward
def lacking(row, text):
    return len(row["words"])


def many(prompt, text):
    return float("-inf") if text == "" else text.count("a")
"""


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "letters.jsonl"
    lines = [{"prompt": f"prompt {n}", "letter": "abc"[n % 3]} for n in range(4)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "own.py").write_text(CODE)
    return path


def words(name: str, rows: Path, *further: str) -> list[str]:
    """A command on the prompts, with a policy that can be enumerated."""
    own = ["--model", "any", "--engine", f"{rows.parent / 'own.py'}:table", "--out", str(rows.parent / "run")]
    return [name, "--task", str(rows), *own, "--rollouts", "1", "--repeats", "2", "--width", "4", *further]


def of(path: Path, name: str) -> str:
    return f"{path.parent / 'own.py'}:{name}"


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


# The file.


def test_a_row_is_a_problem_and_the_whole_row_its_doc(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Sing."}]
    written = [{"prompt": "Say a.", "words": 3}, {"id": "x", "messages": messages, "stop": ["\n", "."]}]
    path = tmp_path / "mine.jsonl"
    path.write_text("\ufeff" + json.dumps(written[0]) + "\n\n" + json.dumps(written[1]), encoding="utf-8")
    task = task_named(str(path))
    first, second = task.problems()
    assert (first.id, first.prompt, first.stop, first.doc) == ("mine-1", "Say a.", (), written[0])
    assert (second.id, second.prompt, second.stop, second.doc) == ("x", "", ("\n", "."), written[1])
    assert second.messages == tuple(messages) and task.problems(1) == [first]
    assert (task.name, has_answers(task), has_answers(task_named("arithmetic"))) == ("mine", False, True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a"', "line 2 of '.*bad.jsonl': no JSON [(].*[)]; write one object on each line, such as"),
        ('["a"]', "line 2 .*: .* is no object; write {"),
        ('{"text": "a"}', "line 2 .*: neither prompt nor messages; give one of them"),
        ('{"prompt": "a", "messages": []}', "line 2 .*: both prompt and messages; give one of them"),
        ('{"prompt": " "}', "line 2 .*: prompt is ' '; give text"),
        ('{"prompt": [1, 2]}', "line 2 .*: prompt is .*; give text, or messages for a conversation"),
        ('{"messages": "a"}', "line 2 .*: messages is 'a'; give a list"),
        ('{"messages": [{"role": "user"}]}', "line 2 .*: message 1 has None as content; give text"),
        ('{"prompt": "a", "stop": "x"}', "line 2 .*: stop is 'x'; give a list of strings"),
        ('{"prompt": "a", "stop": [""]}', "line 2 .*: stop is .''.; give a list of strings"),
        ('{"prompt": "a", "id": 3}', "line 2 .*: the id of a problem is 3; it must be text, such as '3'"),
        ('{"prompt": "b", "id": "bad-1"}', "2 rows of .* have the id 'bad-1'; give each row another id"),
    ],
)
def test_a_bad_line_is_named_with_its_number_and_the_remedy(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(f'{{"prompt": "a"}}\n{line}\n')
    with pytest.raises(InputError, match=message) as caught:
        Prompts(path).problems()
    assert "\n" not in str(caught.value)


def test_a_file_that_holds_nothing_or_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    empty, latin = tmp_path / "empty.jsonl", tmp_path / "latin.jsonl"
    empty.write_text("\n \n")
    latin.write_bytes('{"prompt": "é"}'.encode("latin-1"))
    for path, message in (
        (empty, "holds no prompts; write lines such as"),
        (latin, "it is no UTF-8 text; name a file of JSON lines"),
        (tmp_path / "absent.jsonl", "No such file or directory; name a file of JSON lines"),
    ):
        with pytest.raises(InputError, match=message):
            Prompts(path).problems()


@pytest.mark.parametrize("name", ["eggs.json", "eggs.txt", "eggs"])
def test_a_file_with_another_ending_says_what_a_file_of_prompts_is(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"prompt": "a"}\n')
    with pytest.raises(
        InputError, match=f"{name}' is a file; prompts need a .jsonl file, with one JSON object on each"
    ):
        task_named(str(tmp_path / name))
    with pytest.raises(InputError, match=r"unknown task 'eggs.yaml'; .*, a file of prompts \(.jsonl\), or"):
        task_named("eggs.yaml")


@pytest.mark.parametrize(
    ("count", "shots", "message"), [(5, None, "choose 1 to 4"), (0, 0, "choose 1 to 4"), (1, 2, "shots is 2")]
)
def test_numbers_out_of_range_are_refused(count: int, shots: int | None, message: str, rows: Path) -> None:
    with pytest.raises(InputError, match=message):
        Prompts(rows).problems(count, shots)


def test_the_chat_template_writes_prompts_and_messages(chat_model: Path, tmp_path: Path) -> None:
    path, turn = tmp_path / "chat.jsonl", "<s><|im_start|>user\nSing.<|im_end|>\n<|im_start|>assistant\n"
    values, settings = {"block_size": 8, "max_length": 16}, MethodSettings(reward="ets.tasks.must_contain:must_contain")
    for row, chat in (({"messages": [{"role": "user", "content": "Sing."}]}, None), ({"prompt": "Sing."}, Chat())):
        path.write_text(json.dumps({**row, "words": ["la"]}))
        found = open_setup(RunSettings(task=str(path), model=str(chat_model)), values, settings, ["ets"], chat)
        assert found.problems[0].prompt == turn and found.problems[0].doc == {**row, "words": ["la"]}


# Refusals, before a model is loaded.


@pytest.mark.parametrize("method", sorted(ANSWERED))
def test_a_method_that_compares_answers_is_refused(method: str, rows: Path, refused: Refused) -> None:
    given = words("eval", rows, "--methods", f"ets,{method}", "--reward", of(rows, "share"))
    refused(given, f"the method {method} compares answers, and the task letters has none; leave it out")


@pytest.mark.parametrize(
    ("further", "message"),
    [
        ((), "the task letters has no right answers; add --reward file.py:function"),
        (("--reward", "share"), "reward is 'share', which compares answers, and the task letters has none"),
        (("--reward", "likelihood", "--best-by", "majority"), "--best-by is 'majority', which compares answers"),
        (("--reward", "ets.tasks.exact_length:exact_length"), "line 1 of '{rows}': no 'words'; give a number of words"),
        (("--reward", "{own}:lacking"), "line 1 of '{rows}' has no 'words', a KeyError of the reward (own.py, line "),
        (("--reward", "likelihood", "--count", "9"), "9 prompts of letters asked for; choose 1 to 4"),
        (("--reward", "likelihood", "--against", "majority"), "against is 'one-step', which is not among the methods"),
    ],
)
def test_input_that_does_not_fit_is_one_line(
    further: tuple[str, ...], message: str, rows: Path, refused: Refused
) -> None:
    further = tuple(each.format(own=rows.parent / "own.py") for each in further)
    refused(words("eval", rows, "--methods", "ets,best-of-n", *further), message.format(rows=rows))
    assert not (rows.parent / "run").exists()


def test_every_task_of_a_list_has_its_own_reward(rows: Path, refused: Refused) -> None:
    refused(words("eval", rows, "--methods", "ets", "--task", f"exact-length,{rows}"), "the task letters has no right")


# Runs.


def test_a_reward_that_reads_a_missing_field_of_a_text_alone_names_the_line(
    rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rows are checked with an empty text, so such a field is missed by the check."""
    own = rows.parent / "own.py"
    own.write_text(f"{CODE}\n\n@RowReward\ndef late(row, text):\n    return len(row['least']) if text else 0\n")
    given = words("eval", rows, "--methods", "ets", "--candidates", "2", "--reward", of(rows, "late"))
    assert main(given) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: line ") and " has no 'least', a KeyError of the reward (own.py, line 27)" in error


def test_all_methods_without_answers_run_and_the_mean_reward_compares_them(
    rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(parser_of().parse_args(["compare", "--task", "exact-length", "--model", "embedded"]))
    assert METHODS.keys() - plan.methods.keys() == ANSWERED | {"base", "ets-is"} and plan.against == "one-step"
    methods = [name for name in plan.methods if name not in ("greedy", "beam")]  # which the policy has not
    given = words("compare", rows, "--candidates", "2,3", "--reward", of(rows, "share"))
    given += ["--methods", ",".join(methods)]
    assert main(given) == 0
    folder = rows.parent / "run"
    found = summary(folder)
    assert {entry["method"] for entry in found["entries"]} == {*methods}
    assert {entry["readout"] for entry in found["entries"]} == {"last"} and found["curves"] == []
    assert all(entry["scores"] == {} and len(entry["rewards"]) == 4 for entry in found["entries"])
    table = (folder / "table.md").read_text()
    assert " mean reward | minus one-step at equal cost, reward |".replace(" ", "") in table.replace(" ", "")
    assert "at equal cost: " in table and not any(word in table for word in ("avg@", "pass@", "maj@", "points"))
    report = (folder / "report.html").read_text()
    assert "Mean reward against cost" in report and "ccuracy" not in report and "pass@k" not in report
    assert (folder / "reward_by_cost.png").stat().st_size > 1000
    assert "mean reward" in capsys.readouterr().err  # the progress bar
    before = (folder / "journal.jsonl").read_bytes()
    assert main(given) == 0 and (folder / "journal.jsonl").read_bytes() == before
    rewards = [[(entry["label"], entry["rewards"]) for entry in each["entries"]] for each in (found, summary(folder))]
    assert rewards[0] == rewards[1]


def test_budgets_of_tokens_are_the_headings_and_one_candidate_has_a_line(
    rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = words(
        "compare", rows, "--budgets", "4,60", "--methods", "plain,one-step,ets", "--reward", of(rows, "share")
    )
    assert main(given) == 0
    sections = capsys.readouterr().out.split("### ")[1:]
    assert [each.splitlines()[0] for each in sections] == [
        f"Budget {n}: {b} tokens a problem" for n, b in ((1, 4), (2, 60))
    ]
    assert ["note: ETS (M 1, K 1): one candidate" in each for each in sections] == [True, False]


def test_rewards_are_means_over_the_texts_of_a_prompt(rows: Path) -> None:
    assert main(words("eval", rows, "--methods", "plain,ets", "--candidates", "2", "--reward", of(rows, "share"))) == 0
    folder = rows.parent / "run"
    records = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    (ets,) = (entry for entry in summary(folder)["entries"] if entry["method"] == "ets")
    for n in range(4):
        texts = [r["text"] for r in records if r["method"] == ets["key"] and r["problem"] == f"letters-{n + 1}"]
        value = sum(text.count("abc"[n % 3]) / 3 - 0.5 for text in texts) / len(texts)
        assert len(texts) == 2 and ets["rewards"][f"letters-{n + 1}"] == pytest.approx(value)
    assert all((r["answer"], r["correct"]) == (None, None) for record in records for r in record.get("texts", [record]))
    assert (folder / "reward.png").stat().st_size > 1000


def test_the_report_has_the_first_prompts_as_they_were_given_with_texts_before_and_after(
    rows: Path, chat_model: Path
) -> None:
    """Messages as turns; text as text, though the chat template makes it a turn."""
    turns = [{"role": "user", "content": "Sing <b>."}, {"role": "assistant", "content": "La."}]
    written = [
        {"messages": [*turns, {"role": "user", "content": "Again."}]},
        *({"prompt": f"Say {n}."} for n in range(11)),
    ]
    rows.write_text("".join(json.dumps(row) + "\n" for row in written))
    given = ["eval", "--task", str(rows), "--model", str(chat_model), "--methods", "plain,one-step", "--samples", "2"]
    given += ["--reward", of(rows, "many"), "--block-size", "4", "--max-length", "4", "--chat-template"]
    assert main([*given, "--out", str(rows.parent / "run")]) == 0
    page = (rows.parent / "run" / "report.html").read_text()
    assert page.count("<article>") == 10 and '<b>assistant</b><div class="text">La.</div>' in page
    assert "Sing &lt;b&gt;." in page and '<div class="turn"><div class="text">Say 0.</div>' in page


def test_a_forbidden_text_has_a_row_and_no_point_in_the_plots(rows: Path) -> None:
    given = words("eval", rows, "--methods", "plain,best-of-n", "--samples", "6", "--max-length", "1")
    assert main([*given, "--reward", of(rows, "many")]) == 0
    folder = rows.parent / "run"
    assert "| -inf |" in (folder / "table.md").read_text().replace("  ", "")
    assert (folder / "reward.png").exists() and (folder / "report.html").exists()


def test_the_likelihood_is_a_reward_and_methods_of_another_law_have_none(tmp_path: Path, rows: Path) -> None:
    given = ["eval", "--task", str(rows), "--model", "embedded-small", "--methods", "plain,greedy", "--count", "2"]
    given += ["--reward", "likelihood", "--samples", "2", "--block-size", "4", "--max-length", "4"]
    assert main([*given, "--out", str(tmp_path / "likely")]) == 0
    plain, greedy = summary(tmp_path / "likely")["entries"]
    assert len(plain["rewards"]) == 2 and greedy["rewards"] == {}
    assert (tmp_path / "likely" / "report.html").exists()


def test_an_estimate_needs_no_answers(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = words("estimate", rows, "--methods", "plain,ets", "--candidates", "2", "--reward", of(rows, "share"))
    assert main([*given, "--problems", "1"]) == 0
    assert "expected for 4 problems, 2 of each, from 1 of them" in capsys.readouterr().out


def test_a_task_of_prompts_may_be_an_object_of_a_user(rows: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(f"{CODE}\ntask = Prompts({str(rows)!r}, 'mine', {of(rows, 'share')!r})\n")
    given = words("eval", rows, "--task", f"{own}:task", "--methods", "plain", "--samples", "2")
    assert main(given) == 0
    assert summary(tmp_path / "run")["setting"]["task"] == "mine"
