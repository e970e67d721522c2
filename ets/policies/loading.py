"""Checkpoints are loaded without progress bars; a download from a hub keeps its bar."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_bars() -> Iterator[None]:
    """Switch transformers' progress bars off for the time of a block, and leave the settings as they were."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    loading, downloads = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    set_downloads = enable_progress_bars if downloads else disable_progress_bars
    logging.disable_progress_bar()  # also of downloads
    set_downloads()
    try:
        yield
    finally:
        if loading:
            logging.enable_progress_bar()  # also of downloads
        set_downloads()
