"""The part of an open text that no later guide step changes, for streaming; and the reason why a text ended."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from ets.importance import WrappedState
from ets.policies.autoregressive.law import Endings
from ets.types import InputError, Policy, State, Text

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
"""A token of a single byte in vocabularies with byte fallback."""


def finish_reason(policy: Policy, state: State | Text) -> Literal["stop", "length"]:
    """Whether an end token or a stop string ended a complete text ("stop"), or its limit ("length").

    Parameters
    ----------
    policy : Policy
        The policy of an engine, alone or in a pair.
    state : State or Text
        The state of a finished chain, or one of its texts.

    Raises
    ------
    InputError
        For an open text, and for a policy without end tokens.
    """
    if not state.done:
        raise InputError("the text is open, and has no finish reason; call finish_reason when it is done")
    endings = _endings(policy)
    if not endings.end_ids.isdisjoint(state.tokens) or len(state.text) < len(endings.decode(state.tokens)):
        return "stop"
    return "length"


def final_text(policy: Policy, state: State) -> str:
    """The beginning of a state's text that no later guide step changes; of a complete text the whole.

    An open text may end within a character, or within a stop string that later tokens complete. For example, with the
    stop string "\\n\\n" the final text of "5 eggs\\n" is "5 eggs". For masked diffusion the final text ends before the
    first masked position, for uniform diffusion with the last finished canvas.

    Parameters
    ----------
    policy : Policy
        The policy of an engine, alone or in a pair.
    state : State
        A state of the policy. Nothing of another open state is final, such as a text that suffix moves redraw, or the
        heaviest particle of a population.

    Raises
    ------
    InputError
        For a policy without end tokens.
    """
    if state.done:
        return state.text
    drawn: Any = state.drawn if isinstance(state, WrappedState) else state
    tokens, endings = getattr(drawn, "final_tokens", ()), _endings(policy)
    if not tokens:
        return ""
    end = next((n for n, token in enumerate(tokens) if token in endings.end_ids), None)
    kept = _without_bytes(endings, tokens) if end is None else tokens[:end]
    text, problem = endings.decode(kept), drawn.problem
    cut = endings.cut(text, problem.stop, problem.thinking, drawn.prompt)
    # a stop string that begins before the cut and ends in later tokens would move the cut
    return cut[: _begun_stop(text.rstrip("\ufffd"), problem.stop)] if end is None else cut


def _endings(policy: Any) -> Endings:
    """The ends of a policy, or of the policy that draws the candidates of a pair."""
    inner = getattr(policy, "reference", None) or getattr(policy, "sampler", None) or policy
    if not isinstance(found := getattr(inner, "endings", None), Endings):
        raise InputError(f"a {type(policy).__name__} has no end tokens; give the policy of an engine")
    return found


def _without_bytes(endings: Endings, tokens: Sequence[int]) -> Sequence[int]:
    """The tokens without single bytes at the end: a run of bytes becomes text as a whole, when the run is over.

    For example, the bytes of "é" and the first byte of "è" become four replacement characters, not "é" and one.
    """
    end = len(tokens)
    while end and _BYTE.fullmatch(str(endings.tokenizer.convert_ids_to_tokens(tokens[end - 1]))):
        end -= 1
    return tokens[:end]


def _begun_stop(text: str, stop: Sequence[str]) -> int:
    """The first place from which the text is the beginning of a stop string; the text's length if there is none."""
    places = range(max(0, len(text) - max(map(len, stop), default=0)), len(text))
    return next((n for n in places if any(string.startswith(text[n:]) for string in stop)), len(text))
