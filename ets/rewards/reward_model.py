"""A Hugging Face reward model: sequence classification with one logit."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ets.chat import as_turns, text_before_reply, with_reply
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
        template, the model reads the prompt followed by the text, in a chat with a line break between them. The prompt
        is `Problem.raw_prompt`, without the template of the model that is sampled.
    max_length : int, optional
        Most tokens of prompt and text; by default the model's `max_position_embeddings`.

    Raises
    ------
    InputError
        For a missing checkpoint, or a number of labels other than 1. At a score, for a text beyond `max_length` and
        for a prompt of token ids.
    """
    name = str(checkpoint)
    return TextReward(_RewardModel(name, batch, device, template, max_length).score_texts)


class Classifier:
    """A classification model of transformers and its tokenizer, which read a prompt and a text; threads take turns.

    Parameters
    ----------
    name : str
    batch, device, template, max_length
        As for `reward_model`.
    kind : str
        The class of transformers that loads the model.
    """

    def __init__(
        self,
        name: str,
        batch: int,
        device: str | None,
        template: bool,
        max_length: int | None,
        kind: str = "AutoModelForSequenceClassification",
    ) -> None:
        require_counts(batch=batch, **({} if max_length is None else {"max_length": max_length}))
        self.name, self.batch, self.kind, self._device, self._max_length = name, batch, kind, device, max_length
        require_checkpoint(name)
        self.config, self.tokenizer = self._opened("AutoConfig"), self._opened("AutoTokenizer")
        self.template = template and bool(getattr(self.tokenizer, "chat_template", None))
        self._turn = threading.Lock()

    def outputs(self, encoded: Sequence[list[int]]) -> list[Any]:
        """The model's logits for each row of token ids: `[labels]`, or `[tokens, labels]` for each token."""
        found: list[Any] = [None] * len(encoded)
        with self._turn:
            for rows in self._batches(encoded):
                for row, logits in zip(rows, self._logits([encoded[row] for row in rows]), strict=True):
                    found[row] = logits
        return found

    def whole(self, problem: Problem, text: str) -> str:
        """The text that the model reads for a prompt and a text."""
        if self.template:
            return str(self.tokenizer.apply_chat_template(with_reply(problem.raw_prompt, text), tokenize=False))
        return self.before(problem) + text

    def before(self, problem: Problem) -> str:
        """The text before the reply: by the chat template, or the prompt, which a line break ends in a chat."""
        if self.template:
            turns = [dict(turn) for turn in as_turns(problem.raw_prompt)]
            begins = turns[-1]["role"] != "assistant"
            options = {"add_generation_prompt": begins, "continue_final_message": not begins}
            return str(self.tokenizer.apply_chat_template(turns, tokenize=False, **options))
        return text_before_reply(problem)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """The token ids of a text; `special` adds special tokens, unless the chat template has written them."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=special and not self.template)["input_ids"]
        return ids

    def require_room(self, problem: Problem, ids: Sequence[int]) -> None:
        """Raise `InputError` for more token ids than the model reads."""
        most = self._max_length or getattr(self.config.get_text_config(), "max_position_embeddings", None)
        if most is not None and len(ids) > most:
            raise InputError(
                f"a text of problem {problem.id!r} has {len(ids)} tokens with its prompt, more than the {most} of the "
                f"reward model {self.name!r}; shorten the generation"
            )

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

    def _logits(self, rows: Sequence[list[int]]) -> list[Any]:
        """The logits of a batch, padded on the right; without the logits of padding."""
        import torch

        longest = max(map(len, rows))
        ids = [row + [self._padding or 0] * (longest - len(row)) for row in rows]
        mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
        device = self._model.device
        with torch.inference_mode():
            logits = self._model(
                input_ids=torch.tensor(ids, device=device), attention_mask=torch.tensor(mask, device=device)
            ).logits.double()
        return [found[: len(row)] if found.ndim > 1 else found for row, found in zip(rows, logits, strict=True)]

    @property
    def _padding(self) -> int | None:
        """The model's padding token; the model pools before padding."""
        padding: int | None = self.config.get_text_config().pad_token_id
        return padding

    @cached_property
    def _model(self) -> Any:
        import torch

        from ets.policies.threads import choose_threads

        device = self._device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.float32 if device == "cpu" else "auto"
        options = {"dtype": dtype, "output_loading_info": True, "use_safetensors": True}
        model, info = self._opened(self.kind, **options)
        if missing := sorted(info["missing_keys"]):
            raise InputError(
                f"the checkpoint {self.name!r} has no weights {missing[0]!r}, so it is no trained reward model; "
                "give a complete one"
            )
        model = model.to(device).eval()
        choose_threads(model)
        return model

    def _opened(self, kind: str, **options: Any) -> Any:
        """Load a part of the checkpoint; an exception becomes an `InputError` of one line."""
        import transformers

        from ets.policies.loading import without_bars

        try:
            with without_bars():
                return getattr(transformers, kind).from_pretrained(self.name, trust_remote_code=False, **options)
        except Exception as error:
            raise InputError(
                f"cannot load the reward model {self.name!r}: {one_line(error)}; give a complete one"
            ) from error


class _RewardModel(Classifier):
    """A sequence-classification model with one label."""

    def __init__(self, name: str, batch: int, device: str | None, template: bool, max_length: int | None) -> None:
        super().__init__(name, batch, device, template, max_length)
        if self.config.num_labels != 1:
            raise InputError(
                f"the checkpoint {name!r} has {self.config.num_labels} labels, and a reward model has one; "
                "give a sequence-classification model with one logit"
            )

    def score_texts(self, problem: Problem, texts: Sequence[str]) -> list[float]:
        encoded = [self.encode(self.whole(problem, text), special=True) for text in texts]
        for ids in encoded:
            self.require_room(problem, ids)
        return [float(logits[0]) for logits in self.outputs(encoded)]
