"""Top-k and top-p keep exactly their sets, whatever is sorted, and draw the tokens of the whole distribution."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from ets.policies.autoregressive import truncation
from ets.policies.autoregressive.truncation import draw_tokens, probabilities
from ets.policies.settings import Sampling
from ets.policies.token_draws import pick_tokens


def expected(logits: torch.Tensor, top_k: int | None, top_p: float | None) -> np.ndarray:
    """A row's distribution by a stable sort of the whole vocabulary, in float64."""
    scores = logits.double().numpy()
    if top_k is not None and top_k < len(scores):
        scores = np.where(scores < np.sort(scores)[-top_k], -np.inf, scores)
    p = np.exp(scores - scores.max())
    p /= p.sum()
    if top_p is None:
        return p
    order = np.argsort(-p, kind="stable")
    kept = order[: int(np.searchsorted(np.cumsum(p[order]), top_p)) + 1]
    found = np.zeros_like(p)
    found[kept] = p[kept] / p[kept].sum()
    return found


def test_top_p_keeps_the_token_that_reaches_the_mass_and_stable_ties() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    assert probabilities(Sampling(top_p=0.5), logits)[0].tolist() == pytest.approx([1, 0, 0])
    assert probabilities(Sampling(top_p=0.51), logits)[0].tolist() == pytest.approx([0.625, 0.375, 0])
    equal = torch.zeros(1, 4)
    assert probabilities(Sampling(top_p=0.5), equal)[0].tolist() == pytest.approx([0.5, 0.5, 0, 0])


@pytest.mark.parametrize("few", [1, 40])
def test_the_same_set_is_found_with_and_without_bins(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without ties, which go to the lower token at top-p, and to all tokens at top-k."""
    monkeypatch.setattr(truncation, "FEW", few)
    logits = 2 * torch.randn(60, 40, generator=torch.Generator().manual_seed(0))
    logits[30:] = logits[30:].round()
    for top_k, top_p in itertools.product((None, 1, 5, 40), (None, 0.1, 0.5, 0.9, 0.999)):
        found = probabilities(Sampling(top_k=top_k, top_p=top_p), logits)
        for row, whole in zip(found, logits, strict=True):
            np.testing.assert_allclose(row.numpy(), expected(whole, top_k, top_p), rtol=1e-6)


@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0, 4.0])
def test_a_large_vocabulary_keeps_the_set_of_a_whole_sort(spread: float) -> None:
    """From equal probabilities, where the border is one of ties, to a few tokens with all the mass."""
    logits = spread * torch.randn(2, 20_000, generator=torch.Generator().manual_seed(1))
    for top_k, top_p in ((None, 0.95), (None, 0.2), (20, 0.95), (20, None)):
        found = probabilities(Sampling(0.9, top_k=top_k, top_p=top_p), logits)
        for row, whole in zip(found, logits, strict=True):
            right = expected(whole.double() / 0.9, top_k, top_p)
            assert (row.numpy() > 0).sum() == (right > 0).sum()
            np.testing.assert_allclose(row.numpy(), right, rtol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_without_a_distribution_draw_nan_for_their_row_alone(bad: float) -> None:
    """The policy then names the problem."""
    logits = torch.zeros(2, 2 * truncation.FEW)
    logits[0, 3] = bad
    _, logps = draw_tokens(Sampling(top_p=0.9), logits, torch.full((2,), 0.5, dtype=torch.float64))
    assert logps.isnan().tolist() == [True, False]


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(0.0), Sampling(top_k=3), Sampling(top_p=0.7), Sampling(0.6, top_k=9, top_p=0.7)]
)
def test_draws_from_the_kept_tokens_are_draws_from_the_whole_distribution(sampling: Sampling) -> None:
    generator = torch.Generator().manual_seed(2)
    logits, uniforms = torch.randn(200, 50, generator=generator).double(), torch.rand(200, generator=generator).double()
    before = logits.clone()
    tokens, logps = draw_tokens(sampling, logits, uniforms)
    assert torch.equal(logits, before)
    whole_tokens, whole_logps = pick_tokens(probabilities(sampling, logits), uniforms)
    assert tokens.tolist() == whole_tokens.tolist()
    torch.testing.assert_close(logps, whole_logps)
