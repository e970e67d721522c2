"""vLLM's own server, on the loopback address."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import psutil

from ets import demo
from tests.ports import kept_port

OPTIONS = {"--host": "127.0.0.1", "--dtype": "float32", "--block-size": "32", "--enforce-eager": None}
GENERATING = {
    "--model": demo.model_path(),
    "--kv-cache-memory-bytes": "1G",
    "--logprobs-mode": "processed_logprobs",
    "--generation-config": "vllm",
    "--no-enable-chunked-prefill": None,
    "--enable-prompt-tokens-details": None,
}
"""Options of the embedded model; None marks a switch."""
POOLING = {"--kv-cache-memory-bytes": "200M", "--runner": "pooling"}
"""Options of a reward model."""


@contextmanager
def vllm_server(options: Mapping[str, str | None] = GENERATING) -> Iterator[str]:
    """The server's address; at the end of the `with` statement no process of the server is left."""
    kept = kept_port()
    port = kept.getsockname()[1]
    module = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    given = {**OPTIONS, **options, "--port": str(port)}
    words = [word for option in given.items() for word in option if word is not None]
    environment = os.environ | {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    process = subprocess.Popen([*module, *words], env=environment, stdout=subprocess.DEVNULL)
    family = [psutil.Process(process.pid)]
    try:
        while process.poll() is None and not _listens(port):
            time.sleep(0.5)
        assert process.poll() is None, "vLLM's server has not come up; see its messages above"
        family += family[0].children(recursive=True)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        kept.close()
        process.terminate()
        _, left = psutil.wait_procs(family, timeout=300)
        for each in left:
            each.kill()
    assert not left


def _listens(port: int) -> bool:
    with socket.socket() as there:
        return there.connect_ex(("127.0.0.1", port)) == 0
