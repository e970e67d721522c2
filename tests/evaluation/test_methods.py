"""The registry of methods: names, labels, keys, and the input errors before a model is loaded."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from ets.evaluation.methods import METHODS, MethodSettings, methods_named, require_able, require_settings, step_of
from ets.evaluation.pool import Completions, Sample, chosen
from ets.runner import run
from ets.types import Cost, Draw, InputError, Text
from tests.evaluation.letters import MASKED_DIFFUSION, SETTINGS, Letters, pair, policies, table
from tests.laws.tabular import TabularModel


def test_iterated_resampling_draws_as_many_texts_as_its_size_allows() -> None:
    for size in range(1, 40):
        step = METHODS["iterated-sir"].step(Letters(), replace(SETTINGS, iterations=4), size)
        chain = next(iter(run(table(), step, Letters().problems(1, 0), width=1, seed=0)))
        assert size - 1 <= len(chain.trace[0].candidates) <= size


@pytest.mark.parametrize("name", ["weighted-majority", "one-step", "iterated-sir"])
def test_lam_is_how_far_a_likely_text_outweighs_two_that_agree(name: str) -> None:
    """One right text with 1 nat per token more than two wrong ones: at a small λ it counts alone."""
    problem = Letters().problems(1, 0)[0]
    texts = [Text((1, 2), text, 2 * logp, True) for text, logp in (("a", -1.0), ("b", -2.0), ("b", -2.0))]
    grades: Any = [{"correct": float(text.text == "a"), "scores": {}} for text in texts]
    draws = tuple(Draw(Completions((), text.tokens, text.text), text, text.logp, Cost()) for text in texts)
    sample = Sample(problem, 0, draws, grades, (Cost(),) * 3)
    for lam in (0.05, 2.0, 20.0):  # with 2 nats per text it would win the vote at 2, too
        settings = replace(SETTINGS, lam=lam, reward="likelihood-per-token", iterations=1)
        share = 1 / (1 + 2 * math.exp(-1 / lam))
        expected = float(share > 0.5) if name == "weighted-majority" else share
        assert chosen(METHODS[name].step(Letters(), settings, 3), sample, 0).correct == pytest.approx(expected)


def test_labels_name_the_size_and_the_settings_and_the_reward_of_best_of_n_where_it_is_given() -> None:
    liked = replace(SETTINGS, reward="likelihood")
    assert METHODS["ets"].labelled(SETTINGS, 3) == METHODS["ets"].labelled(liked, 3) == "ETS (M 3, K 2)"
    assert METHODS["beam"].labelled(liked, 1) == "beam search (2 beams)"
    assert METHODS["best-of-n"].labelled(liked, 4) == "best of 4"
    assert METHODS["best-of-n"].labelled(replace(liked, best_by="share"), 4) == "best of 4, by share"
    votes = [METHODS["weighted-majority"].labelled(each, 4) for each in (SETTINGS, liked)]
    assert votes == [f"majority weighted by exp({term} / 0.2) (4)" for term in ("logp per token", "r")]


def test_targets_name_the_law_of_large_budgets() -> None:
    found = {name: method.targeted(replace(SETTINGS, reward="likelihood")) for name, method in METHODS.items()}
    guided = [name for name, method in METHODS.items() if method.kind == "guided"]
    assert {found[name] for name in guided if name not in ("power", "adaptive-majority")} == {"p*"}
    assert found["power"] == "p_ref^4" and found["plain"] == "p_ref" and found["majority"] == "mode of p_ref"
    assert found["best-of-n"] == "argmax r" and found["greedy"] == found["beam"] == ""
    assert METHODS["refined"].targeted(replace(SETTINGS, reward="majority")) == "p* of the votes"


def test_every_name_is_a_method_and_unknown_ones_are_refused() -> None:
    assert methods_named(list(METHODS)) == METHODS
    for names, message in (
        (["ets", "ets"], "method 'ets' is named twice; name it once"),
        (["ets", "magic"], "unknown method 'magic'; choose from base, plain, majority, .*, or file.py:function"),
        (["nowhere.py:step"], "cannot read the step function 'nowhere.py:step': there is no file nowhere.py"),
    ):
        with pytest.raises(InputError, match=message):
            methods_named(names)


@pytest.mark.parametrize(
    ("names", "changes", "sizes", "message"),
    [
        (["ets"], {"candidates": 0}, {}, "candidates is 0"),
        (["ets"], {"rollouts": 1.5}, {}, "rollouts is 1.5"),
        (["ets"], {"lam": -0.1}, {}, "lam is -0.1"),
        (["ets"], {"pool": "all"}, {}, "pool is 'all'"),
        (["ets"], {"reward": "taste"}, {}, "reward is 'taste'; choose from majority, share, likelihood"),
        (["ets"], {"minimum": 0}, {}, "minimum is 0"),
        (["best-of-n"], {"best_by": "taste"}, {}, "best_by is 'taste'; choose from majority, share, likelihood"),
        (["beam"], {"beams": 0}, {}, "beams is 0"),
        (["power"], {"alpha": 0.0}, {}, "alpha is 0.0"),
        (["ets-is"], {"is_candidates": 0}, {}, "is_candidates is 0"),
        (["particles"], {"resample_below": 2.0}, {}, "resample_below is 2.0; it must be a share, from 0 to 1"),
        (["ets-stopped"], {"reward": "likelihood"}, {}, "ets-stopped stops when all rollouts agree, and reward is"),
        (["ets"], {}, {"ets": 3}, "sizes names the method 'ets', which draws no N samples; choose from base, plain"),
        (["ets"], {}, {"best": 3}, "sizes names the method 'best', which draws no N samples"),
        (["ets"], {}, {"plain": 0}, "the size of plain is 0"),
    ],
)
def test_bad_settings_are_named_before_anything_runs(
    names: list[str], changes: dict[str, Any], sizes: dict[str, int], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        require_settings(methods_named(names), replace(SETTINGS, **changes), sizes)
    assert message in str(caught.value)


def test_good_settings_pass() -> None:
    require_settings(METHODS, MethodSettings(), {"plain": 8, "best-of-n": 3})
    require_settings(methods_named(["ets"]), MethodSettings(reward="some.py:reward", is_candidates=4), {})


def test_searches_that_a_policy_lacks_are_refused() -> None:
    require_able(policies(), METHODS, [3])
    masked = {"": MASKED_DIFFUSION}
    require_able(masked, methods_named(["ets", "best-of-n"]), [3])
    for name in ("greedy", "beam"):
        with pytest.raises(InputError, match=r"^TabularMaskedDiffusion has no "):
            require_able(masked, methods_named(["ets", name]), [3])


class Deterministic(TabularModel):
    deterministic = True


@pytest.mark.parametrize("name", ["majority", "best-of-n", "one-step", "ets", "retained"])
def test_several_draws_from_a_deterministic_policy_are_refused(name: str) -> None:
    greedy: Any = {"": Deterministic(), "ets-is": pair()}
    require_able(greedy, methods_named(["plain", "greedy", "beam"]), [3])
    require_able(greedy, methods_named(["ets"]), (1,))  # one candidate is one draw
    with pytest.raises(InputError, match="so all 2 draws from a state would be equal"):
        require_able(greedy, methods_named([name]), (3,))


def test_a_step_function_of_keywords_gets_all_guide_settings(tmp_path: Any) -> None:
    (tmp_path / "own.py").write_text("def step(reward, **guide):\n    return lambda policy, chains: (reward, guide)\n")
    made: Any = step_of(f"{tmp_path}/own.py:step")("r", candidates=2, rollouts=1, lam=0.5)  # type: ignore[arg-type]
    assert made(None, []) == ("r", {"candidates": 2, "rollouts": 1, "lam": 0.5})


def test_a_function_of_other_arguments_is_no_step_function(tmp_path: Any) -> None:
    """A step function itself, and a function with a keyword that no command has."""
    (tmp_path / "own.py").write_text("def itself(policy, chains): ...\ndef further(reward, *, extra): ...\n")
    for name in ("itself", "further"):
        with pytest.raises(InputError, match=r"cannot be called: missing a required .*; give a function of \(reward"):
            step_of(f"{tmp_path}/own.py:{name}")("r", candidates=2, rollouts=1, lam=0.5)  # type: ignore[arg-type]
