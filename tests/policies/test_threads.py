"""A small model on a CPU runs in one thread; larger models and OMP_NUM_THREADS keep the threads as they were."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ets import demo
from ets.policies import threads
from ets.policies.checkpoint import Checkpoint


@pytest.fixture(autouse=True)
def two(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two threads, as on a machine of two cores, and afterwards as many as before."""
    before = torch.get_num_threads()
    monkeypatch.setattr(threads, "_THREADS", 2)
    monkeypatch.setattr(threads, "_loaded", [])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_a_small_checkpoint_runs_in_one_thread_until_a_larger_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    Checkpoint(demo.model_path("small"), device="cpu").load()
    assert torch.get_num_threads() == 1
    monkeypatch.setattr(threads, "SMALL", 10**6)
    Checkpoint(demo.model_path("reference"), device="cpu").load()
    assert torch.get_num_threads() == 2
    Checkpoint(demo.model_path("small"), device="cpu").load()
    assert torch.get_num_threads() == 2


def test_the_number_in_the_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    Checkpoint(demo.model_path("small"), device="cpu").load()
    assert torch.get_num_threads() == 2


def test_threads_that_the_program_has_chosen_stay() -> None:
    torch.set_num_threads(3)
    Checkpoint(demo.model_path("small"), device="cpu").load()
    assert torch.get_num_threads() == 3
