"""The beam search of transformers, with the stop rule of `Endings`, over prompts in a cache.

The search returns the text with the highest sum of log-probabilities under the model's untempered law, without a
penalty or a bonus for length. The rules of a checkpoint's `generation_config`, such as a repetition penalty, do not
apply. The stop strings of `generate` are not used, because `generate` finds stop strings in the prompt too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from ets.models.cache_argument import as_argument
from ets.policies.autoregressive.cache import RowCache
from ets.policies.autoregressive.law import TokenState

Ended: TypeAlias = Callable[[TokenState, list[int]], bool]
"""Whether the last token ends a generation: from a state and all tokens since the prompt."""
BeamRow: TypeAlias = tuple[int, bytes]
"""The number of a beam's start state, and all tokens since the prompt as bytes."""


@dataclass(frozen=True)
class BestTexts:
    """All tokens `[B]` of the best texts, the log-probabilities `[B]` of the new ones, and the forward passes."""

    tokens: list[tuple[int, ...]]
    logps: list[float]
    forwards: int


def beam_search(
    model: Any,
    cache: RowCache,
    states: Sequence[TokenState],
    *,
    beams: int,
    room: int,
    end_ids: Collection[int],
    ended: Ended,
) -> BestTexts:
    """Search from states `[B]` that have equally many tokens.

    With E end tokens, transformers takes the (1 + E) · beams best continuations of a state, and continues the best
    unfinished ones. If more than E · beams of the continuations complete a stop string in one turn, beams are lost.

    Parameters
    ----------
    model : PreTrainedModel
    cache : RowCache
        `[B · beams]` rows that hold all tokens of the states, with room for `room` more columns. The search changes
        the cache.
    states : sequence of TokenState
    beams : int
        At least 2.
    room : int
        Largest number of new tokens.
    end_ids : collection of int
    ended : Ended
    """
    prompts = [[*state.prompt, *state.tokens] for state in states]
    longest = max(map(len, prompts))
    padded = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]
    real = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    cache.drop_last_column()  # `generate` reads at least one token
    watch = _Watch(states, longest, ended)
    with _without_rules(model):
        sequences = model.generate(
            torch.tensor(padded, device=model.device),
            attention_mask=torch.tensor(real, device=model.device),
            **as_argument(cache, model),
            logits_processor=LogitsProcessorList([_Reader(watch)]),
            stopping_criteria=StoppingCriteriaList([_Endings(watch)]),
            num_beams=beams,
            do_sample=False,
            max_new_tokens=room,
            length_penalty=0.0,
            early_stopping="never",
            eos_token_id=sorted(end_ids),
            pad_token_id=min(end_ids),
        )
    rows = zip(states, watch.since_prompt(sequences).tolist(), strict=True)
    found = [_without_padding(state, tokens, ended) for state, tokens in rows]
    return BestTexts(found, [watch.logp(*row) for row in enumerate(found)], watch.turns)


class _Watch:
    """Records the ended rows of a search and the log-probabilities of the new tokens.

    `generate` returns these log-probabilities only with the logits of all turns, which may exceed the model's memory.
    """

    def __init__(self, states: Sequence[TokenState], longest: int, ended: Ended) -> None:
        self.states, self.ended = states, ended
        self.first = longest - len(states[0].tokens)  # the column after the prompt
        self.turns = 0
        self._finished: dict[BeamRow, float] = {}
        self._logps = dict.fromkeys(((b, _name(state.tokens)) for b, state in enumerate(states)), 0.0)

    def logp(self, b: int, tokens: Sequence[int]) -> float:
        """Log-probability of an ended row; NaN for an open row, which the search returns if logits are NaN."""
        return self._finished.get((b, _name(tokens)), math.nan)

    def since_prompt(self, ids: torch.Tensor) -> NDArray[np.int64]:
        return ids[:, self.first :].cpu().numpy()

    def read(self, ids: torch.Tensor, log_probabilities: torch.Tensor) -> None:
        """Store the beams `[B · beams, columns]` and the log-probabilities `[B · beams, V]` of the next token."""
        self.turns += 1
        self._beams = {row: n for n, row in enumerate(self._rows(self.since_prompt(ids)))}
        self._next = log_probabilities

    def extend(self, ids: torch.Tensor) -> list[bool]:
        """Whether each continuation of a beam has ended."""
        tokens = self.since_prompt(ids)
        rows, parents = self._rows(tokens), self._rows(tokens[:, :-1])
        logps = self._next[[self._beams[row] for row in parents], tokens[:, -1].tolist()].tolist()
        before = self._logps
        self._logps = {row: before[parent] + new for row, parent, new in zip(rows, parents, logps, strict=True)}
        ended = [self.ended(self.states[b], each.tolist()) for (b, _), each in zip(rows, tokens, strict=True)]
        self._finished |= {row: self._logps[row] for row, end in zip(rows, ended, strict=True) if end}
        return ended

    def _rows(self, tokens: NDArray[np.int64]) -> list[BeamRow]:
        each = len(tokens) // len(self.states)
        return [(n // each, row.tobytes()) for n, row in enumerate(tokens)]


def _name(tokens: Sequence[int]) -> bytes:
    return np.array(tokens, np.int64).tobytes()


class _Reader(LogitsProcessor):
    def __init__(self, watch: _Watch) -> None:
        self.watch = watch

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.watch.read(input_ids, scores)
        return scores


class _Endings(StoppingCriteria):
    def __init__(self, watch: _Watch) -> None:
        self.watch = watch

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.tensor(self.watch.extend(input_ids), device=input_ids.device)


def _without_padding(state: TokenState, tokens: list[int], ended: Ended) -> tuple[int, ...]:
    lengths = range(len(state.tokens) + 1, len(tokens) + 1)
    return tuple(tokens[: next((n for n in lengths if ended(state, tokens[:n])), len(tokens))])


@contextmanager
def _without_rules(model: Any) -> Iterator[None]:
    """`generate` reads missing arguments from the model's generation configuration, which is empty meanwhile."""
    configured = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = configured
