"""Progress bars while a checkpoint is loaded."""

import pytest
from huggingface_hub.utils import are_progress_bars_disabled
from transformers.utils import logging

from ets.demo import model_path
from ets.policies.checkpoint import Checkpoint
from ets.policies.loading import without_bars


def test_a_checkpoint_is_loaded_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    Checkpoint(model_path("small")).load()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("shown", [True, False])
def test_the_settings_of_progress_bars_stay(shown: bool) -> None:
    def state() -> tuple[bool, bool]:
        return logging.is_progress_bar_enabled(), are_progress_bars_disabled()

    found = state()
    (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
    try:
        before = state()
        with without_bars():
            assert state() == (False, not shown)
        assert state() == before
    finally:
        (logging.enable_progress_bar if found[0] else logging.disable_progress_bar)()
