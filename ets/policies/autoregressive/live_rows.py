"""The rows of all draws under way in one batch: a problem goes on as soon as its rows have ended.

A draw (`extend` or `finish`) ends with its slowest row, and alone it would pass ever smaller batches through the model.
So several policies share a `LiveRows`, each in another thread and for another problem. For example, while one problem
waits for a rollout of 500 tokens, another one draws its next candidates.

One thread runs at a time, and tokens are drawn while all threads wait for a draw. So the batches, and with them the
rounding, are the same in every run, and the rewards of two problems never run at once.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
import torch

from ets.policies.autoregressive.beam_search import Ended
from ets.policies.autoregressive.cache import RowCache, RowMemory, columns_each, share
from ets.policies.autoregressive.law import TokenState
from ets.policies.autoregressive.reader import CausalReader
from ets.policies.autoregressive.truncation import draw_tokens
from ets.policies.memory import MemoryLimit
from ets.policies.settings import Sampling
from ets.policies.token_draws import certainty_of, in_slices
from ets.randomness import uniform
from ets.types import Keys

LOOK_EVERY = 8
"""Tokens between two checks for ended rows on a GPU, where a check waits for the device."""
PATIENCE = 8
"""Tokens between two admissions: an admission copies the rows of the batch, which takes as long as a token or two."""


class Interrupted(Exception):
    """Raised in all draws after `LiveRows.interrupt`."""


class RowDraws:
    """The rows of one draw: tokens, log-probabilities and sums on the host, and the memories of open rows.

    A row ends with its text, and stops where its text is open and has its length.

    Parameters
    ----------
    states : sequence of TokenState
    keys : Keys
        `[R]`.
    lengths : sequence of int
        Tokens at which each row stops, its state's tokens included.
    sampling : Sampling, optional
        The law of a token. None draws the most probable token.
    ended : Ended
    charge : callable
        Called after each forward pass with the share of its rows that are of this draw.

    Attributes
    ----------
    tokens : list of list of int
        The tokens of each row, those of its state included.
    logps : list of list of float
        Of the new tokens.
    numbers : ndarray
        `[R, 3]`: sums of log-probabilities, entropies and self-certainties.
    unseen : ndarray
        `[R]`: tokens that a row drew and read between its end and the check for ended rows.
    reached : dict of int to RowMemory
        The memories of rows that have stopped and not ended.
    going : set of int
        Rows that have neither stopped nor ended.
    """

    def __init__(
        self,
        states: Sequence[TokenState],
        keys: Keys,
        lengths: Sequence[int],
        sampling: Sampling | None,
        ended: Ended,
        charge: Callable[[float], None],
    ) -> None:
        self.states, self.keys, self.lengths = states, keys, lengths
        self.sampling, self.ended, self.charge = sampling, ended, charge
        self.tokens = [list(state.tokens) for state in states]
        self.logps: list[list[float]] = [[] for _ in states]
        self.unseen = np.zeros(len(states), np.int64)
        self.numbers = np.zeros((len(states), 3))
        self.reached: dict[int, RowMemory] = {}
        self.going = set(range(len(states)))

    def begin_again(self, n: int) -> None:
        """Forget what row n has drawn; its next tokens are the same, since its keys are."""
        self.tokens[n], self.logps[n] = list(self.states[n].tokens), []
        self.unseen[n], self.numbers[n] = 0, 0.0

    def room(self, n: int) -> int:
        """Tokens that row n may draw still."""
        return self.lengths[n] - len(self.tokens[n])

    def uniforms(self, n: int, room: int) -> np.ndarray:
        """The random numbers `[room]` of the next tokens of row n."""
        return uniform(self.keys[n], len(self.tokens[n]) + np.arange(room))

    def add(self, n: int, token: int, numbers: np.ndarray) -> bool:
        """Add a token to row n, with its log-probability and certainties `[3]`; returns whether the row goes on."""
        self.tokens[n].append(token)
        self.logps[n].append(float(numbers[0]))
        self.numbers[n] += numbers
        return not self.ended(self.states[n], self.tokens[n])


Row: TypeAlias = tuple[RowDraws, int]


class LiveRows:
    """The batch of rows that advance together.

    Parameters
    ----------
    memory : MemoryLimit
    certainty : bool
        Whether certainties are recorded.
    look_every : int, optional
        Tokens between two checks for ended rows; by default 1 on a CPU, `LOOK_EVERY` on other devices.
    members : int
        Threads that draw, each under a number below it. A thread that draws no more calls `leave`.
    """

    def __init__(self, memory: MemoryLimit, *, certainty: bool, look_every: int | None, members: int = 1) -> None:
        self._memory, self._certainty, self._look_every = memory, certainty, look_every
        self.turn, self.members, self._guests = threading.Condition(), members, 0
        self._running = set(range(members))  # of the threads, the ones that are not in `draw`
        self._draws: list[RowDraws] = []
        self._waiting: list[Row] = []
        self._failure: BaseException | None = None
        self._clear()

    def _clear(self) -> None:
        self._rows: list[Row] = []
        self._cache: RowCache | None = None
        self._logits = self._uniforms = torch.empty(0)
        self._column, self._admits, self._admitted, self._each = 0, True, 0, 0.0

    def draw(self, draws: RowDraws, reader: CausalReader, member: int = 0) -> None:
        """Draw until every row of `draws` has stopped or ended."""
        if self.members > 1 and reader.device.type == "cuda":
            torch.cuda.set_device(reader.device)  # a new thread has the first device
        with self.turn:
            rows = ((draws, n) for n in range(len(draws.states)))
            waiting = sorted([*self._waiting, *rows], key=lambda row: _order(row[0]))
            try:
                if not self._draws:
                    self._failure = None
                self._draws.append(draws)
                self._reader, self._waiting, self._admits = reader, waiting, True
                self._running.discard(member)
                while not self._returns(draws):
                    if not self._running:
                        self.turn.notify_all()
                    self.turn.wait()
            finally:
                self._running.add(member)
                self._draws = [each for each in self._draws if each is not draws]
                if not self._draws:  # after a failure, rows are left
                    self._waiting = []
                    self._clear()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context of another thread, in which no member runs and no token is drawn; of one member, the thread's."""
        if self.members == 1:
            yield
            return
        with self.turn:
            self._guests += 1
            try:
                while self._running:
                    self.turn.wait()
            finally:
                self._guests -= 1
            self._running.add(-1)
        try:
            yield
        finally:
            self.leave(-1)

    def leave(self, member: int) -> None:
        """Remove a thread from the ones that draws wait for."""
        with self.turn:
            self._running.discard(member)
            self.turn.notify_all()

    def interrupt(self) -> None:
        """Raise `Interrupted` in all draws, within a token; a caller repeats it until the threads have ended."""
        self._failure = Interrupted()
        if self.turn.acquire(blocking=False):  # otherwise a thread draws, and looks at the failure after a token
            self.turn.notify_all()
            self.turn.release()

    def _returns(self, draws: RowDraws) -> bool:
        """Whether it is the turn of the thread of `draws`. While no thread is running, this one draws the tokens."""
        if self._failure is None and not self._running and not self._guests:
            try:
                while self._failure is None and all(each.going for each in self._draws):
                    self._advance()
            except BaseException as error:
                self._failure = error
        if self._failure is not None:
            self.turn.notify_all()
            raise self._failure
        ready = [each for each in self._draws if not each.going]
        return bool(ready) and not self._running and not self._guests and min(ready, key=_order) is draws

    def _advance(self) -> None:
        """Admit rows, and draw a token for every row, or as many as fit between two checks for ended rows."""
        try:
            self._admit()
            self._draw_columns()
            return
        except torch.OutOfMemoryError as error:
            self._memory.require_several(self._admitted, self._each, error)
        # After the except block nothing refers to the failed attempt, so CUDA can free the memory.
        rows, used = [(draws, n) for draws, n in self._rows if n in draws.going], self._admitted * self._each
        for draws, n in rows:
            draws.begin_again(n)
        self._clear()
        self._waiting = [*rows, *self._waiting]
        self._memory.halve(used)

    def _admit(self) -> None:
        """Add waiting rows to the batch, if all of them fit, or if half of the rows would be new.

        Every admission copies the batch, whose old memory is in use until then.
        """
        if not (self._waiting and self._admits) or (self._rows and self._column < PATIENCE):
            return
        self._admits = False
        kind = self._kind(*(self._rows or self._waiting)[0])
        fitting = [row for row in self._waiting if self._kind(*row) == kind]
        if not fitting:
            return
        live = [RowMemory(self._cache, r, self._logits[r]) for r in range(len(self._rows))]
        memories = live + [draws.states[n].memory for draws, n in fitting]
        each = self._reader.bytes_of(columns_each(memories, max(draws.room(n) for draws, n in self._rows + fitting)))
        most = self._memory.rows(len(memories), each, self._admitted * self._each)
        count = most - len(live)
        if count < min(len(fitting), most / 2):
            return
        taken, memories = fitting[:count], memories[:most]
        admitted = set(taken)
        self._waiting = [row for row in self._waiting if row not in admitted]
        self._rows, self._admitted, self._each = self._rows + taken, most, each
        room = max(draws.room(n) for draws, n in self._rows)
        self._cache = share(memories, room)
        self._logits = torch.stack([memory.logits for memory in memories])
        numbers = np.stack([draws.uniforms(n, room) for draws, n in self._rows])
        self._uniforms, self._column = torch.from_numpy(numbers).to(self._logits.device), 0

    def _kind(self, draws: RowDraws, n: int) -> tuple[tuple[bool, int], Sampling | None]:
        """Rows of equal kinds may share a forward pass."""
        read = len(draws.states[n].prompt) + len(draws.tokens[n])
        return self._reader.group(read), draws.sampling

    def _draw_columns(self) -> None:
        device = self._logits.device.type
        look_every = self._look_every or (1 if device == "cpu" else LOOK_EVERY)
        count = min(look_every, *(draws.room(n) for draws, n in self._rows))
        columns = [self._picked(0)]
        for at in range(1, count):
            self._read(columns[-1][0][:, None])
            columns.append(self._picked(at))
        self._column += count
        going = self._taken(columns)
        if len(going) < len(self._rows):
            self._keep(going)
        if not self._rows:
            return
        self._read([draws.tokens[n][-1:] for draws, n in self._rows])
        if stopped := [r for r, (draws, n) in enumerate(self._rows) if not draws.room(n)]:
            self._stop(stopped)

    def _picked(self, at: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One token for each row `[R]` and its log-probability and certainties `[R, 3]`, left on the device."""
        sampling, logits = self._rows[0][0].sampling, self._logits
        uniforms = self._uniforms[:, self._column + at]
        tokens, logps = _most_probable(logits) if sampling is None else draw_tokens(sampling, logits, uniforms)
        sure = certainty_of(logits) if self._certainty else logps.new_zeros(len(logps), 2)
        return tokens, torch.cat((logps[:, None], sure), -1)

    def _taken(self, columns: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> list[int]:
        """Add columns to the rows; returns the places of the rows that go on."""
        tokens = torch.stack([tokens for tokens, _ in columns]).tolist()
        numbers = torch.stack([numbers for _, numbers in columns]).cpu().numpy()
        going = list(range(len(self._rows)))
        for at in range(len(columns)):
            for r in set(range(len(self._rows))) - set(going):
                draws, n = self._rows[r]
                draws.unseen[n] += 1
            going = [r for r in going if self._rows[r][0].add(self._rows[r][1], tokens[at][r], numbers[at, r])]
        for r in set(range(len(self._rows))) - set(going):
            draws, n = self._rows[r]
            draws.going.discard(n)
        return going

    def _keep(self, places: Sequence[int]) -> list[int]:
        """Keep these rows of the batch; returns their new order."""
        assert self._cache is not None
        order = self._cache.keep(places) if places else []
        self._rows, self._uniforms, self._admits = [self._rows[r] for r in order], self._uniforms[order], True
        if not order:
            self._clear()
        return order

    def _read(self, tokens: Sequence[Sequence[int]] | torch.Tensor) -> None:
        """Read a token of each row; every draw is charged with its share of the forward pass."""
        assert self._cache is not None
        self._logits = torch.empty(0)  # two tensors `[R, V]` can be larger than the cache
        self._logits = self._reader.read(self._cache, tokens)[:, -1]
        for draws, rows in Counter(draws for draws, _ in self._rows).items():
            draws.charge(rows / len(self._rows))

    def _stop(self, places: Sequence[int]) -> None:
        """Leave the memories of stopped rows to their draws; a batch that goes on is copied from."""
        cache, logits = self._cache, self._logits
        rows = [self._rows[r] for r in places]
        memories = [RowMemory(cache, r, logits[r]) for r in places]
        if len(places) < len(self._rows):
            cache = share(memories, 0)
            memories = [RowMemory(cache, r, logits[place].clone()) for r, place in enumerate(places)]
        for (draws, n), memory in zip(rows, memories, strict=True):
            draws.reached[n] = memory
            draws.going.discard(n)
        if len(places) == len(self._rows):
            self._clear()
        else:
            self._logits = logits[self._keep([r for r in range(len(self._rows)) if r not in set(places)])]


def _order(draws: RowDraws) -> int:
    """The order of draws, which does not depend on the moments at which threads come."""
    return int(draws.keys[0])


def _most_probable(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    def of_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        best = rows.argmax(-1)
        return best, rows.double().log_softmax(-1).gather(-1, best[:, None])[:, 0]

    tokens, logps = in_slices(of_rows, logits)
    return tokens, logps
