"""A sampled text and its trace, to look at: an HTML fragment for notebooks, and a few lines for a terminal.

Long texts lose their middle and long traces their details, so that what is shown stays small; what was left out is
counted. The trace itself holds everything.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from html import escape
from itertools import takewhile
from types import MappingProxyType

import numpy as np

from ets.types import Cost, Step
from ets.weights import effective_sample_size, normalised

TEXT, PIECE, LINE = 4000, 160, 60
"""Characters shown of the result's text, of a candidate or rollout, and of a candidate in the terminal."""
STEPS, CANDIDATES, ROLLOUTS = 16, 16, 4
"""How many guide steps, candidates of a step and rollouts of a candidate are shown."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_STYLE = """<style>
div.ets-trace { font-size: 13px; line-height: 1.4; max-width: 960px; }
div.ets-trace pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 0 6px; padding: 6px 10px;
  background: rgba(127, 127, 127, .12); border-left: 3px solid #2b6cb0; }
div.ets-trace table { border-collapse: collapse; table-layout: auto; width: 100%; margin: 2px 0 4px; }
div.ets-trace th, div.ets-trace td { text-align: right; vertical-align: top; padding: 1px 8px; white-space: nowrap;
  font-weight: normal; }
div.ets-trace th:nth-child(2), div.ets-trace td:nth-child(2) { text-align: left; width: 99%; overflow-wrap: anywhere;
  white-space: pre-wrap; }
div.ets-trace td:nth-child(2) { font-family: monospace; }
div.ets-trace td:nth-child(5) { text-align: left; min-width: 92px; }
div.ets-trace tr.chosen td { font-weight: bold; background: rgba(43, 108, 176, .15); }
div.ets-trace .bar { display: inline-block; height: 9px; background: #2b6cb0; }
div.ets-trace summary { cursor: pointer; }
div.ets-trace .note, div.ets-trace th { opacity: .7; }
</style>"""


def trace_html(
    text: str,
    answer: Hashable | None,
    trace: Sequence[Step],
    cost: Cost,
    notes: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """A self-contained HTML fragment: no script, nothing from the network, every text escaped.

    Parameters
    ----------
    text : str
        The sampled generation.
    answer : hashable or None
        Shown unless it is None.
    trace : sequence of Step
        Each step becomes a table of its candidates: their new text, log Ê, the probability in proportion to Ê,
        and the rollouts, folded away.
    cost : Cost
    notes : mapping of str to str
        What else is to be said, by heading: of a proposal, what its ratios are worth.
    """
    shown = [f"<pre>{escape(elide(text, TEXT))}</pre>"]
    if answer is not None:
        shown.append(f"<div>answer: <b>{escape(elide(str(answer), PIECE))}</b></div>")
    shown.append(_note(_cost_line(cost)))
    shown += [f"<div>{_note(escape(f'{heading}: {said}'))}</div>" for heading, said in notes.items()]
    starts = befores(trace)
    shown += [_step_html(n, trace, starts[n]) for n in range(min(STEPS, len(trace)))]
    if len(trace) > STEPS:
        shown.append(_note(f"… {len(trace) - STEPS} more guide steps: see <code>trace</code>"))
    return f'<div class="ets-trace">{_STYLE}{"".join(shown)}</div>'


def trace_text(
    text: str,
    answer: Hashable | None,
    trace: Sequence[Step],
    cost: Cost,
    notes: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """The text, the answer, the cost, and one line for each guide step: its choice and how the weights spread.

    Takes what `trace_html` takes.
    """
    lines = [elide(text, TEXT), ""]
    if answer is not None:
        lines.append(f"answer: {elide(str(answer), PIECE)}")
    lines.append(f"cost: {_cost_line(cost)}")
    lines += [f"{heading}: {said}" for heading, said in notes.items()]
    for n, (step, before) in enumerate(zip(trace[:STEPS], befores(trace), strict=False)):
        new = elide(new_text(step.candidates[step.choice].text, before), LINE)
        lines.append(f"guide step {n + 1}: {_verdict(step, last=n == len(trace) - 1)}: {new!r}")
    if len(trace) > STEPS:
        lines.append(f"… {len(trace) - STEPS} more guide steps: see .trace")
    return "\n".join(lines)


def elide(text: str, limit: int) -> str:
    """The text itself, or its two ends with the number of characters left out between them.

    Control characters are replaced: a model may well draw one, and a terminal would obey it.
    """
    text = _CONTROL.sub("�", text)
    if len(text) <= limit:
        return text
    head, tail = limit - limit // 3, limit // 3
    return f"{text[:head]} […{len(text) - head - tail:,} characters…] {text[-tail:]}"


def befores(trace: Sequence[Step]) -> list[str]:
    """The text that each step began from: what the step before it chose."""
    return ["", *(step.candidates[step.choice].text for step in trace)]


def new_text(text: str, before: str) -> str:
    """What a text adds to an earlier one, from where the two part: a stop string may have cut some of it off."""
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(text, before, strict=False)))
    return text[shared:]


def _cost_line(cost: Cost) -> str:
    scored = f", scored {cost.scored:,}" if cost.scored else ""
    return (
        f"{cost.generated:,} tokens generated, {cost.positions:,} positions computed (prompt {cost.prompt:,}, "
        f"candidates {cost.candidate:,}, rollouts {cost.rollout:,}{scored}), {cost.rewarded:,} texts rewarded, "
        f"{cost.seconds:.2f} s"
    )


def _verdict(step: Step, last: bool) -> str:
    """What was chosen and how sure the weights were, in one line."""
    count = len(step.candidates)
    pair = "" if step.rollout is None else f", its rollout {step.rollout + 1}"
    chosen = f"chose {step.choice + 1} of {count}{pair}"
    if step.uninformed:
        return f"{chosen}, uniformly: every weight is zero{', so this is no sample of p*' if last else ''}"
    probability = normalised(step.log_weights)[step.choice]
    return f"{chosen} (p {probability:.2f}), effective sample size {effective_sample_size(step.log_weights):.1f}"


def _step_html(number: int, trace: Sequence[Step], before: str) -> str:
    step, verdict = trace[number], _verdict(trace[number], last=number == len(trace) - 1)
    shares, shown = normalised(step.log_weights), _shown_candidates(step)
    rows = [_candidate_row(step, m, new_text(step.candidates[m].text, before), shares[m]) for m in shown]
    left_out = len(step.candidates) - len(shown)
    more = _note(f"… {left_out} more candidates, of smaller weight") if left_out else ""
    rollouts = [row for m in shown for row in _rollout_rows(step, m)]
    heading = "r/λ + log ratio" if np.any(step.log_ratios) else "r/λ"
    return (
        f"<details open><summary>guide step {number + 1} of {len(trace)}: {verdict}</summary>"
        f"{_table(('', 'new text', 'log Ê', 'p', ''), rows)}{more}"
        f"<details><summary>{step.log_rewards.size} rollouts</summary>"
        f"{_table(('', 'goes on with', heading), rollouts)}</details></details>"
    )


def _shown_candidates(step: Step) -> list[int]:
    """The chosen candidate and those of largest weight, in their order."""
    largest = np.argsort(-step.log_weights, kind="stable").tolist()
    return sorted([step.choice, *(m for m in largest if m != step.choice)][:CANDIDATES])


def _candidate_row(step: Step, m: int, new: str, share: float) -> str:
    chosen = m == step.choice
    bar = f'<span class="bar" style="width:{max(1, round(90 * share))}px"></span>' if share > 0 else ""
    cells = (f"{'► ' if chosen else ''}{m + 1}", _piece(new), _number(step.log_weights[m]), f"{share:.2f}", bar)
    return _row(cells, "chosen" if chosen else "")


def _rollout_rows(step: Step, m: int) -> list[str]:
    candidate, rollouts, log_rewards = step.candidates[m], step.rollouts[m], step.log_rewards[m]
    if candidate.done:
        return [_row((str(m + 1), _note("nothing: it is complete"), _number(log_rewards[0])))]
    terms = log_rewards + step.log_ratios[m]
    rows = [
        _row((str(m + 1), _piece(new_text(rollout.text, candidate.text)), _number(value)))
        for rollout, value in zip(rollouts[:ROLLOUTS], terms, strict=False)
    ]
    left_out = len(rollouts) - len(rows)
    return [*rows, _row((str(m + 1), _note(f"… {left_out} more"), ""))] if left_out else rows


def _table(headings: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f"<th>{heading}</th>" for heading in headings)
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _row(cells: Sequence[str], name: str = "") -> str:
    return f'<tr class="{name}">{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _note(text: str) -> str:
    return f'<span class="note">{text}</span>'


def _piece(text: str) -> str:
    """A short text on one line, with its line breaks visible."""
    return escape(elide(text, PIECE)).replace("\n", "↵ ") or _note("nothing")


def _number(value: float) -> str:
    return "−∞" if np.isneginf(value) else f"{value:.2f}"
