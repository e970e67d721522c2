"""A Hugging Face reward model: sequence classification with one logit."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ets.hub import require_checkpoint
from ets.rewards.lifting import TextReward
from ets.step import require_counts
from ets.types import InputError, Problem, one_line


def reward_model(
    checkpoint: str | Path,
    *,
    batch: int = 16,
    device: str | None = None,
    template: bool = True,
    max_length: int | None = None,
) -> TextReward:
    """The logit that a sequence-classification model gives to a prompt and a text.

    The reward is a fixed function of (problem, text), so the law p* ∝ p_ref · exp(r/λ) holds; λ is in units of the
    logit. The weights load at the first score. Code in the checkpoint never runs.

    Parameters
    ----------
    checkpoint : str or Path
        A folder, or a name on the model hub.
    batch : int
        Texts per forward pass, of similar lengths. The batch changes scores by rounding errors alone.
    device : str, optional
        By default the GPU, or the CPU without a GPU. The dtype is float32 on a CPU, elsewhere the checkpoint's dtype.
    template : bool
        Render prompt and text as user and assistant turns of the tokenizer's chat template. With False, or without a
        template, the model reads the prompt followed by the text.
    max_length : int, optional
        Most tokens of prompt and text; by default the model's `max_position_embeddings`.

    Raises
    ------
    InputError
        For a missing checkpoint, or a number of labels other than 1. At a score, for a text beyond `max_length` and
        for a prompt of token ids.
    """
    require_counts(batch=batch, **({} if max_length is None else {"max_length": max_length}))
    name = str(checkpoint)
    return TextReward(_RewardModel(name, batch, device, template, max_length).score_texts)


class _RewardModel:
    """The model and its tokenizer; threads take turns."""

    def __init__(self, name: str, batch: int, device: str | None, template: bool, max_length: int | None) -> None:
        self.name, self.batch, self._device, self._max_length = name, batch, device, max_length
        require_checkpoint(name)
        self.config, self.tokenizer = self._opened("AutoConfig"), self._opened("AutoTokenizer")
        if self.config.num_labels != 1:
            raise InputError(
                f"the checkpoint {name!r} has {self.config.num_labels} labels, and a reward model has one; "
                "give a sequence-classification model with one logit"
            )
        self.template = template and bool(getattr(self.tokenizer, "chat_template", None))
        self._turn = threading.Lock()

    def score_texts(self, problem: Problem, texts: Sequence[str]) -> list[float]:
        encoded = [self._encoded(problem, text) for text in texts]
        scores = [0.0] * len(texts)
        with self._turn:
            for rows in self._batches(encoded):
                for row, logit in zip(rows, self._logits([encoded[row] for row in rows]), strict=True):
                    scores[row] = logit
        return scores

    def _encoded(self, problem: Problem, text: str) -> list[int]:
        if not isinstance(problem.prompt, str):
            raise InputError(
                f"the prompt of problem {problem.id!r} is token ids, which are not the reward model's; give it as text"
            )
        whole = problem.prompt + text
        if self.template:
            prompt = problem.messages or ({"role": "user", "content": problem.prompt},)
            turns = [*prompt, {"role": "assistant", "content": text}]
            whole = self.tokenizer.apply_chat_template(turns, tokenize=False)
        ids: list[int] = self.tokenizer(whole, add_special_tokens=not self.template)["input_ids"]
        most = self._max_length or getattr(self.config.get_text_config(), "max_position_embeddings", None)
        if most is not None and len(ids) > most:
            raise InputError(
                f"a text of problem {problem.id!r} has {len(ids)} tokens with its prompt, more than the {most} of the "
                f"reward model {self.name!r}; shorten the generation"
            )
        return ids

    def _batches(self, encoded: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Batches of rows of similar lengths; of equal lengths for a model without a padding token."""
        rows: list[int] = []
        for row in sorted(range(len(encoded)), key=lambda row: len(encoded[row])):
            shorter = rows and len(encoded[rows[0]]) < len(encoded[row])
            if len(rows) == self.batch or (shorter and self._padding is None):
                yield rows
                rows = []
            rows.append(row)
        if rows:
            yield rows

    def _logits(self, rows: Sequence[list[int]]) -> list[float]:
        """The logits of a batch, padded on the right."""
        import torch

        longest = max(map(len, rows))
        ids = [row + [self._padding or 0] * (longest - len(row)) for row in rows]
        mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
        device = self._model.device
        with torch.inference_mode():
            logits = self._model(
                input_ids=torch.tensor(ids, device=device), attention_mask=torch.tensor(mask, device=device)
            ).logits
        found: list[float] = logits[:, 0].double().tolist()
        return found

    @property
    def _padding(self) -> int | None:
        """The model's padding token; the model pools before padding."""
        padding: int | None = self.config.get_text_config().pad_token_id
        return padding

    @cached_property
    def _model(self) -> Any:
        import torch

        device = self._device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.float32 if device == "cpu" else "auto"
        options = {"dtype": dtype, "output_loading_info": True}
        model, info = self._opened("AutoModelForSequenceClassification", **options)
        if missing := sorted(info["missing_keys"]):
            raise InputError(
                f"the checkpoint {self.name!r} has no weights {missing[0]!r}, so it is no trained reward model; "
                "give a complete one"
            )
        return model.to(device).eval()

    def _opened(self, kind: str, **options: Any) -> Any:
        """Load a part of the checkpoint; an exception becomes an `InputError` of one line."""
        import transformers

        try:
            return getattr(transformers, kind).from_pretrained(self.name, trust_remote_code=False, **options)
        except Exception as error:
            raise InputError(
                f"cannot load the reward model {self.name!r}: {one_line(error)}; give a complete one"
            ) from error
