"""How probable a recorded path is to a masked-diffusion policy: what importance weights between samplers are made of.

A path is the denoising steps from one state to a later one: the canvas before each, the positions S that it revealed,
and their tokens v_S. All of it stands in the later state (`tokens`, `path`), whoever drew it; the log-probabilities as
drawn stand in its `step_logps`. Since a path is known afterwards, its canvases are read together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from ets.policies.diffusion.canvas import Canvas, CanvasState, Ints, Memory, alike, canvas_before, equally_masked
from ets.policies.diffusion.denoise import Turn
from ets.policies.diffusion.policy import MaskedDiffusionPolicy
from ets.policies.diffusion.remasking import RULES, at_tokens
from ets.types import Cost, Floats, InputError


@dataclass(frozen=True)
class PathStep:
    """One denoising step of a path.

    Parameters
    ----------
    prompt : tuple of int
    canvas : tuple of int
        Before the step `[gen_length]`.
    step : int
        Its number.
    positions, tokens : tuple of int
        What it revealed, from left to right.
    """

    prompt: tuple[int, ...]
    canvas: tuple[int, ...]
    step: int
    positions: tuple[int, ...]
    tokens: tuple[int, ...]


def path_steps(start: CanvasState, end: CanvasState, mask_id: int) -> list[PathStep]:
    """The denoising steps that led from a state to a later one.

    Raises
    ------
    InputError
        If the one does not lead to the other.
    """
    tokens, path = np.array(end.tokens), np.array(end.path)
    origin = canvas_before(tokens, path, start.step, mask_id)
    if start.prompt != end.prompt or start.tokens != tuple(origin.tolist()):
        raise InputError(f"no path leads from canvas {start.tokens} to {end.tokens}; give a state and what it became")
    steps = []
    for step in sorted({int(n) for n in path if n >= start.step}):
        places = np.flatnonzero(path == step)
        canvas = tuple(canvas_before(tokens, path, step, mask_id).tolist())
        steps.append(PathStep(start.prompt, canvas, step, tuple(places.tolist()), tuple(tokens[places].tolist())))
    return steps


@dataclass(frozen=True, eq=False)
class PathProbability:
    """What a policy says of one path.

    Parameters
    ----------
    tokens : array
        `[n]`, of each of its n steps Σ_{i∈S} log p_i(v_i | x).
    positions : array
        `[n]`, of each step the position term: -∞ where the rule cannot reveal S. 0 where it was not asked for.
    cost : Cost
        Positions as `scored`; a canvas that several paths share is charged to the first.
    """

    tokens: Floats
    positions: Floats
    cost: Cost


@torch.inference_mode()
def path_probabilities(
    policy: MaskedDiffusionPolicy, paths: Sequence[Sequence[PathStep]], *, positions: bool = True
) -> list[PathProbability]:
    """Log-probabilities of paths under a policy's exact model, each different canvas read once, whole.

    Parameters
    ----------
    policy : MaskedDiffusionPolicy
        Its temperature, guidance, rule and schedule are those of the law; a cache that it may have is not used.
    paths : sequence of sequences of PathStep
        As many as one likes, of any lengths.
    positions : bool
        Whether to compute the position terms too. They need the logits at every masked position of the block; without
        them only those at S are computed.

    Raises
    ------
    InputError
        At temperature 0, where no ratio exists; for a position outside the policy's active block.
    """
    if policy.unmasking.temperature == 0:
        raise InputError("at temperature 0 a path has probability 0 or 1, and no ratio exists; raise the temperature")
    items = [_Item(path, n, step) for path, steps in enumerate(paths) for n, step in enumerate(steps)]
    canvases = list(_distinct(policy, items, positions))
    found = [np.zeros((len(steps), 2)) for steps in paths]
    costs = [Cost() for _ in paths]
    score = partial(_score, policy=policy, items=items, positions=positions, found=found, costs=costs)

    def read_and_score(chunk: Sequence[Canvas]) -> None:
        policy.reader.read(chunk)
        for batch in equally_masked(chunk):
            copies = max(len(canvas.rows) for canvas in batch) if positions else 1
            policy.memory_limit.in_chunks(batch, policy.reader.bytes_of_logits(batch[0], copies), score)
        for canvas in chunk:
            canvas.memory.hidden = None  # of all canvases together it would be gigabytes

    for batch in alike(canvases):
        policy.memory_limit.in_chunks(batch, max(map(policy.reader.bytes_to_read, batch)), read_and_score)
    policy.reader.ledger += Cost.total(costs)
    return [PathProbability(logps[:, 0], logps[:, 1], cost) for logps, cost in zip(found, costs, strict=True)]


@dataclass(frozen=True, eq=False)
class _Item:
    """A step, and where it stands: the path, and which of its steps."""

    path: int
    number: int
    step: PathStep


def _distinct(policy: MaskedDiffusionPolicy, items: Sequence[_Item], positions: bool) -> Iterator[Canvas]:
    """The different canvases of the steps, to be read where it is needed; their `rows` are numbers of items."""
    groups: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
    for n, item in enumerate(items):
        groups.setdefault((item.step.prompt, item.step.canvas), []).append(n)
    for (prompt, canvas), rows in groups.items():
        tokens = np.array(canvas)
        revealed = sorted({position for n in rows for position in items[n].step.positions})
        at = _masked_in_block(policy, tokens) if positions else np.array(revealed)
        if not set(revealed) <= set(at.tolist()):
            raise InputError(f"a step revealed positions {revealed}, of which not all are masked in the active block")
        yield Canvas(prompt, tokens, at, Memory(policy), rows=rows)


def _masked_in_block(policy: MaskedDiffusionPolicy, tokens: Ints) -> Ints:
    masked = np.flatnonzero(tokens == policy.mask_id)
    last = (masked[0] // policy.schedule.block_length + 1) * policy.schedule.block_length
    return masked[masked < last]


def _score(
    canvases: Sequence[Canvas],
    policy: MaskedDiffusionPolicy,
    items: Sequence[_Item],
    positions: bool,
    found: Sequence[Floats],
    costs: list[Cost],
) -> None:
    """The log-probabilities of canvases that have been read, at equally many positions each."""
    logits = policy.reader.logits(canvases)
    p = policy.unmasking.probabilities(logits, policy.mask_id)
    rows = [items[n] for canvas in canvases for n in canvas.rows]
    of = np.repeat(np.arange(len(canvases)), [len(canvas.rows) for canvas in canvases])
    at = [canvases[n].masked for n in of]
    chosen = torch.from_numpy(np.stack([np.isin(a, row.step.positions) for a, row in zip(at, rows, strict=True)]))
    tokens = torch.zeros(chosen.shape, dtype=torch.int64)
    tokens[chosen] = torch.tensor([token for row in rows for token in row.step.tokens])
    chosen, tokens, canvas = (tensor.to(p.device) for tensor in (chosen, tokens, torch.from_numpy(of)))
    logps = at_tokens(p, canvas, tokens).log().masked_fill(~chosen, 0.0).sum(-1)
    terms = _terms(policy, logits, p, canvas, tokens, chosen, rows) if positions else torch.zeros_like(logps)
    for row, logp, term in zip(rows, logps.tolist(), terms.tolist(), strict=True):
        found[row.path][row.number] = logp, term
    for read in canvases:
        cost = Cost(scored=read.positions, row_forwards=read.row_forwards, vocabulary=len(read.masked))
        costs[items[read.rows[0]].path] += cost


def _terms(
    policy: MaskedDiffusionPolicy,
    logits: torch.Tensor,
    p: torch.Tensor,
    canvas: torch.Tensor,
    tokens: torch.Tensor,
    chosen: torch.Tensor,
    rows: Sequence[_Item],
) -> torch.Tensor:
    """The position terms `[R]` of the sets that were revealed."""
    n = chosen.shape[1]
    quota = torch.tensor([min(policy.schedule.quota(row.step.step), n) for row in rows], device=p.device)
    unused = torch.zeros(chosen.shape, dtype=torch.float64, device=p.device)
    turn = Turn(logits, policy.mask_id, canvas, quota, unused, unused)
    drawn = turn.drawn(p, tokens, policy.unmasking)
    return RULES[policy.unmasking.remasking].term(drawn, chosen)
