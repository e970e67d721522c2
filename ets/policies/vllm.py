"""Autoregressive models through vLLM: one request per row, over an engine that several policies may share.

The engine runs in processes of its own. Rows that begin alike share their work through vLLM's prefix cache, in whole
cache blocks; nothing is kept on our side, so a state is its tokens.
"""

from __future__ import annotations

import asyncio
import math
import multiprocessing
import os
import threading
import weakref
from collections.abc import Collection, Coroutine, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any, TypeVar

import numpy as np

from ets.policies.autoregressive import Endings, Horizon, Sampling, TokenState, as_token_states, draw_of
from ets.policies.checkpoint import Checkpoint
from ets.policies.drawing import require_finite
from ets.policies.prompts import encode_prompt
from ets.policies.reading import Path, paths_between
from ets.randomness import derive
from ets.transition import require_counts, require_positive
from ets.types import Cost, Draw, Followed, InputError, Keys, Problem, State

T = TypeVar("T")

CPU_BLOCK = 32
"""Tokens per cache block on a CPU: the smallest that works, so that the least is computed twice."""
COLDEST, HOTTEST = 0.01, 2.0
"""Temperatures that vLLM samples at, beside 0: lower ones it raises silently, higher ones it refuses."""
OPEN = "open"
"""The memory of a state that can be gone on from: the engine finds what it knows of it by its tokens."""


@dataclass(frozen=True)
class Request:
    """One row for the engine: token ids to go on from, the row's seed, at most `room` more tokens, and stop strings."""

    tokens: tuple[int, ...]
    seed: int
    room: int
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What the engine drew for a row.

    Parameters
    ----------
    tokens : list of int
    logps : list of float
        Natural-log probabilities of the tokens under the sampled distribution; at temperature 0, under the model's.
    cached : int
        How many of the row's first tokens came from the prefix cache.
    """

    tokens: list[int]
    logps: list[float]
    cached: int


class VLLMEngine:
    """A model loaded into vLLM. Close it when done, or use it in a `with` statement; it ends with the program at last.

    Any number of threads may draw from it at once: a group of rows that waits for its slowest one leaves the engine to
    the others.

    Parameters
    ----------
    checkpoint : Checkpoint
        By path or hub name; the weights are loaded by vLLM alone.
    memory_gib : float, optional
        Size of the cache. By default, on a GPU what `utilization` allows, on a CPU 2 GiB.
    utilization : float
        Share of a GPU's memory that vLLM may take, weights included.
    replicas : int
        Copies of the model, on a GPU each: vLLM's own data parallelism.
    rows : int
        Rows that advance together at most.

    Raises
    ------
    InputError
        If vLLM is not installed, cannot load the model, or reports the wrong log-probabilities.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        memory_gib: float | None = None,
        utilization: float = 0.9,
        replicas: int = 1,
        rows: int = 256,
    ) -> None:
        require_counts(replicas=replicas, rows=rows)
        require_positive(utilization=utilization, **({} if memory_gib is None else {"memory_gib": memory_gib}))
        if checkpoint.name == "loaded":
            raise InputError(
                "the model was handed over in memory, and vLLM loads from files; save it to a folder first"
            )
        self.checkpoint, self.replicas = checkpoint, replicas
        self._ids = count()  # of requests
        arguments = engine_arguments(checkpoint, memory_gib, utilization, replicas, rows)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True).start()
        others = set(multiprocessing.active_children())
        try:
            self._engine = self._wait(_load(arguments))
        except Exception as error:
            self._loop.call_soon_threadsafe(self._loop.stop)
            raise InputError(f"vLLM cannot load {checkpoint.name!r}: {_line(error)}; see its messages above") from error
        processes = set(multiprocessing.active_children()) - others
        self.close = weakref.finalize(self, _shut_down, self._engine, self._loop, processes)
        try:
            self._require_processed_logps()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> VLLMEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def context(self) -> int:
        """Positions of the longest row."""
        return int(self._engine.vllm_config.model_config.max_model_len)

    @property
    def block(self) -> int:
        """Tokens per cache block: what rows share is a whole number of these."""
        return int(self._engine.vllm_config.cache_config.block_size)

    def draw(self, requests: Sequence[Request], sampling: Sampling, end_ids: Sequence[int]) -> list[Answer]:
        """Go on from each row; returns when the last one has ended.

        Raises
        ------
        InputError
            If the engine has stopped.
        """
        params = [_params(request, sampling, end_ids) for request in requests]
        return [_answer(output) for output in self._outputs([request.tokens for request in requests], params)]

    def metrics(self) -> dict[str, float]:
        """vLLM's own counters by name, since the last engine of this program was loaded."""
        from vllm.v1.metrics.reader import Counter, get_metrics_snapshot

        totals: dict[str, float] = {}
        for metric in get_metrics_snapshot():
            if isinstance(metric, Counter):
                totals[metric.name] = totals.get(metric.name, 0) + metric.value
        return totals

    def _outputs(self, prompts: Sequence[tuple[int, ...]], params: Sequence[Any]) -> list[Any]:
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        if not self.close.alive:
            raise InputError("the vLLM engine has been closed; make another one")
        try:
            return self._wait(self._all(prompts, params))
        except (EngineDeadError, EngineGenerateError) as error:
            cause = _line(error.__cause__ or error)
            raise InputError(f"vLLM's engine has stopped: {cause}; see its messages above, and start again") from None

    async def _all(self, prompts: Sequence[tuple[int, ...]], params: Sequence[Any]) -> list[Any]:
        return await asyncio.gather(*map(self._one, prompts, params))

    async def _one(self, tokens: tuple[int, ...], params: Any) -> Any:
        from vllm.inputs import tokens_input

        outputs = self._engine.generate(tokens_input(list(tokens)), params, str(next(self._ids)))
        return [output async for output in outputs][-1]

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run on the engine's own thread, and cancel there what is interrupted here."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _require_processed_logps(self) -> None:
        """Whether reported log-probabilities are of the tempered distribution: halving T doubles their differences."""
        several = min(20, self.checkpoint.config.get_text_config().vocab_size)
        params = [_params(Request((), 0, 1), Sampling(t), ()) for t in (1.0, 0.5)]
        for each in params:
            each.logprobs = several
        outputs = self._outputs([(0,), (0,)], params)
        plain, halved = (np.ptp(output.outputs[0].logprobs.logprobs[1:]) for output in outputs)
        if not np.isclose(halved, 2 * plain, rtol=0.05):
            raise InputError(
                "vLLM reports log-probabilities of the untempered model, whatever its option logprobs_mode says; "
                "use the version that constraints.txt names"
            )


class VLLMPolicy:
    """p_ref as a causal language model in vLLM under a sampling rule; a guide step is `block_size` tokens.

    Cheap to make: several policies, of different rules or in different threads, can share an engine. Draws depend on
    their row's key, and in the last bits of the logits on the rows beside it: results are the same in law, not text for
    text.

    Positions are counted from what vLLM reports of each row: the tokens that its prefix cache did not hold, and those
    drawn but the last. Work that vLLM throws away when its cache is full and repeats later is not in them.

    Parameters
    ----------
    engine : VLLMEngine
    sampling : Sampling
        The distribution that is sampled, and whose log-probabilities are recorded.
    horizon : Horizon
        Block size and longest generation, in tokens.
    end_ids : collection of int, optional
        Tokens that end a generation. By default the checkpoint's; a proposal takes its reference policy's.

    Raises
    ------
    InputError
        For a temperature that vLLM does not sample at.
    """

    def __init__(
        self,
        engine: VLLMEngine,
        sampling: Sampling,
        horizon: Horizon,
        *,
        end_ids: Collection[int] | None = None,
    ) -> None:
        if sampling.temperature and not COLDEST <= sampling.temperature <= HOTTEST:
            raise InputError(
                f"temperature is {sampling.temperature}, and vLLM samples at 0 and at {COLDEST} to {HOTTEST:g}; "
                "choose one of these"
            )
        self.engine, self.sampling, self.horizon = engine, sampling, horizon
        self.checkpoint = engine.checkpoint
        ends = self.checkpoint.end_ids if end_ids is None else end_ids
        vocabulary = self.checkpoint.config.get_text_config().vocab_size
        self.endings = Endings(self.checkpoint.tokenizer, ends, vocabulary)
        self.ledger = Cost()

    @property
    def deterministic(self) -> bool:
        return self.sampling.temperature == 0

    def start(self, problems: Sequence[Problem]) -> list[State]:
        """Empty generations; prompts are checked now and read when first needed."""
        tokenizer, context = self.checkpoint.tokenizer, self.engine.context
        prompts = [encode_prompt(tokenizer, problem, self.horizon.max_length, context) for problem in problems]
        return [TokenState(*pair, memory=OPEN) for pair in zip(problems, prompts, strict=True)]

    def extend(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        return self._draw(states, keys, self.horizon.block_size, "candidate", self.sampling)

    def finish(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        return self._draw(states, keys, self.horizon.max_length, "rollout", self.sampling)

    def greedy(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        """The most probable token at each turn, whatever the sampling rule; logp is the untempered model's."""
        return self._draw(states, keys, self.horizon.max_length, "rollout", Sampling(0.0), untempered=True)

    def follow(self, own: Sequence[State], foreign: Sequence[State]) -> list[Followed]:
        """Take over another policy's tokens; the engine reads them, and charges for them, when it goes on from them.

        Raises
        ------
        InputError
            For foreign states that do not go on from my own, and under a truncated law: vLLM does not tell which tokens
            it could not have drawn, and a ratio needs to know.
        """
        if self.sampling.truncated:
            raise InputError(
                f"{self.sampling} leaves tokens out, and vLLM does not tell which; a proposal in vLLM needs a "
                "temperature above 0, top_p 1 and no top_k"
            )
        return [
            Followed(_arrived(path), Cost())
            for path in paths_between(as_token_states(own), foreign, self.endings.vocabulary)
        ]

    def _draw(
        self,
        states: Sequence[State],
        keys: Keys,
        block: int,
        kind: str,
        sampling: Sampling,
        *,
        untempered: bool = False,
    ) -> list[Draw]:
        rows = [
            _Row(state, np.asarray(key), min(len(state.tokens) + block, self.horizon.max_length), list(state.tokens))
            for state, key in zip(as_token_states(states), keys, strict=True)
        ]
        going = rows
        while going:  # once, unless vLLM sees a stop string where the whole text has none
            answers = self.engine.draw([row.request() for row in going], sampling, sorted(self.endings.end_ids))
            for row, answer in zip(going, answers, strict=True):
                row.append(answer, kind, self.endings)
            going = [row for row in going if not row.ended and len(row.tokens) < row.target]
        require_finite([row.state.problem for row in rows], [row.logp for row in rows])
        certain = sampling.temperature == 0 and not untempered
        draws = [self._draw_of(row, 0.0 if certain else row.logp) for row in rows]
        self.ledger += Cost.total(draw.cost for draw in draws)
        return draws

    def _draw_of(self, row: _Row, logp: float) -> Draw:
        memory = None if row.ended or len(row.tokens) >= self.horizon.max_length else OPEN
        return draw_of(row.state, tuple(row.tokens), logp, memory, row.cost, self.endings)


def _arrived(path: Path) -> TokenState:
    """Where a path leads; its log-probability is not computed."""
    start, end = path.start, path.end
    memory = None if end.done else OPEN
    return TokenState(start.problem, start.prompt, end.tokens, end.text, math.nan, end.done, memory)


@dataclass
class _Row:
    """One row while it is drawn: from a state, by its key, to `target` tokens or where the generation ends."""

    state: TokenState
    key: Keys
    target: int
    tokens: list[int]
    logp: float = 0.0
    ended: bool = False
    cost: Cost = field(default_factory=Cost)

    def request(self) -> Request:
        # The position is absorbed too: a row that goes on with the same key must not repeat its noise.
        seed = int(derive(self.key, len(self.tokens))) >> 1
        room, stop = self.target - len(self.tokens), self.state.problem.stop
        return Request((*self.state.prompt, *self.tokens), seed, room, stop)

    def append(self, answer: Answer, kind: str, endings: Endings) -> None:
        """Take the tokens up to where the generation ends, by the whole text; charge all that was computed."""
        prompt, before = len(self.state.prompt), len(self.tokens)
        unread = prompt + before - answer.cached
        of_prompt = max(0, prompt - answer.cached)
        counts = {"prompt": of_prompt, kind: unread - of_prompt + len(answer.tokens) - 1}
        self.cost += Cost(generated=len(answer.tokens), **counts)
        for token, logp in zip(answer.tokens, answer.logps, strict=True):
            self.tokens.append(token)
            self.logp += logp
            if endings.reached(self.tokens, self.state.problem.stop):
                self.ended = True
                return


def engine_arguments(
    checkpoint: Checkpoint,
    memory_gib: float | None = None,
    utilization: float = 0.9,
    replicas: int = 1,
    rows: int = 256,
) -> dict[str, Any]:
    """vLLM's arguments: everything that results may depend on, none of it left to a checkpoint's files or to defaults.

    For the parameters see `VLLMEngine`. Raises `InputError` if vLLM is not installed.
    """
    # Read by vLLM when it is imported: no reports to its authors, no log lines among ours.
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        from vllm.platforms import current_platform
    except ImportError as error:
        raise InputError(f"vLLM cannot be imported ({_line(error)}); run `source scripts/setup.sh vllm`") from error
    options: dict[str, Any] = {
        "model": checkpoint.name,
        "dtype": checkpoint.placement.split()[1],
        "max_model_len": -1,  # the model's own, or as much as the cache holds
        "max_num_seqs": rows,
        "data_parallel_size": replicas,
        "gpu_memory_utilization": utilization,
        "enable_prefix_caching": True,
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "trust_remote_code": False,
        "use_tqdm_on_load": False,
        "disable_log_stats": False,  # the metrics are read
    }
    if current_platform.is_cpu():
        # Reading a prompt in pieces ends vLLM's CPU engine where rows have seeds ("CPU Generator does not use offset").
        options |= {"block_size": CPU_BLOCK, "enforce_eager": True, "enable_chunked_prefill": False}
        memory_gib = memory_gib or 2.0
    if memory_gib is not None:
        options["kv_cache_memory_bytes"] = int(memory_gib * 2**30)
    return options


async def _load(arguments: dict[str, Any]) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))


def _shut_down(engine: Any, loop: asyncio.AbstractEventLoop, processes: set[Any]) -> None:
    """End the engine's processes and wait until they are gone."""
    engine.shutdown()
    for process in processes:
        process.join(timeout=30)
    loop.call_soon_threadsafe(loop.stop)


def _params(request: Request, sampling: Sampling, end_ids: Sequence[int]) -> Any:
    """vLLM's sampling parameters; all that change the distribution are sent, whatever their defaults."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=sampling.temperature,
        top_k=sampling.top_k or 0,
        top_p=1.0 if sampling.top_p is None else sampling.top_p,
        min_p=0.0,
        repetition_penalty=1.0,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        seed=request.seed,
        max_tokens=request.room,
        ignore_eos=True,  # the end tokens are ours
        stop_token_ids=list(end_ids),
        stop=list(request.stop),
        detokenize=bool(request.stop),
        skip_special_tokens=False,
        spaces_between_special_tokens=False,
        logprobs=0,  # the drawn token's own
        flat_logprobs=True,
        skip_clone=True,  # they are this request's alone
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _answer(output: Any) -> Answer:
    (drawn,) = output.outputs
    tokens = list(drawn.token_ids)
    logps = list(islice(drawn.logprobs.logprobs, len(tokens)))
    return Answer(tokens, logps, output.num_cached_tokens or 0)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
