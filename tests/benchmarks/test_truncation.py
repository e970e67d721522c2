"""The benchmark of draws: what it compares with draws from the same set."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ets.policies.autoregressive.truncation import probabilities


@pytest.mark.parametrize("name", ["all tokens", "top-k 20", "top-k 20, top-p 0.95", "top-p 0.95"])
def test_both_ways_draw_from_the_same_set(load: Any, name: str) -> None:
    truncation = load("truncation")
    rule, logits = truncation.RULES[name], 3 * torch.randn(1, 200, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    found = set(truncation.warped(rule, logits.expand(3000, -1)).tolist())
    kept = set(probabilities(rule, logits)[0].nonzero()[:, 0].tolist())
    assert found <= kept and (name == "all tokens" or len(found) > 0.7 * len(kept))


def test_a_share_is_of_the_draw_from_all_tokens(load: Any) -> None:
    cpu = torch.device("cpu")
    conditions = load("measuring").Conditions(cpu, torch.float32, load("floor").Peak(1.0, 1.0), repeats=1, threads=1)
    table = load("truncation").measure(load("truncation").Setting(2, 3_000, 1), conditions)
    assert len(table.rows) == 8 and [row.counts["of untruncated"] for row in table.rows[::4]] == [1.0, 1.0]
    assert all(len(row.seconds) == len(row.against) == 1 for row in table.rows)
