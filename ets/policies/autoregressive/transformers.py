"""Autoregressive models through transformers, on a cache that computes no position twice.

The model reads a prompt once per problem. Candidates fork the prompt's cache, rollouts continue the candidate's cache,
and the next guide step continues the cache of the chosen candidate. Ended rows leave the batch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from ets.models import diffusion_engine
from ets.policies.autoregressive.beam_search import beam_search
from ets.policies.autoregressive.cache import RowCache, RowMemory, compact, fork
from ets.policies.autoregressive.cache_layers import layer_kinds
from ets.policies.autoregressive.law import (
    Endings,
    ForeignPath,
    PathKey,
    TokenState,
    as_token_states,
    draw_of,
    longest,
    paths_between,
    require_same_tokens,
    require_vocabulary,
)
from ets.policies.autoregressive.live_rows import LiveRows, RowDraws
from ets.policies.autoregressive.reader import reader_of, switch_of
from ets.policies.autoregressive.scoring import Score, of_equal_length, read_on, score_paths
from ets.policies.autoregressive.truncation import probabilities
from ets.policies.checkpoint import Checkpoint
from ets.policies.memory import MemoryLimit, weights_device
from ets.policies.prompts import encode_prompt
from ets.policies.settings import Horizon, MemorySettings, Sampling
from ets.policies.token_draws import require_finite
from ets.step import require_counts
from ets.types import Certainty, Cost, Draw, Followed, InputError, Keys, Policy, Problem, Scored, State

READ_TOGETHER = 1024
"""Tokens of prompts in one forward pass; they keep every device busy, and more of them only need more memory."""


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
        Limit on the cache of the rows that advance together; more rows wait until others have ended. By default half of
        the free memory after the model has been loaded.
    end_ids : collection of int, optional
        Tokens that end a generation; by default the checkpoint's.
    certainty : bool
        Record `Text.certainty`, which takes another pass over the vocabulary per token. Beam search records none.
    one_by_one : bool
        Rows go through the model one by one, so that its shapes, and with them its rounding, depend on no other row.
    look_every : int, optional
        Tokens between two checks for ended rows. The positions include the tokens that a row draws between its end and
        the check, `generated` does not; results do not change. By default 1 on a CPU, `LOOK_EVERY` on other devices.

    Raises
    ------
    InputError
        For a diffusion model, an encoder, or layers whose cache cannot be forked by rows.
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
        one_by_one: bool = False,
        look_every: int | None = None,
    ) -> None:
        self._config = checkpoint.config.get_text_config()
        if found := diffusion_engine(checkpoint.config.model_type):
            raise InputError(
                f"{checkpoint.name!r} is a {found} model ({checkpoint.config.model_type}), which is not "
                f"autoregressive; use the engine {found}, or llada/eval.sh"
            )
        if getattr(self._config, "is_encoder_decoder", False):
            raise InputError(f"{checkpoint.name!r} has an encoder and a decoder; choose a causal language model")
        self._recurrent = any(kind.states for kind in layer_kinds(self._config))
        checkpoint.require_packages()
        self.checkpoint, self.sampling, self.horizon = checkpoint, sampling, horizon
        ends = checkpoint.end_ids if end_ids is None else end_ids
        self.endings = Endings(checkpoint.tokenizer, ends, self._config.vocab_size)
        self.ledger, self.memory_gib, self.certainty = Cost(), memory_gib, certainty
        require_counts(look_every=1 if look_every is None else look_every)
        self._look_every = look_every
        self.one_by_one = one_by_one
        self._memory = MemoryLimit(memory_gib, lambda: weights_device(checkpoint.model), one_by_one)
        self._live, self._member = self._batch(1), 0

    def _batch(self, members: int) -> LiveRows:
        options: dict[str, Any] = {"certainty": self.certainty, "look_every": self._look_every, "members": members}
        return LiveRows(self._memory, **options)

    @property
    def lengths(self) -> tuple[int, ...]:
        """The least tokens of an open text at each guide boundary, and the most of a complete text."""
        return self.horizon.lengths

    @property
    def step_length(self) -> int:
        """The most tokens of a guide step."""
        return self.horizon.block_size

    @property
    def deterministic(self) -> bool:
        return self.sampling.temperature == 0

    def at_law(self, sampling: Sampling, horizon: Horizon | None = None) -> TransformersPolicy:
        """A policy of the same model with another law, and optionally another horizon."""
        shared = {name: getattr(self, name) for name in ("memory_gib", "certainty", "one_by_one")}
        return TransformersPolicy(
            self.checkpoint, sampling, horizon or self.horizon, end_ids=self.endings.end_ids, **shared
        )

    @property
    def joins(self) -> bool:
        """Whether problems at their own pace take less time: on a GPU, by estimate; see docs/decisions.md."""
        return self.checkpoint.model.device.type != "cpu"

    def joined(self, members: int) -> list[TransformersPolicy]:
        """Policies of the same law for as many threads of one run, whose rows advance in one batch; see `LiveRows`.

        Every thread calls `leave` at its end: the others wait until it draws.
        """
        batch, policies = self._batch(members), [copy(self) for _ in range(members)]
        for member, policy in enumerate(policies):
            policy.ledger, policy._live, policy._member = Cost(), batch, member
        return policies

    def leave(self) -> None:
        """Remove this policy from the ones that a joint batch waits for."""
        self._live.leave(self._member)

    def interrupt(self, thread: int) -> None:
        """End the draws of a joint batch, of whatever thread. A policy alone goes on."""
        if self._live.members > 1:
            self._live.interrupt()

    def paused(self) -> AbstractContextManager[None]:
        """A context in which no thread of a joint batch runs, for rewards and graders that are not safe in threads."""
        return self._live.paused()

    def load(self) -> None:
        """Load the weights, unless they are loaded; otherwise the first draw loads them."""
        self.checkpoint.load()

    def start(self, problems: Sequence[Problem]) -> list[State]:
        """Empty generations; the prompts are encoded and checked, and read by the first draw."""
        context, tokenizer, known = self.checkpoint.context, self.checkpoint.tokenizer, self._config.vocab_size
        prompts = [encode_prompt(tokenizer, problem, self.horizon.max_length, context, known) for problem in problems]
        for problem, prompt in zip(problems, prompts, strict=True):
            self._require_one_rope(problem, prompt)
        sure = Certainty() if self.certainty else None
        return [TokenState(*pair, memory=RowMemory(), certainty=sure) for pair in zip(problems, prompts, strict=True)]

    def _require_one_rope(self, problem: Problem, prompt: tuple[int, ...]) -> None:
        """Raise `InputError` for texts that may grow past a switch of longrope.

        At the switch the rotary embedding changes for the whole text, and with it every cached key.
        """
        switch = switch_of(self._config)
        if switch is not None and len(prompt) <= switch < len(prompt) + longest(self.horizon, problem) - 1:
            raise InputError(
                f"the prompt of problem {problem.id!r} has {len(prompt)} tokens, and the model's longrope changes "
                f"after {switch}; set max_length to at most {switch - len(prompt) + 1}, so that no text crosses it"
            )

    def extend(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        return self._draw(states, keys, self.horizon.block_size, "candidate", self.sampling)

    def finish(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        return self._draw(states, keys, self.horizon.max_length, "rollout", self.sampling)

    def greedy(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        """The most probable token at each turn, whatever the sampling rule; logp is the untempered model's."""
        return self._draw(states, keys, self.horizon.max_length, "rollout", None)

    @torch.inference_mode()
    def beam(self, states: Sequence[State], beams: int) -> list[Draw]:
        """The texts of `ets.policies.autoregressive.beam_search`; logp is the untempered model's.

        A state costs `beams` rows in every forward pass until the last search of the batch is over. The search and the
        cost of equal states are shared.
        """
        require_counts(beams=beams)
        if self._recurrent and beams > 1:
            raise InputError(
                f"{self.checkpoint.name!r} has recurrent layers, whose states cannot go back by the token that beam "
                "search reads again; leave the method beam out"
            )
        opened = as_token_states(states)
        if beams == 1:
            return self.greedy(opened, np.zeros(len(opened), np.uint64))
        if self.checkpoint.model.device.type == "meta":
            raise InputError(
                f"the first weights of {self.checkpoint.name!r} are on disk, and transformers' beam search needs them "
                "in memory; leave the method beam out"
            )
        compact([state.memory for state in opened])
        prompts = self._read_prompts(opened)
        by_length: dict[Any, list[TokenState]] = defaultdict(list)
        for state in dict.fromkeys(opened):
            room = self._room([state], self.horizon.max_length)
            by_length[len(state.tokens), room, self._reader.group(state.memory.length)].append(state)
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
        """Beam search from states with equally many tokens, and with equal room."""
        room = self._room(states, self.horizon.max_length)
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
        require_vocabulary(going.values(), self._config.vocab_size)
        compact([path.start.memory for path in going.values()])
        prompts = self._read_prompts([path.start for path in going.values()])
        memories: dict[PathKey, RowMemory] = {}
        for group in (part for each in self._paths_together(going.values()) for part in of_equal_length(each)):
            bytes_each = self._bytes_per_row([path.start for path in group])
            for found in self._memory.in_chunks(group, bytes_each, partial(read_on, self._forward)):
                memories |= found
        costs = self._reading_costs(paths, {key: len(path.tokens) for key, path in going.items()}, prompts)
        states = (path.followed(memories.get(path.key)) for path in paths)
        return [Followed(*pair) for pair in zip(states, costs, strict=True)]

    @torch.inference_mode()
    def logp(self, starts: Sequence[State], ends: Sequence[State]) -> list[Scored]:
        """One parallel forward over the tokens of the paths, on the caches of the starts, for all equal paths.

        A path with a token beyond the model's vocabulary has probability 0, without a forward.
        """
        paths = paths_between(as_token_states(starts), ends)
        compact([path.start.memory for path in paths])
        prompts = self._read_prompts([path.start for path in paths])
        known = {path.key: path for path in paths if max(path.tokens, default=0) < self._config.vocab_size}
        bytes_each = self._bytes_per_row([path.start for path in paths])
        scoring = partial(score_paths, self._forward, partial(probabilities, self.sampling))
        scores = {path.key: Score(-math.inf) for path in paths}
        for group in self._paths_together(known.values()):
            ordered = sorted(group, key=lambda path: len(path.tokens))
            for found in self._memory.in_chunks(ordered, bytes_each, scoring):
                scores |= found
        costs = self._reading_costs(paths, {key: found.positions for key, found in scores.items()}, prompts)
        return [Scored(scores[path.key].logp, cost) for path, cost in zip(paths, costs, strict=True)]

    def _paths_together(self, paths: Iterable[ForeignPath]) -> list[list[ForeignPath]]:
        """The paths whose starts may share a forward pass: all, unless the model needs one length or has longrope."""
        groups: dict[Any, list[ForeignPath]] = defaultdict(list)
        for path in paths:
            groups[self._reader.group(path.start.memory.length)].append(path)
        return list(groups.values())

    def _reading_costs(
        self, paths: Sequence[ForeignPath], positions: dict[PathKey, int], prompts: dict[RowMemory, int]
    ) -> list[Cost]:
        """The cost of each path; the first of several paths with shared work has the whole cost."""
        costs = [Cost(prompt=prompts.pop(path.start.memory, 0), scored=positions.pop(path.key, 0)) for path in paths]
        self.ledger += Cost.total(costs)
        return costs

    @torch.inference_mode()
    def _draw(
        self, states: Sequence[State], keys: Keys, block: int, kind: str, sampling: Sampling | None
    ) -> list[Draw]:
        """Draw up to `block` tokens for each row. Without a sampling rule each token is the most probable one."""
        opened = as_token_states(states)
        with self._live.turn:
            compact([state.memory for state in opened], self._room(opened, self.horizon.max_length))
            prompts = self._read_prompts(opened)
        lengths = [min(len(state.tokens) + block, longest(self.horizon, state.problem)) for state in opened]
        drawn = RowDraws(opened, keys, lengths, sampling, self._ended, self._charge)
        if opened:
            self._live.draw(drawn, self._reader, self._member)
        require_finite([state.problem for state in opened], drawn.numbers[:, 0].tolist())
        draws = self._draws(drawn, kind, prompts)
        self.ledger += Cost.total(draw.cost for draw in draws)
        return draws

    def _charge(self, share: float) -> None:
        self.ledger += Cost(forwards=share)

    def _read_prompts(self, states: Sequence[TokenState]) -> dict[RowMemory, int]:
        """Fill the memories of start states, one forward per prompt length; returns the positions read, by memory."""
        unread = {state.memory: state for state in states if state.memory.logits is None}
        for state in states[:1]:
            self._reader = reader_of(self.checkpoint.model, self.checkpoint.name, state.prompt)
        by_length: dict[int, list[TokenState]] = defaultdict(list)
        for state in unread.values():
            by_length[len(state.prompt)].append(state)
        for length, group in by_length.items():
            together = max(1, READ_TOGETHER // length)
            each = self._reader.bytes_of(length + self._room_after_prompts(group))
            for at in range(0, len(group), together):
                self._memory.in_chunks(group[at : at + together], each, self._read)
        return {memory: len(state.prompt) for memory, state in unread.items()}

    def _read(self, states: Sequence[TokenState]) -> None:
        length = len(states[0].prompt)
        cache = self._reader.empty(len(states), length + self._room_after_prompts(states))
        part = READ_TOGETHER if self._reader.in_parts else length
        for at in range(0, length, part):
            logits = self._forward(cache, [state.prompt[at : at + part] for state in states])[:, -1]
        for row, state in enumerate(states):
            state.memory.cache, state.memory.row, state.memory.logits = cache, row, logits[row]

    def _draws(self, drawn: RowDraws, kind: str, prompts: dict[RowMemory, int]) -> list[Draw]:
        """The draws of rows.

        The model reads every drawn token but the last of an ended row, and the tokens of `unseen`. The first row of a
        prompt has the cost of the prompt, which is removed from `prompts`.
        """
        draws = []
        for n, (state, tokens) in enumerate(zip(drawn.states, drawn.tokens, strict=True)):
            new = len(tokens) - len(state.tokens)
            positions = new - (n not in drawn.reached) + int(drawn.unseen[n])
            cost = Cost(**{"prompt": prompts.pop(state.memory, 0), "generated": new, kind: positions})
            logp, *sums = drawn.numbers[n].tolist()
            sure = state.certainty and state.certainty + Certainty(new, *sums)
            each = drawn.logps[n]
            draws.append(draw_of(state, tuple(tokens), logp, drawn.reached.get(n), cost, self.endings, sure, each))
        return draws

    def _ended(self, state: TokenState, tokens: list[int]) -> bool:
        problem = state.problem
        if len(tokens) >= longest(self.horizon, problem):
            return True
        return self.endings.reached(tokens, problem.stop, problem.thinking, state.prompt)

    def _forward(self, cache: RowCache, tokens: Sequence[Sequence[int]] | torch.Tensor, last: int = 1) -> torch.Tensor:
        """Read tokens `[rows, columns]` at the end of the cache; returns the last logits `[rows, last, V]`."""
        logits = self._reader.read(cache, tokens, last)
        self.ledger += Cost(forwards=1)
        return logits

    def _room(self, states: Sequence[TokenState], block: int) -> int:
        """The most tokens that any of the states can draw."""
        left = [longest(self.horizon, state.problem) - len(state.tokens) for state in states]
        return min(block, max(left, default=0))

    def _room_after_prompts(self, states: Sequence[TokenState]) -> int:
        """Columns for chosen candidates, which `compact` appends to a prompt: its own length or the text's, at most."""
        text = self._room(states, self.horizon.max_length)
        return min(text, len(states[0].prompt)) if self._reader.may_share else 0

    def _bytes_per_row(self, states: Sequence[TokenState]) -> float:
        """Largest number of bytes of a row in the cache."""
        return self._reader.bytes_of(max(len(state.prompt) + longest(self.horizon, state.problem) for state in states))


def make_policy(
    checkpoint: Checkpoint, sampling: Sampling, horizon: Horizon, memory: MemorySettings
) -> TransformersPolicy:
    """The policy of the engine "transformers" in `ets.policies.registry`."""
    return TransformersPolicy(checkpoint, sampling, horizon, **memory.options())
