"""`ets sample`: one prompt, one sampled text, and how it came about."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ets import demo
from ets.chat import as_prompts
from ets.commands.chat import add_chat_arguments, chat_of
from ets.commands.engines import CHECKPOINT, TOP_K, TOP_P, flag
from ets.commands.rewards import NAMES, OF_CERTAINTY, named_reward, pattern_extract
from ets.templates import render
from ets.types import InputError

EXAMPLE = """examples:
  printf 'Question: Tom has 5 eggs. He buys 4. How many eggs does Tom have now?\\nAnswer:' |
      ets sample --model embedded --extract '#### (-?[0-9]+)' --block-size 16 --max-length 96
  ets sample --model embedded --prompt-file prompt.txt --reward rewards.py:short --block-size 16 --max-length 96 \\
      --html trace.html
  ets sample --model chat-model --json --prompt '[{"role": "user", "content": "What is 5 + 4?"}]' --reward likelihood \\
      --block-size 16 --max-length 96
"""
EMBEDDED = {
    "embedded": demo.model_path("reference"),
    "embedded-small": demo.model_path("small"),
    "diffusion": demo.model_path("diffusion"),
}
NUMBERS: dict[str, tuple[Any, str]] = {
    "candidates": (int, "M, candidates per guide step (default: 8)"),
    "rollouts": (int, "K, rollouts per candidate (default: 3)"),
    "lam": (float, "λ, in units of the reward (default: 0.1)"),
    "block_size": (int, "tokens per guide step (default: 64)"),
    "max_length": (int, "tokens in all (default: 512)"),
    "temperature": (float, "of the reference policy (default: 1.0)"),
    "top_k": (
        TOP_K,
        f"sample from the k most probable tokens (default: all); {CHECKPOINT}",
    ),
    "top_p": (
        TOP_P,
        f"sample from the most probable tokens whose mass reaches p (default: all); {CHECKPOINT}",
    ),
    "seed": (int, "of all randomness (default: 0)"),
}
CANVAS: dict[str, tuple[Any, str]] = {
    "steps": (int, "denoising steps in all (default: one per token)"),
    "block_length": (int, "tokens of a block; blocks are filled from left to right"),
    "cfg": (float, "classifier-free guidance (default: none)"),
    "remasking": (str, "low_confidence (the default), largest, random, margin or entropy"),
    "threshold": (float, "a step reveals every position whose confidence reaches this"),
    "factor": (float, "the same, by the factor rule"),
    "cache": (str, "dual or prefix; like threshold and factor, it makes p_ref a faster sampler"),
    "refresh": (int, "denoising steps of a block after which the whole canvas is computed"),
    "level": (str, "0, 1, 1F or 2: weigh the faster sampler towards the exact one"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help=f"a checkpoint's folder or hub name, or {', '.join(EMBEDDED)}")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", help="used as it is, unless --chat-template makes it the user's turn")
    source.add_argument("--prompt-file", type=Path, help="without its last line break; default: standard input")
    text = 'the prompt is JSON: messages, [{"role": …, "content": …}, …], or token ids, [1, 2, …]'
    parser.add_argument("--json", action="store_true", help=text)
    add_chat_arguments(parser, benchmark=False)
    own = f"{', '.join(NAMES)}; or module:function or file.py:function of (prompt, text)"
    parser.add_argument("--reward", default="majority", help=f"{own} (default: majority, the paper's)")
    text = "a regular expression that finds answers: the last match counts, its first group if it has one"
    parser.add_argument("--extract", metavar="REGEX", help=text)
    for name, (kind, text) in NUMBERS.items():
        parser.add_argument(flag(name), type=kind, help=text)
    parser.add_argument("--proposal", help="a cheaper model with the same tokens, which draws the rollouts (ETS-IS)")
    parser.add_argument("--stop", action="append", help="a string that ends the text; may be given several times")
    parser.add_argument("--html", type=Path, help="also write the trace to this file, as a page to look at")
    group = parser.add_argument_group("options for masked diffusion (LLaDA) alone")
    for name, (kind, text) in CANVAS.items():
        group.add_argument(flag(name), type=kind, help=text)


def execute(options: argparse.Namespace) -> None:
    """Sample, print the text and its trace in words, and write the page.

    Raises
    ------
    InputError
        For bad input, before the weights are loaded.
    """
    prompt = _prompt(options)
    messages = not isinstance(prompt, str) and not isinstance(prompt[0], int)
    chat = chat_of(options, needed=messages)
    extract = None if options.extract is None else pattern_extract(options.extract)
    reward = named_reward(options.reward, extract)
    if options.html is not None and not options.html.absolute().parent.is_dir():
        raise InputError(f"the folder of {options.html} does not exist; make it, or name another file")
    if options.html is not None and options.html.is_dir():
        raise InputError(f"{options.html} is a folder; name a file")
    from ets.api import sample

    given = {name: getattr(options, name) for name in (*NUMBERS, *CANVAS, "stop", "proposal")}
    settings = {name: value for name, value in given.items() if value is not None}
    if "proposal" in settings:
        settings["proposal"] = EMBEDDED.get(options.proposal, options.proposal)
    if options.reward in OF_CERTAINTY:
        settings["certainty"] = True
    model = EMBEDDED.get(options.model, options.model)
    result = sample(prompt, model=model, chat=chat, reward=reward, extract=extract, **settings)
    print(result)
    if result.vote is not None:
        answer = result.vote.winner
        if answer is not None:
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
    except ValueError as error:
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
