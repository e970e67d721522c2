"""The law of the paper's "Base" row; the command line reads its defaults here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Base:
    """The law of the row `base`: the temperature, top-k and top-p at which the authors sample their "Base" row."""

    temperature: float = 0.7
    top_k: int | None = 20
    top_p: float | None = 0.8

    @property
    def label(self) -> str:
        top_k = "" if self.top_k is None else f", top-k {self.top_k}"
        return f"temperature {self.temperature:g}{top_k}" + ("" if self.top_p is None else f", top-p {self.top_p:g}")
