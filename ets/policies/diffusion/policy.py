"""Masked-diffusion models (LLaDA) through transformers, computing nothing twice.

Rows whose canvases are equal go through the model once: the first forward of M candidates is one row, that of their
M·K completions M rows. The next guide step goes on from what its candidate's completions began with. The head sees
the masked positions of the active block only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from ets.models import MASKED_DIFFUSION
from ets.policies.autoregressive.law import Endings
from ets.policies.checkpoint import Checkpoint
from ets.policies.diffusion.canvas import Canvas, CanvasState, Ints, Memory, Rows, alike, canvas_before, equally_masked
from ets.policies.diffusion.denoise import Revealed, Schedule, Turn, denoise, denoise_greedily
from ets.policies.diffusion.forward import BYTES_PER_LOGIT, CanvasReader
from ets.policies.diffusion.path_search import beam_search, require_searchable
from ets.policies.diffusion.remasking import for_rows
from ets.policies.memory import MemoryLimit
from ets.policies.prompts import encode_prompt
from ets.policies.settings import Caching, Unmasking
from ets.policies.settings import Canvas as CanvasSettings
from ets.policies.settings import Memory as MemorySettings
from ets.policies.token_draws import certainty_of, require_finite, rows_together
from ets.randomness import Purpose, derive, uniform
from ets.step import require_counts
from ets.types import Certainty, Cost, Draw, InputError, Keys, Problem, State, Text

BYTES_PER_CANVAS = 2**31
"""Rows that share a canvas and would take more are split into groups."""


class MaskedDiffusionPolicy:
    """p_ref as a masked-diffusion model under a denoising law; a guide step is `steps / guide_steps` denoising steps.

    With a cache, or with parallel decoding, it is a faster sampler with a law of its own. As p_ref it needs no
    correction: candidates and completions come from it, and the weight of a sample is exactly 1 (Level 0: "the fast
    sampler itself").

    Parameters
    ----------
    checkpoint : Checkpoint
    unmasking : Unmasking
        The law of a denoising step.
    schedule : Schedule
        The canvas, its blocks and steps, and the guide steps.
    caching : Caching, optional
        Compute the whole canvas at some denoising steps only. What is known from them is part of the state: guide
        steps may end anywhere and change nothing.
    memory_gib : float, optional
        Limit on what the rows of one forward pass take; more rows are split into chunks. By default half of the
        memory that is free when the model has been loaded. A cache may take as much again.
    certainty : bool
        Record `Text.certainty`: a pass over the vocabulary for each masked position of a denoising step more. Positions
        that are filled because the text has ended are not drawn, and not counted.

    Raises
    ------
    InputError
        For a checkpoint of another architecture, or guidance with a cache.
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
    ) -> None:
        config = checkpoint.config
        family = MASKED_DIFFUSION.get(config.model_type)
        if family is None:
            raise InputError(
                f"{checkpoint.name!r} is a {config.model_type!r} model, which does not unmask; "
                f"give one of the architectures: {', '.join(MASKED_DIFFUSION)}"
            )
        if caching is not None and unmasking.cfg:
            raise InputError(
                f"cfg is {unmasking.cfg}, but a cache holds no unguided canvases; set cfg to 0, or no cache"
            )
        self.checkpoint, self.unmasking, self.schedule, self.caching = checkpoint, unmasking, schedule, caching
        self.memory_gib, self.certainty = memory_gib, certainty
        self.mask_id = int(getattr(config, family.mask_field))
        vocabulary = checkpoint.tokenizer.get_vocab()
        named = {vocabulary[token] for token in family.end_tokens if token in vocabulary}
        self.endings = Endings(checkpoint.tokenizer, checkpoint.end_ids | named, config.vocab_size)
        self.reader = CanvasReader(checkpoint, self.mask_id, family.shift, unmasking.cfg)
        self.memory_limit = MemoryLimit(memory_gib, lambda: checkpoint.model.device)

    @property
    def deterministic(self) -> bool:
        return self.unmasking.deterministic

    @property
    def ledger(self) -> Cost:
        return self.reader.ledger

    def last_refresh(self, step: int) -> int:
        """The denoising step at which the whole canvas was computed last: this one, where there is no cache."""
        if self.caching is None:
            return step
        return step - step % (each := self.schedule.steps_per_block) + self.caching.last_refresh(step % each)

    def start(self, problems: Sequence[Problem]) -> list[State]:
        """Canvases of masks; prompts are checked now."""
        length = self.schedule.gen_length
        prompts = [
            encode_prompt(self.checkpoint.tokenizer, problem, length, self.checkpoint.context) for problem in problems
        ]
        for problem, prompt in zip(problems, prompts, strict=True):
            if self.mask_id in prompt:
                raise InputError(f"the prompt of problem {problem.id!r} holds the mask token; take it out")
        empty: dict[str, Any] = {"tokens": (self.mask_id,) * length, "path": (-1,) * length}
        empty["certainty"] = Certainty() if self.certainty else None
        return [CanvasState(*pair, memory=Memory(self), **empty) for pair in zip(problems, prompts, strict=True)]

    def sample_positions(self, states: Sequence[State]) -> float:
        """Token positions of one sample that shares nothing: the mean over start states.

        Of one that neither stops at its end nor decodes in parallel: it takes no more.
        """
        lengths = [len(state.prompt) + self.schedule.gen_length for state in self._own(states)]
        mean = sum(lengths) / len(lengths)
        return sum(self.forward_positions(step, mean) for step in range(self.schedule.steps))

    def forward_positions(self, step: int, length: float) -> float:
        """Token positions that a denoising step computes for one canvas; with its prompt it has `length` tokens."""
        first, last = self._window(step) or (0, 0)
        refreshed = self.last_refresh(step) == step
        return self.reader.passes * (length if refreshed else last - first + self.reader.shift)

    def _window(self, step: int) -> tuple[int, int] | None:
        """The positions that a denoising step computes between refreshes; None where all are refreshes."""
        if self.caching is None:
            return None
        return self.caching.window(self.schedule.block_of(step), self.schedule.gen_length)

    def _own(self, states: Sequence[State]) -> list[CanvasState]:
        """The states as this policy's own: another one's may have been read by other weights, or unmask otherwise."""
        own = [state for state in states if isinstance(state, CanvasState) and state.memory.owner is self]
        if len(own) != len(states) or any(state.done for state in own):
            raise InputError("a state is of another policy or has ended; draw from this policy's own open states")
        return own

    def extend(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        own = self._own(states)
        ends = [self.schedule.boundary(state.revealed) for state in own]
        return self._draw(own, keys, np.array(ends, np.int64), "candidate")

    def finish(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        return self._draw(self._own(states), keys, np.full(len(states), self.schedule.gen_length), "rollout")

    def greedy(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        """The same denoising rule at temperature 0; logp is that of the path at temperature 1.

        The keys matter for the rule `random` alone, which draws positions at any temperature.
        """
        ends = np.full(len(states), self.schedule.gen_length)
        return self._draw(self._own(states), keys, ends, "rollout", denoise_greedily)

    def require_searchable(self) -> None:
        """Raise `InputError` where beam search cannot list the best continuations of a denoising path."""
        require_searchable(self)

    def beam(self, states: Sequence[State], beams: int) -> list[Draw]:
        """The most probable denoising paths that beam search finds, see `ets.policies.diffusion.path_search`.

        logp is that of the path at temperature 1, positions included.
        """
        require_counts(beams=beams)
        return beam_search(self, self._own(states), beams)

    @torch.inference_mode()
    def _draw(
        self,
        states: Sequence[CanvasState],
        keys: Keys,
        ends: Ints,
        kind: str,
        rule: Callable[..., Revealed] = denoise,
    ) -> list[Draw]:
        """Draw each row until so many of its positions are revealed; with a cache, as many rows as it holds."""
        memories: dict[Any, Memory] = {}  # candidates may be equal, and any of them may be chosen

        def together(chosen: Sequence[int]) -> list[Draw]:
            rows = Rows.of([states[n] for n in chosen], keys[chosen], self.schedule.steps)
            self._advance([states[n] for n in chosen], rows, ends[chosen], rule)
            return [self._drawn(states[n], rows, row, kind, memories) for row, n in enumerate(chosen)]

        everyone = range(len(states))
        if self.caching is None:
            draws = together(everyone)
        else:
            longest = max((len(state.prompt) for state in states), default=0) + self.schedule.gen_length
            chunks = self.memory_limit.in_chunks(everyone, self.reader.bytes_known(longest), together)
            draws = [draw for chunk in chunks for draw in chunk]
        self.reader.ledger += Cost.total(draw.cost for draw in draws)
        return draws

    def _advance(self, states: Sequence[CanvasState], rows: Rows, ends: Ints, rule: Callable[..., Revealed]) -> None:
        """Denoise rows until as many of their positions are revealed as `ends` says."""
        known = {self._name(rows, row): state.memory for row, state in enumerate(states)}
        while (going := np.flatnonzero((rows.tokens != self.mask_id).sum(-1) < ends)).size:
            canvases = self._distinct(rows, going, known)
            for batch in alike({id(c.memory): c for c in canvases if c.memory.hidden is None}.values()):
                bytes_each = max(map(self.reader.bytes_to_read, batch))
                self.memory_limit.in_chunks(batch, bytes_each, self.reader.read)
            for batch in equally_masked(canvases):
                bytes_each = self.reader.bytes_of_logits(batch[0], max(len(canvas.rows) for canvas in batch))
                self.memory_limit.in_chunks(batch, bytes_each, partial(self._denoise, rows=rows, rule=rule))
            # At once: from logits that are no numbers the mask token is drawn, and rows never end.
            require_finite([state.problem for state in states], rows.step_logps.sum((1, 2)).tolist())
            if self.unmasking.stop_at_end:
                self._fill_after_end(rows, going)

    def _name(self, rows: Rows, row: int) -> Any:
        """Equal for rows that the model cannot tell apart: by their canvas, and that of the last refresh."""
        return rows.prompt_numbers[row], rows.tokens[row].tobytes(), self._origin(rows, row).tobytes()

    def _origin(self, rows: Rows, row: int) -> Ints:
        """The canvas at the last refresh."""
        step = int(rows.step[row])
        return canvas_before(rows.tokens[row], rows.path[row], self.last_refresh(step), self.mask_id)

    def _distinct(self, rows: Rows, going: Ints, known: dict[Any, Memory]) -> list[Canvas]:
        """The different canvases of the rows that go on."""
        found: dict[Any, Canvas] = {}
        for row in going.tolist():
            name = self._name(rows, row)
            if name not in found:
                found[name] = self._canvas(rows, row, known.get(name) or Memory(self))
            found[name].rows.append(row)
        return [part for canvas in found.values() for part in self._split(canvas)]

    def _canvas(self, rows: Rows, row: int, memory: Memory) -> Canvas:
        tokens, step = rows.tokens[row].copy(), int(rows.step[row])
        first, last = self.schedule.block_of(step)
        masked = first + np.flatnonzero(tokens[first:last] == self.mask_id)
        if self.last_refresh(step) == step:
            # Nothing is kept for a step that is a refresh itself.
            window = self._window(step) if self.last_refresh(step + 1) == step else None
            return Canvas(rows.prompts[row], tokens, masked, memory, window)
        memory.known = memory.known or rows.known[row]
        return Canvas(rows.prompts[row], tokens, masked, memory, self._window(step), self._origin(rows, row))

    def _split(self, canvas: Canvas) -> Iterator[Canvas]:
        """The canvas in parts whose rows fit into memory together; they share what has been read."""
        bytes_each = len(canvas.masked) * self.checkpoint.config.vocab_size * BYTES_PER_LOGIT
        size = max(1, BYTES_PER_CANVAS // bytes_each)
        for begin in range(0, len(canvas.rows), size):
            yield replace(canvas, rows=canvas.rows[begin : begin + size])

    def _denoise(self, canvases: Sequence[Canvas], rows: Rows, rule: Callable[..., Revealed]) -> None:
        """One denoising step of the canvases' rows; of a large vocabulary, some canvases at a time.

        Nothing is placed before all is drawn: where memory runs out, all of these rows are drawn again.
        """
        logits = self.reader.logits(canvases)
        size = rows_together(logits)
        parts = [slice(first, first + size) for first in range(0, len(canvases), size)]
        drawn = [self._reveal(logits[part], canvases[part], rows, rule) for part in parts]
        for part, (index, masked, revealed, sure) in zip(parts, drawn, strict=True):
            self._place(rows, index, masked, revealed)
            if sure is not None:
                rows.certainty[index] += sure.cpu().numpy()
            self._charge(rows, canvases[part])

    def _reveal(
        self, logits: torch.Tensor, canvases: Sequence[Canvas], rows: Rows, rule: Callable[..., Revealed]
    ) -> tuple[Ints, Ints, Revealed, torch.Tensor | None]:
        """What a step reveals of the canvases' rows, from the guided logits `[U, n, V]`, and how certainly if asked.

        First the rows' numbers `[R]` and their masked positions `[R, n]`.
        """
        index = np.array([row for canvas in canvases for row in canvas.rows])
        of = np.repeat(np.arange(len(canvases)), [len(canvas.rows) for canvas in canvases])
        masked = np.stack([canvas.masked for canvas in canvases])[of]
        step = rows.step[index]
        keys, quotas = rows.keys[index, None], np.array([self.schedule.quota(int(s)) for s in step])
        numbers = uniform(keys, step[:, None], masked)
        orders = uniform(derive(keys, int(Purpose.POSITION)), step[:, None], masked)
        arrays = (of, np.minimum(quotas, masked.shape[1]), numbers, orders)
        turn = Turn(logits, self.mask_id, *(torch.from_numpy(array).to(logits.device) for array in arrays))
        revealed = rule(turn, self.unmasking)
        sure = self._certainty_of(turn, revealed.positions) if self.certainty else None
        return index, masked, revealed, sure

    def _charge(self, rows: Rows, canvases: Sequence[Canvas]) -> None:
        """Note what the canvases cost, to the first of their rows, and what their caches hold for the next step."""
        for canvas in canvases:
            rows.costs[canvas.rows[0]] += (canvas.positions, canvas.row_forwards, len(canvas.masked))
            for row in canvas.rows:
                following = int(rows.step[row])
                rows.known[row] = canvas.memory.known if self.last_refresh(following) < following else None

    def _place(self, rows: Rows, index: Ints, masked: Ints, revealed: Revealed) -> None:
        """What a denoising step revealed of the rows `index`, whose masked positions `[R, n]` it saw."""
        step, chosen = rows.step[index], revealed.positions.cpu().numpy()
        where = (np.broadcast_to(index[:, None], chosen.shape)[chosen], masked[chosen])
        rows.tokens[where] = revealed.tokens.cpu().numpy()[chosen]
        rows.path[where] = np.broadcast_to(step[:, None], chosen.shape)[chosen]
        rows.step_logps[index, step] = torch.stack((revealed.token_logp, revealed.position_logp), -1).cpu().numpy()
        rows.step[index] = self.schedule.step_after(step, revealed.positions.all(-1).cpu().numpy())

    def _certainty_of(self, turn: Turn, revealed: torch.Tensor) -> torch.Tensor:
        """`[R, 3]`: how many positions `[R, n]` were revealed, and how certain the model was there."""
        each = for_rows(certainty_of(turn.logits, without=self.mask_id), turn.canvas)
        sums = each.masked_fill(~revealed[..., None], 0.0).sum(1)
        return torch.cat((revealed.sum(-1, keepdim=True), sums), -1)

    def _fill_after_end(self, rows: Rows, going: Ints) -> None:
        """End the rows whose last finished block holds an end token: nothing after it is part of their text."""
        ends = list(self.endings.end_ids)
        for row in going[rows.step[going] % self.schedule.steps_per_block == 0].tolist():
            filled = rows.step[row] // self.schedule.steps_per_block * self.schedule.block_length
            if np.isin(rows.tokens[row, :filled], ends).any():
                rows.tokens[row, filled:] = ends[0]
                rows.step[row] = self.schedule.steps

    def _drawn(self, before: CanvasState, rows: Rows, row: int, kind: str, memories: dict[Any, Memory]) -> Draw:
        tokens, path = tuple(rows.tokens[row].tolist()), tuple(rows.path[row].tolist())
        step, logps = int(rows.step[row]), rows.step_logps[row]
        text, logp = self._text(tokens, before), float(logps[before.step :].sum())
        total, done = before.logp + logp, step == self.schedule.steps
        memory = memories.setdefault((before.prompt, self._name(rows, row)[1:]), Memory(self))
        memory.known = memory.known or (None if done else rows.known[row])
        drawn, *sums = rows.certainty[row].tolist()
        sure = before.certainty and before.certainty + Certainty(int(drawn), *sums)
        state = CanvasState(before.problem, before.prompt, tokens, path, memory, step, text, total, done, logps, sure)
        positions, row_forwards, vocabulary = rows.costs[row].tolist()
        generated = sum(revealed >= before.step for revealed in path)
        counts = {kind: positions, "row_forwards": row_forwards, "vocabulary": vocabulary, "generated": generated}
        return Draw(state, Text(tokens, text, total, done, certainty=sure), logp, Cost(**counts))

    def _text(self, tokens: tuple[int, ...], before: CanvasState) -> str:
        """The canvas up to its first end token or stop string; masks show as `·`, those at its end not at all."""
        end = next((n for n, token in enumerate(tokens) if token in self.endings.end_ids), len(tokens))
        while end and tokens[end - 1] == self.mask_id:
            end -= 1
        pieces: list[str] = []
        run: list[int] = []
        for token in tokens[:end]:
            if token == self.mask_id:
                pieces += [self.endings.decode(run), "·"]
                run = []
            else:
                run.append(token)
        text, problem = "".join([*pieces, self.endings.decode(run)]), before.problem
        return self.endings.cut(text, problem.stop, problem.thinking, before.prompt)


def make_policy(
    checkpoint: Checkpoint,
    unmasking: Unmasking,
    canvas: CanvasSettings,
    caching: Caching | None,
    memory: MemorySettings,
) -> MaskedDiffusionPolicy:
    """The policy of the engine "masked-diffusion" in `ets.policies.registry`."""
    family = MASKED_DIFFUSION.get(checkpoint.config.model_type)
    schedule = Schedule.of(canvas, canvas.max_length if family is None else family.block_length)
    return MaskedDiffusionPolicy(checkpoint, unmasking, schedule, caching=caching, **vars(memory))
