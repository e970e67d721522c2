"""Linear layers on a CPU by oneDNN's matrix product, over weights in the blocks that the product reads.

PyTorch keeps the rows of a weight one after the other. Its bfloat16 product copies them to blocks at every call, and
its float32 product is another library's, which is slow on some processors. With few rows of inputs, as in decoding,
blocks that are made once save more than half of the time. The precision is the same.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import Any

import torch

LEAST = 2**18
"""Weights of the smallest layer that is packed; for a smaller one the call of oneDNN costs more than it saves."""
ROWS = 32
"""Rows of inputs for which oneDNN chooses the blocks; it chooses the same for 8 to 512."""


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


def pack(model: Any) -> None:
    """Replace the large linear layers of a model on a CPU, one after the other: two copies of one layer at most.

    Layers of another class, with hooks or another `forward`, or with weights of another type stay. A quantised layer is
    an example.
    """
    owners = Counter(id(weight) for module in model.modules() for weight in module._parameters.values())
    for module in list(model.modules()):
        for name, layer in list(module.named_children()):
            if type(layer) is torch.nn.Linear and _can_pack(layer):
                setattr(module, name, PackedLinear(layer, shared=owners[id(layer.weight)] > 1))


def _can_pack(layer: torch.nn.Linear) -> bool:
    weight = getattr(layer, "weight", None)
    if weight is None or type(weight.data) is not torch.Tensor or weight.numel() < LEAST:
        return False
    changed = layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer) or hasattr(layer, "_hf_hook")
    return weight.device.type == "cpu" and not changed and computes(weight.dtype)


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
