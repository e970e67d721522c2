"""Forking and dropping the rows of a cache."""

from __future__ import annotations

from typing import Any

import torch

from ets.policies.kv_cache import Memory, RowCache, fork
from tests.conftest import random_qwen3


def read(model: Any, cache: RowCache, rows: list[list[int]]) -> torch.Tensor:
    ids = torch.tensor(rows)
    positions = torch.tensor(cache.lengths)[:, None] + torch.arange(ids.shape[1])
    with torch.no_grad():
        logits = model(
            input_ids=ids,
            attention_mask=cache.mask(ids.shape[1], ids.device),
            position_ids=positions,
            past_key_values=cache,
        ).logits[:, -1]
    cache.advance(ids.shape[1])
    return logits


def uncached(model: Any, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0, -1]


def test_rows_of_different_lengths_and_caches_advance_together_as_they_would_alone() -> None:
    model = random_qwen3(4, end=0)
    long, short = RowCache(2, 3, [0]), RowCache(2, 2, [0, 0])
    read(model, long, [[1, 2, 3]])
    read(model, short, [[3, 1], [2, 2]])
    memories = [Memory(short, 1), Memory(long, 0), Memory(short, 0), Memory(long, 0)]
    prefixes = [[2, 2], [1, 2, 3], [3, 1], [1, 2, 3]]
    cache = fork(memories, room=3)
    logits = read(model, cache, [[1], [2], [3], [0]])
    for row, last in enumerate([1, 2, 3, 0]):
        torch.testing.assert_close(logits[row], uncached(model, [*prefixes[row], last]))

    order = cache.keep([0, 3])
    assert sorted(order) == [0, 3]
    texts = {0: [2, 2, 1], 3: [1, 2, 3, 0]}
    logits = read(model, cache, [[3]] * 2)
    for place, row in enumerate(order):
        torch.testing.assert_close(logits[place], uncached(model, [*texts[row], 3]))

    again = fork([Memory(cache, place) for place in (1, 0, 1)], room=1)
    logits = read(model, again, [[1]] * 3)
    for place, row in enumerate([order[1], order[0], order[1]]):
        torch.testing.assert_close(logits[place], uncached(model, [*texts[row], 3, 1]))


def test_a_fork_leaves_its_source_as_it_was() -> None:
    model = random_qwen3(4, end=0)
    source = RowCache(2, 4, [0])
    read(model, source, [[1, 2]])
    read(model, fork([Memory(source, 0)] * 2, room=2), [[3], [1]])
    assert source.lengths == [2]
    torch.testing.assert_close(read(model, source, [[3]])[0], uncached(model, [1, 2, 3]))


def test_keeping_all_or_none_moves_nothing() -> None:
    cache = RowCache(1, 2, [1, 2, 3])
    assert cache.keep([0, 1, 2]) == [0, 1, 2]
    assert cache.keep([]) == []
