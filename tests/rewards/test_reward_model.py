"""A reward model: what it reads, and that a text's score does not depend on the texts beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    Qwen3Config,
    Qwen3ForSequenceClassification,
)

import ets
from ets.rewards import TextReward, reward_model
from ets.testing import TabularPolicy
from ets.types import Chain, InputError, Problem, Text
from tests.conftest import random_qwen3, tiny_tokenizer

TEMPLATE = "{% for turn in messages %}{{ turn.role[0] }}{{ turn.content }}{% endfor %}"
LETTERS = ("<end>", "a", "b", "c", "u", "<pad>")
PROBLEM = Problem("p", "ab")
CHAIN = Chain(PROBLEM, 0, 1, TabularPolicy().start([PROBLEM])[0])
TEXTS = ["c", "abcabcabc", "", "cab", "c", "bbbbbbbbbbbbbbbbbbbbbbbbbbbb", "ac"]


def saved(
    folder: Path, *, labels: int = 1, padding: int | None = 5, template: str | None = TEMPLATE, width: int = 16
) -> Path:
    """A random reward model of six letters, the last of which is padding."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(LETTERS), hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=width // 2, max_position_embeddings=64, initializer_range=0.4,
        num_labels=labels, eos_token_id=0, bos_token_id=None, pad_token_id=padding,
    )  # fmt: skip
    Qwen3ForSequenceClassification(config).save_pretrained(folder)
    tokenizer = tiny_tokenizer(LETTERS)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("reward-model"))


def scores(reward: TextReward, *contents: str, problem: Problem = PROBLEM) -> list[float]:
    return reward(problem, [Text((1,), content, -1.0, True) for content in contents], CHAIN)


def logit(folder: Path, whole: str) -> float:
    """Of one text alone, by the model itself."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([[LETTERS.index(letter) for letter in whole]])
    with torch.no_grad():
        return float(model(ids).logits[0, 0])


@pytest.mark.parametrize(("template", "whole"), [(True, "uabacabb"), (False, "abcabb")])
def test_it_reads_the_chat_template_or_prompt_and_text(folder: Path, template: bool, whole: str) -> None:
    found = scores(reward_model(folder, template=template), "cabb")
    assert found == pytest.approx([logit(folder, whole)], abs=1e-6)


def test_it_reads_the_turns_of_a_chat_prompt(folder: Path) -> None:
    turns = tuple({"role": role, "content": text} for role, text in (("user", "c"), ("assistant", "b"), ("user", "a")))
    found = reward_model(folder).score_texts(Problem("p", "written by a template", messages=turns), ["cabb"])
    assert found == pytest.approx([logit(folder, "ucabuaacabb")], abs=1e-6)


def test_a_tokenizer_without_a_template_reads_prompt_and_text(tmp_path: Path) -> None:
    folder = saved(tmp_path, template=None)
    assert scores(reward_model(folder), "cabb") == pytest.approx([logit(folder, "abcabb")], abs=1e-6)


@pytest.mark.parametrize("padding", [5, None])
def test_scores_depend_neither_on_the_batch_nor_on_padding(tmp_path: Path, padding: int | None) -> None:
    folder = saved(tmp_path, padding=padding)
    alone = [scores(reward_model(folder, batch=1), text)[0] for text in TEXTS]
    assert len({round(score, 4) for score in alone}) == len(set(TEXTS))
    for batch in (1, 2, 3, 16):
        assert scores(reward_model(folder, batch=batch), *TEXTS) == pytest.approx(alone, abs=1e-5)


def test_padding_is_masked_for_a_model_that_looks_both_ways(tmp_path: Path) -> None:
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(LETTERS), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.4, num_labels=1, pad_token_id=5,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    tiny_tokenizer(LETTERS).save_pretrained(tmp_path)
    alone = [scores(reward_model(tmp_path, batch=1), text)[0] for text in TEXTS]
    assert scores(reward_model(tmp_path), *TEXTS) == pytest.approx(alone, abs=1e-5)


def test_equal_texts_are_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    forward = Qwen3ForSequenceClassification.forward

    def counting(self: Any, input_ids: Any, **options: Any) -> Any:
        rows.append(len(input_ids))
        return forward(self, input_ids, **options)

    monkeypatch.setattr(Qwen3ForSequenceClassification, "forward", counting)
    found = scores(reward_model(folder, batch=2), "c", "ab", "c", "c", "ba")
    assert sum(rows) == 3 and max(rows) == 2
    assert found[0] == found[2] == found[3] != found[1]


def test_it_steers_a_run(folder: Path) -> None:
    """At a small λ the chosen text is the best of the last step's."""
    pair = (random_qwen3(4, end=0), tiny_tokenizer())
    result = ets.sample(
        "ab", model=pair, reward=reward_model(folder), candidates=3, rollouts=2, lam=1e-6, block_size=6, max_length=6,
        progress=False,
    )  # fmt: skip
    (step,) = result.trace
    texts = [row[0].text for row in step.rollouts]
    assert len(set(texts)) > 1
    best = max(texts, key=lambda text: scores(reward_model(folder), text)[0])
    assert result.text == best and result.cost.rewarded == 3


def damaged(folder: Path) -> Path:
    """Without the head: what a checkpoint of a language model looks like that is said to have one label."""
    from safetensors.torch import load_file, save_file

    weights = folder / "model.safetensors"
    save_file({name: w for name, w in load_file(weights).items() if "score" not in name}, weights, {"format": "pt"})
    return folder


def test_what_is_no_reward_model_is_refused_in_one_line(tmp_path: Path) -> None:
    two, bare = saved(tmp_path / "two", labels=2), damaged(saved(tmp_path / "bare"))
    cases = [
        (lambda: reward_model("./nowhere"), "no checkpoint at './nowhere'"),
        (lambda: reward_model(two), "has 2 labels, and a reward model has one"),
        (lambda: reward_model(ets.demo.model_path("small")), "has 2 labels"),
        (lambda: scores(reward_model(bare), "a"), "has no weights 'score.weight', so it is no trained reward model"),
        (lambda: reward_model(two, batch=0), "batch is 0"),
    ]
    for make, message in cases:
        with pytest.raises(InputError) as caught:
            make()
        assert message in str(caught.value) and "\n" not in str(caught.value)


def test_what_it_cannot_read_is_refused_in_one_line(folder: Path) -> None:
    reward = reward_model(folder)
    with pytest.raises(InputError, match=r"has 104 tokens with its prompt, more than the 64 of the reward model"):
        scores(reward, "a" * 100)
    with pytest.raises(InputError, match=r"has 6 tokens with its prompt, more than the 5"):
        scores(reward_model(folder, max_length=5), "ab")
    with pytest.raises(InputError, match="is token ids"):
        scores(reward, "a", problem=Problem("p", (1, 2)))


def test_a_damaged_checkpoint_is_one_line(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3"})[:-3])
    with pytest.raises(InputError, match="cannot load the reward model") as caught:
        reward_model(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("template", "whole"), [(TEMPLATE, "uabacabb"), (None, "abacabb")])
def test_in_a_chat_it_reads_the_raw_prompt_and_one_template(tmp_path: Path, template: str | None, whole: str) -> None:
    """The template of the model that is sampled writes "cccabccc"; without a template a line break (read as "a", the
    tokenizer's unknown token) stands between prompt and text."""
    folder = saved(tmp_path, template=template)
    turn = ({"role": "user", "content": "ab"},)
    problem = Problem("p", "cccabccc", messages=turn, user_text="ab")
    assert scores(reward_model(folder), "cabb", problem=problem) == pytest.approx([logit(folder, whole)], abs=1e-6)
    from_messages = Problem("p", "cccabccc", messages=turn)
    assert scores(reward_model(folder), "cabb", problem=from_messages) == scores(
        reward_model(folder), "cabb", problem=problem
    )
