"""Draws of tokens by inverse CDF from probabilities and uniforms, and the certainty of a distribution."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch

from ets.types import InputError, Problem

TOGETHER = {"cpu": 2**16, "elsewhere": 2**26}
"""Float64 numbers of a tensor over the vocabulary that one slice holds, by the kind of device."""


def rows_together(vocabularies: torch.Tensor) -> int:
    """Rows of `[R, ..., V]` in one slice.

    On a CPU a slice is small, but holds a vocabulary for each thread. The allocator returns larger tensors to the
    system, and to get the memory back at the next token takes longer than the draw.
    """
    most = TOGETHER.get(vocabularies.device.type, TOGETHER["elsewhere"])
    if vocabularies.device.type == "cpu":
        most = max(most, torch.get_num_threads() * vocabularies.shape[-1])
    return max(1, most // max(1, vocabularies[:1].numel()))


def in_slices(work: Callable[..., tuple[torch.Tensor, ...]], *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The result of `work` on tensors `[R, ...]`, some rows at a time; the first tensor is over the vocabulary."""
    size = rows_together(tensors[0])
    parts = [work(*rows) for rows in zip(*(torch.split(tensor, size) for tensor in tensors), strict=True)]
    return parts[0] if len(parts) == 1 else tuple(torch.cat(part) for part in zip(*parts, strict=True))


def pick_tokens(probabilities: torch.Tensor, uniforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens `[R]` by inverse CDF and their log-probabilities `[R]`, from float64 `[R, V]` and `[R]`.

    The token is the first index with cdf > u · total, clamped to the last token of positive probability. So a token
    of probability zero is never drawn.
    """
    cdf = probabilities.cumsum(-1)
    tokens = torch.searchsorted(cdf, (uniforms * cdf[:, -1])[:, None], right=True)[:, 0]
    # The cdf reaches the total at the last token of positive probability; a cdf of NaN never reaches the total.
    last = torch.searchsorted(cdf, cdf[:, -1:].contiguous())[:, 0]
    tokens = torch.minimum(tokens, last).clamp(max=cdf.shape[-1] - 1)
    return tokens, (probabilities.gather(-1, tokens[:, None])[:, 0] / cdf[:, -1]).log()


def certainty_of(logits: torch.Tensor, without: Iterable[int] = ()) -> torch.Tensor:
    """Entropy and self-certainty `[..., 2]` in float64 of the distributions of logits `[..., V]`.

    `ets.types.Certainty` defines both. The tokens `without` (the mask) have no part in the distribution.
    """
    for token in sorted(without, reverse=True):
        logits = torch.cat((logits[..., :token], logits[..., token + 1 :]), -1)
    log_p = logits.double().log_softmax(-1)
    entropy = torch.special.entr(log_p.exp()).sum(-1)
    return torch.stack((entropy, -math.log(log_p.shape[-1]) - log_p.mean(-1)), -1)


def require_finite(problems: Sequence[Problem], logps: Iterable[float]) -> None:
    """Raise `InputError` for a row whose log-probability is NaN or infinite."""
    for problem, logp in zip(problems, logps, strict=True):
        if not math.isfinite(logp):
            raise InputError(
                f"the model gave NaN or infinite logits for problem {problem.id!r}; "
                "check its weights and dtype, and the temperature"
            )
