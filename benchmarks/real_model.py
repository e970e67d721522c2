"""A real language model on the prompts of a ready task: ETS against `model.generate`, by dtype and rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from measuring import Conditions, Row, Table

from ets.baselines import plain
from ets.chat import ChatTemplate
from ets.kernel import energy_guided
from ets.policies.autoregressive.transformers import TransformersPolicy
from ets.policies.checkpoint import Checkpoint
from ets.policies.prompts import encode_prompt
from ets.policies.settings import Horizon, Sampling
from ets.rewards import per_text
from ets.runner import run
from ets.tasks import TASKS
from ets.types import Cost, Problem, StepFn

ABOUT = """\
Compared with `model.generate` on the same rows of the same weights, in turn with ours in every repeat. `plain`: another
prompt of the task in each row, which `generate` gets with padding on the left. `one step`: one prompt in all rows, from
which ETS with one guide step chooses a text; it reads the prompt once, `generate` in every row. Nothing ends a text
before the full length. Tokens per second count drawn tokens, over seconds that include the reading of the prompts;
medians over the repeats, with the lowest and the highest."""


@dataclass(frozen=True)
class Setting:
    """What is sampled: texts of `length` tokens.

    Parameters
    ----------
    model : str
        A checkpoint's name.
    task : str
        A ready task, whose prompts go through the chat template.
    dtypes : tuple of torch.dtype
    rows : tuple of int
        Texts that are drawn together.
    length : int
    """

    model: str
    task: str
    dtypes: tuple[torch.dtype, ...]
    rows: tuple[int, ...]
    length: int

    def prompts(self, checkpoint: Checkpoint) -> list[tuple[int, ...]]:
        """The token ids of the task's prompts, each as one user turn."""
        template = ChatTemplate(checkpoint.tokenizer, name=checkpoint.name, end_ids=checkpoint.end_ids)
        problems = [template.problem(problem) for problem in TASKS[self.task]().problems()]
        context = checkpoint.context
        return [encode_prompt(checkpoint.tokenizer, problem, self.length, context) for problem in problems]


@dataclass(frozen=True)
class Batch:
    """Rows that are drawn together, to the full length.

    Parameters
    ----------
    checkpoint, unpacked : Checkpoint
        The weights as `ets` loads them, and for `generate` as transformers does.
    prompts : sequence of tuple of int
        One of each row.
    length : int
    """

    checkpoint: Checkpoint
    unpacked: Checkpoint
    prompts: Sequence[tuple[int, ...]]
    length: int

    @property
    def tokens(self) -> int:
        """The tokens that every way draws."""
        return len(self.prompts) * self.length

    def plain(self) -> Cost:
        return self._sample(plain(), self.prompts)

    def one_step(self) -> Cost:
        """One problem, with a candidate in each row."""
        reward = per_text(lambda _, text: float(len(text) % 7))
        return self._sample(energy_guided(reward, candidates=len(self.prompts), rollouts=1, lam=1.0), self.prompts[:1])

    def _sample(self, step: StepFn, prompts: Sequence[tuple[int, ...]]) -> Cost:
        horizon = Horizon(self.length, self.length)
        policy = TransformersPolicy(self.checkpoint, Sampling(), horizon, end_ids=())
        problems = [Problem(str(n), prompt) for n, prompt in enumerate(prompts)]
        list(run(policy, step, problems, width=len(problems), seed=0))
        return policy.ledger

    def generate(self) -> torch.Tensor:
        """The rows of `model.generate` `[rows, columns]`, prompts with padding on the left included."""
        columns = max(map(len, self.prompts))
        ids = torch.tensor([(*[0] * (columns - len(prompt)), *prompt) for prompt in self.prompts])
        mask = torch.tensor([[0] * (columns - len(prompt)) + [1] * len(prompt) for prompt in self.prompts])
        model, length = self.unpacked.model, {"max_new_tokens": self.length, "min_new_tokens": self.length}
        law: dict[str, Any] = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "pad_token_id": 0}
        drawn: torch.Tensor = model.generate(
            ids.to(model.device), attention_mask=mask.to(model.device), **length, **law
        )
        return drawn


def against_generate(setting: Setting, conditions: Conditions) -> Table:
    """ETS against `model.generate`: a line for each dtype, number of rows and way."""
    rows = [row for dtype in setting.dtypes for row in _of_dtype(setting, dtype, conditions)]
    shape = f"Model {setting.model}, task {setting.task} in the chat template; texts of {setting.length} tokens."
    return Table("real_model", "A real model: ETS", ABOUT, shape, rows)


def _of_dtype(setting: Setting, dtype: torch.dtype, conditions: Conditions) -> Iterator[Row]:
    checkpoint, unpacked = (Checkpoint(setting.model, dtype, str(conditions.device)) for _ in range(2))
    with patch("ets.policies.checkpoint.pack"):
        unpacked.load()
    yield from rows_of(checkpoint, unpacked, setting, conditions)


def rows_of(checkpoint: Checkpoint, unpacked: Checkpoint, setting: Setting, conditions: Conditions) -> Iterator[Row]:
    """The lines of one checkpoint; with one row, one step is plain sampling."""
    prompts, dtype = setting.prompts(checkpoint), str(checkpoint.model.dtype).removeprefix("torch.")
    warm = Batch(checkpoint, unpacked, prompts[:2], 2)
    warm.plain(), warm.one_step(), warm.generate()
    for count in setting.rows:
        several = Batch(checkpoint, unpacked, [prompts[n % len(prompts)] for n in range(count)], setting.length)
        yield _row(f"{dtype}, {count} rows, plain", several, *conditions.rounds((several.plain, several.generate)))
        if count > 1:
            equal = Batch(checkpoint, unpacked, [prompts[0]] * count, setting.length)
            yield _row(f"{dtype}, {count} rows, one step", equal, *conditions.rounds((equal.one_step, equal.generate)))


def _row(label: str, batch: Batch, ours: list[float], theirs: list[float]) -> Row:
    speeds = {"compared (tokens/s)": _speed(batch.tokens, theirs), "ours (tokens/s)": _speed(batch.tokens, ours)}
    return Row(label.replace("1 rows", "1 row"), ours, theirs, dict(speeds))


def _speed(tokens: int, seconds: Sequence[float]) -> str:
    """Tokens per second: the median, the lowest and the highest."""
    return f"{tokens / median(seconds):.0f} ({tokens / max(seconds):.0f} to {tokens / min(seconds):.0f})"
