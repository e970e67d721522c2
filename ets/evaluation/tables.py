"""Rows as Markdown tables, which are readable in a terminal too."""

from __future__ import annotations

from collections.abc import Sequence

from ets.evaluation.evaluate import Row


def table(rows: Sequence[Row]) -> str:
    """A Markdown table with aligned columns; masked diffusion has a column of row-forwards."""
    forwards = any(row.row_forwards for row in rows)
    names = ("tokens", "positions", *(("row-forwards",) if forwards else ()), "seconds")
    costs = (f"{cost}/{unit(rows)}" for cost in names)
    return aligned([("method", score_name(rows), "95% interval", *costs), *(_cells(row, forwards) for row in rows)])


def score_name(rows: Sequence[Row]) -> str:
    """The accuracies' name: pass@1, or avg@k."""
    return "pass@1" if rows[0].repeats == 1 else f"avg@{rows[0].repeats}"


def unit(rows: Sequence[Row]) -> str:
    """The unit that costs are given for: a problem, or with avg@k a sample."""
    return "problem" if rows[0].repeats == 1 else "sample"


def score_table(rows: Sequence[Row], scorer: str) -> str:
    """A table of the rows that have further scores, under headings that name the scorer; "" without any."""
    rows = [row for row in rows if row.scores]
    names = list(rows[0].scores) if rows else []
    headings = ("method", *(f"{scorer}: {name}" for name in names))
    lines = [(row.label, *(f"{row.scores[name]:.1%}" for name in names)) for row in rows]
    return aligned([headings, *lines]) if rows else ""


def ratio_lines(rows: Sequence[Row]) -> str:
    """A line for each target that is not the policy's law, and for each row's importance ratios."""
    lines = []
    for row in rows:
        if row.target:
            lines.append(target_line(row.label, row.target))
        if row.ratios and row.ratios.rollouts:
            lines.append(f"{row.label}: {row.ratios}")
    return "\n".join(lines)


def target_line(label: str, target: str) -> str:
    """The law that a method's draws are weighed towards."""
    return f"{label}: its target is {target}"


def approximate_lines(reason: str) -> list[str]:
    """The reason why the draws do not follow the law exactly, if there is a reason."""
    return [f"approximate: {reason}"] if reason else []


def aligned(cells: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table; the first line of cells is the heading, and all columns except the first align right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

    def line(cells: Sequence[str]) -> str:
        rest = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        return f"| {' | '.join((cells[0].ljust(widths[0]), *rest))} |"

    rule = line(("-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])))
    return "\n".join([line(cells[0]), rule, *map(line, cells[1:])])


def _cells(row: Row, forwards: bool) -> tuple[str, ...]:
    share = row.accuracy
    costs = [row.generated, row.positions, *([row.row_forwards] if forwards else [])]
    shown = (f"{cost:,.0f}" for cost in costs)
    return row.label, f"{share.mean:.1%}", f"{share.low:.1%} to {share.high:.1%}", *shown, f"{row.seconds:.2f}"
