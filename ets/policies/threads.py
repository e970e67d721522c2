"""One thread for small models on a CPU.

Several threads wait for each other by spinning. For a small model this costs more than they save, and on a machine with
other work many times as much.
"""

from __future__ import annotations

import os
from typing import Any

import torch

SMALL = 20_000_000
"""Models with fewer parameters run in one thread."""
_THREADS = torch.get_num_threads()
_loaded: list[int] = []
"""Parameters of the models that were loaded."""


def choose_threads(model: Any) -> None:
    """Set PyTorch's threads of this process: one while all models that were loaded on the CPU are small.

    A larger model brings the threads back. Nothing changes where OMP_NUM_THREADS is set, or where the program has
    called `torch.set_num_threads`.

    Parameters
    ----------
    model : transformers.PreTrainedModel
    """
    if model.device.type != "cpu" or os.environ.get("OMP_NUM_THREADS"):
        return
    as_before = torch.get_num_threads() == _chosen()
    _loaded.append(model.num_parameters())
    if as_before:
        torch.set_num_threads(_chosen())


def _chosen() -> int:
    return 1 if _loaded and max(_loaded) < SMALL else _THREADS
