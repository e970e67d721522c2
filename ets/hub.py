"""Check that a checkpoint is a folder, in the local cache, or on a reachable model hub."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from ets.types import InputError

HUB_SECONDS = 3.0
"""Time limit for a connection to the model hub."""


def require_checkpoint(name: str, file: str = "config.json") -> None:
    """Raise `InputError` within seconds for a checkpoint that is neither local nor on a reachable hub.

    `file` is the file that the local cache must hold if the hub cannot be reached.
    """
    if Path(name).expanduser().is_dir():
        if not (Path(name).expanduser() / "config.json").is_file():
            raise InputError(f"the folder {name!r} holds no config.json; give a checkpoint's folder")
        return
    if Path(name).expanduser().is_file():
        raise InputError(f"{name!r} is a file without the ending .gguf; give a checkpoint's folder, or a GGUF file")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        raise InputError(
            f"no checkpoint at {name!r}; give an existing folder, or a name on the hub such as Qwen/Qwen3-8B"
        )
    from huggingface_hub import constants, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, file), str):
        return
    if constants.HF_HUB_OFFLINE or not _reachable(constants.ENDPOINT):
        raise InputError(
            f"the checkpoint {name!r} is neither a folder nor in the local cache, and the model hub cannot be "
            "reached; download it on another machine and give its folder"
        )


def _reachable(address: str) -> bool:
    """Whether a direct connection succeeds. True with a proxy, which only the download can check."""
    parts = urlsplit(address)
    if getproxies().keys() & {parts.scheme, "all"}:  # "no" lists hosts without a proxy
        return True
    try:
        socket.create_connection((parts.hostname or "", parts.port or 443), timeout=HUB_SECONDS).close()
    except OSError:
        return False
    return True
