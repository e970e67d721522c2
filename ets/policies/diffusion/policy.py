"""Masked-diffusion models (LLaDA) through transformers, computing nothing twice.

Rows whose canvases are equal go through the model once: the first forward pass of M candidates reads one row, that of
their M·K completions M rows. The next guide step continues from the tensors that its state keeps. The head reads the
masked positions of the active block only.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any, TypeAlias

import numpy as np
import torch

from ets.models import MASKED_DIFFUSION, Family, diffusion_engine, mask_token_of
from ets.policies.autoregressive.law import Endings
from ets.policies.checkpoint import Checkpoint
from ets.policies.diffusion.blocks import AlignedSchedule, BlockReader
from ets.policies.diffusion.canvas import (
    Canvas,
    CanvasMemory,
    CanvasRows,
    CanvasState,
    Ints,
    canvas_before,
    open_states,
    require_whole_canvas,
)
from ets.policies.diffusion.denoise import Revealed, Schedule, denoise, denoise_greedily
from ets.policies.diffusion.forward import CanvasReader
from ets.policies.diffusion.path_search import search_paths
from ets.policies.diffusion.remasking import MOST_ORDERED, Turn, for_rows
from ets.policies.prompts import encode_prompt
from ets.policies.settings import Caching, CanvasSettings, MemorySettings, Unmasking
from ets.policies.token_draws import certainty_of, require_finite, rows_together
from ets.randomness import Purpose, derive, uniform
from ets.step import require_counts
from ets.types import Certainty, Cost, Draw, InputError, Keys, Problem, State, Text

Denoise: TypeAlias = Callable[[Turn, Unmasking], Revealed]

BYTES_PER_CANVAS = 2**31
"""Rows that share a canvas and would take more are split into groups."""


class MaskedDiffusionPolicy:
    """p_ref as a masked-diffusion model under a denoising law; a guide step is `steps / guide_steps` denoising steps.

    With a cache, or with parallel decoding, the policy is a faster sampler with another law. As p_ref it needs no
    correction: the policy draws candidates and completions, and the weight of a sample is exactly 1 (level "0").

    Parameters
    ----------
    checkpoint : Checkpoint
    unmasking : Unmasking
        The law of a denoising step.
    schedule : Schedule
        The canvas, its blocks and steps, and the guide steps.
    caching : Caching, optional
        Compute the whole canvas at some denoising steps only. The cache is a function of the state, so guide steps may
        end anywhere.
    memory_gib : float, optional
        Limit on the tensors of one forward pass; more rows are split into chunks. By default half of the memory that is
        free when the model has been loaded. A cache may take as much again.
    certainty : bool
        Record `Text.certainty`, at the cost of one pass over the logits per denoising step. Positions that are filled
        because the text has ended are not drawn, and do not count.
    one_by_one : bool
        Canvases go through the model one by one, so that its rounding depends on no other canvas.

    Raises
    ------
    InputError
        For a checkpoint of another architecture, guidance with a cache, or either with a block-causal model.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        unmasking: Unmasking,
        schedule: Schedule,
        *,
        caching: Caching | None = None,
        memory_gib: float | None = None,
        certainty: bool = False,
        one_by_one: bool = False,
    ) -> None:
        config = checkpoint.config
        family = MASKED_DIFFUSION.get(config.model_type)
        if family is None:
            raise InputError(
                f"{checkpoint.name!r} is a {config.model_type!r} model, which does not unmask; take the engine "
                f"{diffusion_engine(config.model_type) or 'transformers'}, or a model of {', '.join(MASKED_DIFFUSION)}"
            )
        if caching is not None and unmasking.cfg:
            raise InputError(
                f"cfg is {unmasking.cfg}, but a cache holds no unguided canvases; set cfg to 0, or no cache"
            )
        if unmasking.alg_temp and schedule.largest_part > MOST_ORDERED:
            raise InputError(
                f"alg_temp is {unmasking.alg_temp}, and a step reveals {schedule.largest_part} positions, but the "
                f"probability of a set is summed over the orders of {MOST_ORDERED} at most; raise steps"
            )
        checkpoint.require_packages()
        self.checkpoint, self.unmasking, self.schedule, self.caching = checkpoint, unmasking, schedule, caching
        self.memory_gib, self.certainty, self.one_by_one = memory_gib, certainty, one_by_one
        self.mask_id = mask_token_of(config, checkpoint.tokenizer)
        vocabulary = checkpoint.tokenizer.get_vocab()
        named = {vocabulary[token] for token in family.end_tokens if token in vocabulary}
        self.endings = Endings(checkpoint.tokenizer, checkpoint.end_ids | named, config.vocab_size)
        never = self._drawable({checkpoint.tokenizer.eos_token_id}) if unmasking.logits_eos_inf else ()
        self.block_causal = family.block_causal
        if family.block_causal:
            self._require_exact(checkpoint.name)
            self.schedule = AlignedSchedule.of_family(schedule, family)
            reading = schedule.block_length, memory_gib, one_by_one, never
            self.reader: CanvasReader = BlockReader(checkpoint, self.mask_id, family.shift, *reading)
        else:
            options = unmasking.cfg, memory_gib, one_by_one, never
            self.reader = CanvasReader(checkpoint, self.mask_id, family.shift, *options)

    def _require_exact(self, name: str) -> None:
        """Raise `InputError` for a setting that a block-causal model does not have."""
        if self.caching is not None:
            raise InputError(
                f"cache is {self.caching.cache!r}, but {name!r} is block-causal and has an exact cache; leave it out"
            )
        if self.unmasking.cfg:
            raise InputError(
                f"cfg is {self.unmasking.cfg}, but {name!r} is block-causal, which excludes guidance; set cfg to 0"
            )
        if self.schedule.quotas != "even" or self.unmasking.rule.independent:
            raise InputError(
                f"{name!r} is block-causal, and its blocks have even quotas; leave quotas out, and choose another rule "
                "than origin"
            )

    @property
    def lengths(self) -> tuple[int, ...]:
        """The least tokens of an open text at each guide boundary, and the most of a complete text."""
        return self.schedule.lengths_by_step if self.unmasking.rule.independent else self.schedule.lengths

    @property
    def deterministic(self) -> bool:
        return self.unmasking.deterministic

    @property
    def ledger(self) -> Cost:
        return self.reader.ledger

    @property
    def without_confidence(self) -> tuple[int, ...]:
        """The tokens whose confidence counts as 0."""
        return self._drawable(self.endings.end_ids) if self.unmasking.confidence_eos_eot_inf else ()

    def _drawable(self, tokens: Iterable[int]) -> tuple[int, ...]:
        """The tokens that the model has logits for; a tokenizer may have more."""
        return tuple(sorted(token for token in tokens if token < self.endings.vocabulary))

    def last_refresh(self, step: int) -> int:
        """The last denoising step, `step` included, that computes the whole canvas: `step` itself without a cache."""
        if self.caching is None:
            return step
        within = step % self.schedule.steps_per_block
        return int(self._executed(step - within + self.caching.last_refresh(within)))

    def _executed(self, steps: Ints | int) -> Ints:
        """The first denoising steps from the given steps on that are not left out."""
        return np.asarray(steps) if self.unmasking.rule.independent else self.schedule.revealing(steps)

    @property
    def _end(self) -> int:
        """The progress of a full canvas: its steps if the rule reveals a random number of positions, else positions."""
        return self.schedule.steps if self.unmasking.rule.independent else self.schedule.gen_length

    def _boundary(self, state: CanvasState) -> int:
        """The progress of a row at the end of its guide step."""
        if self.unmasking.rule.independent:
            return (state.step // (each := self.schedule.steps_per_guide_step) + 1) * each
        return self.schedule.boundary(sum(step >= 0 for step in state.path))

    def _progress(self, rows: CanvasRows) -> Ints:
        """The progress `[R]` of rows, in the unit of `_end`."""
        return rows.step if self.unmasking.rule.independent else (rows.tokens != self.mask_id).sum(-1)

    def _continues(self, step: int) -> bool:
        """Whether a denoising step uses keys and values that an earlier step has recorded."""
        return self.block_causal or self.last_refresh(step) < step

    def load(self) -> None:
        """Load the weights, unless they are loaded; otherwise the first draw loads them."""
        self.checkpoint.load()

    def start(self, problems: Sequence[Problem]) -> list[State]:
        """Canvases of masks, after a check of the prompts."""
        length = self.schedule.gen_length
        states: list[State] = []
        for problem in problems:
            require_whole_canvas(problem, length)
            tokenizer, known = self.checkpoint.tokenizer, self.endings.vocabulary
            prompt = encode_prompt(tokenizer, problem, length, self.checkpoint.context, known)
            if self.mask_id in prompt:
                raise InputError(f"the prompt of problem {problem.id!r} holds the mask token; take it out")
            certainty = Certainty() if self.certainty else None
            tokens, path, first = (self.mask_id,) * length, (-1,) * length, int(self._executed(0))
            states.append(CanvasState(problem, prompt, tokens, path, CanvasMemory(self), first, certainty=certainty))
        return states

    def _open(self, states: Sequence[State]) -> list[CanvasState]:
        return open_states(self, states, CanvasState)

    def extend(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        found = self._open(states)
        return self._draw(found, keys, np.array([self._boundary(state) for state in found], np.int64), "candidate")

    def finish(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        return self._draw(self._open(states), keys, np.full(len(states), self._end), "rollout")

    def greedy(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        """Paths of the same denoising rule at temperature 0; `logp` is the log-probability at temperature 1.

        Only rules that draw positions use the keys, because they do so at any temperature.
        """
        ends = np.full(len(states), self._end)
        return self._draw(self._open(states), keys, ends, "rollout", denoise_greedily)

    def require_searchable(self) -> None:
        """Raise `InputError` where beam search cannot list the best continuations of a denoising path."""
        law, quotas = self.unmasking, {self.schedule.quota(step) for step in range(self.schedule.steps)} - {0}
        if self.caching is not None:
            raise InputError("beam search reads whole canvases, but there is a cache; leave the cache or beam out")
        if law.rule.random:
            noisy = f" with alg_temp {law.alg_temp}" if law.alg_temp else ""
            raise InputError(
                f"remasking {law.remasking!r}{noisy} draws positions, which beam search cannot do; choose largest"
            )
        if not law.by_canvas and (law.parallel or quotas != {1}):
            raise InputError(
                f"beam search by remasking {law.remasking!r} needs steps that reveal one position each; set steps to "
                f"{self.schedule.gen_length} without threshold and factor, or choose largest, margin or entropy"
            )

    def beam(self, states: Sequence[State], beams: int) -> list[Draw]:
        """The most probable denoising paths that beam search finds, see `ets.policies.diffusion.path_search`.

        `logp` is the log-probability of the path at temperature 1, positions included.
        """
        require_counts(beams=beams)
        self.require_searchable()
        return search_paths(self, self._open(states), beams)

    @torch.inference_mode()
    def _draw(
        self, states: Sequence[CanvasState], keys: Keys, ends: Ints, kind: str, rule: Denoise = denoise
    ) -> list[Draw]:
        """Denoise rows until their progress reaches `ends`; with a cache, as many rows as fit into memory."""
        memories: dict[Any, CanvasMemory] = {}  # candidates may be equal, and any of them may be chosen

        def together(chosen: Sequence[int]) -> list[Draw]:
            rows = CanvasRows.of([states[n] for n in chosen], keys[chosen], self.schedule.most_steps)
            self._advance([states[n] for n in chosen], rows, ends[chosen], rule)
            return [self._drawn(states[n], rows, row, kind, memories) for row, n in enumerate(chosen)]

        everyone = range(len(states))
        if self.caching is None and not self.block_causal:
            draws = together(everyone)
        else:
            longest = max((len(state.prompt) for state in states), default=0) + self.schedule.gen_length
            chunks = self.reader.memory_limit.in_chunks(everyone, self.reader.bytes_cached(longest), together)
            draws = [draw for chunk in chunks for draw in chunk]
        self.reader.ledger += Cost.total(draw.cost for draw in draws)
        return draws

    def _advance(self, states: Sequence[CanvasState], rows: CanvasRows, ends: Ints, rule: Denoise) -> None:
        """Denoise R rows until their progress reaches `ends` `[R]`."""
        known = {self._name(rows, row): state.memory for row, state in enumerate(states)}
        while (going := np.flatnonzero(self._progress(rows) < ends)).size:
            canvases = self._distinct(rows, going, known)
            if self.unmasking.rule.independent:  # a step may reveal nothing, and the next step read the same canvas
                known = {self._name(rows, canvas.rows[0]): canvas.memory for canvas in canvases}
            self.reader.read_all({id(c.memory): c for c in canvases if c.memory.hidden is None}.values())
            for _ in self.reader.with_logits(canvases, partial(self._denoise, rows=rows, rule=rule)):
                pass
            # NaN logits are refused at once: they draw the mask token, and the row would never end
            require_finite([state.problem for state in states], rows.step_logps.sum((1, 2)).tolist())
            if self.unmasking.stop_at_end:
                self._fill_after_end(rows, going)

    def _name(self, rows: CanvasRows, row: int) -> Any:
        """Equal for rows with the same logits: with equal prompts, canvases, and canvases at the last refresh."""
        return rows.prompt_numbers[row], rows.tokens[row].tobytes(), self._origin(rows, row).tobytes()

    def _origin(self, rows: CanvasRows, row: int) -> Ints:
        """The canvas at the last refresh."""
        step = int(rows.step[row])
        return canvas_before(rows.tokens[row], rows.path[row], self.last_refresh(step), self.mask_id)

    def _distinct(self, rows: CanvasRows, going: Ints, known: dict[Any, CanvasMemory]) -> list[Canvas]:
        """The different canvases of the rows `going`, split where the rows of a canvas do not fit into memory."""
        found: dict[Any, Canvas] = {}
        for row in going.tolist():
            name = self._name(rows, row)
            if name not in found:
                found[name] = self._canvas(rows, row, known.get(name) or CanvasMemory(self))
            found[name].rows.append(row)
        parts = []
        for canvas in found.values():
            size = max(1, BYTES_PER_CANVAS // self.reader.bytes_of_logits(canvas, 1))
            parts += [replace(canvas, rows=canvas.rows[n : n + size]) for n in range(0, len(canvas.rows), size)]
        return parts

    def _canvas(self, rows: CanvasRows, row: int, memory: CanvasMemory) -> Canvas:
        prompt, tokens, step = rows.prompts[row], rows.tokens[row].copy(), int(rows.step[row])
        canvas = Canvas(prompt, tokens, self.schedule.masked_at(step, tokens, self.mask_id, len(prompt)), memory)
        refreshes = self.last_refresh(step) == step
        # a refresh records nothing if the next step is a refresh too
        if self.caching is not None and not (refreshes and self.last_refresh(step + 1) > step):
            canvas.window = self.caching.window(self.schedule.block_of(step), self.schedule.gen_length)
        if not refreshes:
            canvas.origin = self._origin(rows, row)
        if self._continues(step):
            memory.cached = memory.cached or rows.cached[row]
        return canvas

    def _denoise(self, canvases: Sequence[Canvas], rows: CanvasRows, rule: Denoise) -> None:
        """One denoising step of the rows of canvases, some canvases at a time if the vocabulary is large.

        The step changes `rows` after all draws: where memory runs out in between, all rows are drawn again.
        """
        logits = self.reader.logits(canvases)
        size = rows_together(logits)
        parts = [slice(first, first + size) for first in range(0, len(canvases), size)]
        drawn = [self._reveal(logits[part], canvases[part], rows, rule) for part in parts]
        for index, masked, revealed, certainty in drawn:
            self._place(rows, index, masked, revealed)
            if certainty is not None:
                rows.certainty[index] += certainty.cpu().numpy()
        for canvas in canvases:
            rows.costs[canvas.rows[0]] += (canvas.positions, canvas.row_forwards, len(canvas.masked))
            for row in canvas.rows:
                rows.cached[row] = canvas.memory.cached if self._continues(int(rows.step[row])) else None

    def _reveal(
        self, logits: torch.Tensor, canvases: Sequence[Canvas], rows: CanvasRows, rule: Denoise
    ) -> tuple[Ints, Ints, Revealed, torch.Tensor | None]:
        """The numbers `[R]` of the rows of U canvases, their masked positions `[R, n]`, the step, and the certainty."""
        index = np.array([row for canvas in canvases for row in canvas.rows])
        of = np.repeat(np.arange(len(canvases)), [len(canvas.rows) for canvas in canvases])
        masked = np.stack([canvas.masked for canvas in canvases])[of]
        step = rows.step[index]
        keys, quotas = rows.keys[index, None], np.array([self.schedule.quota(int(s)) for s in step])
        numbers = uniform(keys, step[:, None], masked)
        orders = uniform(derive(keys, int(Purpose.POSITION)), step[:, None], masked)
        arrays = (of, np.minimum(quotas, masked.shape[1]), numbers, orders)
        canvas, quota, uniforms, ordered = (torch.from_numpy(array).to(logits.device) for array in arrays)
        chance, without = self.chances(step, logits.device), self.without_confidence
        turn = Turn(logits, self.mask_id, canvas, quota, uniforms, ordered, chance, without)
        revealed = rule(turn, self.unmasking)
        return index, masked, revealed, self._certainty_of(turn, revealed.positions) if self.certainty else None

    def chances(self, steps: Ints, device: torch.device) -> torch.Tensor | None:
        """The probabilities `[R]` with which denoising steps reveal each position; None for rules with quotas."""
        if not self.unmasking.rule.independent:
            return None
        return torch.tensor([self.schedule.chance(int(step)) for step in steps], dtype=torch.float64, device=device)

    def _place(self, rows: CanvasRows, index: Ints, masked: Ints, revealed: Revealed) -> None:
        """Write a step into the rows `index`, whose masked positions were `[R, n]`."""
        step, chosen = rows.step[index], revealed.positions.cpu().numpy()
        where = (np.broadcast_to(index[:, None], chosen.shape)[chosen], masked[chosen])
        rows.tokens[where] = revealed.tokens.cpu().numpy()[chosen]
        rows.path[where] = np.broadcast_to(step[:, None], chosen.shape)[chosen]
        rows.step_logps[index, step] = torch.stack((revealed.token_logp, revealed.position_logp), -1).cpu().numpy()
        full = revealed.positions.all(-1).cpu().numpy()
        for n in np.flatnonzero(full):  # a sub-block may be full before its block
            row = index[n]
            left = self.schedule.masked_at(int(step[n]), rows.tokens[row], self.mask_id, len(rows.prompts[row]))
            full[n] = not left.size
        rows.step[index] = self._executed(self.schedule.step_after(step, full))

    def _certainty_of(self, turn: Turn, revealed: torch.Tensor) -> torch.Tensor:
        """`[R, 3]`: the number of positions revealed, and the sums of entropy and self-certainty over them."""
        each = for_rows(certainty_of(turn.logits, without={self.mask_id, *self.reader.never}), turn.canvas)
        sums = each.masked_fill(~revealed[..., None], 0.0).sum(1)
        return torch.cat((revealed.sum(-1, keepdim=True), sums), -1)

    def _fill_after_end(self, rows: CanvasRows, going: Ints) -> None:
        """Fill the rows whose finished blocks hold an end token: later tokens are not part of the text."""
        ends = list(self.endings.end_ids)
        each = self.schedule.steps_per_block
        begun = rows.step[going] == self._executed(rows.step[going] // each * each)  # at the first step of a block
        for row in going[begun].tolist():
            filled = self.schedule.block_of(int(rows.step[row]), len(rows.prompts[row]))[0]
            if np.isin(rows.tokens[row, :filled], ends).any():
                rows.tokens[row, filled:] = ends[0]
                rows.step[row] = self.schedule.steps

    def _drawn(
        self, before: CanvasState, rows: CanvasRows, row: int, kind: str, memories: dict[Any, CanvasMemory]
    ) -> Draw:
        tokens, path = tuple(rows.tokens[row].tolist()), tuple(rows.path[row].tolist())
        step, logps = int(rows.step[row]), rows.step_logps[row]
        text, logp = self._text(tokens, before), float(logps[before.step :].sum())
        total, done = before.logp + logp, self.mask_id not in tokens
        memory = memories.setdefault((before.prompt, self._name(rows, row)[1:]), CanvasMemory(self))
        memory.cached = memory.cached or (None if done else rows.cached[row])
        drawn, *sums = rows.certainty[row].tolist()
        sure = before.certainty and before.certainty + Certainty(int(drawn), *sums)
        state = CanvasState(before.problem, before.prompt, tokens, path, memory, step, text, total, done, logps, sure)
        positions, row_forwards, vocabulary = rows.costs[row].tolist()
        generated = sum(revealed >= before.step for revealed in path)
        counts = {kind: positions, "row_forwards": row_forwards, "vocabulary": vocabulary, "generated": generated}
        return Draw(state, Text(tokens, text, total, done, certainty=sure), logp, Cost(**counts))

    def _text(self, tokens: tuple[int, ...], before: CanvasState) -> str:
        """The text up to the first end token or stop string; masks show as `·`, without the masks at its end."""
        end = next((n for n, token in enumerate(tokens) if token in self.endings.end_ids), len(tokens))
        while end and tokens[end - 1] == self.mask_id:
            end -= 1
        runs = groupby(tokens[:end], key=self.mask_id.__eq__)
        pieces = ["·" * len(list(run)) if masked else self.endings.decode(list(run)) for masked, run in runs]
        problem = before.problem
        return self.endings.cut("".join(pieces), problem.stop, problem.thinking, before.prompt)


def make_policy(
    checkpoint: Checkpoint,
    unmasking: Unmasking,
    canvas: CanvasSettings,
    caching: Caching | None,
    memory: MemorySettings,
) -> MaskedDiffusionPolicy:
    """The policy of the engine "masked-diffusion" in `ets.policies.registry`."""
    family = MASKED_DIFFUSION.get(checkpoint.config.model_type, Family())
    if family.block_causal:
        canvas = _with_trained_blocks(canvas, family.block_length_of(checkpoint.config), checkpoint.name)
    if unmasking.takes_threshold:
        unmasking = replace(unmasking, threshold=family.threshold)
    schedule = Schedule.of(canvas, family)
    return MaskedDiffusionPolicy(checkpoint, unmasking, schedule, caching=caching, **memory.options())


def _with_trained_blocks(canvas: CanvasSettings, block: int | None, name: str) -> CanvasSettings:
    """The canvas with the block length of training, if the user sets none: it decides what a position attends to."""
    if canvas.block_length not in (None, block):
        warnings.warn(
            f"block_length is {canvas.block_length}, but {name!r} is a model for blocks of {block}; "
            "leave it out, unless you mean another attention than the trained one",
            stacklevel=2,
        )
    return replace(canvas, block_length=canvas.block_length or block)
