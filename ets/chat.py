"""Chat prompts: conversations, and the text that a checkpoint's chat template writes for a conversation.

A conversation is a list of messages such as ``[{"role": "user", "content": "What is 2 + 3?"}]``. The template, a Jinja
program that comes with the tokenizer, writes the whole prompt with all special tokens.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias, cast

from ets.types import InputError, Message, Problem, one_line

Prompt: TypeAlias = str | tuple[int, ...] | tuple[Message, ...]
TURNS = 8
"""The most turns of the user that `ChatTemplate.conversation` looks for."""
DATE = datetime(2025, 1, 1)
"""The date for templates that write today's date. A fixed date makes a prompt a function of the settings."""
TODAY = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('%{code}', '{DATE.strftime('%' + code)}')" for code in "dbBYmyaAjHIMSp")
    + " }}{% endmacro %}{{ '' }}"  # a template's first line break would be dropped after a block
)
"""A macro that writes the date where a template asks for today's; transformers 5.24 accepts no function for it."""


@dataclass(frozen=True)
class Chat:
    """How conversations become prompts.

    Parameters
    ----------
    template : str, optional
        The name of one of the tokenizer's templates, or the path of a file with a template; by default the tokenizer's
        default template.
    system : str, optional
        The system turn of conversations without a system turn. The text opens the first user turn if the template has
        no system role.
    thinking : bool, optional
        The template's variable `enable_thinking`; by default the template's choice.
    multiturn : bool
        Worked examples of a benchmark are turns of the user and the assistant, not part of the user's turn.
    stop : tuple of str
        Stop strings that replace a benchmark's stop strings, which fit prompts without a template.

    Raises
    ------
    InputError
        For a system turn that is no text, or a stop string in place of a tuple.
    """

    template: str | None = None
    system: str | None = None
    thinking: bool | None = None
    multiturn: bool = False
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.system is not None and not isinstance(self.system, str):
            raise InputError(f"system is {self.system!r}; give the text of the system turn")
        if isinstance(self.stop, str):
            raise InputError(f"stop is {self.stop!r}; give a tuple of strings")

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that are not at their defaults, as JSON values for a configuration."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        given = {each.name: values[each.name] for each in fields(self) if values[each.name] != each.default}
        return {"template": "the tokenizer's", **given}


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer's template, with the settings of a `Chat`.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
    chat : Chat
    name : str
        The checkpoint's name, for errors.
    end_ids : collection of int
        Tokens that end a generation. Where the template closes an assistant's turn with another special token, that
        token's text becomes a stop string.

    Raises
    ------
    InputError
        If the tokenizer has no template, or no template of this name; or `thinking` is set and the template has no
        `enable_thinking`.
    """

    tokenizer: Any
    chat: Chat = field(default_factory=Chat)
    name: str = "the checkpoint"
    end_ids: Collection[int] = ()

    def __post_init__(self) -> None:
        if self.chat.thinking is not None and "enable_thinking" not in self.text:
            raise InputError(
                f"thinking is {self.chat.thinking}, but the chat template of {self.name!r} has no enable_thinking; "
                "leave thinking out, or put the wish into the system text"
            )

    @cached_property
    def text(self) -> str:
        """The text of the template."""
        found, wanted = getattr(self.tokenizer, "chat_template", None), self.chat.template
        named: dict[str, str] = found if isinstance(found, dict) else {"default": found} if found else {}
        if (wanted or "default") in named:
            return named[wanted or "default"]
        if wanted is None and not named:
            raise InputError(
                f"the tokenizer of {self.name!r} has no chat template; give the path of a file with a template, take "
                "an instruct checkpoint, or give a prompt of text alone, without a template"
            )
        known = ", ".join(named) or "none"
        if wanted is None:
            raise InputError(f"the tokenizer of {self.name!r} has several chat templates; name one of {known}")
        path = Path(wanted).expanduser()
        if not path.is_file():
            raise InputError(
                f"unknown chat template {wanted!r}: the tokenizer of {self.name!r} has {known}, and there is no file "
                "of this name; name another one"
            )
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the chat template {wanted!r}: {error}; give a file of UTF-8 text") from error

    def problem(self, problem: Problem) -> Problem:
        """Return the problem with a chat prompt: the messages, or the text as the user's turn.

        The stop strings of a problem without messages (a benchmark's) are dropped.
        """
        messages, user_text = problem.messages, problem.user_text
        if not messages:
            if not isinstance(problem.prompt, str):
                raise InputError(
                    f"the prompt of problem {problem.id!r} is token ids, which need no template; leave the chat "
                    "template out, or give messages"
                )
            messages, user_text = as_turns(problem.prompt), problem.prompt
        kept = problem.stop if problem.messages else ()
        stop = tuple(dict.fromkeys((*self.chat.stop, *kept, *self.turn_end)))
        return replace(problem, prompt=self.render(messages), messages=messages, stop=stop, user_text=user_text)

    def render(self, messages: Sequence[Message], *, reply: bool | None = None) -> str:
        """Write the prompt of a conversation.

        Parameters
        ----------
        messages : sequence of mapping
            `role` and `content`.
        reply : bool, optional
            Whether the prompt ends where the assistant's turn begins; False goes on with the last message. By default
            the reply begins unless the last message is the assistant's.
        """
        asked = list(messages)
        if self.chat.system is not None and asked[0]["role"] != "system":
            asked = [{"role": "system", "content": self.chat.system}, *asked]
        if asked[0]["role"] != "system":
            return self._written(asked, reply)
        try:
            text = self._written(asked, reply)
        except InputError:  # no system role; or another reason, which the next line raises again
            return self._written(_folded(asked), reply)
        return text if asked[0]["content"].strip() in text else self._written(_folded(asked), reply)

    def conversation(self, prompt: str) -> tuple[Message, ...]:
        """The messages that the template writes as `prompt`; none if it writes this text for no conversation.

        The inverse of `render` where turns are set apart by special tokens, for at most `TURNS` turns of the user.
        """
        special = [str(token) for token in getattr(self.tokenizer, "all_special_tokens", ())]
        thinking: list[dict[str, Any]] = [{}, {"enable_thinking": False}] if "enable_thinking" in self.text else [{}]
        for turns, system, variables in product(range(1, TURNS + 1), (False, True), thinking):
            roles = [*["system"] * system, *["user", "assistant"] * (turns - 1), "user"]
            write = partial(self._by_transformers, roles, variables)
            marks = [f"turn-{n}-content" for n in range(len(roles))]
            frame = re.split("|".join(marks), write(marks))
            if len(frame) != len(roles) + 1 or not any(token in part for token in special for part in frame):
                continue
            found = re.fullmatch("(.*?)".join(map(re.escape, frame)), prompt, re.DOTALL)
            contents = found.groups() if found else ()
            unclear = any(token in each for token in special for each in contents)
            if contents and not unclear and write(contents) == prompt:
                return _turns(roles, contents)
        return ()

    def _by_transformers(self, roles: Sequence[str], variables: Mapping[str, Any], contents: Sequence[str]) -> str:
        """The prompt that a user's call of `apply_chat_template` writes; empty for a conversation that it refuses."""
        options = {"chat_template": self.text, "tokenize": False, "add_generation_prompt": True, **variables}
        try:
            return str(self.tokenizer.apply_chat_template([*map(dict, _turns(roles, contents))], **options))
        except Exception:
            return ""

    def _written(self, messages: Sequence[Message], reply: bool | None) -> str:
        from jinja2 import TemplateError

        begins = messages[-1]["role"] != "assistant" if reply is None else reply
        options: dict[str, Any] = {"add_generation_prompt": begins, "continue_final_message": not begins}
        if self.chat.thinking is not None:
            options["enable_thinking"] = self.chat.thinking
        dated = TODAY + self.text if "strftime_now" in self.text else self.text
        try:
            found = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages], chat_template=dated, tokenize=False, **options
            )
        except (TemplateError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise InputError(
                f"the chat template of {self.name!r} cannot write this conversation: {one_line(error)}; change its "
                "turns, or name another template"
            ) from error
        return str(found)

    @cached_property
    def turn_end(self) -> tuple[str, ...]:
        """The special token with which the template closes the assistant's turn, unless generations end there anyway.

        An example: a base model's end token is `<|endoftext|>`, and its ChatML template closes turns by `<|im_end|>`.
        """
        mark = "reply-0"
        turns = [{"role": "user", "content": "question-0"}, {"role": "assistant", "content": mark}]
        options: dict[str, Any] = {"add_generation_prompt": False, "tokenize": False, "chat_template": self.text}
        try:
            whole = str(self.tokenizer.apply_chat_template(turns, **options))
        except Exception:
            return ()  # a template with other turns: the end tokens of the checkpoint hold
        after = whole.rpartition(mark)[2].lstrip()
        ids = self.tokenizer(after, add_special_tokens=False)["input_ids"] if after else []
        special = getattr(self.tokenizer, "added_tokens_decoder", {})
        if not ids or ids[0] in self.end_ids or ids[0] not in special or not special[ids[0]].special:
            return ()
        return (str(special[ids[0]].content),)


def _turns(roles: Sequence[str], contents: Sequence[str]) -> tuple[Message, ...]:
    return tuple({"role": role, "content": content} for role, content in zip(roles, contents, strict=True))


def as_turns(prompt: Prompt) -> tuple[Message, ...]:
    """The messages of a prompt; text is the user's turn. Raises `InputError` for token ids."""
    if isinstance(prompt, str):
        return ({"role": "user", "content": prompt},)
    return cast("tuple[Message, ...]", _without_ids(prompt))


def with_reply(prompt: Prompt, text: str) -> list[dict[str, Any]]:
    """The messages of a prompt and the assistant's turn `text`, which goes on with a turn of the assistant's."""
    *before, last = map(dict, as_turns(prompt))
    if last["role"] == "assistant":
        return [*before, {**last, "content": last["content"] + text}]
    return [*before, last, {"role": "assistant", "content": text}]


def prompt_text(prompt: Prompt) -> str:
    """A raw prompt as one text: a single message is its content, several are paragraphs "role: content".

    Raises `InputError` for token ids.
    """
    if isinstance(prompt, str):
        return prompt
    messages = cast("tuple[Message, ...]", _without_ids(prompt))
    if len(messages) == 1:
        return str(messages[0]["content"])
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def text_before_reply(problem: Problem) -> str:
    """A raw prompt as the text before a reply; a line break ends it in a chat. Raises `InputError` for token ids."""
    return prompt_text(problem.raw_prompt) + "\n" * bool(problem.messages)


def _without_ids(prompt: Prompt) -> Prompt:
    if not prompt or isinstance(prompt[0], int):
        raise InputError(f"the prompt {one_line(prompt)} is token ids, which this reward cannot read; give it as text")
    return prompt


def _folded(messages: Sequence[Message]) -> list[Message]:
    """The conversation with the system turn at the head of the first user turn."""
    system, *others = messages
    for place, message in enumerate(others):
        if message["role"] == "user":
            opened = {**message, "content": f"{system['content']}\n\n{message['content']}"}
            return [*others[:place], opened, *others[place + 1 :]]
    raise InputError("the conversation has no user turn that could hold the system text; add one")


def as_chat(chat: bool | str | Path | Chat | None) -> Chat | None:
    """The argument `chat` of `ets.sample`: True for the default template, or the name or path of a template."""
    if chat is None or chat is False:
        return None
    if isinstance(chat, Chat):
        return chat
    if chat is True:
        return Chat()
    if isinstance(chat, str | Path):
        return Chat(template=str(chat))
    raise InputError(f"chat is {chat!r}; pass True, the name or path of a template, or an ets.Chat")


def as_prompts(prompt: Any) -> tuple[list[Prompt], bool]:
    """Return the prompts in the argument `prompt` of `ets.sample`, and whether the argument is a single prompt.

    Text is a prompt, a list of messages is a conversation, and a list of whole numbers is a prompt of token ids. A list
    of prompts of the same kind is several prompts.

    Raises
    ------
    InputError
        For any other argument, for mixed kinds, and for messages without a role or content.
    """
    single = _kind(prompt)
    if single is not None:
        return [_as_prompt(prompt, single)], True
    if not isinstance(prompt, Sequence):
        raise _no_prompt(prompt)
    kinds = [_kind(each) for each in prompt]
    if None in kinds:
        raise _no_prompt(prompt[kinds.index(None)] if any(kinds) else prompt)
    if len(set(kinds)) > 1:
        mixed = " and ".join(dict.fromkeys(map(str, kinds)))
        raise InputError(f"the prompts mix {mixed}; give all of them as one kind")
    return [_as_prompt(each, str(kind)) for each, kind in zip(prompt, kinds, strict=True)], False


def _no_prompt(given: object) -> InputError:
    return InputError(
        f"the prompt is {one_line(repr(given))}; pass text, messages [{{'role': …, 'content': …}}], token ids, or a "
        "list of prompts"
    )


def _kind(prompt: Any) -> str | None:
    """The kind of a single prompt, or None."""
    if isinstance(prompt, str):
        return "text"
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes | bytearray) or not prompt:
        return None
    if all(isinstance(each, int) and not isinstance(each, bool) for each in prompt):
        return "token ids"
    return "messages" if all(isinstance(each, Mapping) for each in prompt) else None


def _as_prompt(prompt: Any, kind: str) -> Prompt:
    if kind == "text":
        return str(prompt)
    return as_messages(prompt) if kind == "messages" else tuple(prompt)


def as_messages(messages: Iterable[Any]) -> tuple[Message, ...]:
    """Checked messages: each has a role and content, which are text.

    Raises
    ------
    InputError
        For the first message without a role or content.
    """
    found = tuple(messages)
    for number, message in enumerate(found, 1):
        if not isinstance(message, Mapping):
            raise InputError(f"message {number} is {message!r}; give {{'role': …, 'content': …}}")
        for name in ("role", "content"):
            if not isinstance(message.get(name), str):
                raise InputError(f"message {number} has {message.get(name)!r} as {name}; give text")
    return found


def kind_of(problem: Problem) -> str:
    """The kind of a problem's prompt, in words."""
    if problem.messages:
        return "chat template"
    return "text, without a chat template" if isinstance(problem.prompt, str) else "token ids"
