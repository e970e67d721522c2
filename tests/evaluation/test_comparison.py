"""Methods at equal budgets on a tiny task, over policies that can be enumerated."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from ets.evaluation.compared import CHOOSING, GUIDED, Hyper, require_compared
from ets.evaluation.depth import Metered, metered
from ets.evaluation.pooled import chosen

from ets.evaluation.comparison import Comparison, Entry
from ets.evaluation.journal import FORM
from ets.runner import run
from ets.types import Draw, InputError, Policy, Problem, State
from tests.evaluation.test_evaluate import Letters
from tests.laws.masked_tabular import TabularMaskedDiffusion
from tests.laws.tabular import TabularModel

HYPER = Hyper(rollouts=2, lam=0.3, pool="chain", iterations=2)
NAMES = ["plain", "majority", "one-step", "best-of-n", "weighted-majority", "iterated-sir", *GUIDED, "greedy"]


MASKED_DIFFUSION = TabularMaskedDiffusion(vocabulary=3, gen_length=4, block_length=2, steps=4, guide_steps=2, seed=4)


def comparison(folder: Path, task: Letters | None = None, **changed: Any) -> Comparison:
    task = task or Letters()
    policy = TabularModel(vocabulary=4, block_size=1, max_length=4, seed=4)
    whole = Comparison(
        task, policy, task.problems(12, 0), HYPER, "generated", folder, {"seed": 0}, seeds=3, width=5, seed=0,
        progress=False,
    )  # fmt: skip
    return replace(whole, **changed)


def named(entries: list[Entry], budget: int | None = 0) -> dict[tuple[str, str], Entry]:
    return {(entry.method, entry.readout): entry for entry in entries if entry.budget == budget}


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    return comparison(tmp_path_factory.mktemp("comparison")).entries(NAMES, [2, 5])


def test_every_method_has_a_row_at_every_budget_and_searches_one_for_all(entries: list[Entry]) -> None:
    for budget in (0, 1):
        found = named(entries, budget)
        assert {method for method, _ in found} == {*GUIDED, *CHOOSING} - {"plain"}
        assert {method for method, readout in found if readout == "vote"} == {n for n, g in GUIDED.items() if g.votes}
    assert list(named(entries, None)) == [("plain", "last"), ("greedy", "last")]


def test_costs_are_near_the_budget(entries: list[Entry]) -> None:
    """Sizes are whole: the nearest one is off by half a size's cost at most, and by what 12 problems vary."""
    for budget, size in ((0, 2), (1, 5)):
        found = named(entries, budget)
        ets = found["ets", "last"]
        assert ets.size == size
        for (method, _), entry in found.items():
            if method == "ets-stopped":
                continue
            step = entry.cost["generated"] / max(1, entry.size)
            assert abs(entry.cost["generated"] - ets.cost["generated"]) <= 0.75 * step + 1.5, method


def test_every_row_is_set_against_majority_voting_at_its_own_cost(entries: list[Entry]) -> None:
    for entry in entries:
        if entry.method == "majority":
            assert entry.rival is None
        else:
            assert entry.rival is not None and entry.rival.label.startswith("majority voting (")
            one = entry.rival.cost / int(entry.rival.label.split("(")[1][:-1])
            assert abs(entry.rival.cost - entry.cost["generated"]) <= 0.75 * one, entry.label


def test_plain_sampling_is_one_row_that_costs_one_sample(entries: list[Entry]) -> None:
    plain = named(entries, None)["plain", "last"]
    assert plain.size == 1 and plain.cost["generated"] < 5 and plain.draws > 3 * 8


def test_stopping_is_measured_at_the_candidates_of_ets(entries: list[Entry]) -> None:
    for budget, size in ((0, 2), (1, 5)):
        ets, stopped = (named(entries, budget)[name, "last"] for name in ("ets", "ets-stopped"))
        assert ets.size == stopped.size == size
        assert stopped.cost["generated"] <= ets.cost["generated"]
    saved = [named(entries, 0)[name, "last"].cost["generated"] for name in ("ets", "ets-stopped")]
    assert saved[1] < saved[0]  # two candidates agree more often than five


def test_iterated_resampling_takes_the_texts_that_it_may() -> None:
    policy = TabularModel(vocabulary=4, max_length=4, seed=4)
    for size in range(1, 40):
        step = CHOOSING["iterated-sir"].step(Letters(), replace(HYPER, iterations=4), size)
        chain = next(iter(run(policy, step, Letters().problems(1, 0), width=1, seed=0)))
        assert size - 1 <= len(chain.trace[0].candidates) <= size


def test_sizes_come_from_a_pilot_that_need_not_be_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ets.evaluation.comparison.PILOT_PROBLEMS", 3)
    for entry in comparison(tmp_path).entries(["majority", "ets", "particles"], [3]):
        assert len(entry.scores) == 12 and (entry.rival is None or len(entry.rival.scores) == 12)


def test_scores_are_means_over_three_samples_of_every_problem(entries: list[Entry]) -> None:
    for entry in entries:
        assert len(entry.scores) == 12
        if entry.readout == "last" and entry.method in ("ets", "retained"):
            assert all(3 * score == pytest.approx(round(3 * score)) for score in entry.scores.values())


@pytest.mark.parametrize("name", ["weighted-majority", "one-step", "iterated-sir"])
def test_lam_is_how_far_a_likely_text_outweighs_two_that_agree(name: str) -> None:
    """One right text with 1 nat per token more than two wrong ones: at a small λ it counts alone."""
    problem = Letters().problems(1, 0)[0]
    texts = [
        {"text": text, "tokens": [1, 2], "logp": 2 * logp, "correct": float(text == "a"), "cost": {}}
        for text, logp in (("a", -1.0), ("b", -2.0), ("b", -2.0))
    ]
    record = {"problem": problem.id, "sample": 0, "texts": texts, "cost": {"seconds": 0.0}}
    for lam in (0.05, 2.0, 20.0):  # with 2 nats per text it would win the vote at 2, too
        hyper = replace(HYPER, lam=lam, reward="likelihood-per-token", iterations=1)
        share = 1 / (1 + 2 * math.exp(-1 / lam))
        expected = float(share > 0.5) if name == "weighted-majority" else share
        assert chosen(CHOOSING[name].step(Letters(), hyper, 3), problem, record, 0).score == pytest.approx(expected)


class Endings(Letters):
    """The answer is a text's last letter, which a chain does not settle before its end."""

    def extract(self, problem: Problem, text: str) -> str | None:
        return text[-1:] or None


def test_the_readouts_of_a_method_are_rows_of_their_own_at_the_same_cost(tmp_path: Path) -> None:
    found = named(comparison(tmp_path, Endings(), seeds=8).entries(["majority", "ets"], [2]))
    last, vote = (found["ets", readout] for readout in ("last", "vote"))
    assert last.cost == vote.cost and vote.label == f"{last.label}, vote"
    assert last.scores != vote.scores
    assert all(8 * score == pytest.approx(round(8 * score)) for score in vote.scores.values())  # a tie has one winner


def test_a_comparison_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    names = ["plain", "majority", "ets", "lookahead"]
    whole = comparison(tmp_path / "whole").entries(names, [3])
    with pytest.raises(KeyboardInterrupt):
        comparison(tmp_path / "torn", Letters(patience=40)).entries(names, [3])
    resumed = comparison(tmp_path / "torn").entries(names, [3])
    for expected, entry in zip(whole, resumed, strict=True):
        assert (entry.label, entry.scores) == (expected.label, expected.scores)
        assert {**entry.cost, "seconds": 0} == pytest.approx({**expected.cost, "seconds": 0})


def test_every_method_and_size_has_a_journal_and_its_configuration(tmp_path: Path) -> None:
    comparison(tmp_path).entries(["majority", "ets"], [2])
    configuration = json.loads(
        (tmp_path / "ets-2-rollouts=2-lam=0.3-pool=chain-reward=majority-minimum=1")
        .joinpath("configuration.json")
        .read_text()
    )
    method = "ets-2-rollouts=2-lam=0.3-pool=chain-reward=majority-minimum=1"
    assert configuration == {"seed": 0, "method": method, "form": FORM}


def test_journals_are_named_by_all_that_their_method_depends_on(entries: list[Entry]) -> None:
    guided = "rollouts=2-lam=0.3-pool=chain-reward=majority-minimum=1"
    keys = {e.method: e.key.replace(f"{e.method}-{e.size}-", f"{e.method}-N-") for e in entries if e.key}
    assert keys == {
        "ets": f"ets-N-{guided}",
        "ets-stopped": f"ets-stopped-N-{guided}",
        "retained": f"retained-N-{guided}",
        "lookahead": f"lookahead-N-{guided}-resample_below=0.5",
        "particles": "particles-N-lam=0.3-reward=majority-minimum=1-resample_below=0.5",
        "power": "power-N-alpha=4.0",
    }


def test_budgets_may_be_amounts(tmp_path: Path) -> None:
    found = named(comparison(tmp_path).entries(["majority", "ets"], [30.0]))
    assert found["ets", "last"].cost["generated"] == pytest.approx(30, abs=6)
    assert found["majority", "last"].cost["generated"] == pytest.approx(30, abs=3)


def test_masked_diffusion_is_compared_by_computed_positions(tmp_path: Path) -> None:
    whole = comparison(tmp_path, policy=MASKED_DIFFUSION, currency="positions")
    found = named(whole.entries(["majority", "ets", "retained"], [3]))
    spent = found["ets", "last"].cost["positions"]
    assert found["majority", "last"].cost["positions"] == pytest.approx(spent, rel=0.25)


def test_serial_depth_is_of_the_longest_text_and_in_calls_per_token(tmp_path: Path) -> None:
    whole, half = (
        comparison(tmp_path / str(calls), per_token=calls).entries(["majority", "ets", "greedy"], [2])
        for calls in (1.0, 0.5)
    )
    for one, other in zip(whole, half, strict=True):
        assert other.cost["depth"] == pytest.approx(one.cost["depth"] / 2), one.label
    size = named(whole)["majority", "last"].size
    pools = max((tmp_path / "1.0").glob("pool-*"), key=lambda path: int(path.name.split("-")[1]))
    records = [json.loads(line) for line in (pools / "journal.jsonl").read_text().splitlines()]
    lengths = [[len(each["tokens"]) for each in record["texts"][:size]] for record in records]
    assert size > 1 and any(max(row) > row[0] for row in lengths)
    assert named(whole)["majority", "last"].cost["depth"] == pytest.approx(fmean(map(max, lengths)))


@pytest.mark.parametrize("policy", [TabularModel(vocabulary=4, max_length=4, seed=4), MASKED_DIFFUSION], ids=str)
def test_depth_adds_up_the_longest_row_of_every_call(policy: Policy) -> None:
    """At width 1, where a call is one chain's; power sampling's moves follow each other, rollouts do not."""
    problems = Letters().problems(4, 0)
    for name, guided in GUIDED.items():
        depths: dict[int, int] = {}
        counted = Counted(policy)
        step = metered(guided.step(Letters(), HYPER, 2), depths)
        chains = list(run(counted, step, problems, width=1, seed=0))
        assert sum(depths.values()) == counted.longest, name
        if name == "power":
            assert sum(depths.values()) == sum(chain.cost.generated for chain in chains)
    assert power_depths(policy, width=4) == power_depths(policy, width=1)


def power_depths(policy: Policy, width: int) -> dict[int, int]:
    depths: dict[int, int] = {}
    step = metered(GUIDED["power"].step(Letters(), HYPER, 2), depths)
    list(run(policy, step, Letters().problems(4, 0), width=width, seed=0))
    return depths


class Counted(Metered):
    """Another count, of whole calls."""

    longest = 0

    def _noted(self, states: Sequence[State], draws: list[Draw]) -> list[Draw]:
        self.longest += max(draw.cost.generated for draw in draws)
        return draws


@pytest.mark.parametrize(
    ("names", "changed", "message"),
    [
        (["ets", "ets"], {}, "method 'ets' is named twice"),
        (["magic"], {}, "unknown method 'magic'"),
        (["ets"], {"reward": "praise"}, "reward is 'praise'"),
        (["ets"], {"resample_below": 2.0}, "resample_below is 2.0"),
        (["ets"], {"lam": 0.0}, "lam is 0.0"),
        (["ets-stopped"], {"reward": "likelihood"}, "ets-stopped stops"),
    ],
)
def test_bad_settings_are_one_line(names: list[str], changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        require_compared(names, replace(HYPER, **changed))
