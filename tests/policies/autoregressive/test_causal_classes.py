"""Every causal class of the installed transformers is read right, to 1e-4, or refused in one line."""

from __future__ import annotations

import pytest

from tests.policies.autoregressive.causal_classes import CAUSAL_CLASSES, PAGE, judge


@pytest.mark.parametrize("model_type", CAUSAL_CLASSES)
def test_a_class_is_right_or_refused_as_the_table_says(model_type: str) -> None:
    """The table is docs/families.md; `python -m tests.policies.autoregressive.causal_classes` writes it."""
    verdict = judge(model_type)
    assert verdict.kind in ("right", "refused", "not built"), verdict.how
    written = next(line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{model_type}` |"))
    if verdict.kind == "right":
        assert written == verdict.row(model_type)
    else:  # the words of a refusal may be transformers'
        assert written.startswith(verdict.row(model_type).partition(f" | {verdict.kind} | ")[0])
