"""The probability of a recorded path under a masked-diffusion policy, for importance weights between samplers.

A path is the denoising steps from one state to a later state: the canvas before each step, the positions S that the
step revealed, and their tokens v_S. `tokens` and `path` of the later state hold the path, and `step_logps` holds its
log-probabilities under the policy that drew the path. The model reads all canvases of a path together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from ets.policies.diffusion.canvas import Canvas, CanvasMemory, CanvasState, canvas_before
from ets.policies.diffusion.policy import MaskedDiffusionPolicy
from ets.policies.diffusion.remasking import Drawn, Turn, at_tokens
from ets.types import Cost, Floats, InputError


@dataclass(frozen=True)
class PathStep:
    """A denoising step by its number: the canvas `[gen_length]` before it, the revealed positions and their tokens."""

    prompt: tuple[int, ...]
    canvas: tuple[int, ...]
    step: int
    positions: tuple[int, ...]
    tokens: tuple[int, ...]


def path_steps(start: CanvasState, end: CanvasState, mask_id: int) -> list[PathStep]:
    """The denoising steps that led from a state to a later state.

    Raises
    ------
    InputError
        If no path leads from `start` to `end`.
    """
    tokens, path = np.array(end.tokens), np.array(end.path)
    origin = canvas_before(tokens, path, start.step, mask_id)
    if start.prompt != end.prompt or start.tokens != tuple(origin.tolist()):
        raise InputError(
            f"no path leads from canvas {start.tokens} to {end.tokens}; give a state and a state drawn from it"
        )
    steps = []
    for step in sorted({int(n) for n in path if n >= start.step}):
        places = np.flatnonzero(path == step)
        canvas = tuple(canvas_before(tokens, path, step, mask_id).tolist())
        steps.append(PathStep(start.prompt, canvas, step, tuple(places.tolist()), tuple(tokens[places].tolist())))
    return steps


@dataclass(frozen=True, eq=False)
class PathProbability:
    """The log-probability of a path of n steps, and the cost of computing it."""

    tokens: Floats  # [n], Σ_{i∈S} log p_i(v_i | x) of each step
    positions: Floats  # [n], the position terms: -∞ where the rule cannot reveal S, 0 if not requested
    cost: Cost  # positions as `scored`; the first of several paths pays for a shared canvas


@torch.inference_mode()
def path_probabilities(
    policy: MaskedDiffusionPolicy, paths: Sequence[Sequence[PathStep]], *, positions: bool = True
) -> list[PathProbability]:
    """Log-probabilities of paths under a policy's exact model, which reads each different canvas once, whole.

    Parameters
    ----------
    policy : MaskedDiffusionPolicy
        Temperature, guidance, rule and schedule of the law. A cache of the policy is not used.
    paths : sequence of sequences of PathStep
    positions : bool
        Whether to compute the position terms, from the logits at every masked position of the block. Otherwise the
        head computes the logits at S alone.

    Raises
    ------
    InputError
        At temperature 0, where no ratio exists; for a position outside the policy's active block.
    """
    if policy.unmasking.temperature == 0:
        raise InputError("at temperature 0 a path has probability 0 or 1, and no ratio exists; raise the temperature")
    places = [(path, n) for path, steps in enumerate(paths) for n in range(len(steps))]
    items = [paths[path][n] for path, n in places]
    canvases = _distinct(policy, items, positions)
    logps, costs = np.zeros((len(items), 2)), [Cost() for _ in paths]
    work = partial(_score, policy, items, positions)

    def read_and_score(chunk: Sequence[Canvas]) -> None:
        policy.reader.read(chunk)
        for batch, scored in policy.reader.with_logits(chunk, work, None if positions else 1):
            logps[[n for canvas in batch for n in canvas.rows]] = np.concatenate(scored)
        for canvas in chunk:
            canvas.memory.hidden = None  # the tensors of all canvases together would take gigabytes

    policy.reader.read_all(canvases, read_and_score)
    for canvas in canvases:
        costs[places[canvas.rows[0]][0]] += canvas.cost("scored")
    policy.reader.ledger += Cost.total(costs)
    each = np.split(logps, np.cumsum([len(steps) for steps in paths])[:-1]) if paths else []
    return [PathProbability(logp[:, 0], logp[:, 1], cost) for logp, cost in zip(each, costs, strict=True)]


def _distinct(policy: MaskedDiffusionPolicy, items: Sequence[PathStep], positions: bool) -> list[Canvas]:
    """The different canvases before the steps; their `rows` are the numbers of the steps."""
    groups: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
    for n, item in enumerate(items):
        groups.setdefault((item.prompt, item.canvas), []).append(n)
    canvases = []
    for (prompt, canvas), rows in groups.items():
        tokens, revealed = np.array(canvas), np.unique([place for n in rows for place in items[n].positions])
        active = policy.schedule.masked_at(items[rows[0]].step, tokens, policy.mask_id, len(prompt))
        if positions and not np.isin(revealed, active).all():
            raise InputError(
                f"a step revealed positions {revealed.tolist()}, of which not all are masked in the active block; "
                "give steps of the policy's schedule"
            )
        canvases.append(Canvas(prompt, tokens, active if positions else revealed, CanvasMemory(policy), rows=rows))
    return canvases


def _score(
    policy: MaskedDiffusionPolicy, items: Sequence[PathStep], positions: bool, canvases: Sequence[Canvas]
) -> Floats:
    """The log-probabilities `[R, 2]` of tokens and positions, of the R steps at canvases that have been read."""
    logits = policy.reader.logits(canvases)
    p = policy.unmasking.probabilities(logits, policy.mask_id)
    rows = [items[n] for canvas in canvases for n in canvas.rows]
    of = np.repeat(np.arange(len(canvases)), [len(canvas.rows) for canvas in canvases])
    chosen = np.stack([np.isin(canvases[n].masked, row.positions) for n, row in zip(of, rows, strict=True)])
    tokens, n = np.zeros(chosen.shape, np.int64), chosen.shape[1]
    tokens[chosen] = [token for row in rows for token in row.tokens]
    quotas = np.array([min(policy.schedule.quota(row.step), n) for row in rows])
    arrays = (torch.from_numpy(array).to(p.device) for array in (chosen, tokens, of, quotas))
    revealed, drawn, canvas, quota = arrays
    logp = at_tokens(p, canvas, drawn).log().masked_fill(~revealed, 0.0).sum(-1)
    term = torch.zeros_like(logp)
    if positions:
        unused = torch.zeros(chosen.shape, dtype=torch.float64, device=p.device)
        chance = policy.chances(np.array([row.step for row in rows]), p.device)
        turn = Turn(logits, policy.mask_id, canvas, quota, unused, unused, chance, policy.without_confidence)
        term = policy.unmasking.rule.term(Drawn.under(policy.unmasking, turn, p, drawn), revealed)
    return torch.stack((logp, term), -1).cpu().numpy()
