"""Chat prompts: what a template writes reaches the model once, with one BOS token, or the reason is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import ets
from ets.chat import Chat, ChatTemplate, as_chat, as_prompts, prompt_text, with_reply
from ets.policies.autoregressive.server import Endpoint
from ets.policies.checkpoint import Checkpoint
from ets.policies.prompts import encode_prompt
from ets.rewards import cached, weighted_sum
from ets.types import InputError, Problem
from tests.chatting import BOS, CHATML, SILENT, WITHOUT_SYSTEM
from tests.tiny_server import TinyServer

ASKED = [{"role": "user", "content": "Tom has 5 eggs."}]
EXAMPLE = [{"role": "user", "content": "2+3"}, {"role": "assistant", "content": "5"}]
BRIEF = "Be brief."


@pytest.fixture
def tokenizer(chat_model: Path) -> Any:
    return Checkpoint(str(chat_model)).tokenizer


def written(tokenizer: Any, template: Any, chat: Chat | None = None, messages: Any = ASKED) -> str:
    tokenizer.chat_template = template
    return ChatTemplate(tokenizer, chat or Chat()).render(messages)


def test_a_chat_prompt_has_the_ids_of_transformers_and_one_bos(tokenizer: Any) -> None:
    problem = ChatTemplate(tokenizer).problem(Problem("0", ASKED[0]["content"]))
    ids = encode_prompt(tokenizer, problem, 1, None)
    expected = tokenizer.apply_chat_template(ASKED, add_generation_prompt=True, return_dict=False)
    assert list(ids) == expected and ids.count(tokenizer.bos_token_id) == 1
    assert str(problem.prompt).startswith(BOS) and list(problem.messages) == ASKED


def test_text_that_begins_with_bos_gets_no_second_one_and_other_text_gets_one(tokenizer: Any) -> None:
    for text in (f"{BOS}Tom", "Tom"):
        ids = encode_prompt(tokenizer, Problem("0", text), 1, None)
        assert ids[0] == tokenizer.bos_token_id and ids.count(ids[0]) == 1


@pytest.mark.parametrize("template", [WITHOUT_SYSTEM, SILENT])
def test_a_system_text_opens_the_user_s_turn_where_the_template_has_no_system_role(
    tokenizer: Any, template: str
) -> None:
    text = written(tokenizer, template, Chat(system=BRIEF), [*EXAMPLE, *ASKED])
    assert f"<|im_start|>user\n{BRIEF}\n\n2+3<|im_end|>" in text and text.count(BRIEF) == 1
    own = [{"role": "system", "content": BRIEF}, *EXAMPLE, *ASKED]
    assert written(tokenizer, template, messages=own) == text


def test_a_system_text_is_a_turn_where_the_template_has_the_role(tokenizer: Any) -> None:
    text = written(tokenizer, CHATML, Chat(system=BRIEF))
    assert text.startswith(f"{BOS}<|im_start|>system\n{BRIEF}<|im_end|>\n<|im_start|>user\nTom")


def test_thinking_is_switched_by_the_template_or_refused(tokenizer: Any) -> None:
    assert written(tokenizer, CHATML, Chat(thinking=False)).endswith("<think>\n\n</think>\n\n")
    assert written(tokenizer, CHATML, Chat(thinking=True)).endswith("assistant\n")
    tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(InputError, match="thinking is False, but the chat template of 'm' has no enable_thinking"):
        ChatTemplate(tokenizer, Chat(thinking=False), "m")


def test_a_conversation_that_ends_with_the_assistant_s_words_goes_on_with_them(tokenizer: Any) -> None:
    assert written(tokenizer, CHATML, messages=[*ASKED, {"role": "assistant", "content": "He"}]).endswith("tant\nHe")


def test_prompts_do_not_depend_on_the_day(tokenizer: Any) -> None:
    assert written(tokenizer, "{{ strftime_now('%d %b %Y') }} {{ messages[0].content }}").startswith("01 Jan 2025 Tom")
    computed = "\n{% set form = '%d %B' %}{% for turn in messages %}{{ strftime_now(form) }}{% endfor %}"
    assert written(tokenizer, computed).startswith("\n01 January")


def test_templates_are_named_or_in_a_file(tokenizer: Any, tmp_path: Path) -> None:
    several = {"default": CHATML, "short": "<{{ messages[0].content }}>"}
    (tmp_path / "own.jinja").write_text("[{{ messages[0].content }}]")
    assert written(tokenizer, several) == written(tokenizer, CHATML)
    assert written(tokenizer, several, Chat("short")) == "<Tom has 5 eggs.>"
    assert written(tokenizer, None, Chat(str(tmp_path / "own.jinja"))) == "[Tom has 5 eggs.]"


@pytest.mark.parametrize(
    ("template", "named", "message"),
    [
        (None, None, "the tokenizer of 'm' has no chat template; give"),
        (None, "x", "unknown chat template 'x': the tokenizer of 'm' has none"),
        (CHATML, "x", "unknown chat template 'x': the tokenizer of 'm' has default"),
        ({"a": CHATML, "b": CHATML}, None, "has several chat templates; name one of a, b"),
        ("{{ raise_exception('roles must alternate') }}", None, "cannot write this conversation: roles must alternate"),
        ("{% if %}", None, "cannot write this conversation"),
    ],
)
def test_what_a_template_cannot_do_is_one_line(tokenizer: Any, template: Any, named: str | None, message: str) -> None:
    tokenizer.chat_template = template
    with pytest.raises(InputError, match=message) as refused:
        ChatTemplate(tokenizer, Chat(named), "m").render(ASKED)
    assert "\n" not in str(refused.value)


def test_a_turn_s_end_stops_a_text_unless_it_is_an_end_token(tokenizer: Any) -> None:
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ChatTemplate(tokenizer, end_ids={0}).turn_end == ("<|im_end|>",)
    assert ChatTemplate(tokenizer, end_ids={0, end}).turn_end == ()
    tokenizer.chat_template = "{{ messages[-1].content }} over"
    assert ChatTemplate(tokenizer, end_ids={0}).turn_end == ()


def test_a_benchmark_s_stop_strings_are_dropped_and_those_of_a_conversation_stay(tokenizer: Any) -> None:
    template = ChatTemplate(tokenizer, Chat(stop=("END",)), end_ids={0})
    assert template.problem(Problem("0", "Q", ("Question:",))).stop == ("END", "<|im_end|>")
    assert template.problem(Problem("0", "", ("own",), messages=tuple(ASKED))).stop == ("END", "own", "<|im_end|>")


def test_prompts_are_of_one_kind() -> None:
    assert as_prompts("a") == (["a"], True) and as_prompts(["a", "b"]) == (["a", "b"], False)
    assert as_prompts(ASKED) == ([tuple(ASKED)], True) and as_prompts([ASKED]) == ([tuple(ASKED)], False)
    assert as_prompts([1, 2]) == ([(1, 2)], True) and as_prompts([[1], (2, 3)]) == ([(1,), (2, 3)], False)
    assert as_prompts([]) == ([], False)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (["a", [1]], "the prompts mix text and token ids"),
        ([ASKED, "a"], "the prompts mix messages and text"),
        (3, "the prompt is 3; pass text, messages"),
        ([True], r"the prompt is \[True\]; pass"),
        ([1, 2, True], r"the prompt is \[1, 2, True\]; pass"),
        ([[]], r"the prompt is \[\[\]\]; pass"),
        ([{"role": "user"}], "message 1 has None as content"),
        ([*ASKED, {"role": 1, "content": ""}], "message 2 has 1 as role"),
    ],
)
def test_anything_else_is_refused(prompt: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_prompts(prompt)


def test_sampling_a_conversation_is_sampling_its_ids(chat_model: Path, tokenizer: Any) -> None:
    options: dict[str, Any] = {"model": str(chat_model), "reward": lambda prompt, text: -len(text), "candidates": 2}
    options |= {"rollouts": 1, "block_size": 8, "max_length": 16, "progress": False}
    ids = tokenizer.apply_chat_template(ASKED, add_generation_prompt=True, return_dict=False)
    by_ids = ets.sample(ids, stop=["<|im_end|>"], **options)
    by_messages, by_text = ets.sample(ASKED, **options), ets.sample(ASKED[0]["content"], chat=True, **options)
    assert by_messages.text == by_text.text == by_ids.text and by_ids.prompt == tuple(ids)
    assert by_messages.prompt == by_text.prompt == written(tokenizer, CHATML)
    assert ets.sample(ASKED[0]["content"], **options).prompt == ASKED[0]["content"]
    several = ets.sample([ASKED, EXAMPLE], **options)
    assert several[0].text == by_messages.text and len(several) == 2


def test_a_server_gets_the_ids_that_the_template_writes(chat_model: Path, tokenizer: Any) -> None:
    options: dict[str, Any] = {"candidates": 2, "rollouts": 1, "block_size": 2, "max_length": 4}
    with TinyServer(Checkpoint(str(chat_model))) as server:
        endpoint = Endpoint(server.address, Checkpoint(str(chat_model)))
        asked = len(server.seen)  # by the endpoint itself, to see what the server is
        ets.sample(ASKED, model=endpoint, reward=lambda prompt, text: 0.0, **options)
        endpoint.close()
    ids = tokenizer.apply_chat_template(ASKED, add_generation_prompt=True, return_dict=False)
    assert len(server.seen) > asked
    assert server.seen[asked]["prompt"] == ids and server.seen[asked]["stop"] == ["<|im_end|>"]


def test_masked_diffusion_reads_what_the_template_writes(tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("Question: {{ messages[-1].content }}\nAnswer:")
    options: dict[str, Any] = {"candidates": 2, "rollouts": 1, "block_size": 4, "max_length": 8, "steps": 8}
    options |= {"model": ets.demo.model_path("diffusion"), "reward": lambda prompt, text: 0.0, "block_length": 4}
    chat = ets.sample(ASKED, chat=tmp_path / "own.jinja", **options)
    text = f"Question: {ASKED[0]['content']}\nAnswer:"
    assert chat.prompt == text and chat.text == ets.sample(text, **options).text


@pytest.mark.parametrize(
    ("prompt", "chat", "message"),
    [
        ([5, 6], True, "the prompt of problem '0' is token ids"),
        ([5, 99999], None, "the prompt of problem '0' has the token id 99999, and the tokenizer has 0 to"),
        ([-1], None, "the prompt of problem '0' has the token id -1"),
        ([{"role": "system", "content": "a"}, *ASKED], Chat(system="b"), "leave one of them out"),
        ("a", 3, "chat is 3; pass True"),
    ],
)
def test_a_template_that_does_not_fit_the_prompt_is_refused(
    chat_model: Path, prompt: Any, chat: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoint, "model", property(lambda self: pytest.fail("the weights were loaded")))
    with pytest.raises(InputError, match=message):
        ets.sample(prompt, model=str(chat_model), chat=chat, reward=lambda prompt, text: 0.0)


def test_a_chat_is_true_a_name_or_its_settings() -> None:
    assert as_chat(None) is None and as_chat(False) is None and as_chat(True) == Chat()
    assert as_chat("short") == Chat("short") and as_chat(Path("a")) == Chat("a") and as_chat(Chat()) == Chat()


@pytest.mark.parametrize(("setting", "message"), [({"system": 3}, "system is 3"), ({"stop": "END"}, "stop is 'END'")])
def test_settings_of_another_type_are_refused(setting: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Chat(**setting)


def test_settings_hold_what_is_not_a_default() -> None:
    assert Chat().settings == {"template": "the tokenizer's"}
    assert Chat("short", thinking=False).settings == {"template": "short", "thinking": False}
    assert Chat(system="", stop=("a",)).settings == {"template": "the tokenizer's", "system": "", "stop": ("a",)}


def test_rewards_of_prompt_and_text_get_the_prompt_as_it_was_given(chat_model: Path) -> None:
    """Text stays text and messages stay messages; the template's text is `problem.prompt` alone."""
    given, written_prompts = list[Any](), set[Any]()

    def noted(prompt: Any, text: str) -> float:
        given.append(prompt)
        return 0.0

    def of_three(problem: Problem, rollouts: Any, chain: Any) -> list[float]:
        written_prompts.add(problem.prompt)
        return [0.0] * len(rollouts)

    options: dict[str, Any] = {"model": str(chat_model), "candidates": 2, "rollouts": 1, "block_size": 4}
    options |= {"max_length": 4, "reward": weighted_sum((1, cached(noted)), (1, noted), (1, of_three))}
    for prompt, expected in (("Tom has 5 eggs.", "Tom has 5 eggs."), (ASKED, tuple(ASKED))):
        given.clear()
        ets.sample(prompt, chat=Chat(system=BRIEF), **options)
        assert given and all(each == expected for each in given)
    assert len(written_prompts) == 1 and str(*written_prompts).startswith(f"{BOS}<|im_start|>system\n{BRIEF}")


USER, REPLY = ASKED[0], {"role": "assistant", "content": "He has 5."}


@pytest.mark.parametrize(
    "messages",
    [
        [USER],
        [{"role": "user", "content": "first line\n\nthird (line)? \\1"}],
        [{"role": "system", "content": BRIEF}, USER],
        [USER, REPLY, USER],
        [{"role": "system", "content": BRIEF}, USER, REPLY, {"role": "user", "content": ""}],
    ],
)
@pytest.mark.parametrize("variables", [{}, {"enable_thinking": False}])
def test_the_messages_of_a_template_s_prompt_are_found_again(tokenizer: Any, messages: Any, variables: Any) -> None:
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **variables)
    assert list(ChatTemplate(tokenizer).conversation(prompt)) == messages


def test_other_texts_have_no_messages(tokenizer: Any) -> None:
    template = ChatTemplate(tokenizer)
    prompt = tokenizer.apply_chat_template([USER], tokenize=False, add_generation_prompt=True)
    for text in ("Tom has 5 eggs.", prompt + "He", prompt[len(BOS) :], prompt.replace("user", "tool")):
        assert template.conversation(text) == ()
    tokenizer.chat_template = "Question: {{ messages[-1].content }}\nAnswer:"  # nothing sets its turns apart
    assert ChatTemplate(tokenizer).conversation("Question: a\nAnswer:") == ()


def test_a_raw_prompt_is_written_as_text() -> None:
    turns = ({"role": "system", "content": BRIEF}, USER)
    assert prompt_text("a") == "a" and prompt_text((USER,)) == "Tom has 5 eggs."
    assert prompt_text(turns) == "system: Be brief.\n\nuser: Tom has 5 eggs."
    with pytest.raises(InputError, match=r"the prompt \(1, 2\) is token ids"):
        prompt_text((1, 2))


def test_a_reply_goes_on_with_the_assistant_s_turn() -> None:
    assert with_reply("a", "b") == [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert with_reply((USER, REPLY), " More.") == [USER, {"role": "assistant", "content": "He has 5. More."}]
