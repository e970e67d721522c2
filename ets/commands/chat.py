"""The options that make prompts by a chat template."""

from __future__ import annotations

import argparse
from typing import Any

from ets.chat import Chat
from ets.settings import flag
from ets.types import InputError

OWN = "default"
"""The template of `--chat-template` without a name."""


def add_chat_arguments(parser: argparse.ArgumentParser, *, benchmark: bool = True) -> None:
    """Add the group of options; `benchmark` adds the options for worked examples and stop strings."""
    group = parser.add_argument_group("options of prompts by a chat template (default: prompts are used as they are)")
    text = "write prompts by the tokenizer's chat template, or by another of its templates, or by that in a file"
    group.add_argument("--chat-template", nargs="?", const=OWN, default=None, metavar="NAME", help=text)
    group.add_argument("--system", help="the system turn; it opens the user's where the template has no system role")
    group.add_argument(
        "--thinking", choices=("on", "off"), help="the template's enable_thinking (default: the template's choice)"
    )
    if benchmark:
        text = "worked examples are turns of the user and the assistant"
        group.add_argument("--fewshot-as-multiturn", action="store_true", help=text)
        text = "a string that ends a text, in place of the task's, which are dropped; may be given several times"
        group.add_argument("--chat-stop", action="append", help=text)


def chat_of(options: argparse.Namespace, *, needed: bool = False) -> Chat | None:
    """Return the settings of the options. None without a template, unless the prompts need a template.

    Raises
    ------
    InputError
        For another option without `--chat-template`.
    """
    given: dict[str, Any] = {
        "system": options.system,
        "thinking": None if options.thinking is None else options.thinking == "on",
        "multiturn": getattr(options, "fewshot_as_multiturn", False),
        "stop": tuple(getattr(options, "chat_stop", None) or ()),
    }
    if options.chat_template is None and not needed:
        names = {"multiturn": "fewshot_as_multiturn", "stop": "chat_stop"}
        for name in (name for name in Chat(**given).settings if name != "template"):
            raise InputError(f"{flag(names.get(name, name))} needs --chat-template; add it, or leave the option out")
        return None
    if "" in given["stop"]:
        raise InputError("--chat-stop is empty; give the text of a stop string")
    return Chat(template=None if options.chat_template == OWN else options.chat_template, **given)
