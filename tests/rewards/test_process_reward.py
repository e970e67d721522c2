"""Process rewards: which steps count, how they are reduced, and what a model reads for each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForTokenClassification,
    Qwen3Config,
    Qwen3ForSequenceClassification,
    Qwen3ForTokenClassification,
)

import ets
from ets.rewards import TextReward, guarded, process_reward, reward_model
from ets.rewards.process_reward import steps_of
from ets.step import RewardError, reads_prefixes
from ets.testing import TabularPolicy
from ets.types import Chain, InputError, Problem, Text
from tests.conftest import random_qwen3, tiny_tokenizer

LETTERS = ("<end>", "a", "b", "c", "u", "<pad>")
TEMPLATE = (
    "{% for turn in messages %}{{ turn.role[0] }}{{ turn.content }}{% endfor %}"
    "{% if add_generation_prompt %}a{% endif %}"
)
PROBLEM = Problem("p", "ab")
CHAIN = Chain(PROBLEM, 0, 1, TabularPolicy().start([PROBLEM])[0])
TEXTS = ["cbubaub", "ab", "abuab", "b", "ububu", "aaaaaaaaaubbbbbbbuc"]


def scores(reward: Any, *contents: str, problem: Problem = PROBLEM, done: bool = True) -> list[float]:
    return list(reward(problem, [Text((1,), content, -1.0, done) for content in contents], CHAIN))


def saved(folder: Path, kind: Any, *, labels: int = 2, template: str | None = None) -> Path:
    """A random classification model of six letters, the last of which is padding."""
    torch.manual_seed(3)
    config = Qwen3Config(
        vocab_size=len(LETTERS), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=64, initializer_range=0.4, num_labels=labels,
        eos_token_id=0, bos_token_id=None, pad_token_id=5,
    )  # fmt: skip
    kind(config).save_pretrained(folder)
    tokenizer = tiny_tokenizer(LETTERS)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def lengths(prompt: str, steps: Sequence[str]) -> list[float]:
    return [float(len(step)) for step in steps]


@pytest.mark.parametrize(("reduce", "value"), [("min", 1.0), ("last", 2.0), ("product", 6.0), ("mean", 2.0)])
def test_step_scores_are_reduced(reduce: Any, value: float) -> None:
    reward = process_reward(lengths, reduce=reduce, separator="\n", empty=-7.0)
    assert scores(reward, "abc\n\na\n bc \n", "", "\n \n") == [value, -7.0, -7.0]


@pytest.mark.parametrize(
    ("text", "done", "steps"),
    [
        ("a\nb", True, ["a", "b"]),
        ("a\nb", False, ["a"]),
        ("a\nb\n", False, ["a", "b"]),
        ("a\n ", False, ["a"]),
        ("a", False, ["a"]),
        ("\na", False, ["a"]),
        ("", False, []),
    ],
)
def test_the_open_step_of_an_unfinished_text_counts_if_it_is_the_only_one(
    text: str, done: bool, steps: list[str]
) -> None:
    assert steps_of(text, "\n", done=done) == steps


def test_equal_steps_are_scored_once_and_the_prompt_is_the_raw_one() -> None:
    asked: list[Any] = []

    def noted(prompt: Any, steps: Sequence[str]) -> list[float]:
        asked.append((prompt, steps))
        return [0.0] * len(steps)

    reward = process_reward(noted, separator="\n")
    problem = Problem("p", "<user>ab", messages=({"role": "user", "content": "ab"},), user_text="ab")
    scores(reward, "a\nb", "a\nb\nc", problem=problem, done=False)
    scores(reward, "a\nb", "a\nb ", problem=problem)
    assert asked == [("ab", ["a"]), ("ab", ["a", "b"])]


def test_it_is_declared_for_prefixes_and_a_budget_begins_with_a_particle_filter() -> None:
    """The first step then holds unfinished texts."""
    reward = process_reward(lambda prompt, steps: [step.count("a") for step in steps], separator="b")
    assert reads_prefixes(reward) and reads_prefixes(guarded(reward))
    pair = (random_qwen3(4, end=0), tiny_tokenizer())
    result = ets.sample("ab", model=pair, reward=reward, tokens=60, lam=0.5, block_size=2, max_length=8, progress=False)
    assert not all(text.done for text in result.trace[0].candidates)


def logits(folder: Path, whole: str, at: Sequence[int]) -> torch.Tensor:
    """Of one text alone, by the model itself, at some of its letters."""
    model = AutoModelForTokenClassification.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor([[LETTERS.index(letter) for letter in whole]])).logits[0, list(at)]
    return found


@pytest.mark.parametrize(("template", "before"), [(None, "ab"), (TEMPLATE, "uaba")])
def test_a_token_classification_model_scores_a_step_at_its_separator(
    tmp_path: Path, template: str | None, before: str
) -> None:
    """b, ca and c follow the prompt, each with the separator u behind it."""
    folder, n = saved(tmp_path, Qwen3ForTokenClassification, template=template), len(before)
    expected = logits(folder, f"{before}bucaucu", [n + 1, n + 4, n + 6]).softmax(-1)[:, 1].tolist()
    for reduce, value in (("last", expected[-1]), ("min", min(expected)), ("mean", sum(expected) / 3)):
        reward = process_reward(folder, separator="u", reduce=reduce)  # type: ignore[arg-type]
        assert scores(reward, "bucauc", "bucaucu") == pytest.approx([value] * 2, abs=1e-6)


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_a_sequence_classification_model_scores_the_prefixes_of_steps(tmp_path: Path, template: str | None) -> None:
    folder = saved(tmp_path, Qwen3ForSequenceClassification, labels=1, template=template)
    parts = scores(reward_model(folder), "b", "buca", "bucauc")
    assert len({round(part, 4) for part in parts}) == 3
    for reduce, value in (("last", parts[-1]), ("min", min(parts)), ("mean", sum(parts) / 3)):
        reward = process_reward(folder, separator="u", reduce=reduce)  # type: ignore[arg-type]
        assert scores(reward, "bucauc") == pytest.approx([value], abs=1e-6)


@pytest.mark.parametrize("kind", [Qwen3ForTokenClassification, Qwen3ForSequenceClassification])
def test_scores_do_not_depend_on_the_batch(tmp_path: Path, kind: Any) -> None:
    folder = saved(tmp_path, kind)

    def made(batch: int) -> TextReward:
        return process_reward(folder, separator="u", batch=batch)

    alone = [scores(made(1), text)[0] for text in TEXTS]
    assert len({round(score, 5) for score in alone}) == len(TEXTS)
    for batch in (2, 16):
        assert scores(made(batch), *TEXTS, TEXTS[0]) == pytest.approx([*alone, alone[0]], abs=1e-5)


def test_what_is_no_process_reward_is_refused_in_one_line(tmp_path: Path) -> None:
    three = saved(tmp_path / "three", Qwen3ForTokenClassification, labels=3)
    one = saved(tmp_path / "one", Qwen3ForTokenClassification, labels=1)
    largest: Any = "max"
    cases: list[tuple[Any, type[Exception], str]] = [
        (lambda: process_reward(lengths, reduce=largest), InputError, "reduce is 'max'; choose from min, last"),
        (lambda: process_reward(lengths, separator=""), InputError, "separator is ''"),
        (lambda: process_reward("./nowhere"), InputError, "no checkpoint at './nowhere'"),
        (lambda: process_reward(three), InputError, "is Qwen3ForTokenClassification with 3 labels"),
        (lambda: process_reward(ets.demo.model_path("small")), InputError, "give a sequence- or token-classification"),
        (lambda: process_reward(one, batch=0), InputError, "batch is 0"),
        (lambda: scores(process_reward(one), "a" * 70), InputError, "has 74 tokens with its prompt, more than the 64"),
        (lambda: scores(process_reward(lambda p, steps: [1.0]), "a\n\nb"), RewardError, "1 numbers for the 2 steps"),
    ]
    for make, kind, message in cases:
        with pytest.raises(kind) as caught:
            make()
        assert message in str(caught.value) and "\n" not in str(caught.value)
