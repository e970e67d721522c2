"""A sampled text and its trace, to look at: an HTML fragment for notebooks, and a few lines for a terminal.

Long texts lose their middle and long traces their details, so that what is shown stays small; what was left out is
counted. The trace itself holds everything.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from itertools import takewhile
from types import MappingProxyType
from typing import Any

import numpy as np

from ets.templates import render
from ets.types import Cost, Step
from ets.weights import effective_sample_size, normalised

TEXT, PIECE, LINE = 4000, 160, 60
"""Characters shown of the result's text, of a candidate or rollout, and of a candidate in the terminal."""
STEPS, CANDIDATES, ROLLOUTS = 16, 16, 4
"""How many guide steps, candidates of a step and rollouts of a candidate are shown."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


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
    starts = befores(trace)
    fragment = render(
        "trace.html",
        text=elide(text, TEXT),
        answer=None if answer is None else elide(str(answer), PIECE),
        cost=_cost_line(cost),
        notes=notes,
        steps=[_shown_step(n, trace, starts[n]) for n in range(min(STEPS, len(trace)))],
        total=len(trace),
    )
    return str(fragment)  # no Markup, so that callers can append HTML to it


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


def _shown_step(number: int, trace: Sequence[Step], before: str) -> dict[str, Any]:
    """The values of a step that the template shows: its verdict, candidates, probabilities and rollouts."""
    step = trace[number]
    shown, terms = _shown_candidates(step), step.log_rewards + step.log_ratios
    return {
        "step": step,
        "verdict": _verdict(step, last=number == len(trace) - 1),
        "shares": normalised(step.log_weights),
        "candidates": [(m, _piece(step.candidates[m].text, before)) for m in shown],
        "rollouts": {
            m: [
                (_piece(rollout.text, step.candidates[m].text), term)
                for rollout, term in zip(step.rollouts[m][:ROLLOUTS], terms[m], strict=False)
            ]
            for m in shown
        },
    }


def _shown_candidates(step: Step) -> list[int]:
    """The chosen candidate and those of largest weight, in their order."""
    largest = np.argsort(-step.log_weights, kind="stable").tolist()
    return sorted([step.choice, *(m for m in largest if m != step.choice)][:CANDIDATES])


def _piece(text: str, before: str) -> str:
    """The new part of a text on one line, shortened, with visible line breaks."""
    return elide(new_text(text, before), PIECE).replace("\n", "↵ ")
