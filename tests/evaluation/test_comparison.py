"""Methods at equal budgets on a tiny task, over policies that can be enumerated."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from ets.evaluation.comparison import Comparison, Entry, entry_of
from ets.evaluation.journal import Journal
from ets.evaluation.methods import METHODS, methods_named
from ets.evaluation.ratios import without_nan
from ets.types import InputError
from tests.evaluation.letters import (
    COUNT,
    MASKED_DIFFUSION,
    SETTINGS,
    Ended,
    Endings,
    Letters,
    certain,
    compared,
    named,
    of,
    policies,
    run_of,
    timeless,
    without_seconds,
)

GUIDED = [name for name, method in METHODS.items() if method.kind == "guided"]
AMONG = [name for name, method in METHODS.items() if method.kind == "among"]


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    """All methods at two budgets."""
    folder = tmp_path_factory.mktemp("comparison")
    return compared(folder, list(METHODS), [2, 5], policy=certain(), against="majority", repeats=3)[0]


def test_every_method_has_a_row_at_every_budget_and_searches_one_for_all(entries: list[Entry]) -> None:
    for budget in (0, 1):
        found = named(entries, budget)
        assert {method for method, _ in found} == {*GUIDED, *AMONG}
        assert {method for method, readout in found if readout == "vote"} == {n for n in GUIDED if METHODS[n].votes}
    assert list(named(entries, None)) == [("base", "last"), ("plain", "last"), ("greedy", "last"), ("beam", "last")]


def test_one_budget_has_rows_in_the_order_of_the_names(tmp_path: Path) -> None:
    names = ["plain", "ets", "majority", "greedy"]
    found = compared(tmp_path, names, [2])[0]
    assert [entry.method for entry in found] == ["plain", "ets", "ets", "majority", "greedy"]


def test_costs_are_near_the_budget(entries: list[Entry]) -> None:
    """Sizes are whole: the nearest one is off by half of a size's cost at most, and by the variation of 12 problems."""
    for budget, size in ((0, 2), (1, 5)):
        found = named(entries, budget)
        ets = found["ets", "last"]
        assert ets.size == found["ets-stopped", "last"].size == size and found["ets-is", "last"].size == 2
        for (method, _), entry in found.items():
            if method in ("ets-stopped", "ets-is"):
                continue
            if method == "refined":  # its size is the budget, of which the rest may not pay for another text
                assert entry.size - 4 <= entry.cost["generated"] <= entry.size == int(ets.cost["generated"])
                continue
            step = entry.cost["generated"] / max(1, entry.size)
            if method == "adaptive-majority":  # its size is the most samples
                assert 0.5 * ets.cost["generated"] < entry.cost["generated"] < ets.cost["generated"]
                continue
            assert abs(entry.cost["generated"] - ets.cost["generated"]) <= 0.75 * step + 1.5, method


def test_methods_that_choose_get_the_number_of_samples_nearest_to_the_budget(tmp_path: Path) -> None:
    found, records = compared(tmp_path, ["ets", "majority", "best-of-n", "one-step"], [3])
    target = fmean(record["cost"]["generated"] for record in of(records, "ets"))
    number = round(target / fmean(record["sample_tokens"] for record in of(records, "ets")))
    parts = [record["texts"] for (method, _, _), record in records.items() if method.startswith("pool[")]
    assert [entry.size for entry in found[2:]] == [number] * 3 and {len(texts) for texts in parts} == {number}
    cost = fmean(sum(text["cost"].get("generated", 0) for text in texts) for texts in parts)
    assert all(entry.cost["generated"] == pytest.approx(cost) for entry in found[2:])


def test_the_budget_does_not_depend_on_the_other_methods(entries: list[Entry], tmp_path: Path) -> None:
    names = ["one-step", "ets", "retained"]
    few, _ = compared(tmp_path, names, [5], repeats=3)
    expected = [entry for entry in entries if entry.budget == 1 and entry.method in names]
    assert [(e.label, e.scores) for e in few] == [(e.label, e.scores) for e in sorted(expected, key=_place(names))]


def _place(names: list[str]) -> Any:
    return lambda entry: names.index(entry.method)


def test_every_row_has_majority_voting_at_its_cost_as_its_rival(entries: list[Entry]) -> None:
    for entry in entries:
        if entry.method in ("majority", "plain"):
            assert entry.rival is None
        elif entry.method in ("base", "greedy", "beam"):  # a vote at the cost of one sample is plain sampling
            plain = named(entries, None)["plain", "last"]
            assert entry.rival is not None and entry.rival.label == "plain sampling"
            assert entry.rival.scores == plain.scores and entry.rival.cost == plain.cost["generated"]
        elif entry.cost["generated"] < 1.5 * named(entries, 1)["ets", "last"].cost["generated"]:
            assert entry.rival is not None and entry.rival.label.startswith("majority voting (")
            one = entry.rival.cost / int(entry.rival.label.split("(")[1][:-1])
            assert abs(entry.rival.cost - entry.cost["generated"]) <= 0.75 * one, entry.label


def test_other_rivals_are_those_of_the_same_budget(tmp_path: Path) -> None:
    found, _ = compared(tmp_path, ["plain", "majority", "ets"], [2, 4], against="ets")
    rivals = {(entry.budget, entry.method): entry.rival and entry.rival.label for entry in found}
    assert rivals[0, "majority"] == "ETS (M 2, K 2)" and rivals[1, "majority"] == "ETS (M 4, K 2)"
    assert [e.rival is None for e in found if (e.method, e.readout) == ("ets", "last")] == [True, True]


def test_without_ets_and_amounts_the_rival_needs_no_ets(tmp_path: Path) -> None:
    found, records = compared(tmp_path, ["majority", "best-of-n", "greedy"], [3], against="majority", samples=5)
    assert [entry.label for entry in found[:2]] == ["majority voting (5)", "best of 5"]
    assert not of(records, "ets") and found[1].rival is not None and found[1].rival.label == "majority voting (5)"


def test_a_choice_among_one_sample_has_no_rival(tmp_path: Path) -> None:
    names, sizes = ["majority", "best-of-n", "plain", "greedy"], {"best-of-n": 1}
    found, _ = compared(tmp_path, names, against="majority", samples=4, sizes=sizes)
    assert [entry.rival and entry.rival.label for entry in found] == [None, None, None, "plain sampling"]


def test_every_row_states_its_target(entries: list[Entry]) -> None:
    for entry in entries:
        vote = entry.readout == "vote"
        assert entry.target == ("mode of the rollouts" if vote else METHODS[entry.method].targeted(SETTINGS))


def test_a_fixed_reward_has_its_mean_over_the_chosen_texts(tmp_path: Path) -> None:
    """The likelihood per token of every text is that of the table, unless the text is of another law."""
    settings, policy = replace(SETTINGS, reward="likelihood-per-token"), certain()
    names = [name for name in METHODS if name != "ets-stopped"]
    found, records = compared(tmp_path, names, policy=policy, settings=settings, against="one-step", repeats=2)
    problems = {problem.id: problem for problem in Letters().problems(COUNT, 0)}

    def reward_of(record: dict[str, Any], text: str) -> float:
        outcome = next(
            x for x in policy.oracle.finish_law(problems[record["problem"]], ()) if policy.spelled(x) == text
        )
        return _log_probability(policy, problems[record["problem"]], outcome) / len(outcome)

    for record in records.values():
        graded = [*record.get("texts", [record]), *([record["vote"]] if "vote" in record else [])]
        if record["method"].startswith(("ets-is", "greedy", "beam", "pool-base")):
            assert all("reward" not in each for each in graded)
        else:
            assert all("reward" in each for each in graded), record["method"]
            assert [each["reward"] for each in graded] == pytest.approx([reward_of(record, g["text"]) for g in graded])
    for entry in found:
        assert (entry.rewards == {}) == (entry.method in ("base", "ets-is", "greedy", "beam")), entry.label
    rows = named(found)
    own = [r["reward"] for r in of(records, "ets-3") if r["problem"] == "letters-3"]
    assert rows["ets", "last"].rewards["letters-3"] == pytest.approx(fmean(own))
    best, step = rows["best-of-n", "last"], rows["one-step", "last"]
    assert all(best.rewards[problem] >= step.rewards[problem] for problem in problems) and best.rival is not None
    pool = {key[2]: r["texts"] for key, r in records.items() if key[0].startswith("pool[0:") and key[1] == "letters-0"}
    assert len(pool) == 2 and min(map(len, pool.values())) >= best.size > 1
    greatest = [max(each["reward"] for each in texts[: best.size]) for texts in pool.values()]
    assert best.rewards["letters-0"] == pytest.approx(fmean(greatest))


def _log_probability(policy: Any, problem: Any, tokens: tuple[int, ...]) -> float:
    return sum(float(np.log(policy.next_token(problem, tokens[:n])[token])) for n, token in enumerate(tokens))


def test_a_reward_of_minus_infinity_is_kept_and_votes_have_no_mean_reward(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def letters(prompt, text):\n    return -float('inf') if 'a' in text else 2.0\n")
    settings = replace(SETTINGS, reward=f"{tmp_path}/own.py:letters")
    found, records = compared(tmp_path / "run", ["plain", "greedy", "one-step"], samples=6, settings=settings)
    plain, greedy, step = found
    drawn = [text for record in records.values() for text in record.get("texts", ())]
    assert {text["reward"] for text in drawn} == {None, 2.0}
    assert all((text["reward"] is None) == ("a" in text["text"]) for text in drawn)
    assert -math.inf in plain.rewards.values() and set(step.rewards.values()) == {2.0}
    assert len(greedy.rewards) == COUNT
    voted, _ = compared(tmp_path / "voted", ["plain", "one-step"], samples=6)
    assert [entry.rewards for entry in voted] == [{}, {}]


def test_plain_sampling_is_one_row_that_costs_one_sample(entries: list[Entry]) -> None:
    plain = named(entries, None)["plain", "last"]
    assert plain.size == 1 and plain.cost["generated"] < 5 and plain.draws > 3 * 8


def test_plain_sampling_alone_takes_the_repeats(tmp_path: Path) -> None:
    (plain, greedy), records = compared(tmp_path, ["plain", "greedy"], repeats=4)
    assert plain.label == "plain sampling (mean of 4)" and plain.draws == 4 and greedy.draws == 1
    assert {method for method, _, _ in records if method.startswith("pool")} == {"pool[0:1]"}


def test_stopping_saves_tokens_at_the_candidates_of_ets(entries: list[Entry]) -> None:
    for budget in (0, 1):
        ets, stopped = (named(entries, budget)[name, "last"] for name in ("ets", "ets-stopped"))
        assert stopped.cost["generated"] <= ets.cost["generated"]
    saved = [named(entries, 0)[name, "last"].cost["generated"] for name in ("ets", "ets-stopped")]
    assert saved[1] < saved[0]  # two candidates agree more often than five


def test_sizes_come_from_a_pilot_that_need_not_be_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ets.evaluation.comparison.PILOT_PROBLEMS", 3)
    for entry in compared(tmp_path, ["majority", "ets", "particles"], against="majority")[0]:
        assert len(entry.scores) == COUNT and (entry.rival is None or len(entry.rival.scores) == COUNT)


def test_scores_are_means_over_the_samples_of_every_problem(entries: list[Entry]) -> None:
    for entry in entries:
        assert len(entry.scores) == COUNT
        if entry.readout == "last" and entry.method in ("ets", "retained"):
            assert all(3 * score == pytest.approx(round(3 * score)) for score in entry.scores.values())


def test_an_entry_sums_up_its_records(tmp_path: Path) -> None:
    (last, vote), records = compared(tmp_path, ["ets"], repeats=2, task=Endings(), settings=replace(SETTINGS, lam=10.0))
    costs = [record["cost"] for record in records.values()]
    assert last.cost["generated"] == pytest.approx(fmean(cost["generated"] for cost in costs))
    kinds = ("prompt", "candidate", "rollout", "scored")
    assert last.cost["positions"] == pytest.approx(fmean(sum(cost[kind] for kind in kinds) for cost in costs))
    for problem, score in last.scores.items():
        assert score == fmean(r["correct"] for r in records.values() if r["problem"] == problem)
        assert vote.scores[problem] == fmean(r["vote"]["correct"] for r in records.values() if r["problem"] == problem)
    assert vote.cost == last.cost and vote.label == f"{last.label}, vote" and vote.scores != last.scores


def test_given_sizes_are_taken_and_need_no_ets(tmp_path: Path) -> None:
    names, sizes = ["majority", "best-of-n", "one-step"], {"best-of-n": 3, "one-step": 5}
    settings = replace(SETTINGS, best_by="majority")
    found, records = compared(tmp_path, names, samples=4, sizes=sizes, settings=settings)
    assert [entry.label for entry in found] == ["majority voting (4)", "best of 3, by majority", "one-step ETS (5)"]
    assert {method for method, _, _ in records} == {"pool[0:4]", "pool[4:5]"}


def test_best_of_n_by_a_vote_takes_the_majority_whatever_minimum_the_reward_has(tmp_path: Path) -> None:
    """No answer has 4 of 3 votes: with that minimum every sample would be as good as any other."""
    found = []
    for minimum in (1, 4):
        settings = replace(SETTINGS, best_by="majority", minimum=minimum)
        found += compared(tmp_path / str(minimum), ["best-of-n", "majority"], samples=3, settings=settings)[0]
    assert len({str(entry.scores) for entry in found}) == 1


@pytest.mark.parametrize(
    ("changed", "weights"),
    [
        ({"reward": "majority"}, {0.0, 1 / 0.2}),
        ({"reward": "share"}, {k / 6 / 0.2 for k in range(7)}),
        ({"minimum": 100}, {0.0}),
    ],
)
def test_ets_is_steered_by_the_reward_that_is_named(
    changed: dict[str, Any], weights: set[float], tmp_path: Path
) -> None:
    """The scaled rewards r/λ of the first guide step: an indicator, or shares of the M·K = 6 votes."""
    seen: list[float] = []

    def kept(key: str, chain: Any) -> None:
        seen.extend(chain.trace[0].log_rewards.ravel())

    compared(tmp_path, ["ets"], settings=replace(SETTINGS, **changed), run={"kept": kept})
    assert {round(value, 9) for value in seen} <= {round(value, 9) for value in weights}
    assert len(set(seen)) == min(2, len(weights)) or len(weights) > 2


def test_costs_are_those_of_one_use_whatever_the_repeats(tmp_path: Path) -> None:
    names = ["plain", "majority", "greedy", "ets"]
    often, records = compared(tmp_path, names, repeats=5, samples=3)
    assert often[0].cost["generated"] == pytest.approx(
        fmean(r["texts"][0]["cost"]["generated"] for key, r in records.items() if key[0].startswith("pool[0:"))
    )
    once, _ = compared(tmp_path / "once", names, samples=3)
    assert [e.cost["positions"] for e in once] == pytest.approx([e.cost["positions"] for e in often], rel=0.3)
    assert without_seconds(once)[2] == without_seconds(often)[2]  # greedy decoding


def test_a_folder_takes_further_budgets_methods_and_settings(tmp_path: Path) -> None:
    names = ["plain", "majority", "ets", "ets-is"]
    few, first = compared(tmp_path, names, [2], samples=3)
    compared(tmp_path, [*names, "beam"], [2, 4], samples=5)
    changed = ({"lam": 0.3}, {"beams": 3}, {"weighing": "other"}, {"base_top_p": 0.9}, {"alpha": 2.0})
    counts = []
    for change in changed:
        again = Ended()
        settings = replace(SETTINGS, **change)
        compared(tmp_path, [*names, "beam", "base"], [2], samples=3, settings=settings, run={"kept": again})
        counts.append(again.chains)
    assert counts == [3 * COUNT, COUNT, COUNT, COUNT, 0]  # ets, ets-is and base; beam; ets-is; base; none
    again_few, records = compared(tmp_path, names, [2], samples=3)
    assert without_seconds(again_few) == without_seconds(few)
    assert timeless(first).items() <= timeless(records).items()


def test_records_are_named_by_the_settings_that_their_method_depends_on(entries: list[Entry]) -> None:
    guided = "rollouts=2-lam=0.2-pool=chain-reward=majority-minimum=None"
    keys = {e.method: e.key.replace(f"{e.method}-{e.size}-", f"{e.method}-N-") for e in entries}
    sizes = {e.method: e.size for e in entries}
    assert {name: keys[name] for name in (*GUIDED, "beam")} == {
        "ets": f"ets-N-{guided}",
        "ets-is": f"ets-is-N-{guided}-weighing=another table",
        "ets-stopped": f"ets-stopped-N-{guided}",
        "retained": f"retained-N-{guided}",
        "refined": "refined-N-lam=0.2-reward=majority-minimum=None",
        "adaptive-majority": f"adaptive-majority-{sizes['adaptive-majority']}",
        "lookahead": f"lookahead-N-{guided}-resample_below=0.5",
        "particles": "particles-N-lam=0.2-reward=majority-minimum=None-resample_below=0.5",
        "power": "power-N-alpha=4.0",
        "beam": "beam-N-beams=2",
    }


def test_a_comparison_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    names = ["plain", "majority", "ets", "lookahead"]
    whole, expected = compared(tmp_path / "whole", names, against="majority", repeats=2)
    for patience in (10, 40, 90):
        with pytest.raises(KeyboardInterrupt):
            compared(tmp_path / "torn", names, against="majority", repeats=2, task=Letters(patience=patience))
    resumed, records = compared(tmp_path / "torn", names, against="majority", repeats=2)
    assert without_seconds(resumed) == without_seconds(whole) and timeless(records) == timeless(expected)


def test_budgets_may_be_amounts(tmp_path: Path) -> None:
    names = ["majority", "ets", "ets-is"]
    found, fixed = (
        named(compared(tmp_path / str(number), names, [30.0], settings=replace(SETTINGS, is_candidates=number))[0])
        for number in (None, 3)
    )
    assert found["ets", "last"].cost["generated"] == pytest.approx(30, abs=6)
    assert found["ets-is", "last"].cost["generated"] == pytest.approx(30, abs=6)
    assert fixed["ets-is", "last"].size == 3 != found["ets-is", "last"].size
    assert found["majority", "last"].cost["generated"] == pytest.approx(30, abs=3)


def test_refined_spends_at_most_the_budget_in_tokens(tmp_path: Path) -> None:
    (last, vote), records = compared(tmp_path, ["refined"], [30.0], repeats=2)
    assert last.label == "refined (30 tokens)" and vote.label == f"{last.label}, vote"
    spent = [record["cost"]["generated"] for record in records.values()]
    assert len(spent) == 2 * COUNT and {key for key, _, _ in records} == {last.key}
    assert max(spent) <= 30 and last.cost["generated"] == fmean(spent) > 26  # a text has up to 4 tokens


def test_masked_diffusion_is_compared_by_computed_positions(tmp_path: Path) -> None:
    names = ["plain", "majority", "ets", "retained", "refined"]
    found = named(compared(tmp_path, names, policy=MASKED_DIFFUSION, currency="positions")[0])
    spent = found["ets", "last"].cost["positions"]
    assert found["majority", "last"].cost["positions"] == pytest.approx(spent, rel=0.25)
    assert found["retained", "last"].cost["positions"] == pytest.approx(spent, rel=0.35)
    assert found["refined", "last"].cost["positions"] == pytest.approx(spent, rel=0.25)
    assert found["refined", "last"].size % 4 == 0  # whole texts


def test_serial_depth_is_of_the_longest_text_and_in_calls_per_token(tmp_path: Path) -> None:
    whole, half = (
        compared(tmp_path / str(calls), ["plain", "majority", "ets", "greedy"], [2], run={"per_token": calls})
        for calls in (1.0, 0.5)
    )
    for one, other in zip(whole[0], half[0], strict=True):
        assert other.cost["depth"] == pytest.approx(one.cost["depth"] / 2), one.label
    majority = named(whole[0])["majority", "last"]
    texts: dict[str, list[int]] = {}
    for (method, problem, _), record in sorted(whole[1].items()):
        if method.startswith("pool["):
            texts.setdefault(problem, []).extend(len(text["tokens"]) for text in record["texts"])
    rows = [row[: majority.size] for row in texts.values()]
    assert majority.size > 1 and any(max(row) > row[0] for row in rows)
    assert majority.cost["depth"] == pytest.approx(fmean(map(max, rows)))


def test_returned_texts_are_those_of_chains_of_the_pool_and_of_choices(tmp_path: Path) -> None:
    """Each with its own grade and reward; the choice among texts has the expectations too."""
    settings = replace(SETTINGS, reward="likelihood-per-token")
    methods = methods_named(["plain", "ets", "best-of-n", "greedy"])
    with Journal(tmp_path, {"seed": 0}) as journal:
        comparison = Comparison(run_of(journal, Letters()), policies(certain()), methods, settings, repeats=2)
        entries = comparison.entries([3])
        returned = list(comparison.returned(entries))
    rows, records = named(entries) | named(entries, None), journal.records
    found = {(each["method"], each["readout"], each["problem"], each["sample"]): each for each in returned}
    for problem in (problem.id for problem in Letters().problems(COUNT, 0)):
        parts = [r for (key, id, n), r in records.items() if (id, n) == (problem, 0) and key.startswith("pool[")]
        pool = sorted(parts, key=lambda part: int(part["method"].split("[")[1].split(":")[0]))
        texts = [text for part in pool for text in part["texts"]][: rows["best-of-n", "last"].size]
        (chain,) = (record for record in of(records, "ets") if (record["problem"], record["sample"]) == (problem, 0))
        best = max(texts, key=lambda text: text["reward"])
        for method, record in (("plain", texts[0]), ("ets", chain), ("best-of-n", best)):
            each = found[rows[method, "last"].key, "last", problem, 0]
            grade = each["chosen"] if method == "best-of-n" else each
            kept = {name: record[name] for name in ("text", "correct", "reward")}
            assert {"text": each["text"], **{n: grade[n] for n in ("correct", "reward")}} == kept, method
            assert ("chosen" in each) == (method == "best-of-n") and each["reward"] == pytest.approx(record["reward"])
        assert found[rows["ets", "vote"].key, "vote", problem, 0]["text"] == chain["vote"]["text"]
        assert "reward" not in found[rows["greedy", "last"].key, "last", problem, 0]  # its text has another law


def test_an_entry_survives_its_json(entries: list[Entry]) -> None:
    for entry in entries:
        values = asdict(entry)
        if entry.ratios is not None:
            values["ratios"] = without_nan(values["ratios"])
        assert str(entry_of(json.loads(json.dumps(values)))) == str(entry)


def test_a_step_function_of_a_user_is_a_method(tmp_path: Path) -> None:
    """At a budget in candidates its M is that number; without K and λ in its signature it takes M alone."""
    file = tmp_path / "own.py"
    file.write_text(
        "from ets.kernel import energy_guided\n"
        "def same(reward, *, candidates, rollouts, lam):\n"
        "    return energy_guided(reward, candidates=candidates, rollouts=rollouts, lam=lam)\n"
        "def fixed(reward, candidates):\n"
        "    return energy_guided(reward, candidates=candidates, rollouts=1, lam=0.3)\n"
    )
    names = ["ets", f"{file}:same", f"{file}:fixed", "majority"]
    found, records = compared(tmp_path / "run", names, against=names[1])
    ets, own, fixed = (named(found)[name, "last"] for name in names[:3])
    assert own.label == "same (M 3, K 2)" and own.scores == ets.scores and own.size == fixed.size == 3
    assert fixed.cost["generated"] < own.cost["generated"] and ets.rival is not None
    file.write_text(file.read_text().replace("rollouts=1", "rollouts=2"))
    _, again = compared(tmp_path / "run", names)
    assert len(again) == len(records) + 2 * COUNT  # another file: both are drawn again, and ETS is not


def test_a_step_function_that_cannot_be_called_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def nothing():\n    pass\nvalue = 3\n")
    for name in ("nothing", "value"):
        with pytest.raises(InputError, match=f"the step function '.*own.py:{name}' takes no reward"):
            compared(tmp_path / "run", [f"{tmp_path}/own.py:{name}"])
