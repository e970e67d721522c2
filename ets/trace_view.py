"""A sampled text and its trace as an HTML fragment for notebooks, and as a few lines for a terminal.

Both views shorten long texts and long traces and count the omitted parts. The trace itself holds everything.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping, Sequence
from itertools import takewhile
from types import MappingProxyType
from typing import Any

import numpy as np

from ets.suffix_moves import log_acceptance
from ets.templates import render
from ets.types import Cost, Step, counted
from ets.weights import effective_sample_size, normalised

TEXT, PIECE, LINE = 4000, 160, 60
"""The most characters of the result's text, of a candidate or rollout, and of a candidate in the terminal."""
STEPS, CANDIDATES, ROLLOUTS = 16, 16, 4
"""The most guide steps, candidates of a step and rollouts of a candidate in a view."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def trace_html(
    text: str,
    answer: Hashable | None,
    trace: Sequence[Step],
    cost: Cost,
    notes: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Return a self-contained HTML fragment without scripts and links, with every text escaped.

    Parameters
    ----------
    text : str
        The sampled generation.
    answer : hashable or None
        Shown unless it is None.
    trace : sequence of Step
        Each step becomes a table of the candidates with new text, log Ê, the probability in proportion to Ê, and
        the folded rollouts.
    cost : Cost
    notes : mapping of str to str
        Further notes by heading; example: ``{"proposal": "mean ratio 0.98 …"}``.
    """
    starts = befores(trace)
    fragment = render(
        "trace.html",
        text=elide(text, TEXT),
        answer=None if answer is None else elide(str(answer), PIECE),
        cost=_cost_line(cost),
        notes=notes,
        steps=[_shown_step(n, trace, starts[n]) for n in _shown_steps(trace)],
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
    """Return the text, answer, cost, and one line for each guide step; the parameters are those of `trace_html`."""
    lines = [elide(text, TEXT), ""]
    if answer is not None:
        lines.append(f"answer: {elide(str(answer), PIECE)}")
    lines.append(f"cost: {_cost_line(cost)}")
    lines += [f"{heading}: {note}" for heading, note in notes.items()]
    starts = befores(trace)
    for n in _shown_steps(trace):
        step = trace[n]
        new = elide(new_text(step.candidates[step.choice].text, starts[n]), LINE)
        shown = f": {new!r}" if step.choice or step.cut is None else ""
        lines += [_omitted(trace)] if n == len(trace) - 1 and len(trace) > STEPS else []
        lines.append(f"{_heading(n, trace)}: {_verdict(step, last=n == len(trace) - 1)}{shown}")
    return "\n".join(lines)


def elide(text: str, limit: int) -> str:
    """Return the text, or both ends of a long text around the number of omitted characters.

    A replacement character stands for each control character, which a terminal would otherwise obey.
    """
    text = _CONTROL.sub("�", text)
    if len(text) <= limit:
        return text
    head, tail = limit - limit // 3, limit // 3
    return f"{text[:head]} […{len(text) - head - tail:,} characters…] {text[-tail:]}"


def befores(trace: Sequence[Step]) -> list[str]:
    """The text at the start of each step: "" and then the chosen candidates' texts; the common start in a move."""
    chosen = ["", *(step.candidates[step.choice].text for step in trace)]
    return [
        before if step.cut is None else _common_start([text.text for text in step.candidates])
        for before, step in zip(chosen, trace, strict=False)
    ]


def _common_start(texts: Sequence[str]) -> str:
    """The longest common beginning."""
    shared = takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    return "".join(letters[0] for letters in shared)


def _shown_steps(trace: Sequence[Step]) -> list[int]:
    """The first steps, and the last one."""
    return [*range(min(STEPS, len(trace) - 1)), len(trace) - 1] if trace else []


def _omitted(trace: Sequence[Step]) -> str:
    return f"… {len(trace) - STEPS - 1} more steps: see .trace"


def new_text(text: str, before: str) -> str:
    """The part of `text` after `before`, or the whole text if it does not continue `before`, as on a canvas.

    A character of several bytes may be incomplete at the end of `before`, and a stop string may have shortened
    the text.
    """
    if before.startswith(text):
        return ""
    complete = before.rstrip("\ufffd")
    return text[len(complete) :] if text.startswith(complete) else text


def _cost_line(cost: Cost) -> str:
    """The costs that are not 0: some engines count no positions."""
    kinds = {"prompt": cost.prompt, "candidates": cost.candidate, "rollouts": cost.rollout, "scored": cost.scored}
    parts = ", ".join(f"{name} {value:,}" for name, value in kinds.items() if value)
    positions = f"{cost.positions:,} positions computed ({parts}), " if parts else ""
    rewarded = f"{counted(cost.rewarded, 'text')} rewarded, " if cost.rewarded else ""
    return f"{cost.generated:,} tokens generated, {positions}{rewarded}{cost.seconds:.2f} s"


def _heading(number: int, trace: Sequence[Step]) -> str:
    """The name of a step: its number, and what a suffix move redraws."""
    step = trace[number]
    if step.cut is not None:
        redrawn = f"the text after guide step {step.cut}" if step.cut else "the whole text"
        return f"step {number + 1}, {redrawn} is redrawn"
    if number and trace[number - 1].cut is not None:
        count = len(step.candidates)
        ends = f"the ends of the last {count} cycles of moves" if count > 1 else "the end of the last cycle of moves"
        return f"step {number + 1}, {'a choice among ' if count > 1 else ''}{ends}"
    return f"guide step {number + 1}"


def _move(step: Step) -> str:
    """The result of a suffix move: its probability of acceptance, and r/λ before and after it."""
    if len(step.candidates) == 1:
        return "the budget ended it"
    proposed = step.choice or 1 + int(np.argmax(step.log_weights[1:]))
    probability = math.exp(log_acceptance(step.log_weights, proposed))
    same = ", the same text again" if step.candidates[proposed].text == step.candidates[0].text else ""
    verdict = f"{'accepted' if step.choice else 'rejected'} (probability of acceptance {probability:.2f})"
    return f"{verdict}, r/λ {step.log_weights[0]:.2f} to {step.log_weights[proposed]:.2f}{same}"


def _verdict(step: Step, last: bool) -> str:
    """The choice, its probability and the effective sample size, in one line."""
    if step.cut is not None:
        return _move(step)
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
        "heading": _heading(number, trace),
        "verdict": _verdict(step, last=number == len(trace) - 1),
        "shares": normalised(step.log_weights),
        "candidates": [(m, _name(step, m), _piece(step.candidates[m].text, before)) for m in shown],
        "rollouts": {
            m: [
                (_piece(rollout.text, step.candidates[m].text), term)
                for rollout, term in zip(step.rollouts[m][:ROLLOUTS], terms[m], strict=False)
            ]
            for m in shown
        },
    }


def _name(step: Step, place: int) -> str:
    return str(place + 1) if step.cut is None else "redrawn" if place else "present"


def _shown_candidates(step: Step) -> list[int]:
    """The chosen candidate and those of largest weight, in their order."""
    largest = np.argsort(-step.log_weights, kind="stable").tolist()
    return sorted([step.choice, *(m for m in largest if m != step.choice)][:CANDIDATES])


def _piece(text: str, before: str) -> str:
    """The new part of a text on one line, shortened, with visible line breaks."""
    return elide(new_text(text, before), PIECE).replace("\n", "↵ ")
