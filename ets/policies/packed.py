"""Linear layers on a CPU by oneDNN's matrix product, over weights in the blocks that the product reads.

PyTorch keeps the rows of a weight one after the other. Its bfloat16 product copies them to blocks at every call, and
its float32 product is another library's, which is slow on some processors. With few rows of inputs, as in decoding,
blocks that are made once save more than half of the time. The precision is the same.

Layers that read the same input are joined: one product over their weights together takes less time than several over
small ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch

LEAST = 2**18
"""The fewest weights of a packed layer, or of joined layers; with fewer, a call of oneDNN costs more than it saves."""
ROWS = 32
"""Rows of inputs for which oneDNN chooses the blocks; it chooses the same for 8 to 512."""
JOINED = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("ff_proj", "up_proj"), ("w1", "w3")
"""Names of layers that read one input in nearly all models; a layer that reads another one costs a product more."""


class PackedLinear(torch.nn.Module):
    """The function of a `torch.nn.Linear`.

    Parameters
    ----------
    linear : Linear
    shared : bool
        Whether the weights are an embedding's too. They stay as they are: blocks would be a second copy.
    """

    def __init__(self, linear: torch.nn.Linear, *, shared: bool = False) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self._packed = weight if shared else torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)

    @property
    def weight(self) -> torch.Tensor:
        """The weights `[out, in]`, for models that read more than the layer's output; a copy of packed ones."""
        return self._packed.to_dense()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self._packed, self.bias, "none", [], "")
        return result


class Computed(NamedTuple):
    """The outputs of joined layers for an input, and the places of the layers that have not read their outputs."""

    inputs: torch.Tensor
    outputs: tuple[torch.Tensor, ...]
    unread: set[int]


class Joined:
    """The weights of several linear layers in one packed layer.

    The first call computes the outputs of all layers. They are kept until every layer has read its output, or until a
    layer is called with another tensor, which computes them again. A tensor that is changed in place between two calls
    counts as the same.

    Parameters
    ----------
    layers : sequence of Linear
        With equal numbers of inputs; all of them have a bias, or none.
    """

    def __init__(self, layers: Sequence[torch.nn.Linear]) -> None:
        self.sizes = [layer.out_features for layer in layers]
        first, biased = layers[0], layers[0].bias is not None
        with torch.device("meta"):
            whole = torch.nn.Linear(first.in_features, sum(self.sizes), bias=biased)
        whole.weight = torch.nn.Parameter(torch.cat([layer.weight.detach() for layer in layers]), requires_grad=False)
        if biased:
            whole.bias = torch.nn.Parameter(torch.cat([layer.bias.detach() for layer in layers]), requires_grad=False)
        self.whole = PackedLinear(whole)
        self._computed: Computed | None = None

    def output(self, inputs: torch.Tensor, place: int) -> torch.Tensor:
        """The output `[..., out]` of the layer at this place."""
        computed = self._computed
        if computed is None or computed.inputs is not inputs or place not in computed.unread:
            computed = self._computed = None  # frees the outputs before a product needs memory
            outputs = _parts(self.whole(inputs), self.sizes, -1)
            computed = Computed(inputs, outputs, set(range(len(self.sizes))))
        computed.unread.discard(place)
        self._computed = computed if computed.unread else None
        return computed.outputs[place]


class JoinedLinear(torch.nn.Module):
    """The function of one of the layers of `Joined`.

    Parameters
    ----------
    joined : Joined
    place : int
        The layer's place in `joined`.
    """

    def __init__(self, joined: Joined, place: int) -> None:
        super().__init__()
        self.joined, self.place = joined, place
        self.in_features, self.out_features = joined.whole.in_features, joined.sizes[place]

    @property
    def weight(self) -> torch.Tensor:
        """As `PackedLinear.weight`; the weights of all joined layers are copied on the way."""
        return _parts(self.joined.whole.weight, self.joined.sizes)[self.place].clone()

    @property
    def bias(self) -> torch.Tensor | None:
        bias = self.joined.whole.bias
        return None if bias is None else _parts(bias, self.joined.sizes)[self.place]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.joined.output(inputs, self.place)


def _parts(tensor: torch.Tensor, sizes: Sequence[int], dim: int = 0) -> tuple[torch.Tensor, ...]:
    parts: tuple[torch.Tensor, ...] = torch.split_with_sizes(tensor, list(sizes), dim)
    return parts


def pack(model: Any) -> None:
    """Replace the large linear layers of a model on a CPU, and join the ones that read one input.

    Layers of another class, with hooks or another `forward`, or with weights of another type stay. A quantised layer is
    an example. The layers of one module are replaced after another's, so that the old and the new weights of a whole
    model are never in memory at once.
    """
    owners = Counter(id(weight) for module in model.modules() for weight in module._parameters.values())
    containers = [module for module in model.modules() if type(module) is not torch.nn.Linear]  # holds no old layer
    for module in containers:
        layers = {name: layer for name, layer in module.named_children() if _can_pack(layer)}
        shared = {name for name, layer in layers.items() if owners[id(layer.weight)] > 1}
        for names in JOINED:
            if set(names) <= layers.keys() - shared and _can_join([layers[name] for name in names]):
                joined = Joined([layers.pop(name) for name in names])
                for place, name in enumerate(names):
                    setattr(module, name, JoinedLinear(joined, place))
        for name, layer in layers.items():
            if layer.weight.numel() >= LEAST:
                setattr(module, name, PackedLinear(layer, shared=name in shared))


def _can_pack(layer: torch.nn.Module) -> bool:
    weight = getattr(layer, "weight", None) if type(layer) is torch.nn.Linear else None
    if weight is None or type(weight.data) is not torch.Tensor:
        return False
    changed = layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer) or hasattr(layer, "_hf_hook")
    return weight.device.type == "cpu" and not changed and computes(weight.dtype)


def _can_join(layers: Sequence[torch.nn.Linear]) -> bool:
    kinds = {(layer.in_features, layer.weight.dtype, layer.bias is None) for layer in layers}
    return len(kinds) == 1 and sum(layer.weight.numel() for layer in layers) >= LEAST


@lru_cache
def computes(dtype: torch.dtype) -> bool:
    """Whether this build of PyTorch and this processor have the product, with the precision of `dtype`."""
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    numbers = torch.Generator().manual_seed(0)
    layer, rows = torch.nn.Linear(64, 64), torch.randn(8, 64, generator=numbers)
    with torch.no_grad():
        for tensor in layer.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=numbers))
        layer, rows = layer.to(dtype), rows.to(dtype)
        expected = rows.double() @ layer.weight.double().T + layer.bias.double()
        try:
            found = [PackedLinear(layer, shared=shared)(rows) for shared in (False, True)]
        except (RuntimeError, AttributeError):  # no such operator, or no such instructions
            return False
    allowed = 8 * torch.finfo(dtype).eps * expected.abs().max()
    return all(bool((each - expected).abs().max() <= allowed) for each in found)
