"""Encodes prompts to token ids, and checks the ids."""

from __future__ import annotations

import warnings
from typing import Any

from ets.types import InputError, Problem


def encode_prompt(
    tokenizer: Any, problem: Problem, length: int, context: int | None, vocabulary: int | None = None
) -> tuple[int, ...]:
    """The prompt's token ids.

    `length` is the policy's max_length, and the limit of a problem without one; `vocabulary` is the number of the
    model's embeddings: a token that was added to the tokenizer alone has none. The tokenizer adds no special tokens to
    a chat prompt, nor to a text that begins with its BOS token. A prompt without the BOS token that the model expects,
    or with two of them, is used as it is, with a warning.

    Raises
    ------
    InputError
        For an empty prompt, an unknown token id, or one without an embedding, a problem's max_length above the
        policy's, or a prompt that leaves no room for the problem's longest text in the model's context.
    """
    prompt = problem.prompt
    if problem.max_length is not None:
        if problem.max_length > length:
            raise InputError(
                f"max_length of {problem.called} is {problem.max_length}, and the policy's is {length}; lower "
                "the problem's, or raise the policy's"
            )
        length = problem.max_length
    if not isinstance(prompt, str | tuple):
        raise InputError(f"the prompt of problem {problem.id!r} is {prompt!r}; pass text, or a tuple of token ids")
    if isinstance(prompt, tuple):
        ids = prompt
    else:
        bos = getattr(tokenizer, "bos_token", None)
        complete = bool(problem.messages) or bool(bos and prompt.startswith(bos))
        ids = tuple(tokenizer(prompt, add_special_tokens=not complete)["input_ids"])
    if bad := [stop for stop in problem.stop if not isinstance(stop, str) or not stop]:
        raise InputError(f"problem {problem.id!r} has the stop string {bad[0]!r}; give non-empty text")
    if problem.messages and not prompt:
        raise InputError(f"problem {problem.id!r} has messages, and no chat template has written them; choose one")
    known = len(tokenizer)
    if unknown := [each for each in ids if not 0 <= each < known]:
        raise InputError(
            f"the prompt of problem {problem.id!r} has the token id {unknown[0]}, and the tokenizer has 0 to "
            f"{known - 1}; encode the text by this model's tokenizer"
        )
    if vocabulary is not None and max(ids, default=0) >= vocabulary:
        raise InputError(
            f"the prompt of problem {problem.id!r} has the token id {max(ids)}, and the model has embeddings of "
            f"{vocabulary}; call model.resize_token_embeddings, or encode the text by this model's tokenizer"
        )
    if not prompt or not ids:
        raise InputError(f"the prompt of problem {problem.id!r} is empty; give at least one token")
    if context is not None and len(ids) + length > context:
        raise InputError(
            f"the prompt of problem {problem.id!r} has {len(ids)} tokens, which leaves no room for a generation of "
            f"{length} in the model's context of {context}; shorten one of them"
        )
    _warn_of_bos(tokenizer, ids)
    return ids


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer puts its BOS token before a text."""
    bos = getattr(tokenizer, "bos_token_id", None)
    return bos is not None and list(tokenizer("a")["input_ids"])[:1] == [bos]


def _warn_of_bos(tokenizer: Any, ids: tuple[int, ...]) -> None:
    """Warn of a prompt that begins with no BOS token or with two, if the model expects one.

    A model expects one if its tokenizer adds one. Gemma expects one although its tokenizer, if saved from a GGUF file,
    adds none: without it a sentence costs about twice the nats.
    """
    bos = getattr(tokenizer, "bos_token_id", None)
    if bos is None or not (adds_bos(tokenizer) or type(tokenizer).__name__.startswith("Gemma")):
        return
    count = 0 if ids[0] != bos else 2 if ids[1:2] == (bos,) else 1
    if count != 1:
        warnings.warn(
            f"the model expects one BOS token ({tokenizer.bos_token}), and a prompt begins with "
            f"{'two' if count else 'none'}; leave it to the tokenizer, or correct the chat template",
            stacklevel=3,
        )
