"""Forking and dropping the rows of a cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ets.models.cache_argument import as_argument
from ets.policies.autoregressive import cache as kv_cache
from ets.policies.autoregressive.cache import Prefix, RowCache, RowMemory, columns_each, compact, fork, share
from ets.policies.autoregressive.cache_layers import Kind
from ets.policies.checkpoint import Checkpoint
from tests.conftest import random_qwen3, tiny_tokenizer


def read(model: Any, cache: RowCache, rows: list[list[int]]) -> torch.Tensor:
    ids = torch.tensor(rows)
    positions = torch.tensor(cache.lengths)[:, None] + torch.arange(ids.shape[1])
    with torch.no_grad():
        logits = model(
            input_ids=ids,
            attention_mask=cache.mask(ids.shape[1], ids.device),
            position_ids=positions,
            **as_argument(cache, model),
            row_cache=cache,
        ).logits[:, -1]
    cache.advance(ids.shape[1])
    return logits


def uncached(model: Any, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0, -1]


def test_rows_of_different_lengths_and_caches_advance_together_as_they_would_alone() -> None:
    model = random_qwen3(4, end=0)
    long, short = RowCache([Kind(True)] * 2, 3, [0]), RowCache([Kind(True)] * 2, 2, [0, 0])
    read(model, long, [[1, 2, 3]])
    read(model, short, [[3, 1], [2, 2]])
    memories = [RowMemory(short, 1), RowMemory(long, 0), RowMemory(short, 0), RowMemory(long, 0)]
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

    again = fork([RowMemory(cache, place) for place in (1, 0, 1)], room=1)
    logits = read(model, again, [[1]] * 3)
    for place, row in enumerate([order[1], order[0], order[1]]):
        torch.testing.assert_close(logits[place], uncached(model, [*texts[row], 3, 1]))


def test_a_fork_leaves_its_source_as_it_was() -> None:
    model = random_qwen3(4, end=0)
    source = RowCache([Kind(True)] * 2, 4, [0])
    read(model, source, [[1, 2]])
    read(model, fork([RowMemory(source, 0)] * 2, room=2), [[3], [1]])
    assert source.lengths == [2]
    torch.testing.assert_close(read(model, source, [[3]])[0], uncached(model, [1, 2, 3]))


def test_what_is_masked_is_finite_whatever_was_in_memory() -> None:
    source = RowCache([Kind(True)], 3, [3, 1])
    source.layers[0].update(torch.ones(2, 1, 3, 2), torch.ones(2, 1, 3, 2))
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        layer = fork([RowMemory(source, 0), RowMemory(source, 1)], room=1).layers[0]
    finally:
        torch.use_deterministic_algorithms(False)
    assert layer.keys[:, :, :3].isfinite().all() and layer.values[:, :, :3].isfinite().all()


def test_keeping_all_or_none_moves_nothing() -> None:
    cache = RowCache([Kind(True)], 2, [1, 2, 3])
    assert cache.keep([0, 1, 2]) == [0, 1, 2]
    assert cache.keep([]) == []


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A network whose attention reads prefixes, however short they are."""
    monkeypatch.setitem(kv_cache.SAVED, "cpu", 0)
    return Checkpoint.loaded(random_qwen3(4, end=0), tiny_tokenizer()).model


class Family:
    """Rows of a cache with the tokens that they have read."""

    def __init__(self, model: Any, cache: RowCache, texts: list[list[int]]) -> None:
        self.model, self.cache, self.texts = model, cache, texts

    @classmethod
    def begun(cls, model: Any, texts: list[list[int]]) -> Family:
        """Prompts of one length."""
        family = cls(model, RowCache([Kind(True)] * 2, len(texts[0]), [0] * len(texts)), [[] for _ in texts])
        family.read(texts)
        return family

    def read(self, rows: list[list[int]]) -> None:
        """What the network says of rows that share is what it says of each of them alone."""
        self.texts = [text + row for text, row in zip(self.texts, rows, strict=True)]
        logits = read(self.model, self.cache, rows)
        for text, row in zip(self.texts, logits, strict=True):
            torch.testing.assert_close(row, uncached(self.model, text))

    def keep(self, rows: list[int]) -> None:
        self.texts = [self.texts[row] for row in self.cache.keep(rows)]

    def __getitem__(self, row: int) -> tuple[RowMemory, list[int]]:
        return RowMemory(self.cache, row), self.texts[row]


def shared(model: Any, rows: list[tuple[RowMemory, list[int]]], room: int) -> Family:
    return Family(model, share([memory for memory, _ in rows], room), [text for _, text in rows])


def compacted(rows: list[tuple[RowMemory, list[int]]], room: int = 0) -> None:
    """Call `compact` for rows that have been chosen."""
    for memory, _ in rows:
        memory.logits = torch.zeros(4)
    compact([memory for memory, _ in rows], room)


def test_rows_that_share_a_prefix_advance_as_they_would_alone(model: Any) -> None:
    """Candidates of two prompts of different lengths, their rollouts, and what goes on from those."""
    short, long = Family.begun(model, [[1, 2], [3, 3]]), Family.begun(model, [[2, 1, 3]])
    candidates = shared(model, [row for row in (short[1], long[0], short[0]) for _ in range(2)], room=2)
    assert candidates.cache.prefixes and candidates.cache.lengths == [2, 2, 3, 3, 2, 2]
    for _ in range(2):
        candidates.read([[1], [2], [3], [1], [2], [3]])
    rollouts = shared(model, [candidates[row] for row in (0, 0, 1, 2, 2, 4)], room=3)
    assert rollouts.cache.prefixes[0].cache is candidates.cache.prefixes[0].cache
    rollouts.read([[1], [2], [3], [1], [2], [3]])
    rollouts.keep([0, 2, 3, 4, 5])
    rollouts.read([[3]] * 5)
    rollouts.keep([row for row, text in enumerate(rollouts.texts) if text[:3] == [2, 1, 3]])
    rollouts.read([[2]] * 2)
    again = shared(model, [rollouts[0], rollouts[1], short[0], short[0], rollouts[0], rollouts[1]], room=1)
    assert again.cache.prefixes
    again.read([[1], [2], [3], [1], [2], [3]])


def test_prompts_of_several_caches_move_to_one_with_room_for_the_texts(model: Any) -> None:
    families = [Family(model, RowCache([Kind(True)] * 2, 8, [0]), [[]]) for _ in range(2)]
    for family, text in zip(families, ([1, 2], [3, 2, 1]), strict=True):
        family.read([text])
    begun = [family[0] for family in families for _ in range(2)]
    for _ in range(2):
        rows = shared(model, begun, room=2)
        rows.read([[1], [2], [3], [0]])
        rows.read([[1]] * 4)
        chosen = [rows[1], rows[2]]
        compacted(chosen)
        joint, grown = rows.cache.prefixes[0].cache, chosen[0][0].cache
        assert grown is not None and grown.layers[0].keys is joint.layers[0].keys
        begun = [row for row in chosen for _ in range(2)]


def test_what_is_shared_is_neither_copied_nor_read_for_nobody(model: Any) -> None:
    prompts = Family.begun(model, [[1, 2, 3], [3, 2, 1], [2, 2, 2], [1, 1, 1]])
    rows = shared(model, [prompts[row] for row in (0, 0, 1, 1, 2, 2, 3, 3)], room=2)
    assert rows.cache.prefixes[0].cache is prompts.cache
    assert rows.cache.layers[0].keys.shape[::2] == (8, 2)
    rows.read([[1]] * 8)
    rows.keep([0, 1, 6, 7])
    assert [rows.cache.prefixes[0].cache.lengths, rows.cache.prefixes[0].rows] == [[3, 3], [0, 0, 1, 1]]
    rows.read([[2]] * 4)


@pytest.mark.parametrize("saved", [6, 7])
def test_rows_share_where_two_or_more_begin_alike_and_save_enough(
    model: Any, monkeypatch: pytest.MonkeyPatch, saved: int
) -> None:
    """Four rows over two prompts of three tokens save 6 columns."""
    monkeypatch.setitem(kv_cache.SAVED, "cpu", saved)
    prompts = Family.begun(model, [[1, 2, 3], [3, 2, 1]])
    once, twice = [prompts[0][0], prompts[1][0]], [prompts[row][0] for row in (0, 0, 1, 1)]
    assert not share(once, 2).prefixes and columns_each(once, 2) == 5
    assert len(share(twice, 2).prefixes) == (saved == 6)
    assert columns_each(twice, 2) == (1.5 + 2 if saved == 6 else 5)


def test_a_cache_with_a_prefix_can_be_forked_whole(model: Any) -> None:
    prompts = Family.begun(model, [[1, 2, 3]])
    rows = shared(model, [prompts[0]] * 2, room=1)
    rows.read([[1], [2]])
    flat = fork([rows[1][0], prompts[0][0]], room=1)
    assert not flat.prefixes
    Family(model, flat, [rows[1][1], prompts[0][1]]).read([[3], [1]])


@pytest.mark.parametrize("chosen", [[2], [3, 0, 2]])
def test_chosen_rows_leave_the_others_and_share_on_where_that_pays(model: Any, chosen: list[int]) -> None:
    prompts = Family.begun(model, [[1, 2, 3]])
    rows = shared(model, [prompts[0]] * 4, room=1)
    rows.read([[1], [2], [3], [0]])
    kept = [rows[row] for row in chosen]
    compacted(kept)
    assert {len(memory.cache.lengths) for memory, _ in kept if memory.cache} == {len(chosen)}
    assert all(len(memory.cache.prefixes) == (len(chosen) > 1) for memory, _ in kept if memory.cache)
    again = shared(model, [row for row in kept for _ in range(2)], room=1)
    again.read([[row % 4] for row in range(2 * len(chosen))])


def test_rollouts_store_and_read_the_columns_of_their_candidate_once(model: Any) -> None:
    """Two prefixes: the row of the prompt, and the row of the candidate; one candidate has ended."""
    prompts = Family.begun(model, [[1, 2, 3], [3, 2, 1]])
    candidates = shared(model, [prompts[row] for row in (0, 0, 0, 1, 1, 1)], room=3)
    for token in (1, 2):
        candidates.read([[(token + row) % 4] for row in range(6)])
    begun = [candidates[row] for row in (0, 1, 3, 4, 5) for _ in range(2)]
    assert columns_each([memory for memory, _ in begun], room=3) == (2 * 3 + 5 * 2) / 10 + 3
    rollouts = shared(model, begun, room=3)
    assert [prefix.cache for prefix in rollouts.cache.prefixes] == [prompts.cache, candidates.cache]
    assert rollouts.cache.layers[0].keys.shape[::2] == (10, 3) and rollouts.cache.lengths == [5] * 10
    rollouts.read([[row % 4] for row in range(10)])
    rollouts.keep([0, 3, 4, 5, 9])
    rollouts.read([[1]] * 5)
    again = shared(model, [rollouts[row] for row in (0, 0, 1, 1)], room=1)
    assert len(again.cache.prefixes) == 3
    again.read([[row] for row in range(4)])


def test_the_columns_of_chosen_rows_are_appended_to_their_prompts(model: Any) -> None:
    """No prompt is copied; the states before and after read on, and a second choice copies whole rows."""
    prompts = Family(model, RowCache([Kind(True)] * 2, 5, [0] * 3), [[], [], []])
    prompts.read([[1, 2], [3, 3], [2, 1]])
    rows = shared(model, [prompts[row] for row in (0, 0, 2, 2)], room=2)
    rows.read([[1], [2], [3], [0]])
    chosen, other = [rows[3], rows[0]], [rows[1], rows[2]]
    for memory, _ in chosen + other:
        memory.logits = torch.zeros(4)
    compact([memory for memory, _ in chosen])
    grown = chosen[0][0].cache
    assert grown is chosen[1][0].cache and grown is not None and not grown.prefixes
    assert grown.layers[0].keys is prompts.cache.layers[0].keys and [memory.row for memory, _ in chosen] == [2, 0]
    compact([memory for memory, _ in other])
    assert other[0][0].cache is not grown
    for kept in (chosen, other, [prompts[0], prompts[1]]):
        on = shared(model, [row for row in kept for _ in range(2)], room=2)
        on.read([[1], [2], [3], [0]])
    further = shared(model, [row for row in chosen for _ in range(2)], room=2)
    further.read([[3], [2], [1], [0]])
    further.read([[0]] * 4)
    last = [further[0], further[2]]
    compacted(last)
    assert last[0][0].cache is not None and last[0][0].cache.layers[0].keys is prompts.cache.layers[0].keys
    shared(model, [row for row in last for _ in range(2)], room=1).read([[1], [2], [3], [0]])


def test_rows_that_are_copied_have_room_for_as_many_columns_again(model: Any) -> None:
    """So the columns of the next choices are appended; a text that may take two more columns has room for two."""
    prompts = Family.begun(model, [[1, 2], [3, 3], [2, 1]])
    begun = [prompts[row] for row in (0, 0, 1, 1)]
    for room in (9, 2):
        rows = shared(model, begun, room=1)
        rows.read([[1], [2], [3], [0]])
        chosen = [rows[0], rows[3]]
        compacted(chosen, room)
        cache = chosen[0][0].cache
        assert (
            cache is not None and not cache.prefixes and cache.capacity == 6 and cache.length == (3 if room == 9 else 4)
        )
        begun = [row for row in chosen for _ in range(2)]


@pytest.mark.parametrize("reason", ["no room", "one prompt", "mostly unused", "padding"])
def test_rows_that_cannot_be_appended_are_copied(model: Any, reason: str) -> None:
    prompts = Family(model, RowCache([Kind(True)] * 2, 2 if reason == "no room" else 6, [0] * 3), [[], [], []])
    prompts.read([[1, 2], [3, 3], [2, 1]])
    rows = shared(model, [prompts[row] for row in (0, 0, 1, 1, 2, 2)], room=2)
    rows.read([[1], [2], [3], [0], [1], [2]])
    if reason == "padding":
        rows = shared(model, [*(rows[row] for row in (0, 0, 2, 2)), prompts[2], prompts[2]], room=1)
        rows.read([[1], [2], [3], [0], [1], [2]])
    places = {"one prompt": (0, 1, 2), "mostly unused": (3,)}.get(reason, (0, 2, 4))
    chosen = [rows[row] for row in places]
    compacted(chosen)
    assert all(memory.cache.layers[0].keys is not prompts.cache.layers[0].keys for memory, _ in chosen if memory.cache)
    shared(model, [row for row in chosen for _ in range(2)], room=1).read([[row % 4] for row in range(2 * len(places))])


def test_columns_are_counted_as_they_are_stored(model: Any) -> None:
    """Prompts of different lengths, together in one copy, with their padding."""
    short, long = Family.begun(model, [[1, 2]]), Family.begun(model, [[2, 1, 3, 1, 2]])
    begun = [family[0] for family in (short, long) for _ in range(3)]
    rows = shared(model, begun, room=2)
    assert rows.cache.prefixes
    stored = [cache.layers[0].keys.shape for cache in (rows.cache, rows.cache.prefixes[0].cache)]
    assert [shape[::2] for shape in stored] == [(6, 2), (2, 5)]
    assert {memory.cache for memory, _ in begun} == {rows.cache.prefixes[0].cache}  # the old caches can be freed
    assert columns_each([memory for memory, _ in begun], room=2) == 2 + 2 * 5 / 6


@pytest.mark.parametrize(("rows", "copied"), [([3, 1, 1, 2], False), ([3, 1, 1], False), ([0, 3, 3, 0], True)])
def test_a_prefix_is_copied_where_half_of_it_would_be_read_for_nobody(
    model: Any, rows: list[int], copied: bool
) -> None:
    """Three rows of which two are read are left where they are, two of four are not."""
    prompts = Family.begun(model, [[1, 2], [3, 3], [2, 1], [1, 1]])
    prefix = Prefix.of(prompts.cache, rows)
    assert (prefix.cache is not prompts.cache) == copied
    keys, values = prefix.keys_and_values(1)
    assert len(keys) == (2 if copied else 3) and prefix.most == 2
    whole = prompts.cache.layers[1]
    torch.testing.assert_close(keys[prefix.groups], whole.keys[rows])
    torch.testing.assert_close(values[prefix.groups], whole.values[rows])
