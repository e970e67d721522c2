"""Autoregressive models through transformers, on a cache that computes no position twice.

The model reads a prompt once per problem. Candidates fork the prompt's cache, rollouts continue the candidate's cache,
and the next guide step continues the cache of the chosen candidate. Ended rows leave the batch.
"""

from __future__ import annotations

import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, TypeAlias

import numpy as np
import torch

from ets.models import MASKED_DIFFUSION
from ets.policies.autoregressive.beam_search import Ended, beam_search
from ets.policies.autoregressive.cache import RowCache, RowMemory, columns_each, compact, fork, share
from ets.policies.autoregressive.law import (
    Endings,
    TokenState,
    as_token_states,
    draw_of,
    probabilities,
    require_same_tokens,
)
from ets.policies.autoregressive.scoring import (
    ForeignPath,
    PathKey,
    Score,
    of_equal_length,
    paths_between,
    read_on,
    score_paths,
)
from ets.policies.checkpoint import Checkpoint
from ets.policies.memory import MemoryLimit, cache_bytes
from ets.policies.prompts import encode_prompt
from ets.policies.settings import Horizon, MemorySettings, Sampling
from ets.policies.token_draws import certainty_of, in_slices, pick_tokens, require_finite
from ets.randomness import uniform
from ets.step import require_counts
from ets.types import Certainty, Cost, Draw, Followed, InputError, Keys, Policy, Problem, Scored, State

Pick: TypeAlias = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""From logits `[R, V]` and uniforms `[R]` to tokens `[R]` and their log-probabilities `[R]`."""

LOOK_EVERY = 8
"""Tokens between two checks for ended rows on a GPU, where a check waits for the device."""


class TransformersPolicy:
    """p_ref as a causal language model under a sampling rule; a guide step is `block_size` tokens.

    Parameters
    ----------
    checkpoint : Checkpoint
    sampling : Sampling
        The sampled distribution, which log-probabilities refer to.
    horizon : Horizon
        Block size and longest generation, in tokens.
    memory_gib : float, optional
        Limit on the cache of the rows that advance together; more rows are split into chunks. By default half of the
        free memory after the model has been loaded.
    end_ids : collection of int, optional
        Tokens that end a generation; by default the checkpoint's.
    certainty : bool
        Record `Text.certainty`, which takes another pass over the vocabulary per token. Beam search records none.
    look_every : int, optional
        Tokens between two checks for ended rows. The positions include the tokens that a row draws between its end and
        the check, `generated` does not; results do not change. By default 1 on a CPU, `LOOK_EVERY` on other devices.

    Raises
    ------
    InputError
        For a masked-diffusion model, and for layers other than attention.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        sampling: Sampling,
        horizon: Horizon,
        *,
        memory_gib: float | None = None,
        end_ids: Collection[int] | None = None,
        certainty: bool = False,
        look_every: int | None = None,
    ) -> None:
        self._config = checkpoint.config.get_text_config()
        if self._config.model_type in MASKED_DIFFUSION:
            raise InputError(
                f"{checkpoint.name!r} is a masked-diffusion model ({self._config.model_type}), which is not "
                "autoregressive; use MaskedDiffusionPolicy, or llada/eval.sh"
            )
        layers = getattr(self._config, "layer_types", None) or []
        if unknown := set(layers) - {"full_attention", "sliding_attention", "attention"}:
            raise InputError(
                f"{checkpoint.name!r} has layers of the type {sorted(unknown)[0]}; only attention layers are supported"
            )
        self.checkpoint, self.sampling, self.horizon = checkpoint, sampling, horizon
        ends = checkpoint.end_ids if end_ids is None else end_ids
        self.endings = Endings(checkpoint.tokenizer, ends, self._config.vocab_size)
        self.ledger, self.memory_gib, self.certainty = Cost(), memory_gib, certainty
        require_counts(look_every=1 if look_every is None else look_every)
        self._look_every = look_every
        self._memory = MemoryLimit(memory_gib, lambda: checkpoint.model.device)

    @property
    def deterministic(self) -> bool:
        return self.sampling.temperature == 0

    def at_law(self, sampling: Sampling, horizon: Horizon | None = None) -> TransformersPolicy:
        """A policy of the same model with another law, and optionally another horizon."""
        shared: dict[str, Any] = {"memory_gib": self.memory_gib, "end_ids": self.endings.end_ids}
        return TransformersPolicy(
            self.checkpoint, sampling, horizon or self.horizon, certainty=self.certainty, **shared
        )

    def start(self, problems: Sequence[Problem]) -> list[State]:
        """Empty generations; the prompts are encoded and checked, and read by the first draw."""
        context, tokenizer = self.checkpoint.context, self.checkpoint.tokenizer
        prompts = [encode_prompt(tokenizer, problem, self.horizon.max_length, context) for problem in problems]
        sure = Certainty() if self.certainty else None
        return [TokenState(*pair, memory=RowMemory(), certainty=sure) for pair in zip(problems, prompts, strict=True)]

    def extend(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        return self._draw(states, keys, self.horizon.block_size, "candidate", self._pick)

    def finish(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        return self._draw(states, keys, self.horizon.max_length, "rollout", self._pick)

    def greedy(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        """The most probable token at each turn, whatever the sampling rule; logp is the untempered model's."""
        return self._draw(states, keys, self.horizon.max_length, "rollout", _most_probable)

    @torch.inference_mode()
    def beam(self, states: Sequence[State], beams: int) -> list[Draw]:
        """The texts of `ets.policies.autoregressive.beam_search`; logp is the untempered model's.

        A state costs `beams` rows in every forward pass until the last search of the batch is over. The search and the
        cost of equal states are shared.
        """
        require_counts(beams=beams)
        opened = as_token_states(states)
        if beams == 1:
            return self.greedy(opened, np.zeros(len(opened), np.uint64))
        compact([state.memory for state in opened])
        prompts = self._read_prompts(opened)
        by_length: dict[int, list[TokenState]] = defaultdict(list)
        for state in dict.fromkeys(opened):
            by_length[len(state.tokens)].append(state)
        bytes_each = beams * self._bytes_per_row(opened)
        found: dict[TokenState, Draw] = {}
        for group in by_length.values():
            for draws in self._memory.in_chunks(group, bytes_each, lambda chunk: self._search(chunk, beams, prompts)):
                found |= draws
        self.ledger += Cost.total(draw.cost for draw in found.values())
        free = {state: replace(draw, cost=Cost()) for state, draw in found.items()}
        return [found.pop(state, free[state]) for state in opened]

    def _search(
        self, states: Sequence[TokenState], beams: int, prompts: dict[RowMemory, int]
    ) -> dict[TokenState, Draw]:
        """Beam search from states with equally many tokens."""
        room = self.horizon.max_length - len(states[0].tokens)
        cache = fork([state.memory for state in states for _ in range(beams)], room)
        rules: dict[str, Any] = {"end_ids": self.endings.end_ids, "ended": self._ended}
        found = beam_search(self.checkpoint.model, cache, states, beams=beams, room=room, **rules)
        require_finite([state.problem for state in states], found.logps)
        self.ledger += Cost(forwards=found.forwards)
        each, draws = beams * found.forwards, {}
        for state, tokens, logp in zip(states, found.tokens, found.logps, strict=True):
            cost = Cost(prompt=prompts.pop(state.memory, 0), rollout=each, generated=each)
            draws[state] = draw_of(state, tokens, logp, None, cost, self.endings)
        return draws

    def require_proposal(self, proposal: Policy) -> None:
        """Raise `InputError` for a proposal with other tokens, endings or another length."""
        require_same_tokens(self, proposal)

    @torch.inference_mode()
    def follow(self, own: Sequence[State], foreign: Sequence[State]) -> list[Followed]:
        """One forward over the new tokens of the foreign states; rows with equal state and tokens share the forward.

        The model does not read ended rows. `logp` of the new states is NaN.
        """
        paths = paths_between(as_token_states(own), foreign)
        going = {path.key: path for path in paths if not path.end.done}
        for path in going.values():
            if max(path.tokens, default=0) >= self._config.vocab_size:
                raise InputError(
                    f"token {max(path.tokens)} is beyond the {self._config.vocab_size} that the proposal knows; "
                    "choose one of the same family"
                )
        compact([path.start.memory for path in going.values()])
        prompts = self._read_prompts([path.start for path in going.values()])
        memories: dict[PathKey, RowMemory] = {}
        for group in of_equal_length(going.values()):
            bytes_each = self._bytes_per_row([path.start for path in group])
            for found in self._memory.in_chunks(group, bytes_each, partial(read_on, self._forward)):
                memories |= found
        costs = self._reading_costs(paths, {key: len(path.tokens) for key, path in going.items()}, prompts)
        followed = []
        for path, cost in zip(paths, costs, strict=True):
            start, end, memory = path.start, path.end, memories.get(path.key)
            state = TokenState(start.problem, start.prompt, end.tokens, end.text, math.nan, end.done, memory)
            followed.append(Followed(state, cost))
        return followed

    @torch.inference_mode()
    def logp(self, starts: Sequence[State], ends: Sequence[State]) -> list[Scored]:
        """One parallel forward over the tokens of the paths, on the caches of the starts, for all equal paths.

        A path with a token beyond the model's vocabulary has probability 0, without a forward.
        """
        paths = paths_between(as_token_states(starts), ends)
        compact([path.start.memory for path in paths])
        prompts = self._read_prompts([path.start for path in paths])
        known = {path.key: path for path in paths if max(path.tokens, default=0) < self._config.vocab_size}
        ordered = sorted(known.values(), key=lambda path: len(path.tokens))
        bytes_each = self._bytes_per_row([path.start for path in paths])
        scoring = partial(score_paths, self._forward, partial(probabilities, self.sampling))
        scores = {path.key: Score(-math.inf) for path in paths}
        for found in self._memory.in_chunks(ordered, bytes_each, scoring):
            scores |= found
        costs = self._reading_costs(paths, {key: found.positions for key, found in scores.items()}, prompts)
        return [Scored(scores[path.key].logp, cost) for path, cost in zip(paths, costs, strict=True)]

    def _reading_costs(
        self, paths: Sequence[ForeignPath], positions: dict[PathKey, int], prompts: dict[RowMemory, int]
    ) -> list[Cost]:
        """The cost of each path; the first of several paths with shared work has the whole cost."""
        costs = [Cost(prompt=prompts.pop(path.start.memory, 0), scored=positions.pop(path.key, 0)) for path in paths]
        self.ledger += Cost.total(costs)
        return costs

    @torch.inference_mode()
    def _draw(self, states: Sequence[State], keys: Keys, block: int, kind: str, pick: Pick) -> list[Draw]:
        opened = as_token_states(states)
        memories = [state.memory for state in opened]
        compact(memories)
        prompts, rows = self._read_prompts(opened), list(zip(opened, keys, strict=True))
        bytes_each = columns_each(memories, self._room(opened, block)) * self._bytes_per_column
        advance = partial(self._advance, block=block, kind=kind, pick=pick, prompts=prompts)
        chunks = self._memory.in_chunks(rows, bytes_each, advance)
        draws = [draw for chunk in chunks for draw in chunk]
        self.ledger += Cost.total(draw.cost for draw in draws)
        return draws

    def _pick(self, logits: torch.Tensor, uniforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return pick_tokens(probabilities(self.sampling, logits), uniforms)

    def _read_prompts(self, states: Sequence[TokenState]) -> dict[RowMemory, int]:
        """Fill the memories of start states, one forward per prompt length; returns the positions read, by memory."""
        unread = {state.memory: state for state in states if state.memory.logits is None}
        by_length: dict[int, list[TokenState]] = defaultdict(list)
        for state in unread.values():
            by_length[len(state.prompt)].append(state)
        for length, group in by_length.items():
            self._memory.in_chunks(group, length * self._bytes_per_column, self._read)
        return {memory: len(state.prompt) for memory, state in unread.items()}

    def _read(self, states: Sequence[TokenState]) -> None:
        cache = RowCache(self._config.num_hidden_layers, len(states[0].prompt), [0] * len(states))
        logits = self._forward(cache, [state.prompt for state in states])[:, -1]
        for row, state in enumerate(states):
            state.memory.cache, state.memory.row, state.memory.logits = cache, row, logits[row]

    def _advance(
        self,
        batch: Sequence[tuple[TokenState, np.uint64]],
        block: int,
        kind: str,
        pick: Pick,
        prompts: dict[RowMemory, int],
    ) -> list[Draw]:
        """Draw up to `block` tokens for each row, with a check for ended rows every `look_every` tokens."""
        states, keys = [state for state, _ in batch], np.array([key for _, key in batch], np.uint64)
        memories, drawn = [state.memory for state in states], _Tally(states)
        logits = torch.stack([memory.logits for memory in memories])
        room = self._room(states, block)
        positions = np.array([len(tokens) for tokens in drawn.tokens])[:, None] + np.arange(room)
        uniforms = torch.from_numpy(uniform(keys[:, None], positions)).to(logits.device)
        look_every = self._look_every or (1 if logits.device.type == "cpu" else LOOK_EVERY)
        cache, rows, column = share(memories, room), list(range(len(states))), 0
        while rows and column < room:
            left = min(self.horizon.max_length - len(drawn.tokens[n]) for n in rows)
            live = uniforms[rows]
            columns = [self._column(logits, live[:, column], pick)]
            for at in range(column + 1, column + min(look_every, room - column, left)):
                logits = self._forward(cache, columns[-1].tokens[:, None])[:, -1]
                columns.append(self._column(logits, live[:, at], pick))
            column += len(columns)
            going = drawn.take(rows, columns, self._ended)
            if len(going) < len(rows):
                rows = [rows[r] for r in cache.keep(going)]
            if rows:
                logits = self._forward(cache, [drawn.tokens[n][-1:] for n in rows])[:, -1]
        require_finite([state.problem for state in states], drawn.numbers[:, 0].tolist())
        reached = {n: RowMemory(cache, r, logits[r]) for r, n in enumerate(rows)}
        return self._draws(drawn, reached, kind, prompts)

    def _column(self, logits: torch.Tensor, uniforms: torch.Tensor, pick: Pick) -> _Column:
        """One token for each row, left on the device."""
        tokens, logps = in_slices(pick, logits, uniforms)
        sure = certainty_of(logits) if self.certainty else logps.new_zeros(len(logps), 2)
        return _Column(tokens, logps, sure)

    def _draws(
        self, drawn: _Tally, reached: dict[int, RowMemory], kind: str, prompts: dict[RowMemory, int]
    ) -> list[Draw]:
        """The draws of rows; `reached` holds the memories of open rows.

        The model reads every drawn token but the last of an ended row, and the tokens of `unseen`. The first row of a
        prompt has the cost of the prompt, which is removed from `prompts`.
        """
        draws = []
        for n, (state, tokens) in enumerate(zip(drawn.states, drawn.tokens, strict=True)):
            new = len(tokens) - len(state.tokens)
            positions = new - (n not in reached) + int(drawn.unseen[n])
            cost = Cost(**{"prompt": prompts.pop(state.memory, 0), "generated": new, kind: positions})
            logp, *sums = drawn.numbers[n].tolist()
            sure = state.certainty and state.certainty + Certainty(new, *sums)
            draws.append(draw_of(state, tuple(tokens), logp, reached.get(n), cost, self.endings, sure))
        return draws

    def _ended(self, state: TokenState, tokens: list[int]) -> bool:
        problem, longest = state.problem, self.horizon.max_length
        return len(tokens) >= longest or self.endings.reached(tokens, problem.stop, problem.thinking, state.prompt)

    def _forward(self, cache: RowCache, tokens: Sequence[Sequence[int]] | torch.Tensor, last: int = 1) -> torch.Tensor:
        """Read tokens `[rows, columns]` at the end of the cache; returns the last logits `[rows, last, V]`."""
        model = self.checkpoint.model
        ids = torch.as_tensor(tokens, device=model.device)
        mask = cache.mask(ids.shape[1], ids.device)
        if mask is not None and cache.shares and ids.shape[1] == 1:
            mask = mask.bool()[:, None, None]  # transformers would inspect a 2-D mask, and wait for the device
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=cache.positions(ids.shape[1], ids.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=last,
            **({"row_cache": cache} if self._may_share else {}),
        ).logits
        cache.advance(ids.shape[1])
        self.ledger += Cost(forwards=1)
        return logits

    def _room(self, states: Sequence[TokenState], block: int) -> int:
        """Tokens that the shortest of the states can draw."""
        return min(block, self.horizon.max_length - min(len(state.tokens) for state in states))

    def _bytes_per_row(self, states: Sequence[TokenState]) -> int:
        """Largest number of bytes of a row in the cache."""
        return (max(len(state.prompt) for state in states) + self.horizon.max_length) * self._bytes_per_column

    @cached_property
    def _may_share(self) -> bool:
        """Whether the model attends to all earlier tokens, takes `position_ids`, and passes `row_cache` to attention.

        `grouped_sdpa` cannot detect positions from the columns of a cache, or a window in the mask.
        """
        parameters = inspect.signature(self.checkpoint.model.forward).parameters
        hands_on = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
        return hands_on and "position_ids" in parameters and not getattr(self._config, "sliding_window", None)

    @cached_property
    def _bytes_per_column(self) -> int:
        return cache_bytes(self._config, self.checkpoint.model.dtype.itemsize)


def _most_probable(logits: torch.Tensor, uniforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = logits.argmax(-1)
    return tokens, logits.double().log_softmax(-1).gather(-1, tokens[:, None])[:, 0]


@dataclass(frozen=True)
class _Column:
    """One token for each of R rows: tokens `[R]`, log-probabilities `[R]`, certainties `[R, 2]`."""

    tokens: torch.Tensor
    logps: torch.Tensor
    sure: torch.Tensor


class _Tally:
    """The tokens and sums of rows on the host, copied from the device some columns at a time.

    `unseen` counts the tokens that a row drew and read between its end and the check for ended rows.
    """

    def __init__(self, states: Sequence[TokenState]) -> None:
        self.states = states
        self.tokens = [list(state.tokens) for state in states]
        self.unseen = np.zeros(len(states), np.int64)
        self.numbers = np.zeros((len(states), 3))  # sums of log-probabilities, entropies, self-certainties

    def take(self, rows: Sequence[int], columns: Sequence[_Column], ended: Ended) -> list[int]:
        """Add columns for these rows; returns the places of the open rows in `rows`."""
        tokens = torch.stack([column.tokens for column in columns]).tolist()
        numbers = torch.stack([torch.cat((column.logps[:, None], column.sure), -1) for column in columns]).cpu().numpy()
        going = list(range(len(rows)))
        for at in range(len(columns)):
            live = [rows[r] for r in going]
            self.numbers[live] += numbers[at, going]
            for r, n in zip(going, live, strict=True):
                self.tokens[n].append(tokens[at][r])
            going = [r for r in going if not ended(self.states[rows[r]], self.tokens[rows[r]])]
            self.unseen[list(set(rows) - {rows[r] for r in going})] += at + 1 < len(columns)
        return going


def make_policy(
    checkpoint: Checkpoint, sampling: Sampling, horizon: Horizon, memory: MemorySettings
) -> TransformersPolicy:
    """The policy of the engine "transformers" in `ets.policies.registry`."""
    return TransformersPolicy(checkpoint, sampling, horizon, **vars(memory))
