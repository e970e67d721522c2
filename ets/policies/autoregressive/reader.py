"""Reads tokens with a causal language model on a cache of rows, after a test that the model reads them right.

Model families differ in what a cache may do: some compute their attention from more than the cached keys, some look at
both sides of a token, some ignore padding. So the first prompt is read in several ways, and the logits of the last
tokens must agree: whole and without a cache; in parts, through the cache; in rows of different lengths; and in rows
that share a prefix. A model whose logits disagree is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch

from ets.models.cache_argument import as_argument, cache_argument
from ets.policies.autoregressive.cache import RowCache, RowMemory, fork, share
from ets.policies.autoregressive.cache_layers import layer_kinds
from ets.policies.memory import weights_device
from ets.types import InputError, one_line

PROBED = 24
"""Tokens that the test reads: the first of the first prompt; a shorter prompt is repeated."""


class CausalReader:
    """A causal model on caches of rows.

    Parameters
    ----------
    model : PreTrainedModel
    name : str
        For errors.

    Attributes
    ----------
    kinds : list of Kind
        What each layer keeps.
    may_share : bool
        Whether rows may share a prefix.
    may_pad : bool
        Whether rows of different lengths may share a forward pass.
    singly : bool
        Whether the model reads one token at a time after the first tokens.
    bytes_of_a_row : (int, int)
        Bytes of a column of a row in a cache, and of the row's states, measured in the test.
    switch : int or None
        Tokens after which the model's rotary embedding changes for the whole text (longrope).

    Raises
    ------
    InputError
        For a model without a cache, or with layers whose cache cannot be forked by rows.
    """

    def __init__(self, model: Any, name: str) -> None:
        self._model, self.name = ref(model), name  # `_READERS` must not keep the weights in memory
        self._config = model.config.get_text_config()
        self.kinds = layer_kinds(self._config)
        parameters = inspect.signature(model.forward).parameters
        hands_on = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
        if cache_argument(model) is None:
            raise InputError(f"{name!r} ({self._config.model_type}) keeps no cache; choose another model")
        self._names = None if hands_on else set(parameters)
        # `grouped_sdpa` cannot detect positions from the columns of a cache, or a window in the mask
        limits = ("sliding_window", "attention_chunk_size", "num_kv_shared_layers")
        selects = any(kind.indexed for kind in self.kinds) or any(getattr(self._config, n, None) for n in limits)
        self.may_share = hands_on and "position_ids" in parameters and not selects
        self.may_pad, self.singly, self.switch, self.bytes_of_a_row = True, False, switch_of(self._config), (1, 0)

    @property
    def model(self) -> Any:
        return self._model()

    @property
    def device(self) -> torch.device:
        """Of the token ids."""
        return weights_device(self.model)

    @property
    def in_parts(self) -> bool:
        """Whether a long prompt may be read in parts: with longrope, the last token decides about all keys."""
        return self.switch is None and not self.singly

    def bytes_of(self, columns: float) -> float:
        """Bytes of a row: `columns` columns and its states in the cache, and its logits before and after a token."""
        column, states = self.bytes_of_a_row
        return columns * column + states + 2 * self._config.vocab_size * self.model.dtype.itemsize

    def empty(self, rows: int, capacity: int) -> RowCache:
        """A cache of rows that have read nothing."""
        return RowCache(self.kinds, capacity, [0] * rows)

    def read(self, cache: RowCache, tokens: Sequence[Sequence[int]] | torch.Tensor, last: int = 1) -> torch.Tensor:
        """Read tokens `[rows, columns]` at the end of the cache; returns the last logits `[rows, last, V]`."""
        ids = torch.as_tensor(tokens, device=self.device)
        if self.singly and cache.length and ids.shape[1] > 1:
            return torch.cat([self.read(cache, ids[:, at : at + 1]) for at in range(ids.shape[1])], dim=1)[:, -last:]
        if cache.shares and ids.shape[1] == 1:  # transformers would inspect a 2-D mask, and wait for the device
            mask = cache.token_mask(ids.device, self.model.dtype)
        else:
            mask = cache.mask(ids.shape[1], ids.device)
        options = {"attention_mask": mask, "use_cache": True, "logits_to_keep": last, **as_argument(cache, self.model)}
        if cache.with_keys:  # a model of states alone has no positions
            options["position_ids"] = cache.positions(ids.shape[1], ids.device)
        if self.may_share:
            options["row_cache"] = cache
        logits = self.model(input_ids=ids, **self._taken(options)).logits[:, -last:]
        cache.advance(ids.shape[1])
        return logits

    def _taken(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options that the model's `forward` has."""
        return options if self._names is None else {n: value for n, value in options.items() if n in self._names}

    def group(self, length: int) -> tuple[bool, int]:
        """Rows of `length` tokens share a forward pass with the rows whose group is equal."""
        return self.switch is not None and length > self.switch, 0 if self.may_pad else length

    def whole(self, tokens: Sequence[int]) -> torch.Tensor:
        """All logits `[columns, V]` of a text, read without a cache."""
        ids = torch.tensor([tokens], device=self.device)
        return self.model(input_ids=ids, **self._taken({"use_cache": False})).logits[0]


def reader_of(model: Any, name: str, prompt: Sequence[int]) -> CausalReader:
    """The reader of a model, tested once on the model's first prompt.

    Raises
    ------
    InputError
        For a model that the policy would read wrongly, with the reason; for a prompt with ids that the model does not
        have; and for whatever error the model itself raises in its first forward pass.
    """
    reader, known = _READERS.get(model), embedded_ids(model)
    if max(prompt) >= known:
        raise InputError(
            f"the prompt has the token id {max(prompt)}, and {name!r} has embeddings of {known}; resize them"
        )
    if reader is None:
        try:
            reader = CausalReader(model, name)
            with torch.inference_mode():
                _test(reader, _probe(prompt, known))
        except (InputError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise InputError(
                f"{name!r} ({model.config.model_type}) failed on its first prompt: {one_line(error)}"
            ) from error
        _READERS[model] = reader
    return reader


def _probe(prompt: Sequence[int], known: int) -> list[int]:
    """The tokens of the test: where all are equal, every second one is another id, as equal tokens hide their order."""
    tokens = (list(prompt) * PROBED)[:PROBED]
    if len(set(tokens)) == 1:
        tokens[1::2] = [(tokens[0] + 1) % known] * (PROBED // 2)
    return tokens


def embedded_ids(model: Any) -> int:
    """The number of token ids that a model has embeddings of."""
    try:
        weights = getattr(model.get_input_embeddings(), "weight", None)
    except (AttributeError, NotImplementedError):
        weights = None
    return model.config.get_text_config().vocab_size if weights is None else int(weights.shape[0])


_READERS: WeakKeyDictionary[Any, CausalReader] = WeakKeyDictionary()


def _test(reader: CausalReader, tokens: list[int]) -> None:
    """Raise `InputError` unless the model reads tokens alike in every way that the policy uses.

    Where a shared prefix alone disagrees, `may_share` becomes false; where rows of different lengths do, `may_pad`; and
    where several tokens at once do, `singly` becomes true.
    """
    texts = tokens, tokens[::-1]
    expected = [reader.whole(text) for text in texts]
    finite = all(bool(torch.isfinite(logits).all()) for logits in expected)  # if not, the draws name the problem
    ways = [(False, True, False), (False, False, False), (False, True, True), (False, False, True)]
    for shares, pads, singly in [(True, True, False)] * reader.may_share + ways:
        reader.may_share, reader.may_pad, reader.singly = shares, pads, singly
        try:
            disagreement = _disagreement(reader, texts, expected)
        except TypeError:
            if not reader.may_share:
                raise
            disagreement = "in rows that share a prefix"  # a layer does not take `row_cache`
        if not disagreement or not finite:
            return
    kind = reader.model.config.model_type
    raise InputError(
        f"{reader.name!r} ({kind}) gives other logits {disagreement} than for the whole text without a cache, so its "
        "texts would not follow its law; choose another model"
    )


def _disagreement(reader: CausalReader, texts: Sequence[Sequence[int]], expected: Sequence[torch.Tensor]) -> str:
    """How the model reads two texts of one length otherwise than whole, in words; empty where all logits agree."""
    x, y = texts
    n, half = len(x), len(x) // 2
    a, b = n - 2, half if reader.may_pad else n - 2  # tokens of x and of y that their rows have read

    def right(logits: torch.Tensor, *places: tuple[int, int]) -> bool:
        """Whether the last logits of the rows are those after token `place` of text `which`."""
        rows = zip(logits, places, strict=True)
        return all(_agree(row[-1], expected[which][place], reader.model.dtype) for row, (which, place) in rows)

    one, other = reader.empty(1, n), reader.empty(1, n)
    first, second = reader.read(one, [x[:half]]), reader.read(one, [x[half:a]])
    reader.bytes_of_a_row = one.bytes_of_a_row()
    if not (right(first, (0, half - 1)) and right(second, (0, a - 1))):
        return "for a text in two parts"
    reader.read(other, [y[:b]])
    memories = [RowMemory(one, 0), RowMemory(other, 0)]
    for _ in range(2):  # a fork that shared its states with the memories would change them for the next one
        forked = fork(memories, n - b)
        if not right(reader.read(forked, [[x[a]], [y[b]]]), (0, a), (1, b)):
            return "in a row next to a longer one"
        forked.keep([1])
        for place in range(b + 1, n):
            if not right(reader.read(forked, [[y[place]]]), (1, place)):
                return "token by token"
    if not right(reader.read(fork(memories, 2), [x[a : a + 2], y[b : b + 2]]), (0, a + 1), (1, b + 1)):
        return "for two tokens at once"
    if reader.may_share:
        shared = share(memories * 2, 2, saved=0)
        for at in range(2):
            if not right(reader.read(shared, [[x[a + at]], [y[b + at]]] * 2), *[(0, a + at), (1, b + at)] * 2):
                return "in rows that share a prefix"
    return ""


def switch_of(config: Any) -> int | None:
    """The tokens after which longrope changes the rotary embedding of a whole text, or None."""
    ropes = getattr(config, "rope_parameters", None) or {}
    for rope in [ropes, *(rope for rope in ropes.values() if isinstance(rope, dict))]:
        if rope.get("rope_type") == "longrope":
            length = rope.get("original_max_position_embeddings")
            return int(length or getattr(config, "original_max_position_embeddings", config.max_position_embeddings))
    return None


def _agree(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether logits are equal up to rounding, in units of the coarsest of the weights' dtype, their own and float32.

    Layers compute in float32, and some models return the logits of bfloat16 weights in float32.
    """
    unit = max(torch.finfo(kind).eps for kind in (dtype, expected.dtype, torch.float32))
    scale = max(1.0, float(expected.float().abs().max()))
    return bool((found.float() - expected.float()).abs().max() <= min(512 * unit, unit**0.5) * scale)
