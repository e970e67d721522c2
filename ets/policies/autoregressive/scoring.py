"""Reads another policy's tokens on a key-value cache, to continue after the tokens or to score them.

Rows continue the cache of the start state, so the model reads no token twice. The model reads slices of columns, and a
row leaves the batch after the slice with the row's last token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias

import torch

from ets.policies.autoregressive.cache import RowCache, RowMemory, fork
from ets.policies.autoregressive.law import ForeignPath, PathKey
from ets.policies.token_draws import rows_together

Forward: TypeAlias = Callable[[RowCache, Sequence[Sequence[int]], int], torch.Tensor]
"""Reads tokens `[rows, columns]` at the end of the cache; returns the logits `[rows, n, V]` of the last n columns."""
SampledLaw: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""From logits `[..., V]` to the probabilities of the sampled distribution."""

COLUMNS = 16
"""Smallest slice, unless the longest row is shorter. The cost includes the padding of a slice."""
LOGIT_BYTES = 2**29
"""Bytes of the logits of one slice, at most."""


def of_equal_length(paths: Iterable[ForeignPath]) -> list[list[ForeignPath]]:
    """Groups of paths with equally many tokens, so that no path needs padding."""
    ordered = sorted(paths, key=lambda path: len(path.tokens))
    return [list(group) for _, group in groupby(ordered, key=lambda path: len(path.tokens))]


def read_on(forward: Forward, paths: Sequence[ForeignPath]) -> dict[PathKey, RowMemory]:
    """The memory after the last token of each path; all paths have one length."""
    tokens = [path.tokens for path in paths]
    cache = fork([path.start.memory for path in paths], len(tokens[0]))
    logits = forward(cache, tokens, 1)[:, -1]
    return {path.key: RowMemory(cache, row, logits[row]) for row, path in enumerate(paths)}


@dataclass
class Score:
    """The log-probability of a path, and the number of positions that the model read."""

    logp: float = 0.0
    positions: int = 0


def score_paths(forward: Forward, law: SampledLaw, paths: Sequence[ForeignPath]) -> dict[PathKey, Score]:
    """The log-probability of each path under a law. The model does not read the last token of a path."""
    scores = [Score() for _ in paths]
    first = torch.stack([path.start.memory.logits for path in paths])[:, None]
    _add(scores, paths, range(len(paths)), first, 0, law)
    rows = [n for n, path in enumerate(paths) if len(path.tokens) > 1]
    if rows:
        cache = fork([paths[n].start.memory for n in rows], max(len(paths[n].tokens) for n in rows) - 1)
    at, most = 0, max(1, LOGIT_BYTES // first.nbytes)
    while rows:
        left = [len(paths[n].tokens) - 1 - at for n in rows]
        columns = min(most, max(left), max(COLUMNS, min(left)))
        slices = [paths[n].tokens[at : len(paths[n].tokens) - 1][:columns] for n in rows]
        logits = forward(cache, [(*part, *[0] * (columns - len(part))) for part in slices], columns)
        _add(scores, paths, rows, logits, at + 1, law)
        for n in rows:
            scores[n].positions += columns
        at += columns
        going = [r for r, n in enumerate(rows) if len(paths[n].tokens) - 1 > at]
        rows = [rows[r] for r in cache.keep(going)] if going else []
    return {path.key: found for path, found in zip(paths, scores, strict=True)}


def _add(
    scores: Sequence[Score],
    paths: Sequence[ForeignPath],
    rows: Sequence[int],
    logits: torch.Tensor,
    at: int,
    law: SampledLaw,
) -> None:
    """Add the log-probabilities of tokens `at`, `at + 1`, … from logits `[rows, columns, V]`, without padding."""
    tokens = [paths[n].tokens[at : at + logits.shape[1]] for n in rows]
    where = [(r, column) for r, part in enumerate(tokens) for column in range(len(part))]
    size = rows_together(logits[0])
    for begin in range(0, len(where), size):
        part = where[begin : begin + size]
        probabilities = law(logits[tuple(torch.tensor(part, device=logits.device).unbind(-1))])
        targets = torch.tensor([tokens[r][column] for r, column in part], device=logits.device)
        logps = probabilities.gather(-1, targets[:, None])[:, 0].log().tolist()
        for (r, _), logp in zip(part, logps, strict=True):
            scores[rows[r]].logp += logp
