"""The sampled distribution: temperature, top-k and top-p, over the tokens alone that can be drawn if they are few."""

from __future__ import annotations

import math

import numpy as np
import torch

from ets.policies.settings import Sampling
from ets.policies.token_draws import in_slices, pick_tokens

FEW = 2048
"""Number of tokens up to which `_nucleus` sorts all of them."""
BITS = 45
"""Last bits of a float64 that do not count for its bin; the first ones are the exponent and seven of the mantissa."""


def draw_tokens(sampling: Sampling, logits: torch.Tensor, uniforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens `[R]` and their log-probabilities `[R]`, from logits `[R, V]` and uniforms `[R]`."""
    tokens, kept = _candidates(sampling, logits)
    places, logps = in_slices(lambda rows, draws: pick_tokens(_law(sampling, rows), draws), kept, uniforms)
    return (places if tokens is None else tokens.gather(-1, places[:, None])[:, 0]), logps


def probabilities(sampling: Sampling, logits: torch.Tensor) -> torch.Tensor:
    """The sampled distribution `[..., V]` in float64, from logits `[..., V]`."""
    tokens, kept = _candidates(sampling, logits)
    law = _law(sampling, kept)
    return law if tokens is None else law.new_zeros(logits.shape).scatter_(-1, tokens, law)


def _candidates(sampling: Sampling, logits: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Tokens `[..., n]` in the vocabulary's order, and their logits `[..., n]`; other tokens are never drawn.

    Temperature 0 has one token, top-k the k of the largest logits and further ones that equal the k-th. None stands for
    all tokens. A GPU keeps them all, with -inf outside of the top k: a count of equal ones would wait for the device.
    """
    if sampling.temperature == 0:
        best = logits.argmax(-1, keepdim=True)
        return best, logits.gather(-1, best)
    top_k = sampling.top_k
    if top_k is None or top_k >= logits.shape[-1]:
        return None, logits
    largest, most = logits.topk(top_k + 1, dim=-1), top_k
    least = largest.values[..., top_k - 1 : top_k]
    if logits.device.type != "cpu":
        return None, logits.masked_fill(logits < least, -math.inf)
    if bool((largest.values[..., top_k:] == least).any()):
        most = int((logits >= least).sum(-1).max())
        largest = logits.topk(most, dim=-1)
    tokens = largest.indices[..., :most].sort(dim=-1).values
    kept = logits.gather(-1, tokens)
    return tokens, kept if most == top_k else kept.masked_fill(kept < least, -math.inf)


def _law(sampling: Sampling, logits: torch.Tensor) -> torch.Tensor:
    """Probabilities in float64 of tokens with these logits `[..., n]`."""
    tempered = logits.double() if sampling.temperature in (0, 1) else logits.double() / sampling.temperature
    law = tempered.softmax(-1)
    del tempered  # `_nucleus` needs as much memory
    return law if sampling.top_p in (None, 1) else _nucleus(law, float(sampling.top_p or 1))


def _nucleus(law: torch.Tensor, mass: float) -> torch.Tensor:
    """The smallest set of most probable tokens whose mass reaches `mass`, renormalised; others have probability 0.

    Equally probable tokens keep the vocabulary's order. The result may use the memory of `law`.
    """
    if law.device.type == "cpu" and law.shape[-1] > FEW:
        _keep_by_bins(law.view(-1, law.shape[-1]), mass)
    else:
        ordered, order = law.sort(dim=-1, descending=True, stable=True)
        law = torch.zeros_like(law).scatter_(-1, order, _until(ordered, mass))
    return law.div_(law.sum(-1, keepdim=True))


def _keep_by_bins(law: torch.Tensor, mass: float) -> None:
    """Set the probabilities `[R, V]` outside of the set to 0; only the bin in which the sum reaches `mass` is sorted.

    A positive float64 grows with its bits read as an integer, so their first bits put probabilities into bins by size.
    The first bin has all probabilities below (1 - mass) / V: up to rounding, their sum is below 1 - mass, so they are
    outside of the set. A row of NaN stays one, and a draw from it raises.
    """
    least, most = (int(np.float64(bound).view(np.int64)) >> BITS for bound in ((1 - mass) / law.shape[-1], 1))
    bins = (law.view(torch.int64) >> BITS).sub_(least).clamp_(0, most - least)
    sums = law.new_zeros(len(law), most - least + 1).scatter_add_(-1, bins, law)
    before = sums.flip(-1).cumsum(-1).flip(-1) - sums  # the mass of all larger bins
    edges = (before < mass).byte().argmax(-1)  # the bin of the set's least probable token
    for row, bin_of, edge, larger in zip(law.unbind(), bins.numpy(), edges.tolist(), before, strict=True):
        places = torch.from_numpy(np.flatnonzero(bin_of == edge))
        ordered, order = row[places].sort(descending=True, stable=True)
        beyond = np.array([(least + edge + 1) << BITS]).view(np.float64)[0]  # the least probability of the next bin
        torch.threshold_(row, float(np.nextafter(beyond, 0)), 0.0)
        row[places[order]] = _until(ordered, mass, larger[edge])


def _until(ordered: torch.Tensor, mass: float, before: torch.Tensor | float = 0.0) -> torch.Tensor:
    """Probabilities in falling order after a sum `before`, 0 from where the sum has reached `mass`."""
    return ordered.masked_fill(before + ordered.cumsum(-1) - ordered >= mass, 0.0)
