"""The traces that a run keeps, for its report: `traces.jsonl` beside the journal, one JSON line for each chain.

They are there to be looked at, and no result depends on them. A trace is written before its chain's record, so a chain
that an interrupted run goes on from has its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ets.evaluation.journal import written_to
from ets.evaluation.ranks import ALONE, Ranks
from ets.trace_view import befores, new_text
from ets.types import Chain, Step
from ets.weights import effective_sample_size


def weighs_candidates(trace: Sequence[Step]) -> bool:
    """Whether a chain's guide steps choose among weighed candidates, so that its trace shows more than its text."""
    return len(trace) > 1 and any(len(step.candidates) > 1 for step in trace)


class Traces:
    """Keeps the traces of some problems' first chains. A context, which several processes enter and leave together.

    Parameters
    ----------
    folder : Path
        The results folder, made if there is none.
    problems : iterable of str
        The ids of the problems whose traces are kept; without any, there is no file.
    ranks : Ranks

    Raises
    ------
    InputError
        When it is entered, if nothing can be written there.
    """

    def __init__(self, folder: Path, problems: Iterable[str], ranks: Ranks = ALONE) -> None:
        self._folder, self._problems, self._ranks = folder, frozenset(problems), ranks
        self._path = folder / ("traces.jsonl" if ranks.first else f"traces-{ranks.rank}.jsonl")

    def __enter__(self) -> Traces:
        with written_to(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._take_in_parts()
            self._ranks.wait()  # before others write to theirs again
            self._file = self._path.open("ab") if self._problems else None
        if self._file and self._file.tell():
            self._file.write(b"\n")  # ends a line that was torn; an empty one is no trace
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file:
            self._file.close()
        if kind is None:
            self._ranks.wait()
            self._take_in_parts()

    def _take_in_parts(self) -> None:
        """The first process takes in what the others have written, now or before they were killed."""
        for path in sorted(self._folder.glob("traces-*.jsonl")) if self._ranks.first else ():
            with self._path.open("ab") as file:
                file.write(b"\n" + path.read_bytes())
            path.unlink()

    def keep(self, key: str, chain: Chain) -> None:
        """Write the chain's trace, if it is one to keep."""
        if self._file and weighs_candidates(chain.trace) and chain.sample == 0 and chain.problem.id in self._problems:
            prompt = chain.problem.prompt if isinstance(chain.problem.prompt, str) else ""
            named = {"method": key, "problem": chain.problem.id, "sample": chain.sample, "prompt": prompt}
            self._file.write(json.dumps({**named, **compact(chain.trace)}).encode() + b"\n")
            self._file.flush()


def read_traces(folder: Path) -> list[dict[str, Any]]:
    """What all processes have kept, sorted by method and problem; of a chain that was traced twice, the later one."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for path in sorted(folder.glob("traces*.jsonl")):
        for line in path.read_bytes().splitlines():
            try:
                trace = json.loads(line)
            except ValueError:  # torn when a run was killed, or empty
                continue
            found[trace["method"], trace["problem"]] = trace
    return [found[at] for at in sorted(found, key=lambda at: (at[0], len(at[1]), at[1]))]


def compact(trace: Sequence[Step]) -> dict[str, Any]:
    """A trace as JSON values: every text once, and each as what it adds to the one before it.

    Returns
    -------
    dict
        `texts`, and `steps`, each with `choice` and `rollout`; by candidate `weights` (log Ê, None for -inf), `done`,
        `texts` (numbers of texts) and `effective`, the weights' effective sample size; and by candidate and rollout
        `rollouts` (numbers of texts; none for a candidate that is complete, or is judged itself) and `terms` (r/λ and
        log-ratio together).
    """
    texts: dict[str, int] = {}

    def number(text: str, before: str) -> int:
        return texts.setdefault(new_text(text, before), len(texts))

    steps = [_compact_step(step, before, number) for step, before in zip(trace, befores(trace), strict=False)]
    return {"texts": list(texts), "steps": steps}


def effective_sizes(trace: Sequence[Step]) -> list[float]:
    """The effective sample size of each guide step's weights."""
    return [round(effective_sample_size(step.log_weights), 2) for step in trace]


def _compact_step(step: Step, before: str, number: Callable[[str, str], int]) -> dict[str, Any]:
    rows = list(zip(step.candidates, step.rollouts, strict=True))
    terms = step.log_rewards + step.log_ratios
    itself = [all(rollout.tokens == candidate.tokens for rollout in row) for candidate, row in rows]
    return {
        "choice": step.choice,
        "rollout": step.rollout,
        "effective": effective_sizes([step])[0],
        "weights": _rounded(step.log_weights.tolist()),
        "done": [int(candidate.done) for candidate in step.candidates],
        "texts": [number(candidate.text, before) for candidate in step.candidates],
        "rollouts": [
            [] if judged else [number(rollout.text, candidate.text) for rollout in row]
            for (candidate, row), judged in zip(rows, itself, strict=True)
        ],
        "terms": [_rounded(row[:1] if judged else row) for judged, row in zip(itself, terms.tolist(), strict=True)],
    }


def _rounded(values: Sequence[float]) -> list[float | None]:
    """JSON has no infinity; weights are never NaN or +inf."""
    return [None if math.isinf(value) else round(value, 3) for value in values]
