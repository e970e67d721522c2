"""The traces of a run for its report: `traces.jsonl` in the results folder, one JSON line for each chain.

No result depends on a trace. The trace of a chain is written before the chain's record, so every chain that a continued
run reads from the journal has a trace.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import Any

from ets.evaluation.journal import written_to
from ets.evaluation.ranks import ALONE, Ranks
from ets.trace_view import befores, new_text
from ets.types import Chain, Step
from ets.weights import effective_sample_size


def weighs_candidates(trace: Sequence[Step]) -> bool:
    """Whether a chain's guide steps choose among weighed candidates, so that its trace shows more than its text.

    A chain of suffix moves does not: its steps are accepted or rejected, as those of power sampling.
    """
    moves = any(step.cut is not None for step in trace)
    return len(trace) > 1 and not moves and any(len(step.candidates) > 1 for step in trace)


class Traces:
    """A context that writes the traces of some problems' first chains; all processes enter and leave it together.

    Parameters
    ----------
    folder : Path
        The results folder; entering the context makes a missing folder.
    problems : iterable of str
        The ids of the problems with traces; without ids, there is no file.
    ranks : Ranks

    Raises
    ------
    InputError
        On entering the context, if the folder is not writable.
    """

    def __init__(self, folder: Path, problems: Iterable[str], ranks: Ranks = ALONE) -> None:
        self._folder, self._problems, self._ranks = folder, frozenset(problems), ranks
        self._path = folder / ("traces.jsonl" if ranks.first else f"traces-{ranks.rank}.jsonl")

    def __enter__(self) -> Traces:
        with written_to(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._merge_parts()
            self._ranks.wait()  # the other processes open their files after the merge
            self._file = self._path.open("ab") if self._problems else None
        if self._file and self._file.tell():
            self._file.write(b"\n")  # ends a partial line of a killed run; `read_traces` skips empty lines
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file:
            self._file.close()
        if kind is None:
            self._ranks.wait()
            self._merge_parts()

    def _merge_parts(self) -> None:
        """In the first process, append the other processes' files to this process's file and remove them."""
        for path in sorted(self._folder.glob("traces-*.jsonl")) if self._ranks.first else ():
            with self._path.open("ab") as file:
                file.write(b"\n" + path.read_bytes())
            path.unlink()

    def keep(self, key: str, chain: Chain) -> None:
        """Write the chain's trace, if it is one to keep."""
        if self._file and weighs_candidates(chain.trace) and chain.sample == 0 and chain.problem.id in self._problems:
            prompt = chain.problem.prompt if isinstance(chain.problem.prompt, str) else ""
            named = {"method": key, "problem": chain.problem.id, "sample": chain.sample, "prompt": prompt}
            with written_to(self._folder):
                self._file.write(json.dumps({**named, **compact_trace(chain.trace)}).encode() + b"\n")
                self._file.flush()


def read_traces(folder: Path) -> list[dict[str, Any]]:
    """The traces of all processes, sorted by method and problem; the later one of two traces of a chain."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for path in sorted(folder.glob("traces*.jsonl")):
        for line in path.read_bytes().splitlines():
            try:
                trace = json.loads(line)
            except (ValueError, RecursionError):  # an empty line, or a partial line of a killed run
                continue
            if isinstance(trace, dict) and {"method", "problem", "texts", "steps"} <= trace.keys():
                found[trace["method"], trace["problem"]] = trace
    return [found[at] for at in sorted(found, key=lambda at: (at[0], len(at[1]), at[1]))]


def compact_trace(trace: Sequence[Step]) -> dict[str, Any]:
    """A trace as JSON values, with every text once and without the part that repeats the preceding text.

    Returns
    -------
    dict
        `texts` and `steps`; `text`, the produced text, if it is not the chosen texts one after the other. Each step has
        `choice`, `rollout`, `effective` (the weights' effective sample size);
        by candidate `weights` (log Ê, None for -inf), `done` and `texts` (indices); and by candidate and rollout
        `rollouts` (indices of texts; empty for a candidate that is rewarded itself) and `terms` (r/λ + log-ratio).
    """
    texts: dict[str, int] = {}

    def number(text: str, before: str) -> int:
        return texts.setdefault(new_text(text, before), len(texts))

    steps = [_compact_step(step, before, number) for step, before in zip(trace, befores(trace), strict=False)]
    found = list(texts)
    last, pieces = trace[-1], [found[step["texts"][step["choice"]]] for step in steps]
    produced = last.candidates[last.choice]
    if last.rollout is not None:
        produced, start = last.rollouts[last.choice][last.rollout], produced
        pieces.append(new_text(produced.text, start.text))
    joined = {} if "".join(pieces) == produced.text else {"text": produced.text}
    return {"texts": found, "steps": steps, **joined}


def effective_sizes(trace: Sequence[Step]) -> list[float]:
    """The effective sample size of each guide step's weights, up to the first suffix move."""
    weighing = takewhile(lambda step: step.cut is None, trace)
    return [round(effective_sample_size(step.log_weights), 2) for step in weighing]


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
    """Values as JSON, which has no infinity: None for -inf. Weights are never NaN or +inf."""
    return [None if math.isinf(value) else round(value, 3) for value in values]
