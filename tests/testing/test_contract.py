"""One test judges every tabular policy; faults that it must see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ets.randomness import uniform
from ets.testing import TabularPolicy, check_policy
from ets.types import Draw, Keys, Problem, State, Text
from tests.laws import masked_tabular
from tests.laws.masked import canvas_before, scores_of
from tests.laws.masked_tabular import TabularMaskedDiffusion

PROBLEMS = [Problem("p", (1,)), Problem("q", "two"), Problem("r", (2, 3))]
RULES = ("low_confidence", "random", "margin", "entropy")
DRAWS, LEVEL = 20_000, 1e-4
FEWER = DRAWS // 4
"""Draws of a faulty policy."""


def diffusion(**options: Any) -> TabularMaskedDiffusion:
    """At this temperature and seed, tempered scores would often rank the draws otherwise."""
    shape = {"vocabulary": 3, "gen_length": 3, "block_length": 3, "steps": 3, "guide_steps": 3}
    return TabularMaskedDiffusion(**(shape | {"temperature": 2.0, "seed": 3} | options))


UNEVEN = {"vocabulary": 2, "gen_length": 4, "block_length": 4, "steps": 3, "guide_steps": 3}  # reveals 2, 1, 1
BLOCKS = {"vocabulary": 2, "gen_length": 4, "block_length": 2, "steps": 4}


@pytest.mark.parametrize(
    "policy",
    [
        TabularPolicy(),
        TabularPolicy(vocabulary=4, block_size=2, max_length=4, temperature=0.7, seed=3),
        *(diffusion(remasking=rule) for rule in RULES),
        *(diffusion(remasking=rule, levels=2, **UNEVEN) for rule in RULES),  # scores tie
        diffusion(guide_steps=4, **BLOCKS),  # guide steps end inside a block
        diffusion(guide_steps=2, **BLOCKS),
        diffusion(guide_steps=2, **BLOCKS | {"block_length": 1}),  # they go across blocks
    ],
)
def test_every_tabular_policy_keeps_the_contract(policy: TabularPolicy | TabularMaskedDiffusion) -> None:
    check_policy(policy, policy.oracle, PROBLEMS, draws=DRAWS, level=LEVEL)


@pytest.mark.parametrize("make", [TabularPolicy, TabularMaskedDiffusion])
def test_a_wrong_temperature_turns_the_law_red(make: Any) -> None:
    with pytest.raises(AssertionError, match="exact law"):
        check_policy(make(temperature=1.05), make().oracle, PROBLEMS)


class TokensAlone(TabularMaskedDiffusion):
    """Records Σ log p_i(v_i) of the revealed tokens, without the probability that these positions win."""

    def finish(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        return [replace(draw, logp=self.tokens_logp(draw.state)) for draw in super().finish(states, keys)]

    def tokens_logp(self, state: Any) -> float:
        total = 0.0
        for i, step in enumerate(state.path):
            before = canvas_before(state.tokens, state.path, step, self.mask)
            p, *_ = self.step_arguments(state.problem.prompt, before)
            total += float(np.log(p[i, state.tokens[i]]))
        return total


@pytest.mark.parametrize("rule", ["low_confidence", "random"])
def test_a_dropped_position_term_turns_the_contract_red(rule: str) -> None:
    wrong = TokensAlone(3, remasking=rule, temperature=2.0, seed=3)
    with pytest.raises(AssertionError, match="logp"):
        check_policy(wrong, wrong.oracle, PROBLEMS, draws=FEWER, level=LEVEL)


class CachedTexts(TabularPolicy):
    """Returns one `Text` object for all draws of the same tokens."""

    def finish(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        texts: dict[Any, Text] = self.__dict__.setdefault("texts", {})
        return [replace(d, text=texts.setdefault(d.text.tokens, d.text)) for d in super().finish(states, keys)]


def test_a_text_object_of_two_rows_turns_the_contract_red() -> None:
    wrong = CachedTexts(max_length=2)
    with pytest.raises(AssertionError, match="two rows share a Text object; votes and costs count objects"):
        check_policy(wrong, wrong.oracle, PROBLEMS, draws=100, level=LEVEL)


class WrongLengths(TabularPolicy):
    @property
    def lengths(self) -> tuple[int, ...]:
        least, most = {1: (2, 3), 2: (1, 2)}[self.seed]
        return (0, least, 2, most)


@pytest.mark.parametrize(("seed", "message"), [(1, "1 tokens at boundary 1"), (2, "a text of 3 tokens")])
def test_lengths_that_do_not_bound_the_tokens_turn_the_contract_red(seed: int, message: str) -> None:
    wrong = WrongLengths(max_length=3, seed=seed)
    with pytest.raises(AssertionError, match=message):
        check_policy(wrong, wrong.oracle, PROBLEMS, draws=100, level=LEVEL)


FAULTS: dict[str, tuple[str, Any]] = {
    "a draw used again": ("uniform", lambda keys, step: uniform(keys)),
    "tempered scores": ("scores_of", lambda logits, rule: scores_of(logits / 2.0, rule)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_masked_diffusion_turns_the_contract_red(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong = diffusion(), diffusion()
    right.oracle.finish_law(PROBLEMS[0], right.oracle.root)
    monkeypatch.setattr(masked_tabular, *FAULTS[fault])
    with pytest.raises(AssertionError, match="exact law"):
        check_policy(wrong, right.oracle, PROBLEMS, draws=FEWER, level=LEVEL)
