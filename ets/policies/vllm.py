"""Autoregressive models through vLLM: one request per row, over an engine that several policies may share.

The engine runs in processes of its own. Rows that begin alike share their work through vLLM's prefix cache, in whole
cache blocks.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import numpy as np
import torch

from ets.policies.autoregressive import Sampling, as_token_states, require_same_tokens
from ets.policies.background import Background
from ets.policies.checkpoint import Checkpoint
from ets.policies.reading import paths_between
from ets.policies.requests import Answer, Request, RequestPolicy
from ets.transition import require_counts, require_positive
from ets.types import Cost, InputError, Policy, Scored, State, one_line

CPU_BLOCK = 32
"""Tokens per cache block on a CPU: the smallest that works, so that the least is computed twice."""
CLOSING_SECONDS = 20.0
"""How long the engine's processes may take to end before they are killed."""


class VLLMEngine:
    """A model in vLLM, loaded by `load`, by a `with` statement, or by the first draw.

    Close it when done, as the statement does; it ends with the program at last.

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
        Copies of the model: vLLM's own data parallelism.
    tensor_parallel : int
        GPUs of each copy, which share its weights and its cache: vLLM's own tensor parallelism. vLLM gives
        `replicas · tensor_parallel` different GPUs to the copies.
    rows : int
        Rows that advance together at most.

    Raises
    ------
    InputError
        If vLLM is not installed, the model has no files to load from, or the copies take more GPUs than there are.
    """

    name = "vLLM"
    """What errors call it."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        memory_gib: float | None = None,
        utilization: float = 0.9,
        replicas: int = 1,
        tensor_parallel: int = 1,
        rows: int = 256,
    ) -> None:
        require_counts(replicas=replicas, tensor_parallel=tensor_parallel, rows=rows)
        require_positive(utilization=utilization, **({} if memory_gib is None else {"memory_gib": memory_gib}))
        if utilization > 1:
            raise InputError(f"utilization is {utilization}; it is a share, at most 1")
        if checkpoint.name == "loaded":
            raise InputError(
                "the model was handed over in memory, and vLLM loads from files; save it to a folder first"
            )
        self.checkpoint, self.replicas = checkpoint, replicas
        self._ids = count()  # of requests
        self._arguments = engine_arguments(checkpoint, memory_gib, utilization, replicas, tensor_parallel, rows)
        self._lock = threading.RLock()
        self._loaded: list[_Loaded] = []  # at most one
        self.close = weakref.finalize(self, _shut_down, self._loaded)

    def __enter__(self) -> VLLMEngine:
        self.load()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def load(self) -> None:
        """Load the model, unless it is loaded.

        Raises
        ------
        InputError
            If vLLM cannot load it or reports the wrong log-probabilities, or if the engine has been closed.
        """
        with self._lock:
            if not self.close.alive:
                raise InputError("the vLLM engine has been closed; make another one")
            if not self._loaded:
                self._loaded.append(_load(self._arguments))
                try:
                    self._require_processed_logps()
                except BaseException:
                    self.close()
                    raise

    @property
    def context(self) -> int | None:
        """Positions of the longest row: as many as the model says, and, once loaded, as the cache has room for."""
        if not self._loaded:
            return self.checkpoint.context
        return int(self._loaded[0].engine.vllm_config.model_config.max_model_len)

    @property
    def block(self) -> int:
        """Tokens per cache block: what rows share is a whole number of these."""
        self.load()
        return int(self._loaded[0].engine.vllm_config.cache_config.block_size)

    def draw(self, requests: Sequence[Request], sampling: Sampling, end_ids: Sequence[int]) -> list[Answer]:
        """Go on from each row; returns when the last one has ended.

        Raises
        ------
        InputError
            If the engine cannot be loaded, has stopped, or has no room for a row.
        """
        self.load()
        longest = max(len(request.tokens) + request.room for request in requests)
        if self.context is not None and longest > self.context:
            raise InputError(
                f"a row may take {longest} tokens, and vLLM's cache has room for {self.context}; raise memory_gib"
            )
        params = [_params(request, sampling, end_ids) for request in requests]
        return [_answer(output) for output in self._outputs([request.tokens for request in requests], params)]

    def interrupt(self, thread: int) -> None:
        """End the draw that the thread with this identifier waits for, if any: it raises there."""
        for loaded in self._loaded:
            loaded.background.interrupt(thread)

    def score(self, sequences: Sequence[tuple[int, ...]], counts: Sequence[int]) -> list[tuple[float, int]]:
        """Of each sequence: the untempered log-probability of its last `counts` tokens, and the positions computed.

        vLLM tells log-probabilities of a prompt's tokens only where it computes the whole prompt again.

        Raises
        ------
        InputError
            If the engine cannot be loaded, has stopped, or has no room for a sequence and the token that it draws then.
        """
        self.load()
        longest = max(map(len, sequences), default=0) + 1
        if self.context is not None and longest > self.context:
            raise InputError(
                f"scoring a row takes {longest} tokens, and vLLM has room for {self.context}; shorten max_length"
            )
        outputs = self._outputs(sequences, [_scoring() for _ in sequences])
        rows = zip(sequences, counts, outputs, strict=True)
        return [(_logp_of_last(*row), len(row[0]) - (row[2].num_cached_tokens or 0)) for row in rows]

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

        loaded = self._loaded[0]
        try:
            return loaded.background.wait(self._all(loaded.engine, prompts, params))
        except (EngineDeadError, EngineGenerateError) as error:
            cause = _line(error.__cause__ or error)
            raise InputError(f"vLLM's engine has stopped: {cause}; see its messages above, and start again") from None

    async def _all(self, engine: Any, prompts: Sequence[tuple[int, ...]], params: Sequence[Any]) -> list[Any]:
        return await asyncio.gather(*(self._one(engine, *row) for row in zip(prompts, params, strict=True)))

    async def _one(self, engine: Any, tokens: tuple[int, ...], params: Any) -> Any:
        from vllm.inputs import tokens_input

        outputs = engine.generate(tokens_input(list(tokens)), params, str(next(self._ids)))
        return [output async for output in outputs][-1]

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


class VLLMPolicy(RequestPolicy):
    """p_ref as a causal language model in vLLM; its engine is a `VLLMEngine`."""

    engine: VLLMEngine

    def require_proposal(self, proposal: Policy) -> None:
        """Refuse other tokens, endings or lengths, and to score under a law that vLLM does not tell of given texts."""
        if self.sampling.temperature != 1 or self.sampling.truncated:
            raise InputError(
                f"vLLM scores given texts under the untempered model alone, not under {self.sampling}; run the model "
                "through transformers, or take temperature 1 without top_k and top_p"
            )
        require_same_tokens(self, proposal)

    def logp(self, starts: Sequence[State], ends: Sequence[State]) -> list[Scored]:
        """Of each path; prompt and candidate are computed again with it, and equal paths once."""
        paths = paths_between(as_token_states(starts), ends)
        keys = [(path.start.prompt + path.end.tokens, len(path.tokens)) for path in paths]
        distinct = list(dict.fromkeys(keys))
        known = max((max(tokens) for tokens, _ in distinct), default=0) < self.endings.vocabulary
        if not known:
            raise InputError("the proposal drew a token that the model does not have; choose one of the same family")
        found = dict(zip(distinct, self.engine.score(*zip(*distinct, strict=True)), strict=True)) if distinct else {}
        costs = {key: Cost(scored=positions) for key, (_, positions) in found.items()}
        scored = [Scored(found[key][0], costs.pop(key, Cost())) for key in keys]
        self.ledger += Cost.total(row.cost for row in scored)
        return scored


def engine_arguments(
    checkpoint: Checkpoint,
    memory_gib: float | None = None,
    utilization: float = 0.9,
    replicas: int = 1,
    tensor_parallel: int = 1,
    rows: int = 256,
) -> dict[str, Any]:
    """vLLM's arguments: everything that results may depend on, none of it left to a checkpoint's files or to defaults.

    For the parameters see `VLLMEngine`. Raises `InputError` if vLLM is not installed, or for too few GPUs.
    """
    # Read by vLLM when it is imported: no reports to its authors, no log lines among ours.
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS", "1")  # then they are told; on a CPU they need that
    try:
        from vllm.platforms import current_platform
    except ImportError as error:
        raise InputError(f"vLLM cannot be imported ({_line(error)}); run `bash scripts/setup.sh vllm`") from error
    _require_gpus(replicas, tensor_parallel, 0 if current_platform.is_cpu() else torch.cuda.device_count())
    options: dict[str, Any] = {
        "model": checkpoint.name,
        "dtype": checkpoint.placement.split()[1],
        "max_model_len": -1,  # the model's own, or as much as the cache holds
        "max_num_seqs": rows,
        "data_parallel_size": replicas,
        "tensor_parallel_size": tensor_parallel,
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


def _require_gpus(replicas: int, tensor_parallel: int, gpus: int) -> None:
    """Raise `InputError` for copies that take more GPUs than there are, or, on a CPU, for more than one process."""
    needed = replicas * tensor_parallel
    if needed > max(1, gpus):
        there = f"there {'is' if gpus == 1 else 'are'} {gpus}" if gpus else "vLLM runs on the CPU here, as one copy"
        raise InputError(
            f"replicas {replicas} · tensor_parallel {tensor_parallel} take {needed} GPUs, but {there}; lower them "
            "(in the scripts GEN_DP and GEN_TP, in the paper's form data_parallel_size and tensor_parallel_size)"
        )


@dataclass(frozen=True)
class _Loaded:
    """vLLM's engine, the thread that waits for it, and its processes."""

    engine: Any
    background: Background
    processes: set[Any]


def _load(arguments: dict[str, Any]) -> _Loaded:
    background, others = Background("vllm"), set(multiprocessing.active_children())
    try:
        engine = background.wait(_engine(arguments))
    except Exception as error:
        background.stop()
        raise InputError(f"vLLM cannot load {arguments['model']!r}: {_line(error)}; see its messages above") from error
    return _Loaded(engine, background, set(multiprocessing.active_children()) - others)


async def _engine(arguments: dict[str, Any]) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))


def _shut_down(loaded: list[_Loaded]) -> None:
    """End the engine's processes and wait until they are gone."""
    for each in loaded:
        if handler := each.engine.output_handler:  # which would report the end as a fault
            handler.get_loop().call_soon_threadsafe(handler.cancel)
        each.engine.shutdown(timeout=CLOSING_SECONDS)
        for process in each.processes:
            process.join(timeout=CLOSING_SECONDS)
        each.background.stop()
    loaded.clear()


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


def _scoring() -> Any:
    """vLLM's parameters for the log-probabilities of a prompt's own tokens; one more token is drawn, and dropped."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
    )


def _logp_of_last(sequence: tuple[int, ...], count: int, output: Any) -> float:
    tokens = zip(sequence[len(sequence) - count :], output.prompt_logprobs[len(sequence) - count :], strict=True)
    return sum(float(told[token].logprob) for token, told in tokens)


def _answer(output: Any) -> Answer:
    (drawn,) = output.outputs
    tokens = list(drawn.token_ids)
    logps = list(islice(drawn.logprobs.logprobs, len(tokens)))
    return Answer(tokens, logps, output.num_cached_tokens or 0)


def _line(error: BaseException) -> str:
    return one_line(error) or type(error).__name__
