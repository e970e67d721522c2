"""Uniform-diffusion models (DiffusionGemma) through transformers, computing nothing twice.

The encoder reads a prompt once, and a finished canvas once for all rows that share the text up to it. Rows with equal
canvases and an equal past go through the decoder once: the first forward pass of the M·K completions of M candidates
reads M rows, if the candidates end within a canvas. Rows that begin a canvas share the prefix alone: their first
canvases are random.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any, cast

import numpy as np
import torch

from ets.models import UNIFORM_DIFFUSION
from ets.policies.autoregressive.law import Endings
from ets.policies.checkpoint import Checkpoint
from ets.policies.diffusion.canvas import Ints, open_states, require_whole_canvas
from ets.policies.diffusion.entropy_bound import UniformLaw, UniformSchedule, denoise
from ets.policies.diffusion.prefixes import CanvasPrefix, unread
from ets.policies.diffusion.uniform_reader import UniformReader
from ets.policies.prompts import encode_prompt
from ets.policies.settings import MemorySettings, UniformCanvases, UniformDenoising
from ets.policies.token_draws import certainty_of, require_finite
from ets.randomness import uniform
from ets.types import Certainty, Cost, Draw, InputError, Keys, Problem, State, Text


@dataclass(frozen=True, eq=False)
class Reading:
    """The decoder's last pass over a canvas, which rows may share.

    Parameters
    ----------
    signal : tensor
        `[C, width]`, the self-conditioning of the next pass.
    best : tuple of int
        `[C]`, the most probable tokens.
    unchanged : int
        How many passes in a row, up to this one, had these most probable tokens.
    """

    signal: torch.Tensor = field(repr=False)
    best: tuple[int, ...]
    unchanged: int


@dataclass(frozen=True, eq=False)
class UniformState:
    """A generation between two denoising steps; all fields are functions of the prompt and the path.

    Parameters
    ----------
    prefix : CanvasPrefix
        The prompt and the finished canvases.
    written : tuple of int
        Tokens of the finished canvases, up to and with the first end token.
    canvas : array, optional
        The open canvas `[C]`; None between canvases.
    reading : Reading, optional
        The last pass over the open canvas.
    path : tuple of array
        The tokens `[C]` that were drawn: for each canvas the initial tokens, and the tokens after each denoising step
        but the last.
    step : int
        The number of the next denoising step. A canvas that ended early counts as its most steps.
    tokens : tuple of int
        `written`, and for an open canvas its most probable tokens at the last pass, up to and with an end token.
    logp : float
        Natural-log probability of the path.
    step_logps : tuple of float
        The terms of `logp`, one for each array of `path`.
    certainty : Certainty, optional
        If the policy records certainty.
    """

    problem: Problem
    prompt: tuple[int, ...]
    prefix: CanvasPrefix = field(repr=False)
    owner: Any = field(repr=False)
    written: tuple[int, ...] = ()
    canvas: Ints | None = field(default=None, repr=False)
    reading: Reading | None = field(default=None, repr=False)
    path: tuple[Ints, ...] = field(default=(), repr=False)
    step: int = 0
    tokens: tuple[int, ...] = ()
    text: str = ""
    logp: float = 0.0
    done: bool = False
    step_logps: tuple[float, ...] = field(default=(), repr=False)
    certainty: Certainty | None = None

    @property
    def final_tokens(self) -> tuple[int, ...]:
        """The tokens of the finished canvases."""
        return self.written


@dataclass(eq=False)
class UniformRow:
    """A row of a draw, which the denoising steps change; `UniformState` describes the fields."""

    before: UniformState
    key: np.uint64
    end: int  # the denoising step that the call reaches
    prefix: CanvasPrefix
    written: tuple[int, ...]
    canvas: Ints | None
    reading: Reading | None
    step: int
    certainty: Certainty | None
    path: list[Ints] = field(default_factory=list)  # of this call
    logps: list[float] = field(default_factory=list)
    prompt: int = 0  # the cost of the row: positions of the prompt, other positions, and row-forwards
    positions: int = 0
    row_forwards: int = 0
    vocabulary: int = 0

    @classmethod
    def of(cls, state: UniformState, key: np.uint64, end: int) -> UniformRow:
        shared = {
            name: getattr(state, name) for name in ("prefix", "written", "canvas", "reading", "step", "certainty")
        }
        return cls(state, key, end, **shared)

    def charge(self, positions: int) -> None:
        """Pay for a denoising step of a canvas."""
        self.positions += positions
        self.vocabulary += positions
        self.row_forwards += 1

    def draw(self, canvas: Ints, logp: float) -> None:
        """Go on from a canvas that was drawn."""
        self.canvas = canvas
        self.path.append(canvas)
        self.logps.append(logp)


class UniformDiffusionPolicy:
    """p_ref as transformers' `generate` of DiffusionGemma samples, in law; see `ets.policies.diffusion.entropy_bound`.

    A generation is a sequence of canvases. When a canvas has ended, its most probable tokens join the text. The text
    ends at the first end token or stop string, or after the last canvas. A guide step ends between two denoising steps
    of a canvas, or between two canvases.

    The tokens of an unfinished text are the finished canvases and, for an open canvas, its most probable tokens at the
    last denoising step. A reward of unfinished texts, as in the particle filter, reads this draft.

    Randomness: the numbers of a row are functions of its key, the denoising step and the position.

    Parameters
    ----------
    checkpoint : Checkpoint
    denoising : UniformDenoising
        The law of a denoising step; None is replaced by the checkpoint's value.
    canvases : UniformCanvases
        The length, and the guide steps.
    memory_gib : float, optional
        Limit on the tensors of one forward pass; more rows are split into chunks. By default half of the memory that is
        free when the model has been loaded. The keys and values of the rows' canvases may take as much again.
    certainty : bool
        Record `Text.certainty`, of the distributions at the last denoising step of each canvas.
    one_by_one : bool
        Canvases go through the model one by one, so that its rounding depends on no other canvas.

    Raises
    ------
    InputError
        For a checkpoint of another architecture, or numbers that do not fit each other.
    """

    deterministic = False

    def __init__(
        self,
        checkpoint: Checkpoint,
        denoising: UniformDenoising,
        canvases: UniformCanvases,
        *,
        memory_gib: float | None = None,
        certainty: bool = False,
        one_by_one: bool = False,
    ) -> None:
        config = checkpoint.config
        if config.model_type not in UNIFORM_DIFFUSION:
            raise InputError(
                f"{checkpoint.name!r} is a {config.model_type!r} model, which has no uniform diffusion; "
                f"give one of the architectures: {', '.join(UNIFORM_DIFFUSION)}"
            )
        self.checkpoint, self.certainty = checkpoint, certainty
        self.denoising = UniformLaw.of(denoising, checkpoint.generation_config)
        number, steps = -(-canvases.max_length // config.canvas_length), self.denoising.max_denoising_steps
        self.schedule = UniformSchedule(config.canvas_length, number, steps, canvases.guide_steps or number)
        self.vocabulary = config.get_text_config().vocab_size
        self.endings = Endings(checkpoint.tokenizer, checkpoint.end_ids, self.vocabulary)
        self.reader = UniformReader(checkpoint, memory_gib, one_by_one)

    @property
    def lengths(self) -> tuple[int, ...]:
        """As in `UniformSchedule`."""
        return self.schedule.lengths

    @property
    def ledger(self) -> Cost:
        return self.reader.ledger

    def load(self) -> None:
        """Load the weights, unless they are loaded; otherwise the first draw loads them."""
        self.checkpoint.load()

    def start(self, problems: Sequence[Problem]) -> list[State]:
        """Empty generations, after a check of the prompts; the first draw reads the prompts."""
        length, context, states = self.schedule.gen_length, self.checkpoint.context, list[State]()
        image = getattr(self.checkpoint.config, "image_token_id", None)
        for problem in problems:
            require_whole_canvas(problem, length)
            prompt = encode_prompt(self.checkpoint.tokenizer, problem, length, context, self.vocabulary)
            if image in prompt:
                raise InputError(f"the prompt of problem {problem.id!r} holds the image token; give text alone")
            certainty = Certainty() if self.certainty else None
            states.append(UniformState(problem, prompt, CanvasPrefix(prompt), self, certainty=certainty))
        return states

    def extend(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        found = self._open(states)
        return self._draw(found, keys, [self.schedule.boundary(state.step) for state in found], "candidate")

    def finish(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        found = self._open(states)
        return self._draw(found, keys, [self.schedule.steps] * len(found), "rollout")

    def _open(self, states: Sequence[State]) -> list[UniformState]:
        return open_states(self, states, UniformState)

    @torch.inference_mode()
    def _draw(self, states: Sequence[UniformState], keys: Keys, ends: Sequence[int], kind: str) -> list[Draw]:
        """Denoise rows to the steps `ends`, as many rows as their keys and values fit into memory."""

        def together(chosen: Sequence[int]) -> list[Draw]:
            rows = [UniformRow.of(states[n], keys[n], ends[n]) for n in chosen]
            self._advance(rows)
            return [self._drawn(row, kind) for row in rows]

        each = self.reader.bytes_cached(self.schedule.gen_length)
        chunks = self.reader.memory_limit.in_chunks(range(len(states)), each, together)
        draws = [draw for chunk in chunks for draw in chunk]
        self.reader.ledger += Cost.total(draw.cost for draw in draws)
        return draws

    def _advance(self, rows: Sequence[UniformRow]) -> None:
        """Denoise rows to their ends. Rows whose canvas ends early wait: the next canvases share forward passes."""
        while going := [row for row in rows if row.step < row.end]:
            first = min(row.step // self.schedule.denoising_steps for row in going)
            groups: dict[int, list[UniformRow]] = {}
            for row in going:
                if row.step // self.schedule.denoising_steps == first:
                    groups.setdefault(len(row.before.prompt), []).append(row)
            for group in groups.values():
                self._denoise(group)

    def _denoise(self, rows: Sequence[UniformRow]) -> None:
        """One denoising step of rows whose prefixes have equal lengths."""
        self._begin([row for row in rows if row.canvas is None])
        self._read(rows)
        canvases: dict[Any, list[UniformRow]] = {}
        for row in rows:
            assert row.canvas is not None
            canvases.setdefault((id(row.prefix), row.canvas.tobytes(), id(row.reading)), []).append(row)
        most = max(map(len, canvases.values()))
        each = self.reader.bytes_of_logits(self.schedule.canvas_length) * (1 + most) / 2
        self.reader.memory_limit.in_chunks(list(canvases.values()), each, self._step)

    def _begin(self, rows: Sequence[UniformRow]) -> None:
        """x_T: uniform tokens at all positions of the next canvas."""
        tokens = (self._uniforms(rows, 0) * self.vocabulary).astype(np.int64)
        for row, canvas in zip(rows, tokens, strict=True):
            row.draw(canvas, -self.schedule.canvas_length * math.log(self.vocabulary))

    def _uniforms(self, rows: Sequence[UniformRow], offset: int) -> Any:
        """`[R, C]` numbers for the draw before (0) or after (1) the next denoising step of each row."""
        steps, keys = np.array([row.step for row in rows], np.int64), np.array([row.key for row in rows], np.uint64)
        numbers = steps + steps // self.schedule.denoising_steps + offset  # a canvas of N steps has N + 1 numbers
        return uniform(keys[:, None], numbers[:, None], np.arange(self.schedule.canvas_length))

    def _read(self, rows: Sequence[UniformRow]) -> None:
        """Read the prefixes that no row has read. The first row of a prefix pays for it."""
        payers = {id(row.prefix): row for row in reversed(rows)}
        for batch in unread([row.prefix for row in rows]):
            length = batch[0].length
            self.reader.memory_limit.in_chunks(batch, self.reader.bytes_cached(length), self.reader.read)
            for prefix in batch:
                payer, tokens = payers[id(prefix)], len(prefix.tokens)
                payer.row_forwards += 1
                if prefix.before is None:
                    payer.prompt += tokens
                else:
                    payer.positions += tokens

    def _step(self, canvases: Sequence[Sequence[UniformRow]]) -> None:
        """One denoising step of U canvases and the rows of each. Rows change after all draws, as memory may run out."""
        firsts, every = [rows[0] for rows in canvases], [row for rows in canvases for row in rows]
        of = np.repeat(np.arange(len(canvases)), [len(rows) for rows in canvases])
        logits, warmth = self._tempered(firsts)
        uniforms = torch.from_numpy(self._uniforms(every, 1)).to(logits.device)
        drawn = denoise(logits, torch.from_numpy(of).to(logits.device), uniforms, self.denoising.entropy_bound)
        entropies = drawn.entropy.tolist()
        require_finite([row.before.problem for row in firsts], entropies)
        readings = self._readings(firsts, self.reader.signal(logits), drawn.best.tolist())
        ended = [
            self.denoising.ends(self._within(row), reading.unchanged, entropy)
            for row, reading, entropy in zip(firsts, readings, entropies, strict=True)
        ]
        sure = [
            certainty_of(logits[n] * warmth[n]).cpu() if self.certainty and end else None for n, end in enumerate(ended)
        ]
        tokens, logps = drawn.tokens.cpu().numpy(), drawn.logp.tolist()
        for row in firsts:
            row.charge(self.schedule.canvas_length)
        for n, row, canvas, logp in zip(of, every, tokens, logps, strict=True):
            row.step += 1
            if ended[n]:
                self._end_canvas(row, readings[n].best, sure[n])
            else:
                row.draw(canvas.copy(), logp)
                row.reading = readings[n]

    def _tempered(self, rows: Sequence[UniformRow]) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits `[U, C, V]` of the rows' canvases over their temperatures, and the temperatures `[U, 1, 1]`."""
        tokens = torch.from_numpy(np.stack([cast("Ints", row.canvas) for row in rows]))
        signals = [row.reading.signal if row.reading else None for row in rows]
        logits = self.reader.logits([row.prefix for row in rows], tokens, signals)
        warmth = logits.new_tensor([self.denoising.temperature(self._within(row)) for row in rows])[:, None, None]
        return logits.div_(warmth), warmth

    def _within(self, row: UniformRow) -> int:
        """The number of the row's next denoising step within its canvas."""
        return row.step % self.schedule.denoising_steps

    @staticmethod
    def _readings(rows: Sequence[UniformRow], signals: torch.Tensor, best: Sequence[list[int]]) -> list[Reading]:
        found = []
        for row, signal, tokens in zip(rows, signals, map(tuple, best), strict=True):
            same = row.reading is not None and row.reading.best == tokens
            unchanged = row.reading.unchanged + 1 if row.reading is not None and same else 1
            found.append(Reading(signal.clone(), tokens, unchanged))
        return found

    def _end_canvas(self, row: UniformRow, best: tuple[int, ...], sure: torch.Tensor | None) -> None:
        """Append the most probable tokens of a canvas to the text. `row.step` is the number of the next step."""
        tokens = self._until_end(best)
        row.written += tokens
        row.canvas = row.reading = None
        row.step = self.schedule.after_canvas(row.step - 1)
        if row.certainty is not None and sure is not None:
            row.certainty += Certainty(len(tokens), *sure[: len(tokens)].sum(0).tolist())
        if tokens[-1] in self.endings.end_ids or self._stopped(row):
            row.step = self.schedule.steps
        elif row.step < self.schedule.steps:
            row.prefix = row.prefix.followed_by(best)

    def _until_end(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """The tokens up to and with the first end token."""
        end = next((n for n, token in enumerate(tokens, 1) if token in self.endings.end_ids), len(tokens))
        return tokens[:end]

    def _stopped(self, row: UniformRow) -> bool:
        """Whether the text holds a stop string."""
        problem = row.before.problem
        if not problem.stop:
            return False
        text = self.endings.decode(row.written)
        return len(self.endings.cut(text, problem.stop, problem.thinking, row.before.prompt)) < len(text)

    def _drawn(self, row: UniformRow, kind: str) -> Draw:
        before, logp = row.before, math.fsum(row.logps)
        draft = () if row.reading is None else self._until_end(row.reading.best)
        tokens, total = row.written + draft, before.logp + logp
        problem, done = before.problem, row.step == self.schedule.steps
        text = self.endings.text(tokens, problem.stop, problem.thinking, before.prompt)
        state = replace(
            before,
            prefix=row.prefix,
            written=row.written,
            canvas=row.canvas,
            reading=row.reading,
            path=(*before.path, *row.path),
            step=row.step,
            tokens=tokens,
            text=text,
            logp=total,
            done=done,
            step_logps=(*before.step_logps, *row.logps),
            certainty=row.certainty,
        )
        generated = sum(old != new for old, new in zip_longest(before.tokens, tokens))
        work = {kind: row.positions, "row_forwards": row.row_forwards, "vocabulary": row.vocabulary}
        cost = Cost(prompt=row.prompt, generated=generated, **work)
        return Draw(state, Text(tokens, text, total, done, certainty=row.certainty), logp, cost)


def make_policy(
    checkpoint: Checkpoint, denoising: UniformDenoising, canvases: UniformCanvases, memory: MemorySettings
) -> UniformDiffusionPolicy:
    """The policy of the engine "uniform-diffusion" in `ets.policies.registry`."""
    return UniformDiffusionPolicy(checkpoint, denoising, canvases, **memory.options())
