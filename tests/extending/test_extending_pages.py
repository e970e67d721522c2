"""The pages on extending: what each of them makes works as printed, and is judged as what is built in."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import ets
from ets import models
from ets.cli import main
from ets.policies.autoregressive.engine import EnginePolicy
from ets.policies.checkpoint import Checkpoint
from ets.policies.diffusion.denoise import Schedule
from ets.policies.settings import Unmasking
from ets.testing import check_policy
from ets.types import Problem
from tests.conftest import MASKED_ALPHABET, canvas_oracle, causal_oracle, tiny_tokenizer

FOLDER = Path(__file__).parents[2] / "docs" / "extending"
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.md"))}
PROBLEMS = [Problem("p", "abab"), Problem("q", (1, 2, 2, 1, 2)), Problem("r", "b")]


def blocks(page: str, language: str = "python") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], flags=re.DOTALL)


def executed(page: str, count: int | None = None) -> dict[str, Any]:
    """What the page's first blocks of Python leave behind."""
    names: dict[str, Any] = {}
    for block in blocks(page)[:count]:
        exec(compile(block, f"{page}.md", "exec"), names)
    return names


def command(page: str) -> list[str]:
    """The words after `ets` of a page's one shell command."""
    (block,) = blocks(page, "bash")
    program, *words = shlex.split(block.replace("\\\n", " "))
    assert program == "ets"
    return words


# A masked-diffusion family.


@pytest.fixture(scope="module")
def family() -> Iterator[dict[str, Any]]:
    names = executed("model_family", 2)
    yield names
    del models.MASKED_DIFFUSION["unmasking_llama"]


def unmasking_model(family: dict[str, Any], seed: int = 6) -> Any:
    """Random weights in float64 over three tokens and the mask token."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = family["UnmaskingConfig"](
        vocab_size=4, initializer_range=0.5, mask_token_id=3, eos_token_id=0, bos_token_id=None, **sizes
    )
    return family["UnmaskingLlama"](config).double()


def test_the_family_gives_the_texts_of_the_model_that_it_was_made_from(family: dict[str, Any]) -> None:
    path, out = ets.demo.model_path("diffusion"), family["out"]
    llada = ets.sample(family["question"], model=path, block_length=8, **family["settings"])
    assert llada.text == out.text != ""
    for step, other in zip(llada.trace, out.trace, strict=True):
        assert step.candidates[0].logp == pytest.approx(other.candidates[0].logp, abs=1e-4)


def test_the_family_loads_from_a_folder_by_its_own_name(family: dict[str, Any], tmp_path: Path) -> None:
    unmasking_model(family).save_pretrained(tmp_path)
    tiny_tokenizer(MASKED_ALPHABET).save_pretrained(tmp_path)
    law: dict[str, Any] = {"candidates": 2, "rollouts": 1, "block_size": 2, "max_length": 4}
    assert ets.sample("ab", model=tmp_path, reward=lambda prompt, text: len(text), **law).cost.row_forwards > 0


@pytest.mark.parametrize("shift", [0, 1])
def test_the_family_keeps_the_contract_whichever_way_its_logits_stand(family: dict[str, Any], shift: int) -> None:
    """At a level of 1e-4. With a shift, the logits that the oracle reads for a position stand one to its left."""
    model, tokenizer = unmasking_model(family), tiny_tokenizer(MASKED_ALPHABET)
    models.MASKED_DIFFUSION["unmasking_llama"] = models.Family(shift=shift)
    schedule, law = Schedule(3, 3, 3, 3), Unmasking(temperature=0.8)
    policy = ets.MaskedDiffusionPolicy(Checkpoint.loaded(model, tokenizer), law, schedule)

    def shifted(ids: Any) -> Any:
        return SimpleNamespace(logits=model(ids).logits.roll(shift, dims=1))

    shifted.config = model.config  # type: ignore[attr-defined]
    oracle = canvas_oracle(SimpleNamespace(model=shifted, tokenizer=tokenizer), schedule, law)
    check_policy(policy, oracle, PROBLEMS, draws=4_000, level=1e-4)


def test_what_makes_the_family_see_both_ways_is_the_line_that_says_so(family: dict[str, Any]) -> None:
    model, ids = unmasking_model(family), torch.tensor([[1, 2, 3, 3], [1, 2, 3, 1]])

    def second() -> Any:
        """The logits at the second position, of two rows that differ to the right of it."""
        with torch.no_grad():
            return model(ids).logits[:, 1]

    assert not torch.allclose(*second())
    model.config.is_causal = True
    assert torch.allclose(*second())


# A policy from scratch.


def test_the_policy_from_scratch_runs_as_printed(capsys: pytest.CaptureFixture[str]) -> None:
    source = "\n".join(blocks("model_family")[2:])
    exec(f"import ets\n{source}", {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and all(re.fullmatch(r"[ab]* \d+", line) for line in lines)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("uniform(key, position)", "uniform(key, 0)"),
        ("uniform(key, position)", "np.random.default_rng(position).random()"),
        ("token = pick(p, ", "token = pick(p**2, "),
        ("state.logp + logp, tokens[-1]", "logp, tokens[-1]"),
        ("if token == END:", "if False:"),
        ("self.ledger += cost", "self.ledger += cost + cost"),
    ],
)
def test_a_fault_in_the_policy_is_seen_by_the_check_it_prints(right: str, wrong: str) -> None:
    source = "\n".join(blocks("model_family")[2:]).replace("draws=5_000", "draws=2_000")
    assert right in source
    with pytest.raises((AssertionError, KeyError)):
        exec(f"import ets\n{source.replace(right, wrong)}", {})


# An engine.


def test_the_engine_runs_as_printed(capsys: pytest.CaptureFixture[str]) -> None:
    executed("engine")
    text, agreement = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"(?P<quote>['\"]).+(?P=quote) \d+", text)
    assert agreement == "greedy decoding agrees: True"


def test_the_engine_keeps_the_contract_at_level_1e_4(tiny_checkpoint: Any) -> None:
    engine = executed("engine", 1)["PlainEngine"](tiny_checkpoint)
    policy = EnginePolicy(engine, ets.Sampling(0.7), ets.Horizon(block_size=2, max_length=4))
    problems = [Problem("p", "abc"), Problem("q", (1, 3, 3, 2, 1)), Problem("r", "b", stop=("ab",))]
    check_policy(policy, causal_oracle(policy, 0.7), problems, draws=4_000, level=1e-4)


def test_an_engine_that_ignores_the_temperature_is_seen(tiny_checkpoint: Any) -> None:
    engine = executed("engine", 1)["PlainEngine"](tiny_checkpoint)
    policy = EnginePolicy(engine, ets.Sampling(0.7), ets.Horizon(block_size=2, max_length=4))
    engine._law = lambda row, sampling: type(engine)._law(engine, row, ets.Sampling(1.0))
    with pytest.raises(AssertionError):
        check_policy(policy, causal_oracle(policy, 0.7), PROBLEMS, draws=4_000, level=1e-4)


# A benchmark.


def test_the_benchmark_is_evaluated_by_the_command_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (source,) = blocks("benchmark")
    (tmp_path / "jars.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    assert main(command("benchmark")) == 0
    told = capsys.readouterr().out
    (folder,) = (tmp_path / "results").iterdir()
    assert folder.name.startswith("jars-") and f"results: results/{folder.name}/" in told
    entries = json.loads((folder / "summary.json").read_text())["entries"]
    assert [entry["method"] for entry in entries] == ["plain", "ets", "ets"]
    assert "jars" in (folder / "report.html").read_text()
    records = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    assert {record["problem"] for record in records} == {"jars-3", "jars-4"}
    assert any(record["answer"] is not None for record in records)


def test_the_benchmark_finds_and_grades_answers() -> None:
    task = executed("benchmark")["Jars"]()
    first, *_ = problems = task.problems()
    assert len({problem.id for problem in problems}) == len(problems) == 20
    assert [task.extract(first, text) for text in ("#### 15", "####  -6 eggs", "six", "")] == [15, -6, None, None]
    assert [task.grade(first, text) for text in ("3+12=15\n#### 15", "#### 16", "15")] == [True, False, False]


# A reward.


def test_the_rewards_run_as_printed(capsys: pytest.CaptureFixture[str]) -> None:
    names = executed("reward")
    *texts, same, slow = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in texts] == ["brief", "finished", "varied"]
    assert same == "the same text: True" and slow.endswith("True")
    assert 0 < len(names["asked"]) < names["out"].cost.rewarded


def test_the_reward_works_from_the_command_line_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_rewards.py").write_text(blocks("reward")[0])
    monkeypatch.chdir(tmp_path)
    assert main(command("reward")) == 0
    assert "guide step 1: chose" in capsys.readouterr().out


def test_the_rewards_value_what_their_docstrings_say() -> None:
    names = executed("reward", 1)
    rollouts = [ets.Text((), text, 0.0, True) for text in ("a", "a", "b", "a")]
    assert names["varied"](None, rollouts, None) == pytest.approx([0.25, 0.25, 0.75, 0.25])
    assert names["brief"]("", "xx") > names["brief"]("", "xxx")
    assert np.isneginf(names["finished"]("", "6")) and names["finished"]("", "#### 6") == 0


@pytest.mark.parametrize(("page", "link"), [(p, to) for p in PAGES for to in re.findall(r"\]\(([^)#]+)", PAGES[p])])
def test_links_of_the_pages_lead_somewhere(page: str, link: str) -> None:
    assert (FOLDER / link).exists()
