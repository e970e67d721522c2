"""The settings of a server. This module imports no package of the extra serve."""

from __future__ import annotations

from dataclasses import dataclass

from ets.settings import boolean, setting
from ets.step import require_counts, require_positive
from ets.types import InputError


@dataclass(frozen=True)
class Operation:
    """How a server is run."""

    width: int = setting(64, "requests that advance together; others wait", int)
    queue: int = setting(256, "requests that may wait; a further one is refused (429)", int)
    seconds: float = setting(600.0, "time limit of a request, its wait included", float)
    reward_seconds: float = setting(60.0, "time limit of a reward in a guide step; then its request fails", float)
    body_kib: int = setting(1024, "largest body of a request, in KiB", int)
    drain_seconds: float = setting(30.0, "at a stop: time for the requests under way; 0 ends them at once", float)
    log_prompts: bool = setting(False, "write prompts and texts into the log", boolean)

    def __post_init__(self) -> None:
        require_counts(width=self.width, body_kib=self.body_kib)
        require_positive(seconds=self.seconds, reward_seconds=self.reward_seconds)
        if self.queue < 0 or self.drain_seconds < 0:
            raise InputError(f"queue is {self.queue} and drain_seconds {self.drain_seconds}; give 0 or more")


@dataclass(frozen=True)
class Limits:
    """The most that a request may ask for; by default what the server's own settings are."""

    most_candidates: int | None = setting(None, "the most candidates of a request (default: --candidates)", int)
    most_rollouts: int | None = setting(None, "the most rollouts of a request (default: --rollouts)", int)
    most_tokens: int | None = setting(None, "the largest budget of a request (default: --tokens)", int)
    most_texts: int = setting(16, "the most texts of a request, n times its prompts", int)

    def __post_init__(self) -> None:
        require_counts(**{name: value for name, value in vars(self).items() if value is not None})
