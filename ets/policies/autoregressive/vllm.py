"""vLLM as an engine of `EnginePolicy`: the only module that imports vllm.

vLLM computes in worker processes. Rows with a common beginning share its whole cache blocks through the prefix cache.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch

from ets.event_loop import EventLoop
from ets.policies.autoregressive.engine import (
    Answer,
    Engine,
    EnginePolicy,
    Request,
    parameters,
    require_temperature,
    tempered,
)
from ets.policies.autoregressive.law import require_autoregressive
from ets.policies.autoregressive.watchdog import watch
from ets.policies.checkpoint import Checkpoint
from ets.policies.settings import Horizon, Sampling, VLLMResources
from ets.step import require_counts, require_positive
from ets.types import InputError, one_line

CPU_BLOCK = 32
"""Tokens per cache block on a CPU: the smallest size that works, because rows recompute their last partial block."""
CLOSING_SECONDS = 20.0
"""Time limit for the end of the worker processes, which are killed afterwards."""


class VLLMEngine(Engine):
    """A model in vLLM, loaded by `load`, by a `with` statement, or by the first draw.

    `close` and the end of the `with` statement end the worker processes; so does the end of the program, also by
    SIGKILL (`ets.policies.autoregressive.watchdog`). Any number of threads may draw at once: while one thread waits for
    its slowest row, the engine draws the rows of the others.

    Parameters
    ----------
    checkpoint : Checkpoint
        By path or hub name; only vLLM loads the weights.
    memory_gib : float, optional
        Size of the cache. The default is the memory that `utilization` leaves on a GPU, and 2 GiB on a CPU.
    utilization : float
        Share of a GPU's memory that vLLM may use, weights included.
    replicas : int
        Copies of the model (vLLM's data parallelism).
    tensor_parallel : int
        GPUs of each copy (vLLM's tensor parallelism). The copies use `replicas · tensor_parallel` GPUs.
    rows : int
        Largest number of rows that advance together.

    Attributes
    ----------
    arguments : dict
        The arguments of vLLM's engine.

    Raises
    ------
    InputError
        If vLLM is not installed, the model has no files to load from, or the copies need more GPUs than the machine
        has.
    """

    engine_name = "vllm"
    name = "vLLM"

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
            raise InputError(f"utilization is {utilization}; give a share of at most 1")
        if checkpoint.name == "loaded":
            raise InputError(
                "the model is loaded in memory, and vLLM loads models from files; save it to a folder first"
            )
        if checkpoint.files.gguf or checkpoint.files.adapter:
            raise InputError(
                f"{checkpoint.name!r} is a GGUF file or an adapter, and the engine vllm loads folders of weights; use "
                "the engine transformers, or save model and tokenizer to a folder"
            )
        self.checkpoint = checkpoint
        self._ids = count()  # of requests
        self.arguments = _arguments(checkpoint, memory_gib, utilization, replicas, tensor_parallel, rows)
        self._lock = threading.RLock()
        self._loaded: list[_Loaded] = []  # at most one
        self._closing = weakref.finalize(self, _shut_down, self._loaded)

    def close(self) -> None:
        self._closing()

    def load(self) -> None:
        """Load the model, unless loaded.

        Raises `InputError` if vLLM cannot load the model or reports untempered log-probabilities, and after `close`.
        """
        with self._lock:
            if not self._closing.alive:
                raise InputError("the vLLM engine has been closed; make another one")
            if not self._loaded:
                torch.cuda.empty_cache()  # vLLM must find its share free
                self._loaded.append(_load(self.arguments))
                try:
                    self._require_processed_logps()
                except BaseException:
                    self.close()
                    raise

    @property
    def context(self) -> int | None:
        """Positions of the longest row: the model's limit, and after `load` also the cache's."""
        if not self._loaded:
            return self.checkpoint.context
        return int(self._loaded[0].engine.vllm_config.model_config.max_model_len)

    def require_law(self, sampling: Sampling) -> None:
        """Raise `InputError` for a temperature that vLLM does not sample at."""
        require_temperature(self.name, sampling)

    def draw(self, requests: Sequence[Request], sampling: Sampling, end_ids: Sequence[int]) -> list[Answer]:
        """As `Engine.draw`; raises `InputError` if vLLM cannot load the model, stops, or has no room for a row."""
        self.load()
        longest = max(len(request.tokens) + request.room for request in requests)
        if self.context is not None and longest > self.context:
            raise InputError(
                f"a row may take {longest} tokens, and vLLM's cache has room for {self.context}; raise memory_gib"
            )
        params = [_params(request, sampling, end_ids) for request in requests]
        answers = []
        for output in self._outputs(requests, params):
            (drawn,) = output.outputs
            tokens, logps = list(drawn.token_ids), drawn.logprobs.logprobs
            answers.append(Answer(tokens, list(logps[: len(tokens)]), output.num_cached_tokens or 0))
        return answers

    def interrupt(self, thread: int) -> None:
        for loaded in self._loaded:
            loaded.loop.interrupt(thread)

    def _outputs(self, requests: Sequence[Request], params: Sequence[Any]) -> list[Any]:
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        loaded = self._loaded[0]
        try:
            rows = zip(requests, params, strict=True)
            return loaded.loop.wait_for_all([self._one(loaded.engine, *row) for row in rows])
        except (EngineDeadError, EngineGenerateError) as error:
            cause = _line(error.__cause__ or error)
            raise InputError(f"vLLM's engine has stopped: {cause}; see its messages above, and start again") from None

    async def _one(self, engine: Any, request: Request, params: Any) -> Any:
        from vllm.inputs import tokens_input

        outputs = engine.generate(tokens_input(list(request.tokens)), params, str(next(self._ids)))
        return [output async for output in outputs][-1]

    def _require_processed_logps(self) -> None:
        several = min(20, self.checkpoint.config.get_text_config().vocab_size)
        request = Request((0,), 0, 1)
        params = [_params(request, Sampling(t), ()) for t in (1.0, 0.5)]
        for each in params:
            each.logprobs = several
        found = [output.outputs[0].logprobs for output in self._outputs([request] * 2, params)]
        if not tempered(*(dict(zip(row.token_ids, row.logprobs, strict=True)) for row in found)):
            raise InputError(
                "vLLM reports log-probabilities of the untempered model, whatever its option logprobs_mode is; "
                "install the version in constraints.txt"
            )


def _arguments(
    checkpoint: Checkpoint, memory_gib: float | None, utilization: float, replicas: int, tensor_parallel: int, rows: int
) -> dict[str, Any]:
    """Every argument that results depend on, whatever a checkpoint's files and vLLM's defaults are."""
    # vLLM reads these variables at import: no usage reports, no log lines in this program's output.
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS", "1")  # workers then end cleanly, also on a CPU
    try:
        from vllm.platforms import current_platform
    except ImportError as error:
        raise InputError(f"vLLM cannot be imported ({_line(error)}); run `bash scripts/setup.sh vllm`") from error
    _require_gpus(replicas, tensor_parallel, 0 if current_platform.is_cpu() else torch.cuda.device_count())
    options: dict[str, Any] = {
        "model": checkpoint.name,
        "dtype": checkpoint.placement.split()[1],
        "max_model_len": -1,  # the model's limit, or the cache's
        "max_num_seqs": rows,
        "data_parallel_size": replicas,
        "tensor_parallel_size": tensor_parallel,
        "gpu_memory_utilization": utilization,
        "enable_prefix_caching": True,
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "trust_remote_code": False,
        "load_format": "safetensors",  # never pickles
        "use_tqdm_on_load": False,
        "disable_log_stats": False,  # counters of vLLM
    }
    if current_platform.is_cpu():
        # Chunked prefill crashes vLLM's CPU engine if rows have seeds ("CPU Generator does not use offset").
        options |= {"block_size": CPU_BLOCK, "enforce_eager": True, "enable_chunked_prefill": False}
        memory_gib = memory_gib or 2.0
    if memory_gib is not None:
        options["kv_cache_memory_bytes"] = int(memory_gib * 2**30)
    return options


def _require_gpus(replicas: int, tensor_parallel: int, gpus: int) -> None:
    """Raise `InputError` for copies that need more GPUs than the machine has, or, on a CPU, for more than one copy."""
    needed = replicas * tensor_parallel
    if needed > max(1, gpus):
        there = f"there {'is' if gpus == 1 else 'are'} {gpus}" if gpus else "vLLM runs on the CPU here, as one copy"
        raise InputError(
            f"replicas {replicas} · tensor_parallel {tensor_parallel} take {needed} GPUs, but {there}; lower them "
            "(in the scripts GEN_DP and GEN_TP, in the paper's form data_parallel_size and tensor_parallel_size)"
        )


@dataclass(frozen=True)
class _Loaded:
    """vLLM's engine, the event loop of its requests, its worker processes, and the program that watches them."""

    engine: Any
    loop: EventLoop
    processes: set[Any]
    watchdog: Any


def _load(arguments: dict[str, Any]) -> _Loaded:
    loop, others, watchdog = EventLoop("vllm"), set(multiprocessing.active_children()), watch()
    try:
        engine = loop.wait(_engine(arguments))
        processes = set(multiprocessing.active_children()) - others
        return _Loaded(engine, loop, processes, watch(process.pid for process in processes if process.pid))
    except Exception as error:
        loop.stop()
        raise InputError(f"vLLM cannot load {arguments['model']!r}: {_line(error)}; see its messages above") from error
    finally:
        watchdog.terminate()
        watchdog.wait()


async def _engine(arguments: dict[str, Any]) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))


def _shut_down(loaded: list[_Loaded]) -> None:
    """End the worker processes, and wait for their end."""
    for each in loaded:
        if handler := each.engine.output_handler:  # otherwise the handler reports an error when the workers end
            handler.get_loop().call_soon_threadsafe(handler.cancel)
        each.engine.shutdown(timeout=CLOSING_SECONDS)
        for process in each.processes:
            process.join(timeout=CLOSING_SECONDS)
        each.watchdog.terminate()
        each.watchdog.wait()
        each.loop.stop()
    loaded.clear()


def _params(request: Request, sampling: Sampling, end_ids: Sequence[int]) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        **parameters(request, sampling, end_ids),
        stop=list(request.stop),
        detokenize=bool(request.stop),
        ignore_eos=True,  # `end_ids` end the row instead
        logprobs=0,  # of the drawn token alone
        flat_logprobs=True,
        skip_clone=True,  # no other request has these parameters
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _line(error: BaseException) -> str:
    return one_line(error) or type(error).__name__


def make_policy(
    checkpoint: Checkpoint,
    sampling: Sampling,
    horizon: Horizon,
    resources: VLLMResources,
    ready: VLLMEngine | None = None,
) -> EnginePolicy:
    """The policy of the engine "vllm" in `ets.policies.registry`."""
    require_autoregressive(checkpoint, "vllm")
    return EnginePolicy(ready or VLLMEngine(checkpoint, **vars(resources)), sampling, horizon)
