"""Working on a few rows at a time, and entropy and self-certainty of distributions."""

from __future__ import annotations

import math

import pytest
import torch

from ets.policies import token_draws as drawing
from ets.policies.token_draws import certainty_of, in_slices, pick_tokens


def test_they_are_the_entropy_and_the_divergence_from_guessing() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2], [0.98, 0.01, 0.01]], dtype=torch.float64)
    for (entropy, self_certainty), row in zip(certainty_of(p.log() + 7).tolist(), p.tolist(), strict=True):
        assert entropy == pytest.approx(-sum(q * math.log(q) for q in row))
        assert self_certainty == pytest.approx(sum(math.log(1 / 3 / q) / 3 for q in row))


def test_guessing_has_the_highest_entropy_and_no_self_certainty() -> None:
    assert certainty_of(torch.zeros(2, 5)).tolist() == [pytest.approx([math.log(5), 0.0], abs=1e-12)] * 2


def test_a_token_that_is_never_drawn_is_no_part_of_it() -> None:
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    for token in range(6):
        kept = [n for n in range(6) if n != token]
        assert torch.equal(certainty_of(logits, without=[token]), certainty_of(logits[:, kept]))


def test_half_precision_is_widened_before_anything_is_summed() -> None:
    logits = 20 * torch.randn(3, 50_000, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(certainty_of(logits), certainty_of(logits.double()))


@pytest.mark.parametrize(("together", "threads", "rows"), [(1, 1, 1), (1, 3, 3), (700, 1, 2), (10**9, 1, 11)])
def test_drawing_for_a_few_rows_at_a_time_changes_no_bit(
    together: int, threads: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(11, 300, generator=generator)
    uniforms = torch.rand(11, dtype=torch.float64, generator=generator)
    sizes = []

    def work(logits: torch.Tensor, uniforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sizes.append(len(logits))
        return pick_tokens(logits.double().softmax(-1), uniforms)

    expected = pick_tokens(logits.double().softmax(-1), uniforms)
    monkeypatch.setitem(drawing.TOGETHER, "cpu", together)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    tokens, logps = in_slices(work, logits, uniforms)
    assert torch.equal(tokens, expected[0]) and torch.equal(logps, expected[1])
    assert max(sizes) == rows and sum(sizes) == 11
