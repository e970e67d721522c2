"""Beam search over the denoising paths of a masked-diffusion model.

A path is a sequence of denoising steps. Each step reveals positions S with tokens v_S, and has the log-probability
log P(S, v_S | x) of `ets.policies.diffusion.denoise` at temperature 1. After each step the B most probable paths from
each start continue. The B best continuations of a path are exact, so enough beams find the most probable path. Two
kinds of rules allow this:

- rules whose positions are independent of the drawn tokens: the B best products of independent tokens;
- rules of the drawn tokens' confidence with steps that reveal one position: Σ_j log F_j rises with the confidence of
  the revealed token, so the B most probable tokens of each position contain the B best pairs (i, v).

Shape letters: n masked positions of the active block, k of them revealed, V vocabulary, B beams.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from heapq import nlargest
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch

from ets.policies.diffusion.canvas import Canvas, CanvasMemory, CanvasRows, CanvasState
from ets.policies.diffusion.remasking import Drawn, Turn
from ets.policies.token_draws import require_finite
from ets.types import Cost, Draw

MaskedDiffusionPolicy: TypeAlias = Any
"""The policy imports this module, so its class stands here by name alone."""


class Continuation(NamedTuple):
    """A denoising step: its log-probabilities, the revealed positions among n, and their tokens."""

    token_logp: float
    position_logp: float
    positions: list[int]
    tokens: list[int]


@torch.inference_mode()
def search_paths(policy: MaskedDiffusionPolicy, searched: Sequence[CanvasState], beams: int) -> list[Draw]:
    """The most probable path found from each state, over the whole canvas. Repeated states are charged once."""
    starts = list(dict.fromkeys(searched))
    paths, costs = list(enumerate(starts)), [Cost() for _ in starts]
    while canvases := _canvases(policy, states := [state for _, state in paths]):
        ends = [(n, state) for n, state in paths if policy.mask_id not in state.tokens]
        for canvas, steps in _continuations(policy, canvases, states, beams):
            costs[paths[canvas.rows[0]][0]] += canvas.cost("rollout")
            for n, state in (paths[row] for row in canvas.rows):
                ends += [(n, _after(policy, state, canvas, step)) for step in steps]
        require_finite([starts[n].problem for n, _ in ends], [state.logp for _, state in ends])
        each = ([end for end in ends if end[0] == n] for n in range(len(starts)))
        paths = [path for group in each for path in nlargest(beams, group, key=lambda end: end[1].logp)]
    best = dict(reversed(paths))  # the first path of each start
    rows = CanvasRows.of(
        [best[n] for n in range(len(starts))], np.zeros(len(starts), np.uint64), policy.schedule.most_steps
    )
    found: dict[CanvasState, Draw] = {}
    for n, start in enumerate(starts):
        draw = policy._drawn(start, rows, n, "rollout", {})
        generated = draw.cost.generated * sum(number == n for number, _ in paths)
        found[start] = replace(draw, cost=costs[n] + Cost(generated=generated))
    policy.reader.ledger += Cost.total(draw.cost for draw in found.values())
    free = {start: replace(draw, cost=Cost()) for start, draw in found.items()}
    return [found.pop(state, free[state]) for state in searched]


def _canvases(policy: MaskedDiffusionPolicy, states: Sequence[CanvasState]) -> list[Canvas]:
    """The different canvases of the states that hold masks; their `rows` are numbers of states."""
    groups: dict[tuple[tuple[int, ...], tuple[int, ...]], Canvas] = {}
    for row, state in enumerate(states):
        if policy.mask_id in state.tokens:
            tokens = np.array(state.tokens)
            masked = policy.schedule.masked_at(state.step, tokens, policy.mask_id, len(state.prompt))
            canvas = Canvas(state.prompt, tokens, masked, CanvasMemory(policy, cached=state.memory.cached))
            groups.setdefault((state.prompt, state.tokens), canvas).rows.append(row)
    return list(groups.values())


def _continuations(
    policy: MaskedDiffusionPolicy, canvases: Sequence[Canvas], states: Sequence[CanvasState], beams: int
) -> Iterator[tuple[Canvas, list[Continuation]]]:
    """Each canvas, with the best continuations of the paths that end in it."""
    policy.reader.read_all(canvases)
    for batch, chunks in policy.reader.with_logits(canvases, partial(_best_steps, policy, states, beams), copies=2):
        yield from zip(batch, chain.from_iterable(chunks), strict=True)


def _best_steps(
    policy: MaskedDiffusionPolicy, states: Sequence[CanvasState], beams: int, canvases: Sequence[Canvas]
) -> list[list[Continuation]]:
    """The best continuations at canvases with equally many masked positions."""
    logits, law = policy.reader.logits(canvases), replace(policy.unmasking, temperature=1.0)
    p = law.probabilities(logits, policy.mask_id)
    quotas = [policy.schedule.quota(states[canvas.rows[0]].step) for canvas in canvases]
    quota = torch.tensor(quotas, device=p.device).clamp(max=p.shape[1])
    unused, ends = torch.zeros(p.shape[:2], dtype=torch.float64, device=p.device), policy.without_confidence
    every = torch.arange(len(p), device=p.device)
    drawn = Drawn.under(law, Turn(logits, policy.mask_id, every, quota, unused, unused, None, ends), p, unused.long())
    if not law.by_canvas:
        # end tokens may be probable without confidence: they must not displace the best of the other tokens
        pairs_of = zip(drawn.log_confidences, p, strict=True)
        return [best_pairs(*pair, beams, beams + len(ends)) for pair in pairs_of]
    positions, _ = law.rule.reveal(drawn)
    pairs = zip(p, positions, strict=True)
    return [best_products(each[at].log(), at.nonzero()[:, 0].tolist(), beams) for each, at in pairs]


def best_products(logp: torch.Tensor, positions: list[int], beams: int) -> list[Continuation]:
    """The most probable choices of a token for each of k positions, from log p `[k, V]`."""
    total, choices = torch.zeros(1, dtype=torch.float64, device=logp.device), [list[int]()]
    for best in logp.topk(min(beams, logp.shape[-1]), dim=-1).indices.unbind():
        sums = total[:, None] + logp[len(choices[0]), best]
        total, order = sums.flatten().topk(min(beams, sums.numel()))
        choices = [[*choices[n // len(best)], int(best[n % len(best)])] for n in order.tolist()]
    pairs = zip(total.tolist(), choices, strict=True)
    return [Continuation(logp, 0.0, positions, tokens) for logp, tokens in pairs if logp > -math.inf]


def best_pairs(log_q: torch.Tensor, p: torch.Tensor, beams: int, tried: int) -> list[Continuation]:
    """The most probable pairs (i, v) of a step that reveals the most confident draw, from `[n, V]` each.

    The `tried` most probable tokens of each position are tried. A draw at a position j ≠ i loses with the probability
    F_j: its confidence is below q_i(v), or equal with j > i.
    """
    n, each = p.shape[0], min(tried, p.shape[1])
    logp, tokens = (part.flatten() for part in p.log().topk(each, dim=-1))
    of, places = torch.arange(n, device=p.device).repeat_interleave(each), torch.arange(n, device=p.device)[:, None]
    bars = log_q[of, tokens].expand(n, -1).contiguous()  # [n, n · each]: q_i(v) of every pair, for every j
    ordered, order = log_q.sort(-1)
    mass = torch.cat((p.new_zeros(n, 1), p.gather(-1, order).cumsum(-1)), -1)
    below, up_to = (mass.gather(-1, torch.searchsorted(ordered, bars, right=right)) for right in (False, True))
    lost = torch.where(places > of, up_to, below).log().masked_fill(places == of, 0.0).sum(0)
    order = (logp + lost).topk(min(beams, len(of))).indices
    columns = (column[order].tolist() for column in (logp, lost, of, tokens))
    return [Continuation(a, b, [i], [v]) for a, b, i, v in zip(*columns, strict=True) if a + b > -math.inf]


def _after(policy: MaskedDiffusionPolicy, state: CanvasState, canvas: Canvas, found: Continuation) -> CanvasState:
    """The state after a denoising step."""
    places, (first, last) = canvas.masked[found.positions], policy.schedule.block_of(state.step, len(state.prompt))
    tokens, path, logps = np.array(state.tokens), np.array(state.path), np.zeros((policy.schedule.most_steps, 2))
    tokens[places], path[places] = found.tokens, state.step
    logps[: len(state.step_logps)] = state.step_logps
    logps[state.step] = found.token_logp, found.position_logp
    full = (tokens[first:last] != policy.mask_id).all()
    step = int(policy._executed(policy.schedule.step_after(np.array(state.step), full)))
    ends = list(policy.endings.end_ids)
    if policy.unmasking.stop_at_end and full and np.isin(tokens[:last], ends).any():  # leave out the later blocks
        tokens[last:], step = ends[0], policy.schedule.steps
    return replace(
        state,
        tokens=tuple(tokens.tolist()),
        path=tuple(path.tolist()),
        memory=CanvasMemory(policy, cached=canvas.memory.cached),
        step=step,
        logp=state.logp + found.token_logp + found.position_logp,
        step_logps=logps,
    )
