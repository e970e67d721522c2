"""The sampled distribution: temperature, top-k and top-p, over the tokens alone that can be drawn if they are few."""

from __future__ import annotations

import math

import numpy as np
import torch

from ets.policies.settings import Sampling
from ets.policies.token_draws import pick_tokens

FEW = 2048
"""Number of tokens up to which `_nucleus` sorts all of them."""
BITS = 45
"""Last bits of a float64 that do not count for its bin; the first ones are the exponent and seven of the mantissa."""


def draw_tokens(sampling: Sampling, logits: torch.Tensor, uniforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens `[R]` and their log-probabilities `[R]`, from logits `[R, V]` and uniforms `[R]`."""
    tokens, law = _law(sampling, logits)
    places, logps = pick_tokens(law, uniforms)
    return (places if tokens is None else tokens.gather(-1, places[:, None])[:, 0]), logps


def probabilities(sampling: Sampling, logits: torch.Tensor) -> torch.Tensor:
    """The sampled distribution `[..., V]` in float64, from logits `[..., V]`."""
    tokens, law = _law(sampling, logits)
    return law if tokens is None else law.new_zeros(logits.shape).scatter_(-1, tokens, law)


def _law(sampling: Sampling, logits: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Tokens `[..., n]` in the vocabulary's order and their probabilities `[..., n]` in float64; None: all tokens."""
    if sampling.temperature == 0:
        best = logits.argmax(-1, keepdim=True)
        return best, torch.ones_like(best, dtype=torch.float64)
    tokens, kept = _most_probable(logits, sampling.top_k)
    precise = kept.double()
    law = (precise if sampling.temperature == 1 else precise / sampling.temperature).softmax(-1)
    return tokens, law if sampling.top_p in (None, 1) else _nucleus(law, float(sampling.top_p or 1))


def _most_probable(logits: torch.Tensor, top_k: int | None) -> tuple[torch.Tensor | None, torch.Tensor]:
    """The k largest logits and their tokens; all logits, others at -inf, where several tokens share the k-th place.

    Only a CPU looks for such ties: on a GPU the test would wait for the device.
    """
    if top_k is None or top_k >= logits.shape[-1]:
        return None, logits
    largest = logits.topk(top_k, dim=-1)
    least = largest.values[..., -1:]
    if logits.device.type == "cpu" and not bool(((logits >= least).sum(-1) > top_k).any()):
        tokens = largest.indices.sort(dim=-1).values
        return tokens, logits.gather(-1, tokens)
    return None, logits.masked_fill(logits < least, -math.inf)


def _nucleus(law: torch.Tensor, mass: float) -> torch.Tensor:
    """The smallest set of most probable tokens whose mass reaches `mass`, renormalised; others have probability 0.

    Equally probable tokens keep the vocabulary's order. The result may use the memory of `law`.
    """
    if law.device.type == "cpu" and law.shape[-1] > FEW:
        for row in law.view(-1, law.shape[-1]).unbind():
            if not row[0].isnan():  # such a row has no other numbers, and a draw from it raises
                _keep_by_bins(row, mass)
    else:
        ordered, order = law.sort(dim=-1, descending=True, stable=True)
        law = torch.zeros_like(law).scatter_(-1, order, _until(ordered, mass))
    return law.div_(law.sum(-1, keepdim=True))


def _keep_by_bins(law: torch.Tensor, mass: float) -> None:
    """Set the probabilities `[V]` outside of the set to 0; only the bin in which the sum reaches `mass` is sorted.

    A positive float64 grows with its bits read as an integer, so their first bits put probabilities into bins by size.
    All tokens with probabilities below (1 - mass) / V are outside of the set: up to rounding, their sum is below
    1 - mass.
    """
    bins = law.view(torch.int64) >> BITS
    least = int(np.float64((1 - mass) / len(law)).view(np.int64)) >> BITS
    sums = torch.bincount(bins, weights=law)[least:]
    before = sums.flip(0).cumsum(0).flip(0) - sums  # the mass of all larger bins
    first = int(np.argmax(before.numpy() < mass))
    edge = least + first  # the bin of the set's least probable token
    places = torch.from_numpy(np.flatnonzero(bins.numpy() == edge))
    ordered, order = law[places].sort(descending=True, stable=True)
    beyond = np.array([(edge + 1) << BITS]).view(np.float64)[0]  # the least probability of the next larger bin
    torch.threshold_(law, float(np.nextafter(beyond, 0)), 0.0)
    law[places[order]] = _until(ordered, mass, before[first])


def _until(ordered: torch.Tensor, mass: float, before: torch.Tensor | float = 0.0) -> torch.Tensor:
    """Probabilities in falling order after a sum `before`, 0 from where the sum has reached `mass`."""
    return ordered.masked_fill(before + ordered.cumsum(-1) - ordered >= mass, 0.0)
