"""The text of a comparison."""

from __future__ import annotations

import math
import re
from dataclasses import replace

from ets.diagnostics import RatioSummary
from ets.evaluation.comparison import Entry, Rival
from ets.evaluation.curves import CurvePoint
from ets.evaluation.intervals import Accuracy
from ets.evaluation.objective import Reference
from ets.report.tables import Setting, further_table, markdown, settings_line, summary, table

SETTING = Setting("letters", "a model", 200, 4, "generated", "majority", ("a note",), {"lam": 0.1, "top_k": None})


def scores(mean: float) -> dict[str, float]:
    """200 problems, a share of which is solved: the first ones."""
    return {f"p{n}": float(n < 200 * mean) for n in range(200)}


def entry(method: str, mean: float, *, budget: int | None = 0, readout: str = "last", spent: float = 100.0) -> Entry:
    """With its rival: majority voting, right in half of the problems."""
    cost = {"generated": spent, "positions": 2 * spent, "row_forwards": 0.0, "seconds": 0.5}
    cost |= {"reward_seconds": 0.0, "depth": 40.0}
    label = f"{method} of 5" + (", vote" if readout == "vote" else "")
    rival = None if method == "majority" else Rival("majority of 6", 100.0, scores(0.5))
    return Entry(budget, method, readout, label, 5, scores(mean), cost, 4, rival=rival)


ENTRIES = [
    entry("majority", 0.5),
    entry("ets", 0.8),
    entry("ets", 0.52, readout="vote"),
    entry("plain", 0.3),
    entry("greedy", 0.5, budget=None),
    entry("majority", 0.6, budget=1, spent=200),
    entry("ets", 0.6, budget=1, spent=210),
]


def test_every_budget_has_its_table_and_searches_stand_in_all() -> None:
    text = markdown(ENTRIES, SETTING)
    assert text.startswith("letters, model a model: 200 problems, 4 samples of each. lam 0.1\n")
    assert text.count("greedy of 5") == 2 * 2  # table and summary, twice
    assert "### Budget 1: about 100 tokens a problem" in text and "### Budget 2: about 210 tokens a problem" in text
    assert "one in twenty would find a difference by chance" in text


def test_a_budget_that_was_given_in_tokens_is_the_heading() -> None:
    text = markdown(ENTRIES, replace(SETTING, amounts=(100.0, 1500.0)))
    assert "### Budget 1: 100 tokens a problem" in text and "### Budget 2: 1,500 tokens a problem" in text
    assert "about" not in text and "| tokens |" in text
    assert "### Budget: 0.5 tokens a problem\n" in markdown(ENTRIES[:2], replace(SETTING, amounts=(0.5,)))


def test_a_budget_that_leaves_one_candidate_has_a_line() -> None:
    single = replace(ENTRIES[1], size=1, label="ETS (M 1, K 1)")
    voted = replace(ENTRIES[2], size=1, label="ETS (M 1, K 1), vote")
    found = [line for line in markdown([*ENTRIES[:1], single, voted], SETTING).splitlines() if "candidate" in line]
    remedy = "one candidate leaves no choice, so that its text is plain sampling; raise the budget"
    assert found == [f"note: ETS (M 1, K 1): {remedy}"]
    assert markdown([single, *ENTRIES[5:]], SETTING).count("one candidate leaves no choice") == 1
    assert "candidate" not in markdown(ENTRIES, SETTING)


def test_differences_are_paired_with_the_rival_at_equal_cost() -> None:
    lines = table(ENTRIES[:4], SETTING).splitlines()
    assert "minus majority at equal cost, points" in lines[0] and "row-forwards" not in lines[0]
    assert "+30.0 (+23.2 to +36.2), majority of 6" in lines[3]
    assert lines[2].split("|")[5].strip() == ""


def test_every_table_names_its_reward_and_the_target_of_each_row() -> None:
    named = [replace(each, target="p*" if each.method == "ets" else "p_ref") for each in ENTRIES]
    text = markdown(named, replace(SETTING, reward="majority"))
    assert text.count("\n\nReward of all rows: majority\n\n| method ") == 2
    targets = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in table(named, SETTING).splitlines()}
    assert targets["method"] == "target" and targets["ets of 5, vote"] == "p*" and targets["plain of 5"] == "p_ref"
    assert "Reward" not in markdown(ENTRIES, SETTING) and "mean reward" not in text


def test_rewards_have_a_mean_with_its_interval_and_a_paired_difference() -> None:
    """All problems differ from the rival by 0.25: a narrow interval, whatever the spread of the rewards."""
    rewards = {problem: float(n % 3) for n, problem in enumerate(scores(1))}
    rival = Rival("majority of 6", 100.0, scores(0.5), {problem: value - 0.25 for problem, value in rewards.items()})
    forbidden = replace(ENTRIES[1], rewards={**rewards, "p0": -math.inf}, rival=rival)
    shown = [replace(ENTRIES[1], rewards=rewards, rival=rival), forbidden, ENTRIES[3]]
    headings, _, *lines = [line.split("|") for line in table(shown, SETTING).splitlines()]
    place = [heading.strip() for heading in headings].index("mean reward")
    assert headings[place + 1].strip() == "minus majority at equal cost, reward"
    cells = [[cell.strip() for cell in line[place : place + 2]] for line in lines]
    assert cells[0] == ["0.995 (0.880 to 1.110)", "+0.250 (+0.243 to +0.252)"]
    assert cells[1:] == [["-inf", ""], ["", ""]]
    assert "mean reward" not in table(ENTRIES, SETTING)


def test_rewards_of_which_none_differs_have_no_interval_of_their_difference() -> None:
    """Nothing says how far rewards may differ; a mean reward of 0 keeps its interval."""
    rewards = dict.fromkeys(scores(1), 0.0)
    same = replace(ENTRIES[1], rewards=rewards, rival=Rival("majority of 6", 100.0, scores(0.5), rewards))
    shown = table([same], SETTING)
    assert "+0.000 (no problem differs)" in shown and "0.000 (0.000 to 0.000)" in shown


def test_the_curves_are_a_table_of_their_own() -> None:
    points = [CurvePoint(k, Accuracy(0.5, 0.4, 0.6), Accuracy(0.25, 0.2, 0.3)) for k in (1, 2)]
    lines = markdown(ENTRIES, SETTING, points).splitlines()
    assert "| 2 | 50.0% (40.0% to 60.0%) | 25.0% (20.0% to 30.0%) |" in lines
    assert "pass@k" not in markdown(ENTRIES, SETTING)


def test_the_summary_names_verdicts_and_unequal_costs() -> None:
    assert summary([*ENTRIES[:5], entry("beam", 0.7, spent=390)], SETTING).splitlines() == [
        "- Better than majority at equal cost: ets of 5; beam of 5 (at 3.90 times its tokens).",
        "- Worse than majority at equal cost: plain of 5.",
        "- Not significantly different from majority at equal cost: ets of 5, vote; greedy of 5.",
    ]


def test_methods_that_differ_on_few_problems_have_no_verdict() -> None:
    """52% against 50% of 200 problems is 4 problems, all of them one way: the bootstrap alone would call it better."""
    assert summary([ENTRIES[2]], SETTING).startswith("- Not significantly different")


def test_rounding_errors_are_no_difference() -> None:
    close = Entry(0, "ets", "last", "ets", 1, dict.fromkeys(scores(1), 1 - 1e-16), ENTRIES[0].cost, 4)
    rival = Rival("majority", 100.0, dict.fromkeys(scores(1), 1 + 2e-16))
    assert "+0.0 (-1.4 to +1.4)" in table([replace(close, rival=rival)], SETTING)


def test_one_budget_has_no_headings_and_no_caveat_without_a_rival() -> None:
    alone = replace(SETTING, against=None, repeats=1)
    text = markdown([replace(each, rival=None) for each in ENTRIES[:2]], alone)
    assert "1 sample of each" in text and "pass@1" in text and text.endswith("\n\na note")
    assert "###" not in text and "minus" not in text and "by chance" not in text and "Better" not in text


def test_ratios_and_further_scores_follow_the_table() -> None:
    ratios = RatioSummary(6, 0.5, 1.0, 0.1, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0)
    guided = replace(ENTRIES[1], further={"exact_match": 0.25}, ratios=ratios)
    voted = replace(ENTRIES[2], further={"exact_match": 0.75})
    text = markdown([guided, voted], SETTING)
    assert f"\n\nets of 5: {ratios}\n\n" in text and "| exact_match |" in text
    assert "lm-eval: exact_match" in markdown([guided, voted], replace(SETTING, shown={"lm_eval": "0.4.13"}))
    assert further_table([guided, voted]).count("\n") == 2 and "25.0%" in further_table([guided, voted])
    assert further_table(ENTRIES) == ""


def test_a_cost_that_no_entry_has_is_no_column() -> None:
    headings = table(ENTRIES, SETTING).splitlines()[0]
    assert "seconds" in headings and "reward seconds" not in headings and "row-forwards" not in headings


def rewarded(method: str, mean: float, *, budget: int | None = 0) -> Entry:
    """Without right answers: 200 rewards around a mean, and a rival that is lower by 0.1 everywhere."""
    rewards = {problem: mean + 0.05 * (n % 3 - 1) for n, problem in enumerate(scores(1))}
    lower = {problem: value - 0.1 for problem, value in rewards.items()}
    rival = Rival("one-step ETS (6)", 100.0, {}, lower)
    return replace(entry(method, 0.5, budget=budget), scores={}, rewards=rewards, rival=rival)


def test_without_right_answers_the_mean_reward_compares() -> None:
    shown, setting = [rewarded("ets", -0.3), rewarded("plain", -0.5)], replace(SETTING, against="one-step")
    headings, _, first, _ = [[cell.strip() for cell in row.split("|")] for row in table(shown, setting).splitlines()]
    assert headings[1:5] == ["method", "target", "mean reward", "minus one-step at equal cost, reward"]
    assert first[4] == "+0.100 (+0.097 to +0.101), one-step ETS (6)"
    assert summary(shown, setting) == "- Better than one-step at equal cost: ets of 5; plain of 5."
    text = markdown(shown, setting)
    assert not any(word in text for word in ("pass@", "avg@", "points", "interval |"))
    forbidden = replace(shown[0], rewards={**shown[0].rewards, "p0": -math.inf})
    assert summary([forbidden], setting) == "" and "-inf" in table([forbidden], setting)


def test_the_objective_has_a_column_and_p_star_a_line() -> None:
    reference = Reference(0.5, {"p0": [0.0] * 5 + [1.0] * 5, "p1": [0.0] * 10})
    found = reference.objective({"p0": 0.5, "p1": 0.25})
    assert found is not None
    text = markdown([replace(ENTRIES[0], objective=found), ENTRIES[1]], SETTING, (), reference.optimum)
    assert "| E[r] - λ KL, at most |" in re.sub(" +", " ", text)
    assert f"{found.mean:.3f} ({found.low:.3f} to {found.high:.3f})" in text
    assert str(reference.optimum) in text and "10 texts of p_ref a problem" in text
    assert "λ KL" not in markdown(ENTRIES, SETTING)


def test_the_line_before_a_run_names_what_decides_it() -> None:
    shown = {"temperature": 1.9, "block_size": 16, "max_length": 96, "seed": 0, "rollouts": 3, "lam": 0.1}
    asked = replace(SETTING, task="arithmetic", shown=shown, reward="majority")
    line = (
        "arithmetic, 200 problems: λ 0.1, temperature 1.9, M 2, 4, K 3, block_size 16, max_length 96, reward majority"
    )
    assert settings_line(asked, [2, 4]) == line
    assert "temperature 1.9, 900 tokens a problem, K 3" in settings_line(replace(asked, amounts=(900.0,)), [])
    assert settings_line(SETTING, [8]) == "letters, 200 problems: M 8, λ 0.1"
