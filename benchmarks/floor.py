"""The floor: the least seconds that this device takes for the forward passes of a law, one after the other.

Each pass takes the slower of its operations, at the device's fastest matrix product, and its bytes, at the fastest
copy or read. Only matrix products count; norms, draws, the reward and all of Python are what a program adds. A program
that made other passes could go below it: with drafts of tokens that one pass checks, for example. So does ours where
the peak was measured beside other work, or where weights stay in a processor's cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass
from typing import Any

import torch

from ets.policies.packed import PackedLinear, computes


@dataclass(frozen=True)
class Forward:
    """What one forward pass computes and reads, over all of its rows.

    Parameters
    ----------
    positions : int
        Token positions that go through the layers.
    pairs : int
        Of attention: a position and a key that it looks at.
    kept : int
        Positions whose keys and values come from a cache; what rows share counts once.
    logits : int
        Positions that go through the head.
    """

    positions: int = 0
    pairs: int = 0
    kept: int = 0
    logits: int = 0

    def times(self, rows: int) -> Forward:
        """The same for so many problems at once."""
        return Forward(*(rows * count for count in astuple(self)))


def reading(rows: int, columns: int, context: int, kept: int, logits: int) -> Forward:
    """Rows that read `columns` tokens at once, causally, each row after `context` tokens of its own or shared ones."""
    return Forward(rows * columns, rows * (columns * context + columns * (columns + 1) // 2), kept, logits)


def drawing(rows: int, columns: int, context: int, kept: int) -> list[Forward]:
    """Rows that read `columns` tokens one after the other, each for the logits of the next.

    Before the first, every row has `context` tokens, and all of them together `kept` different ones.
    """
    return [reading(rows, 1, context + n, kept + rows * n, rows) for n in range(columns)]


@dataclass(frozen=True)
class Work:
    """Floating-point operations, and bytes to or from memory."""

    operations: float
    bytes: float


@dataclass(frozen=True)
class Peak:
    """The most that a device was seen to do in a second: operations of a matrix product, bytes of a copy or read."""

    operations: float
    bytes: float

    def seconds(self, work: Work) -> float:
        return max(work.operations / self.operations, work.bytes / self.bytes)


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder with rotary attention and a gated MLP (Qwen3, LLaDA), and the bytes of a number."""

    layers: int
    width: int
    heads: int
    groups: int
    head: int
    mlp: int
    vocabulary: int
    itemsize: int

    @classmethod
    def of(cls, model: Any) -> Shape:
        config = model.config
        heads, width = config.num_attention_heads, config.hidden_size
        groups = getattr(config, "num_key_value_heads", None) or heads
        head = getattr(config, "head_dim", None) or width // heads
        sizes = (config.num_hidden_layers, width, heads, groups, head, config.intermediate_size, config.vocab_size)
        return cls(*sizes, model.dtype.itemsize)

    @property
    def body(self) -> int:
        """Weights of the layers' matrices: queries, keys, values, output; gate, up, down."""
        attention = self.width * self.head * (2 * self.heads + 2 * self.groups)
        return self.layers * (attention + 3 * self.width * self.mlp)

    def work(self, forward: Forward) -> Work:
        """Two operations for each weight and position, and for each number of a key and of a value that is looked at.

        Weights are read once a pass, those of the head where logits are asked for; keys and values are read where they
        are kept, and written once.
        """
        head = self.width * self.vocabulary
        attention = 4 * self.layers * self.heads * self.head * forward.pairs
        weights = self.body * (forward.positions > 0) + head * (forward.logits > 0)
        cache = 2 * self.layers * self.groups * self.head * (forward.kept + forward.positions)
        operations = 2 * self.body * forward.positions + attention + 2 * head * forward.logits
        return Work(operations, self.itemsize * (weights + cache))


@dataclass(frozen=True)
class Floor:
    """What a law needs in all, and the sum of its passes' least seconds."""

    operations: float
    bytes: float
    seconds: float

    @classmethod
    def of(cls, peak: Peak, shape: Shape, forwards: Iterable[Forward]) -> Floor:
        works = [shape.work(forward) for forward in forwards]
        operations, moved = sum(work.operations for work in works), sum(work.bytes for work in works)
        return cls(operations, moved, sum(peak.seconds(work) for work in works))

    def __add__(self, other: Floor) -> Floor:
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Floor(*(mine + its for mine, its in pairs))


class Recorder:
    """The forward passes that a masked-diffusion model makes meanwhile, over canvases of one length.

    A position looks at its whole canvas, whatever part of it is computed, so the shapes of the inputs tell everything.

    Parameters
    ----------
    model : PreTrainedModel
    length : int
        Of a canvas and its prompt.
    """

    def __init__(self, model: Any, length: int) -> None:
        self.model, self.length = model, length
        self.forwards: list[Forward] = []

    def __enter__(self) -> Recorder:
        body, head = self.model.base_model, self.model.get_output_embeddings()
        self._hooks = [body.register_forward_pre_hook(self._read), head.register_forward_pre_hook(self._logits)]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _read(self, _: object, inputs: tuple[Any, ...]) -> None:
        rows, columns = inputs[0].shape
        kept = rows * (self.length - columns)
        self.forwards.append(Forward(rows * columns, rows * columns * self.length, kept))

    def _logits(self, _: object, inputs: tuple[Any, ...]) -> None:
        self.forwards.append(Forward(logits=inputs[0][..., 0].numel()))


def measured_peak(device: torch.device, dtype: torch.dtype, *, dry: bool = False) -> Peak:
    """The best of some matrix products, copies and reads, large enough that nothing else counts (a dry run's are not).

    On a CPU one of the products has packed weights. Weights are read and not written, which can be faster than a copy:
    a product with a vector does just that.
    """
    side, count = (256, 2**20) if dry else (8192, 2**30) if device.type == "cuda" else (2048, 2**26)
    one, other = (torch.rand(side, side, device=device, dtype=dtype) for _ in range(2))
    source, target = (torch.ones(count // side, side, device=device, dtype=dtype) for _ in range(2))
    products = [_least_seconds(lambda: torch.mm(one, other))]
    if device.type == "cpu" and computes(dtype):
        layer = PackedLinear(torch.nn.Linear(side, side, bias=False, dtype=dtype))
        with torch.inference_mode():
            products.append(_least_seconds(lambda: layer(one)))
    copied = 2 * source.nbytes / _least_seconds(lambda: target.copy_(source))
    read = source.nbytes / _least_seconds(lambda: torch.mv(source, one[0]))
    return Peak(2 * side**3 / min(products), max(copied, read))


def _least_seconds(work: Callable[[], object], repeats: int = 10) -> float:
    return min(seconds_of(work) for _ in range(repeats))


def seconds_of(work: Callable[[], object]) -> float:
    """Wall-clock seconds, on a GPU until it has done all that it was given."""
    synchronize()
    begun = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - begun


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
