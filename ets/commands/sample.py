"""`ets sample`: one prompt, one sampled text, and how it came about."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ets import demo
from ets.chat import as_prompts
from ets.commands.chat import add_chat_arguments, chat_of
from ets.evaluation.methods import step_of
from ets.policies.checkpoint_files import find_files
from ets.policies.registry import ENGINES, SETTINGS, own_policy
from ets.policies.settings import Weighing, Weights
from ets.rewards.lifting import pattern_extract
from ets.rewards.registry import NAMES, OF_CERTAINTY, named_reward
from ets.settings import Guide, Spending, add_flags, fields_of
from ets.templates import render
from ets.types import InputError

EXAMPLE = """examples:
  printf 'Question: Tom has 5 eggs. He buys 4 jars with 3 eggs each. How many eggs does Tom have now?\\nAnswer:' |
      ets sample --model embedded --extract '#### (-?[0-9]+)' --block-size 16 --max-length 96 --temperature 1.9
  ets sample --model embedded --prompt-file prompt.txt --reward rewards.py:short --block-size 16 --max-length 96 \\
      --temperature 1.9 --html trace.html
  ets sample --model chat-model --json --prompt '[{"role": "user", "content": "What is 5 + 4?"}]' --reward likelihood \\
      --block-size 16 --max-length 96
"""
EMBEDDED = {
    "embedded": demo.model_path("reference"),
    "embedded-small": demo.model_path("small"),
    "diffusion": demo.model_path("diffusion"),
}
_OWNERS = (Guide, Spending, Weights, *SETTINGS, Weighing)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        help=f"a checkpoint's folder, GGUF file or hub name, or {', '.join(EMBEDDED)}; with --endpoint the served one, "
        "by default the name that the server lists",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", help="used as it is, unless --chat-template makes it the user's turn")
    source.add_argument("--prompt-file", type=Path, help="without its last line break; default: standard input")
    text = 'the prompt is JSON: messages, [{"role": …, "content": …}, …], or token ids, [1, 2, …]'
    parser.add_argument("--json", action="store_true", help=text)
    add_chat_arguments(parser, benchmark=False)
    named = f"{', '.join(NAMES)}; or module:function or file.py:function of (prompt, text)"
    parser.add_argument("--reward", default="majority", help=f"{named} (default: majority, the paper's)")
    text = "a regular expression that finds answers: the last match counts, its first group if it has one"
    parser.add_argument("--extract", metavar="REGEX", help=text)
    text = "a step function as file.py:function of (reward, *, candidates, rollouts, lam); default: ETS"
    parser.add_argument("--step", help=text)
    parser.add_argument("--engine", help="an engine as file.py:function of (model, **settings); default: by the model")
    parser.add_argument("--seed", type=int, default=0, help="seed of all randomness (default: 0)")
    parser.add_argument("--stop", action="append", default=[], help="a string that ends the text; may be given again")
    parser.add_argument("--html", type=Path, help="also write the trace to this file, as a page to look at")
    add_flags(parser, Guide, Spending, Weights, *_OFFERED, Weighing, title="settings", leave_out=("certainty",))


_ENGINES = ("transformers", "masked-diffusion", "uniform-diffusion", "endpoint")
_OFFERED = tuple(owner for name in _ENGINES for owner in ENGINES[name].settings)


def execute(options: argparse.Namespace) -> None:
    """Sample, print the text and its trace in words, and write the page.

    Raises
    ------
    InputError
        For bad input, before the weights are loaded.
    """
    if options.model is None and not hasattr(options, "endpoint"):
        raise InputError("no model is given; add --model, or --endpoint with the address of a server")
    prompt = _prompt(options)
    messages = not isinstance(prompt, str) and not isinstance(prompt[0], int)
    chat = chat_of(options, needed=messages)
    extract = None if options.extract is None else pattern_extract(options.extract)
    reader = None if extract is None else SimpleNamespace(extract=extract)
    reward = named_reward(options.reward, reader)
    if options.html is not None and not options.html.absolute().parent.is_dir():
        raise InputError(f"the folder of {options.html} does not exist; make it, or name another file")
    if options.html is not None and options.html.is_dir():
        raise InputError(f"{options.html} is a folder; name a file")
    if options.engine is None and options.model is not None and "://" not in options.model:
        find_files(EMBEDDED.get(options.model, options.model))  # a missing one is named before the heavy imports
    from ets.api import sample

    settings = {name: value for name, value in vars(options).items() if name in fields_of(*_OWNERS)}
    if "proposal" in settings:
        settings["proposal"] = EMBEDDED.get(settings["proposal"], settings["proposal"])
    if options.reward in OF_CERTAINTY:
        settings["certainty"] = True
    if options.step is not None:
        settings["step"] = step_of(options.step)
    model: Any = settings.pop("endpoint") if options.model is None else EMBEDDED.get(options.model, options.model)
    if options.engine is not None:
        own = {name: settings.pop(name) for name in fields_of(*SETTINGS) if name in settings}
        model = own_policy(options.engine, model, own)
    shared: dict[str, Any] = {"chat": chat, "reward": reward, "extract": extract}
    result = sample(prompt, model=model, stop=options.stop, seed=options.seed, **shared, **settings)
    print(result)
    if result.vote is not None and (answer := result.vote.winner) is not None:
        print(f"most votes of all rollouts: {answer} ({result.vote.shares[answer]:.0%})")
    if options.html is not None:
        prompt = result.prompt if isinstance(result.prompt, str) else f"token ids {list(result.prompt)}"
        page = render("sample.html", title="ets sample", prompt=prompt, trace=result._repr_html_(), policy="'none'")
        try:
            options.html.write_text(page, encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write {options.html}: {error.strerror}; name another file") from None
        print(f"trace: {options.html}")


def _prompt(options: argparse.Namespace) -> Any:
    """Text, or what its JSON holds: messages or token ids."""
    text = _given(options)
    if not options.json:
        return text
    try:
        prompts, single = as_prompts(json.loads(text))
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the prompt is no JSON: {error}; give messages or token ids, or leave --json out") from None
    if not single:
        raise InputError(f"the prompt holds {len(prompts)} prompts; give one")
    return prompts[0]


def _given(options: argparse.Namespace) -> str:
    if options.prompt is not None:
        return str(options.prompt)
    if options.prompt_file is None and (sys.stdin is None or sys.stdin.isatty()):  # None: closed
        raise InputError("no prompt is given; add --prompt or --prompt-file, or pipe it in")
    try:
        read = sys.stdin.read() if options.prompt_file is None else options.prompt_file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the prompt: {error}; give a file of UTF-8 text") from None
    return str(read.removesuffix("\n"))
