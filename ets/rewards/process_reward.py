"""Process rewards: the steps of a text are scored one by one, by a function or a classification model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, TypeAlias

from ets.event_loop import awaited
from ets.rewards.combining import cached
from ets.rewards.lifting import REMEMBERED, TextReward
from ets.rewards.reward_model import Classifier
from ets.step import RewardError
from ets.types import InputError, Problem, Text

StepScoring: TypeAlias = Callable[[Any, Sequence[str]], Sequence[float]]
"""`(prompt, steps) -> numbers`, one for each step, with the prompt as it was given."""
ScoreSteps: TypeAlias = Callable[[Problem, Sequence[Sequence[str]]], list[list[float]]]
"""The numbers of the steps of several texts."""
REDUCTIONS: dict[str, Callable[[Sequence[float]], float]] = {
    "min": min,
    "last": lambda scores: scores[-1],
    "product": math.prod,
    "mean": fmean,
}
"""From a text's step scores to its reward, by name."""


def process_reward(
    scorer: StepScoring | str | Path,
    *,
    reduce: Literal["min", "last", "product", "mean"] = "min",
    separator: str = "\n\n",
    empty: float = 0.0,
    batch: int = 16,
    device: str | None = None,
    template: bool = True,
    max_length: int | None = None,
    size: int = REMEMBERED,
) -> TextReward:
    """A text's step scores, reduced to one number.

    The steps are the parts between separators, without surrounding white space; blank parts are no steps. The last step
    of an unfinished text is still open, so it does not count if there is an earlier one. Example with the separator
    "\\\\n": the unfinished text "2 + 3 = 5\\\\n5 * 2 = " has the one step "2 + 3 = 5".

    The reward is a fixed function of (problem, text), so the law p* ∝ p_ref · exp(r/λ) holds. It is declared
    informative for unfinished texts (`ets.of_prefixes`): `ets.refined` begins with a particle filter, which needs no
    rollouts.

    Parameters
    ----------
    scorer : callable, str or Path
        `(prompt, steps) -> numbers`, or a checkpoint by folder or hub name. A token-classification model reads prompt
        and steps, each step with the separator behind it, and scores a step at its last token, as process reward
        models of TRL do. A sequence-classification model reads the prompt with each prefix of the steps. Two labels
        give the probability of label 1, one label gives its logit.
    reduce : {"min", "last", "product", "mean"}
        `product` suits probabilities.
    separator : str
    empty : float
        The reward of a text without a step.
    batch, device, template, max_length
        Of a model, as for `ets.rewards.reward_model`.
    size : int
        Cached texts.

    Raises
    ------
    InputError
        For values out of range, and for a checkpoint that is missing or no classification model of one or two labels.
    RewardError
        At a score, for a function that does not return one number per step.

    References
    ----------
    Lightman et al., "Let's verify step by step", arXiv 2305.20050: product and minimum of step scores.
    """
    if reduce not in REDUCTIONS:
        raise InputError(f"reduce is {reduce!r}; choose from {', '.join(REDUCTIONS)}")
    if not isinstance(separator, str) or not separator:
        raise InputError(f"separator is {separator!r}; give the text between steps, such as a line break")
    if callable(scorer):
        score_steps = _of_function(scorer)
    else:
        score_steps = _of_model(str(scorer), separator, batch, device, template, max_length)
    reduced = REDUCTIONS[reduce]

    def score_texts(problem: Problem, texts: Sequence[str]) -> list[float]:
        found = {text: steps_of(text, separator) for text in texts}
        stepped = [text for text in texts if found[text]]
        scores = dict(zip(stepped, score_steps(problem, [found[text] for text in stepped]), strict=True))
        return [float(reduced(scores[text])) if text in scores else empty for text in texts]

    def read(rollout: Text) -> str:
        return separator.join(steps_of(rollout.text, separator, done=rollout.done))

    return cached(TextReward(score_texts, read, of_prefixes=True), size=size)


def steps_of(text: str, separator: str, *, done: bool = True) -> list[str]:
    """The steps of a text; without the open step of an unfinished text, unless it is the only one."""
    parts = [part.strip() for part in text.split(separator)]
    steps = [part for part in parts if part]
    return steps[:-1] if not done and parts[-1] and len(steps) > 1 else steps


def _of_function(scorer: StepScoring) -> ScoreSteps:
    def score_steps(problem: Problem, texts: Sequence[Sequence[str]]) -> list[list[float]]:
        found = [list(scores) for scores in awaited(scorer(problem.raw_prompt, list(steps)) for steps in texts)]
        for scores, steps in zip(found, texts, strict=True):
            if len(scores) != len(steps):
                raise RewardError(
                    f"the process reward gave {len(scores)} numbers for the {len(steps)} steps of a text of problem "
                    f"{problem.id!r}; return one for each"
                )
        return found

    return score_steps


def _of_model(
    name: str, separator: str, batch: int, device: str | None, template: bool, max_length: int | None
) -> ScoreSteps:
    model = _StepModel(name, batch, device, template, max_length)
    head = next((kind for kind in _HEADS for each in model.config.architectures or () if each.endswith(kind)), None)
    if head is None or model.config.num_labels not in (1, 2):
        found = ", ".join(model.config.architectures or ()) or "no architecture"
        raise InputError(
            f"the checkpoint {name!r} is {found} with {model.config.num_labels} labels; give a sequence- or "
            "token-classification model of one or two labels"
        )
    model.separator, model.kind = separator, f"AutoModel{head}"
    score_steps: ScoreSteps = getattr(model, _HEADS[head])
    return score_steps


_HEADS = {"ForTokenClassification": "at_tokens", "ForSequenceClassification": "of_sequences"}
"""The kinds of classification models, with the method of `_StepModel` that reads them."""


class _StepModel(Classifier):
    """A classification model that scores steps."""

    separator: str

    def at_tokens(self, problem: Problem, texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """One forward pass for a text: a step's score stands at its last token."""
        before, encoded, ends = self.encode(self.before(problem), special=True), [], []
        for steps in texts:
            ids, last = list(before), []
            for step in steps:
                ids += self.encode(step, special=False) + self.encode(self.separator, special=False)
                last.append(len(ids) - 1)
            self.require_room(problem, ids)
            encoded.append(ids)
            ends.append(last)
        outputs = self.outputs(encoded)
        return [[_value(logits[n]) for n in last] for logits, last in zip(outputs, ends, strict=True)]

    def of_sequences(self, problem: Problem, texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """One row for a prefix of steps; equal prefixes of several texts are read once."""
        prefixes = [[self.separator.join(steps[: n + 1]) for n in range(len(steps))] for steps in texts]
        distinct = list(dict.fromkeys(prefix for each in prefixes for prefix in each))
        encoded = [self.encode(self.whole(problem, prefix), special=True) for prefix in distinct]
        for ids in encoded:
            self.require_room(problem, ids)
        known = dict(zip(distinct, map(_value, self.outputs(encoded)), strict=True))
        return [[known[prefix] for prefix in each] for each in prefixes]


def _value(logits: Any) -> float:
    """The logit of one label, or the probability of label 1 of two."""
    return float(logits[0] if len(logits) == 1 else logits.softmax(-1)[1])
