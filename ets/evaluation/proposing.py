"""What ETS-IS has of its own: its proposal, how its ratios are used, and the pair that it samples from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ets.proposal import ImportanceSampling
from ets.types import InputError, Policy

if TYPE_CHECKING:
    from ets.policies.checkpoint import Checkpoint


@dataclass(frozen=True)
class Proposing:
    """The settings that belong to ETS-IS alone.

    Parameters
    ----------
    model : str
        The proposal, as the user named it.
    candidates : int
        M.
    block_size : int
        Tokens per guide step.
    temperature : float
        Of the proposal.
    top_k, top_p : int, float
        The settings of the policy. `opened_pair` replaces "checkpoint" by the value of the proposal's checkpoint.
    clip : (float, float), optional
        Bounds on the ratio.
    revision : str
        Of the proposal's weights; `opened_pair` fills it in.
    """

    model: str
    candidates: int
    block_size: int
    temperature: float
    top_k: int | str | None = None
    top_p: float | str | None = None
    clip: tuple[float, float] | None = None
    revision: str = ""

    @property
    def options(self) -> tuple[str, ...]:
        """All of it in words, by which the journal keeps records apart: `M8`, `block16`, `clip0.1:10.0` …"""
        values = {
            "M": self.candidates,
            "block": self.block_size,
            "T": self.temperature,
            "top_k": self.top_k,
            "top_p": None if self.top_p == 1 else self.top_p,
            "clip": self.clip and "{}:{}".format(*self.clip),
        }
        told = (f"{name}{value}" for name, value in values.items() if value is not None)
        return (f"{self.model}@{self.revision}", *told)

    @property
    def weighed(self) -> bool:
        """Whether there are ratios."""
        return True

    @property
    def target(self) -> str:
        """A law that draws are weighed towards in the place of the policy's own."""
        return ""

    def label(self, rollouts: int) -> str:
        """The method's name in the table."""
        return f"ETS-IS (M {self.candidates}, K {rollouts}, block {self.block_size})"


def opened_pair(
    proposing: Proposing, reference: Policy, checkpoint: Callable[[], Checkpoint]
) -> tuple[Proposing, ImportanceSampling]:
    """The settings with the proposal's revision and truncation, and the pair; the weights are loaded when first needed.

    Parameters
    ----------
    proposing : Proposing
    reference : Policy
        Made by `ets.policies.making.policy_of`, with the block size of `proposing`.
    checkpoint : callable
        Opens the proposal's.

    Raises
    ------
    InputError
        For a missing checkpoint, values out of range, or models that do not fit each other.
    """
    from ets.policies.making import proposal_of

    opened = checkpoint()
    law: dict[str, Any] = {"temperature": proposing.temperature, "top_k": proposing.top_k, "top_p": proposing.top_p}
    proposal = proposal_of(reference, lambda: opened, **law)
    found, revision = proposal.sampling, opened.revision[:8]
    settings = replace(proposing, top_k=found.top_k, top_p=found.top_p, revision=revision)
    return settings, ImportanceSampling(reference, proposal, proposing.clip)


def bounds_of(text: str) -> tuple[float, float]:
    """A clip's bounds from `LOW,HIGH` or `LOW:HIGH`; whether they make sense is for `ets.energy_guided` to say.

    Raises
    ------
    InputError
        If these are not two numbers.
    """
    try:
        low, high = map(float, text.replace(":", ",").split(","))
    except ValueError:
        raise InputError(f"clip is {text!r}; give the lowest and the highest ratio, such as 0.1,10") from None
    return low, high
