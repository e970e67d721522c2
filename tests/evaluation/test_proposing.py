"""The settings that belong to ETS-IS alone, and the pair that they make of two checkpoints."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ets.evaluation.proposing import Proposing, bounds_of, opened_pair
from ets.policies.making import policy_of

from ets import demo
from ets.policies.checkpoint import Checkpoint
from ets.types import InputError

PROPOSING = Proposing("small", candidates=8, block_size=16, temperature=1.9)


def test_every_setting_stands_in_the_words_of_the_journal() -> None:
    assert PROPOSING.options == ("small@", "M8", "block16", "T1.9")
    assert replace(PROPOSING, top_p=1.0).options == PROPOSING.options  # which is no truncation
    changes: list[dict[str, Any]] = [
        {"model": "smaller"}, {"candidates": 9}, {"block_size": 8}, {"temperature": 1.8}, {"top_k": 3}, {"top_p": 0.9},
        {"clip": (0.1, 10.0)}, {"clip": (0.1, 20.0)}, {"revision": "1a2b"},
    ]  # fmt: skip
    assert len({replace(PROPOSING, **change).options for change in [{}, *changes]}) == len(changes) + 1
    assert "clip0.1:10.0" in replace(PROPOSING, clip=(0.1, 10.0)).options


@pytest.mark.parametrize(("text", "bounds"), [("0.1,10", (0.1, 10.0)), ("0:2", (0.0, 2.0)), ("1, 1", (1.0, 1.0))])
def test_bounds_are_read_with_a_comma_or_a_colon(text: str, bounds: tuple[float, float]) -> None:
    assert bounds_of(text) == bounds


@pytest.mark.parametrize("text", ["", "0.1", "0.1,1,10", "a,b", "0.1;10"])
def test_bounds_that_are_not_two_numbers_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=f"clip is {text!r}; give the lowest and the highest ratio"):
        bounds_of(text)


def test_the_pair_has_the_proposal_s_law_and_the_reference_policy_s_length() -> None:
    reference = policy_of(
        lambda: Checkpoint(demo.model_path()), max_length=32, block_size=16, temperature=1.9, engine="transformers"
    )
    given = replace(PROPOSING, temperature=0.7, top_k=5, clip=(0.1, 10.0))
    opened, pair = opened_pair(given, reference, lambda: Checkpoint(demo.model_path("small")))
    assert opened == replace(given, revision=opened.revision) and len(opened.revision) == 8
    assert pair.reference is reference and pair.proposal.horizon == reference.horizon  # type: ignore[attr-defined]
    law = pair.proposal.sampling  # type: ignore[attr-defined]
    assert (law.temperature, law.top_k, law.top_p) == (0.7, 5, None)
