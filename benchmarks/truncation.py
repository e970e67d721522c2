"""The draw of a token from a large vocabulary with top-k and top-p, against the processors of transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from floor import Floor, Work
from measuring import Conditions, Row, Table
from transformers import TopKLogitsWarper, TopPLogitsWarper

from ets.policies.autoregressive.truncation import draw_tokens
from ets.policies.settings import Sampling

ABOUT = """\
One token for each row from given logits: top-k, top-p, the softmax and the draw, without the model. Compared with
transformers' `TopKLogitsWarper` and `TopPLogitsWarper`, a softmax and `torch.multinomial`, as `generate` calls them in
float32; ours are in float64. `of untruncated` is our time over that of our draw from the whole vocabulary. In a flat
distribution the logits are normal with a spread of 1, in a peaked one of 3."""
RULES = {
    "all tokens": Sampling(),
    "top-k 20": Sampling(top_k=20),
    "top-k 20, top-p 0.95": Sampling(top_k=20, top_p=0.95),
    "top-p 0.95": Sampling(top_p=0.95),
}
SPREADS = {"flat": 1.0, "peaked": 3.0}


@dataclass(frozen=True)
class Setting:
    """Rows that draw at once, the size of the vocabulary, and the draws of a repeat."""

    rows: int
    vocabulary: int
    draws: int

    def __str__(self) -> str:
        return f"{self.rows} rows, a vocabulary of {self.vocabulary:,}, {self.draws} draws in each repeat."


def measure(setting: Setting, conditions: Conditions) -> Table:
    """Every rule, for both kinds of distributions."""
    rows = [row for kind, spread in SPREADS.items() for row in _rows(kind, spread, setting, conditions)]
    return Table("truncation", "Tokens of a large vocabulary", ABOUT, str(setting), rows)


def _rows(kind: str, spread: float, setting: Setting, conditions: Conditions) -> list[Row]:
    logits = spread * torch.randn(setting.rows, setting.vocabulary, device=conditions.device)
    uniforms = torch.rand(setting.rows, device=conditions.device, dtype=torch.float64)
    seconds = conditions.rounds(
        [
            _times(setting.draws, work)
            for rule in RULES.values()
            for work in (lambda r=rule: draw_tokens(r, logits, uniforms), lambda r=rule: warped(r, logits))
        ]
    )
    ours, compared = seconds[::2], seconds[1::2]
    read = Work(0.0, float(setting.draws * logits.nbytes))  # each logit once
    floor = Floor(read.operations, read.bytes, conditions.peak.seconds(read))
    shares = [median(a / b for a, b in zip(mine, ours[0], strict=True)) for mine in ours]
    return [
        Row(f"{kind}, {name}", mine, theirs, {"of untruncated": round(share, 2)}, floor)
        for name, mine, theirs, share in zip(RULES, ours, compared, shares, strict=True)
    ]


def _times(count: int, work: Callable[[], object]) -> Callable[[], None]:
    def repeated() -> None:
        for _ in range(count):
            work()

    return repeated


def warped(rule: Sampling, logits: torch.Tensor) -> torch.Tensor:
    """Tokens `[R]`, drawn as `generate` does."""
    unused = torch.empty(len(logits), 0, dtype=torch.long, device=logits.device)
    if rule.top_k is not None:
        logits = TopKLogitsWarper(rule.top_k)(unused, logits)
    if rule.top_p is not None:
        logits = TopPLogitsWarper(float(rule.top_p))(unused, logits)
    return torch.multinomial(logits.softmax(-1), 1)[:, 0]
