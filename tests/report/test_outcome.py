"""The sentences on top of a report, and the symbols below its table."""

from __future__ import annotations

import re
from dataclasses import replace

from ets.report.charts import Bar, bars
from ets.report.outcome import sentences, symbols
from ets.report.tables import interval, table
from tests.report.test_tables import ENTRIES, SETTING, entry

ETS, PLAIN = replace(entry("ets", 0.8), target="p*"), entry("plain", 0.3, budget=None)


def test_the_outcome_names_the_task_both_methods_their_difference_and_the_highest() -> None:
    asked, found, highest = sentences([entry("majority", 0.9), ETS, PLAIN], replace(SETTING, reward="majority"))
    assert (
        asked == "200 problems of letters, 4 samples of each, by the model a model, with the reward majority and λ 0.1."
    )
    shares = [f"{share.mean:.1%} ({share.low:.1%} to {share.high:.1%})" for share in map(interval, (ETS, PLAIN))]
    assert found.startswith(f"ets of 5 reaches accuracy {shares[0]}, plain sampling {shares[1]};")
    assert re.search(r"paired by problem, the difference is \+50\.0 points \(\+4\d\.\d to \+5\d\.\d\)\.$", found)
    assert highest.startswith("The highest observed accuracy is that of majority of 5: 90.0% (")


def test_a_difference_of_few_problems_is_not_significant() -> None:
    found = sentences([replace(ETS, scores=entry("ets", 0.32).scores), PLAIN], SETTING)[1]
    assert found.endswith(", not significantly different.")


def test_without_plain_sampling_the_outcome_is_the_highest() -> None:
    assert sentences(ENTRIES[:3], SETTING)[1].startswith("The highest observed accuracy is that of ets of 5: 80.0% (")
    assert sentences([], SETTING) == []


def test_every_symbol_of_a_table_has_a_line_and_no_other() -> None:
    text = table([replace(ETS, label="ETS (M 8, K 3)"), PLAIN], replace(SETTING, against=None))
    assert [name for name, _ in symbols(f"lam 0.1\n{text}")] == [
        "M", "K", "λ", "p*", "target", "avg@", "tokens", "positions", "serial depth",
    ]  # fmt: skip
    assert symbols("nothing") == []


def test_bars_start_at_0_and_their_intervals_stay_inside() -> None:
    found = bars([Bar("<a>", 50, 25, 75, "50%", "9 tokens"), Bar("b", 100, 90, 100, "100%", "9 tokens", True)], 100)
    assert "left: 0.00%; width: 50.00%" in found and "left: 25.00%; width: 50.00%" in found
    assert "&lt;a&gt;" in found and found.count('class="marked"') == 1
    below = bars([Bar("c", -1, -2, 2, "-1", "")])
    assert "left: 25.00%; width: 25.00%" in below and "left: 0.00%; width: 100.00%" in below
    assert bars([]) == ""
