"""Prompts: from text to token ids, checked."""

from __future__ import annotations

from typing import Any

from ets.types import InputError, Problem


def encode_prompt(tokenizer: Any, problem: Problem, length: int, context: int | None) -> tuple[int, ...]:
    """The prompt's token ids.

    A chat prompt, and any text that begins with the tokenizer's BOS token, has its special tokens already: the
    tokenizer adds none.

    Raises
    ------
    InputError
        For an empty prompt, a token id that the tokenizer does not have, or a prompt that leaves no room for `length`
        more tokens in the model's context.
    """
    prompt = problem.prompt
    if not isinstance(prompt, str | tuple):
        raise InputError(f"the prompt of problem {problem.id!r} is {prompt!r}; pass text, or a tuple of token ids")
    ids = _encoded(tokenizer, problem) if isinstance(prompt, str) else prompt
    if bad := [stop for stop in problem.stop if not isinstance(stop, str) or not stop]:
        raise InputError(f"problem {problem.id!r} has the stop string {bad[0]!r}; give non-empty text")
    if problem.messages and not prompt:
        raise InputError(f"problem {problem.id!r} has messages, and no chat template has written them; choose one")
    if isinstance(prompt, tuple):
        _require_known(tokenizer, problem.id, prompt)
    if not prompt or not ids:
        raise InputError(f"the prompt of problem {problem.id!r} is empty; give at least one token")
    if context is not None and len(ids) + length > context:
        raise InputError(
            f"the prompt of problem {problem.id!r} has {len(ids)} tokens, which leaves no room for a generation of "
            f"{length} in the model's context of {context}; shorten one of them"
        )
    return ids


def _require_known(tokenizer: Any, name: str, ids: tuple[int, ...]) -> None:
    known = len(tokenizer)
    for each in (each for each in ids if not 0 <= each < known):
        raise InputError(
            f"the prompt of problem {name!r} has the token id {each}, and the tokenizer has 0 to {known - 1}; encode "
            "the text by this model's tokenizer"
        )


def _encoded(tokenizer: Any, problem: Problem) -> tuple[int, ...]:
    bos = getattr(tokenizer, "bos_token", None)
    complete = bool(problem.messages) or bool(bos and str(problem.prompt).startswith(bos))
    return tuple(tokenizer(problem.prompt, add_special_tokens=not complete)["input_ids"])
