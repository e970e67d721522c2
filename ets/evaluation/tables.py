"""Rows as a table for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from ets.evaluation.evaluate import Row


def table(rows: Sequence[Row]) -> str:
    """A Markdown table with aligned columns, readable as it is; row-forwards are a column of masked diffusion alone."""
    forwards = any(row.row_forwards for row in rows)
    names = ("tokens", "positions", *(("row-forwards",) if forwards else ()), "seconds")
    costs = (f"{cost}/{unit(rows)}" for cost in names)
    return aligned([("method", score_name(rows), "95% interval", *costs), *(_cells(row, forwards) for row in rows)])


def score_name(rows: Sequence[Row]) -> str:
    """What the accuracies are: pass@1, or avg@k."""
    return "pass@1" if rows[0].repeats == 1 else f"avg@{rows[0].repeats}"


def unit(rows: Sequence[Row]) -> str:
    """What the costs are for: a problem, or one of its k samples."""
    return "problem" if rows[0].repeats == 1 else "sample"


def score_table(rows: Sequence[Row], scorer: str) -> str:
    """A table of the rows' further scores, whose headings name who scored; empty if there are none.

    Rows without further scores, such as the vote over a method's rollouts, are left out.
    """
    rows = [row for row in rows if row.scores]
    if not rows:
        return ""
    names = list(rows[0].scores)
    headings = ("method", *(f"{scorer}: {name}" for name in names))
    return aligned([headings, *((row.label, *(f"{row.scores[name]:.1%}" for name in names)) for row in rows)])


def ratio_lines(rows: Sequence[Row]) -> str:
    """Lines for each row with importance ratios or a target of its own: which that is, and what ratios are worth."""
    lines = []
    for row in rows:
        if row.target:
            lines.append(target_line(row.label, row.target))
        if row.ratios and row.ratios.rollouts:
            lines.append(f"{row.label}: {row.ratios}")
    return "\n".join(lines)


def target_line(label: str, target: str) -> str:
    """Which law a method's draws are weighed towards."""
    return f"{label}: its target is {target}"


def approximate_lines(reason: str) -> list[str]:
    """A line that says why the draws are not exactly those of the law, if there is a reason."""
    return [f"approximate: {reason}"] if reason else []


def aligned(cells: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table of lines of cells, the first of them the headings; all columns but the first to the right."""
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = [_line(line, widths) for line in cells]
    rule = "| " + " | ".join("-" * w if n == 0 else "-" * (w - 1) + ":" for n, w in enumerate(widths)) + " |"
    return "\n".join([lines[0], rule, *lines[1:]])


def _cells(row: Row, forwards: bool) -> tuple[str, ...]:
    share = row.accuracy
    return (
        row.label,
        f"{share.mean:.1%}",
        f"{share.low:.1%} to {share.high:.1%}",
        f"{row.generated:,.0f}",
        f"{row.positions:,.0f}",
        *((f"{row.row_forwards:,.0f}",) if forwards else ()),
        f"{row.seconds:.2f}",
    )


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [cell.ljust(w) if n == 0 else cell.rjust(w) for n, (cell, w) in enumerate(zip(cells, widths, strict=True))]
    return "| " + " | ".join(padded) + " |"
