"""Masked-diffusion models (LLaDA) through transformers, computing nothing twice.

Rows whose canvases are equal go through the model once: the first forward of M candidates is one row, that of their
M·K completions M rows. The next guide step goes on from what its candidate's completions began with. The head sees
the masked positions of the active block only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray

from ets.models import MASKED_DIFFUSION
from ets.policies.autoregressive import Endings
from ets.policies.checkpoint import Checkpoint
from ets.policies.drawing import require_finite
from ets.policies.memory import MemoryLimit
from ets.policies.prompts import encode_prompt
from ets.policies.unmasking import Revealed, Schedule, Unmasking, denoise, denoise_greedily
from ets.randomness import Purpose, derive, uniform
from ets.types import Cost, Draw, Floats, InputError, Keys, Policy, Problem, State, Text

Ints: TypeAlias = NDArray[np.int64]

PADDING = 1.125
"""Rows go through the model together if the longest has at most this many times the tokens of the shortest."""
BYTES_PER_LOGIT = 48
"""Of the float64 tensors that a denoising step makes, for each position and token of the vocabulary."""
BYTES_PER_CANVAS = 2**31
"""Rows that share a canvas and would take more are split into groups."""


@dataclass(eq=False)
class Memory:
    """The head's guided inputs `[n, width]` at a canvas's masked positions, once its owner has computed them."""

    owner: Policy
    hidden: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class CanvasState:
    """A canvas on its way.

    Parameters
    ----------
    problem : Problem
    prompt : tuple of int
    tokens : tuple of int
        The canvas `[gen_length]`: the mask id where nothing has been revealed.
    path : tuple of int
        The denoising step that revealed each position; -1 where none has.
    step : int
        Denoising steps done.
    text : str
        Up to the first end token or stop string; a masked position before the last token shows as `·`.
    logp : float
        Natural-log probability of the path: of tokens and positions.
    done : bool
    memory : Memory
        Shared by the rows that share this state, and by the states of equal draws.
    """

    problem: Problem
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    path: tuple[int, ...]
    memory: Memory = field(repr=False)
    step: int = 0
    text: str = ""
    logp: float = 0.0
    done: bool = False


@dataclass(eq=False)
class _Rows:
    """R rows under way: arrays that the denoising steps change in place."""

    keys: Keys
    prompts: list[tuple[int, ...]]
    prompt_numbers: list[int]  # equal for equal prompts
    tokens: Ints  # [R, gen_length]
    path: Ints  # [R, gen_length]
    step: Ints  # [R]
    logp: Floats  # [R]
    costs: Ints  # [R, 3]: positions, row-forwards, vocabulary positions

    @classmethod
    def of(cls, states: Sequence[CanvasState], keys: Keys) -> _Rows:
        tokens, path = (np.array([getattr(state, name) for state in states]) for name in ("tokens", "path"))
        step = np.array([state.step for state in states])
        prompts, numbers = [state.prompt for state in states], dict[tuple[int, ...], int]()
        each = [numbers.setdefault(prompt, len(numbers)) for prompt in prompts]
        costs = np.zeros((len(states), 3), np.int64)
        return cls(keys, prompts, each, tokens, path, step, np.zeros(len(states)), costs)

    def name(self, row: int) -> tuple[int, bytes]:
        """Equal for rows that the model cannot tell apart."""
        return self.prompt_numbers[row], self.tokens[row].tobytes()


@dataclass(eq=False)
class _Canvas:
    """What some rows share: a prompt and a canvas, and the masked positions of its active block."""

    prompt: tuple[int, ...]
    tokens: Ints
    masked: Ints
    memory: Memory
    rows: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.tokens)


class MaskedDiffusionPolicy:
    """p_ref as a masked-diffusion model under a denoising law; a guide step is `steps / guide_steps` denoising steps.

    Parameters
    ----------
    checkpoint : Checkpoint
    unmasking : Unmasking
        The law of a denoising step.
    schedule : Schedule
        The canvas, its blocks and steps, and the guide steps.
    memory_gib : float, optional
        Limit on what the rows of one forward pass take; more rows are split into chunks. By default half of the
        memory that is free when the model has been loaded.

    Raises
    ------
    InputError
        For a checkpoint of another architecture.
    """

    def __init__(
        self, checkpoint: Checkpoint, unmasking: Unmasking, schedule: Schedule, *, memory_gib: float | None = None
    ) -> None:
        config = checkpoint.config
        family = MASKED_DIFFUSION.get(config.model_type)
        if family is None:
            raise InputError(
                f"{checkpoint.name!r} is a {config.model_type!r} model, which does not unmask; "
                f"give one of the architectures: {', '.join(MASKED_DIFFUSION)}"
            )
        self.checkpoint, self.unmasking, self.schedule, self.family = checkpoint, unmasking, schedule, family
        self.mask_id = int(getattr(config, family.mask_field))
        vocabulary = checkpoint.tokenizer.get_vocab()
        named = {vocabulary[token] for token in family.end_tokens if token in vocabulary}
        self.endings = Endings(checkpoint.tokenizer, checkpoint.end_ids | named, config.vocab_size)
        self.ledger = Cost()
        self._memory = MemoryLimit(memory_gib, lambda: checkpoint.model.device)

    @property
    def deterministic(self) -> bool:
        return self.unmasking.deterministic

    @property
    def passes(self) -> int:
        """Sequences that the model reads for one canvas: two with guidance."""
        return 2 if self.unmasking.cfg else 1

    def start(self, problems: Sequence[Problem]) -> list[State]:
        """Canvases of masks; prompts are checked now."""
        length = self.schedule.gen_length
        prompts = [
            encode_prompt(self.checkpoint.tokenizer, problem, length, self.checkpoint.context) for problem in problems
        ]
        for problem, prompt in zip(problems, prompts, strict=True):
            if self.mask_id in prompt:
                raise InputError(f"the prompt of problem {problem.id!r} holds the mask token; take it out")
        empty = (self.mask_id,) * length
        return [CanvasState(*pair, empty, (-1,) * length, Memory(self)) for pair in zip(problems, prompts, strict=True)]

    def sample_positions(self, states: Sequence[State]) -> float:
        """Token positions of one sample that shares nothing, without `stop_at_end`: the mean over start states."""
        own = self._own(states)
        each = sum(len(state.prompt) + len(state.tokens) for state in own) / len(own)
        return self.schedule.steps * self.passes * each

    def _own(self, states: Sequence[State]) -> list[CanvasState]:
        """The states as this policy's own: another one's may have been read by other weights, or unmask otherwise."""
        own = [state for state in states if isinstance(state, CanvasState) and state.memory.owner is self]
        if len(own) != len(states) or any(state.done for state in own):
            raise InputError("a state is of another policy or has ended; draw from this policy's own open states")
        return own

    def extend(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        each = self.schedule.steps_per_guide_step
        own = self._own(states)
        return self._draw(own, keys, np.array([(state.step // each + 1) * each for state in own]), "candidate")

    def finish(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        return self._draw(self._own(states), keys, np.full(len(states), self.schedule.steps), "rollout")

    def greedy(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        """The same denoising rule at temperature 0; logp is that of the path at temperature 1.

        The keys matter for the rule `random` alone, which draws positions at any temperature.
        """
        ends = np.full(len(states), self.schedule.steps)
        return self._draw(self._own(states), keys, ends, "rollout", denoise_greedily)

    @torch.inference_mode()
    def _draw(
        self,
        states: Sequence[CanvasState],
        keys: Keys,
        ends: Ints,
        kind: str,
        rule: Callable[..., Revealed] = denoise,
    ) -> list[Draw]:
        """Denoise each row up to its own last step."""
        rows = _Rows.of(states, keys)
        known = {rows.name(row): state.memory for row, state in enumerate(states)}
        width = self._bytes_per_position
        while (going := np.flatnonzero(rows.step < ends)).size:
            for batch in _alike(self._distinct(rows, going, known)):
                copies = max(len(canvas.rows) for canvas in batch)
                logits = copies * len(batch[0].masked) * self.checkpoint.config.vocab_size
                bytes_each = batch[-1].length * width * self.passes + logits * BYTES_PER_LOGIT
                self._memory.in_chunks(batch, bytes_each, lambda chunk: self._denoise(chunk, rows, rule))
            if self.unmasking.stop_at_end:
                self._fill_after_end(rows, going)
        require_finite([state.problem for state in states], rows.logp.tolist())
        memories: dict[Any, Memory] = {}  # candidates may be equal, and any of them may be chosen
        draws = [
            self._drawn(state, rows, row, kind, memories.setdefault(rows.name(row), Memory(self)))
            for row, state in enumerate(states)
        ]
        self.ledger += Cost.total(draw.cost for draw in draws)
        return draws

    def _distinct(self, rows: _Rows, going: Ints, known: dict[Any, Memory]) -> list[_Canvas]:
        """The different canvases of the rows that go on."""
        found: dict[Any, _Canvas] = {}
        for row in going.tolist():
            name = rows.name(row)
            if name not in found:
                tokens = rows.tokens[row].copy()
                first, last = self.schedule.block_of(int(rows.step[row]))
                masked = first + np.flatnonzero(tokens[first:last] == self.mask_id)
                found[name] = _Canvas(rows.prompts[row], tokens, masked, known.get(name) or Memory(self))
            found[name].rows.append(row)
        return [part for canvas in found.values() for part in self._split(canvas)]

    def _split(self, canvas: _Canvas) -> Iterator[_Canvas]:
        """The canvas in parts whose rows fit into memory together; they share what has been read."""
        bytes_each = len(canvas.masked) * self.checkpoint.config.vocab_size * BYTES_PER_LOGIT
        size = max(1, BYTES_PER_CANVAS // bytes_each)
        for begin in range(0, len(canvas.rows), size):
            yield replace(canvas, rows=canvas.rows[begin : begin + size])

    def _denoise(self, canvases: Sequence[_Canvas], rows: _Rows, rule: Callable[..., Revealed]) -> None:
        """One denoising step of the canvases' rows."""
        unread = {id(canvas.memory): canvas for canvas in canvases if canvas.memory.hidden is None}
        self._read(list(unread.values()), rows)
        hidden = torch.stack([cast("torch.Tensor", canvas.memory.hidden) for canvas in canvases])
        logits = self.checkpoint.model.get_output_embeddings()(hidden)
        index = np.array([row for canvas in canvases for row in canvas.rows])
        of = np.repeat(np.arange(len(canvases)), [len(canvas.rows) for canvas in canvases])
        masked = np.stack([canvas.masked for canvas in canvases])[of]
        step = rows.step[index]
        keys, quotas = rows.keys[index, None], np.array([self.schedule.quota(int(s)) for s in step])
        numbers = uniform(keys, step[:, None], masked)
        orders = uniform(derive(keys, int(Purpose.POSITION)), step[:, None], masked)
        choice = (torch.from_numpy(array).to(logits.device) for array in (of, quotas, numbers, orders))
        revealed = rule(logits, *choice, unmasking=self.unmasking, mask_id=self.mask_id)
        chosen = revealed.positions.cpu().numpy()
        where = (np.broadcast_to(index[:, None], chosen.shape)[chosen], masked[chosen])
        rows.tokens[where] = revealed.tokens.cpu().numpy()[chosen]
        rows.path[where] = np.broadcast_to(step[:, None], chosen.shape)[chosen]
        rows.logp[index] += (revealed.token_logp + revealed.position_logp).cpu().numpy()
        rows.step[index] += 1
        for canvas in canvases:
            rows.costs[canvas.rows[0], 2] += len(canvas.masked)

    def _read(self, canvases: Sequence[_Canvas], rows: _Rows) -> None:
        """One forward pass over canvases that differ; charged, padding included, to the first row of each.

        With guidance, un + (s + 1)(cond - un) is taken before the head, which is linear: half the vocabulary work.
        """
        if not canvases:
            return
        sequences: list[tuple[Sequence[int], Ints]] = []
        unguided: dict[tuple[int, bytes], int] = {}  # where the sequence of a canvas without its prompt stands
        places = np.empty((self.passes, len(canvases)), np.int64)
        for n, canvas in enumerate(canvases):
            places[0, n] = len(sequences)
            sequences.append((canvas.prompt, canvas.tokens))
            if self.unmasking.cfg:
                name = (len(canvas.prompt), canvas.tokens.tobytes())
                if name not in unguided:
                    unguided[name] = len(sequences)
                    sequences.append(((self.mask_id,) * len(canvas.prompt), canvas.tokens))
                places[1, n] = unguided[name]
        longest = max(canvas.length for canvas in canvases)
        hidden = self._forward([np.concatenate(pair) for pair in sequences], longest)
        at = np.stack([longest - len(c.tokens) + c.masked - self.family.shift for c in canvases])
        found = hidden[torch.from_numpy(places)[..., None], torch.from_numpy(at)[None]]
        # Charged only now: where memory ran out, the canvases come again in smaller chunks.
        reads = np.diff(places[0], append=len(sequences))
        for canvas, read, vectors in zip(canvases, reads.tolist(), self._guided(found), strict=True):
            rows.costs[canvas.rows[0], :2] += (read * longest, read)
            canvas.memory.hidden = vectors.clone()  # a slice would keep the other canvases' alive

    def _guided(self, hidden: torch.Tensor) -> torch.Tensor:
        """`[U, n, width]` from `[1 or 2, U, n, width]`."""
        if len(hidden) == 1:
            return hidden[0]
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        return (wide[1] + (self.unmasking.cfg + 1) * (wide[0] - wide[1])).to(hidden.dtype)

    def _forward(self, sequences: Sequence[Ints], longest: int) -> torch.Tensor:
        """The head's inputs `[sequences, longest, width]`; shorter sequences are padded on the left."""
        device = self.checkpoint.model.device
        ids = np.zeros((len(sequences), longest), np.int64)
        real = np.zeros_like(ids)
        for n, sequence in enumerate(sequences):
            ids[n, longest - len(sequence) :] = sequence
            real[n, longest - len(sequence) :] = 1
        mask = None if real.all() else torch.from_numpy(real).to(device)
        hidden = self.checkpoint.model.base_model(torch.from_numpy(ids).to(device), mask).last_hidden_state
        self.ledger += Cost(forwards=1)
        return hidden

    def _fill_after_end(self, rows: _Rows, going: Ints) -> None:
        """End the rows whose last finished block holds an end token: nothing after it is part of their text."""
        ends = list(self.endings.end_ids)
        for row in going[rows.step[going] % self.schedule.steps_per_block == 0].tolist():
            filled = rows.step[row] // self.schedule.steps_per_block * self.schedule.block_length
            if np.isin(rows.tokens[row, :filled], ends).any():
                rows.tokens[row, filled:] = ends[0]
                rows.step[row] = self.schedule.steps

    def _drawn(self, before: CanvasState, rows: _Rows, row: int, kind: str, memory: Memory) -> Draw:
        tokens, path = tuple(rows.tokens[row].tolist()), tuple(rows.path[row].tolist())
        step, logp = int(rows.step[row]), float(rows.logp[row])
        text, total, done = self._text(tokens, before.problem.stop), before.logp + logp, step == self.schedule.steps
        state = CanvasState(before.problem, before.prompt, tokens, path, memory, step, text, total, done)
        positions, row_forwards, vocabulary = rows.costs[row].tolist()
        generated = sum(revealed >= before.step for revealed in path)
        counts = {kind: positions, "row_forwards": row_forwards, "vocabulary": vocabulary, "generated": generated}
        return Draw(state, Text(tokens, text, total, done), logp, Cost(**counts))

    def _text(self, tokens: tuple[int, ...], stop: tuple[str, ...]) -> str:
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
        return self.endings.cut("".join([*pieces, self.endings.decode(run)]), stop)

    @property
    def _bytes_per_position(self) -> int:
        """Bytes that a token position takes on its way through a layer, generously."""
        config = self.checkpoint.config
        return (12 * config.hidden_size + 3 * config.intermediate_size) * self.checkpoint.model.dtype.itemsize


def _alike(canvases: Sequence[_Canvas]) -> Iterator[list[_Canvas]]:
    """Batches of canvases with equally many masked positions and of nearly the same length."""
    batch: list[_Canvas] = []
    for canvas in sorted(canvases, key=lambda canvas: (len(canvas.masked), canvas.length)):
        shortest = batch[0] if batch else canvas
        if len(canvas.masked) != len(shortest.masked) or canvas.length > PADDING * shortest.length:
            yield batch
            batch = []
        batch.append(canvas)
    if batch:
        yield batch
