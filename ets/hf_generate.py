"""The method as a decoding loop of transformers: `model.generate(..., custom_generate=ets.generate)`.

transformers prepares the prompts, the generation configuration and the logits processors. `generate` refuses every
setting that it does not support.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from transformers import (
    EosTokenCriteria,
    MaxLengthCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.cache_utils import CacheLayerMixin
from transformers.generation import GenerateDecoderOnlyOutput

from ets.api import Result, as_stops, guide_of, result_of
from ets.chat import ChatTemplate
from ets.kernel import energy_guided
from ets.models.cache_argument import NAMES
from ets.policies.autoregressive.transformers import TransformersPolicy
from ets.policies.checkpoint import Checkpoint
from ets.policies.opening import left_as_found
from ets.policies.settings import BLOCK_SIZE, Horizon, Sampling
from ets.rewards import Extract, Scoring, as_extract
from ets.runner import run
from ets.step import require_variety
from ets.types import Chain, InputError, Message, Problem, Reward, Text

HONOURED = {
    TemperatureLogitsWarper: "temperature",
    TopKLogitsWarper: "top_k",
    TopPLogitsWarper: "top_p",
    MaxLengthCriteria: "max_length",
    EosTokenCriteria: "eos_token_id",
}
"""Supported logits processors and stopping criteria, with the attribute and setting that each applies."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("num_beams", "num_beam_groups", "guidance_scale", "typical_p"), (None, 1)),
    **dict.fromkeys(("min_p", "top_h", "epsilon_cutoff", "eta_cutoff", "penalty_alpha", "use_mtp"), (None, 0)),
    **dict.fromkeys(("dola_layers", "prompt_lookup_num_tokens", "constraints", "force_words_ids"), (None,)),
    **dict.fromkeys(("output_scores", "output_logits", "output_attentions", "output_hidden_states"), (None, False)),
    **dict.fromkeys(("cache_implementation", "prefill_chunk_size", "compile_config"), (None,)),
}
"""Settings that transformers applies without a processor or only with do_sample, and their supported values."""
PREPARED = (
    *("attention_mask", "position_ids", "use_cache", "logits_to_keep", "cache_position"),
    *NAMES,
)
"""The model's keyword arguments that transformers prepares in addition to the prompts."""


@dataclass
class GuidedOutput(GenerateDecoderOnlyOutput):
    """The output with `return_dict_in_generate=True`: the sequences, and for each a result as of `ets.sample`."""

    results: tuple[Result, ...] | None = None


def generate(
    model: Any,
    input_ids: torch.Tensor,
    *,
    logits_processor: Sequence[Any],
    stopping_criteria: Sequence[Any],
    generation_config: Any,
    tokenizer: Any = None,
    reward: Scoring | Reward | None = None,
    extract: Extract | None = None,
    m_candidates: int = 8,
    k_monte_carlo: int = 3,
    lambda_param: float = 0.1,
    block_size: int | None = None,
    stop: Sequence[str] = (),
    seed: int = 0,
    width: int = 8,
    **model_kwargs: Any,
) -> torch.Tensor | GuidedOutput:
    """Sample guided generations for a batch of prompts; `model.generate` calls it as its `custom_generate`.

    p_ref is the law that `do_sample=True` samples: the temperature, top_k and top_p of the generation configuration,
    whose default for top_k is 50 (`top_k=0` for none). `do_sample` itself has no effect.

    Parameters
    ----------
    model, input_ids, logits_processor, stopping_criteria, generation_config, model_kwargs
        As transformers prepares them; prompts may have padding where the attention mask is 0.
    tokenizer : PreTrainedTokenizerBase, optional
        Decodes tokens for rewards and stop strings; by default the tokenizer at the model's `name_or_path`.
        transformers 5.19 drops a `tokenizer=` of `model.generate`, as well as `streamer` and `assistant_model`: pass
        `custom_generate=functools.partial(ets.generate, tokenizer=…)` instead.
    reward, extract : callable, optional
        As for `ets.sample`, with the decoded prompt. A prompt of the tokenizer's chat template is decoded to its
        messages (`ets.chat.ChatTemplate.conversation`).
    m_candidates, k_monte_carlo, lambda_param : int, int, float
        M, K and λ.
    block_size : int, optional
        Tokens per guide step; by default 64, or the whole generation if it is shorter.
    stop : sequence of str
        Strings that end a generation; the last token is the token that completes the string.
    seed : int
        Results are a function of the seed, the prompt's row in the batch, and the settings.
    width : int
        Prompts that advance together.

    Returns
    -------
    LongTensor or GuidedOutput
        `[B, L]`, each prompt with its padding and its new tokens, padded on the right.

    Raises
    ------
    InputError
        For unsupported settings (beams, penalties, constraints, …), before any computation.
    """
    _require_supported(model, [*logits_processor, *stopping_criteria], generation_config)
    prompts, stops = _prompts(input_ids, model_kwargs), as_stops(stop)
    problems = [Problem(str(row), ids, stops) for row, ids in enumerate(prompts)]
    ends = _listed(generation_config.eos_token_id)
    with left_as_found(model):
        checkpoint = Checkpoint.loaded(model, _tokenizer_of(model) if tokenizer is None else tokenizer)
        length = generation_config.max_length - input_ids.shape[1]
        horizon = Horizon(min(BLOCK_SIZE, length) if block_size is None else block_size, length)
        policy = TransformersPolicy(checkpoint, _sampling(generation_config), horizon, end_ids=ends)
        conversation = _conversations(checkpoint)
        texts = [policy.endings.decode(ids) for ids in prompts]
        decoded = {str(n): Problem(str(n), text, stops, messages=conversation(text)) for n, text in enumerate(texts)}
        guide = partial(_reward_of_text, guide_of(reward, extract), decoded)
        step = energy_guided(guide, candidates=m_candidates, rollouts=k_monte_carlo, lam=lambda_param)
        require_variety(policy, m_candidates)
        found = {chain.problem.id: chain for chain in run(policy, step, problems, width=width, seed=seed)}
    chains = [replace(found[id], problem=problem) for id, problem in decoded.items()]
    padding = _listed(generation_config.pad_token_id) or ends or [checkpoint.tokenizer.eos_token_id]
    sequences = _joined(input_ids, [chain.state.tokens for chain in chains], padding[0])
    if not generation_config.return_dict_in_generate:
        return sequences
    read = None if extract is None else as_extract(extract)
    return GuidedOutput(sequences=sequences, results=tuple(result_of(chain, read) for chain in chains))


def generate_from_folder(model: Any, tokenizer: Any = None, streamer: Any = None, **arguments: Any) -> Any:
    """`generate` for a folder `custom_generate/generate.py`, with the arguments of `model.generate`."""
    if streamer is not None:
        raise InputError("streamer is set, but a guide step draws many texts at once; leave it out")
    return model.generate(custom_generate=partial(generate, tokenizer=tokenizer), **arguments)


def _conversations(checkpoint: Checkpoint) -> Callable[[str], tuple[Message, ...]]:
    """Finds the messages in a prompt of the chat template; none without a template."""
    try:
        template = ChatTemplate(checkpoint.tokenizer, name=checkpoint.name)
        return template.conversation if template.text else lambda text: ()
    except InputError:
        return lambda text: ()


def _require_supported(model: Any, prepared: Sequence[Any], config: Any) -> None:
    """Raise `InputError` for a setting that would change the samples or the output and has no support."""
    if model.config.is_encoder_decoder:
        raise InputError(f"{type(model).__name__} has an encoder; only decoder-only models are supported")
    for name, values in NEUTRAL.items():
        if (value := getattr(config, name, None)) not in values:
            raise InputError(f"{name} is {value!r}, which ets.generate does not support; leave it out")
    for rule in prepared:
        setting = HONOURED.get(type(rule))
        if setting is None or _listed(getattr(rule, setting)) != _listed(getattr(config, setting)):
            raise InputError(
                f"a {type(rule).__name__} acts on the generation, which ets.generate does not support; "
                "leave out its setting"
            )


def _prompts(input_ids: torch.Tensor, given: Mapping[str, Any]) -> list[tuple[int, ...]]:
    """The rows of a batch `[B, L]`, without padding."""
    for name, value in given.items():
        if name not in PREPARED and value is not None:
            raise InputError(f"{name} is given, which ets.generate does not support; pass input_ids alone")
    for name in NAMES:
        layers = getattr(given.get(name), "layers", ())
        if any(layer.get_seq_length() for layer in layers if isinstance(layer, CacheLayerMixin)):
            raise InputError(f"{name} holds tokens already, which ets.generate does not support; leave it out")
    mask = given.get("attention_mask")
    seen = torch.ones_like(input_ids) if mask is None else mask.to(input_ids.device)
    counted, positions = (seen.cumsum(-1) - 1).clamp(min=0), given.get("position_ids")
    if positions is not None and ((positions.to(seen.device) != counted) & (seen == 1)).any():
        raise InputError("position_ids skip or repeat positions, which ets.generate does not support; leave them out")
    return [tuple(ids[shown == 1].tolist()) for ids, shown in zip(input_ids, seen, strict=True)]


def _sampling(config: Any) -> Sampling:
    """The law of transformers, in its order: temperature, then top-k, then top-p."""
    return Sampling(config.temperature, config.top_k or None, config.top_p)


def _reward_of_text(
    guide: Reward, decoded: Mapping[str, Problem], problem: Problem, rollouts: Sequence[Text], chain: Chain
) -> Sequence[float]:
    return guide(decoded[problem.id], rollouts, chain)


def _joined(input_ids: torch.Tensor, drawn: Sequence[Sequence[int]], padding: int) -> torch.Tensor:
    """Prompts `[B, L]` and new tokens, padded on the right to the longest row."""
    new = torch.full((len(drawn), max(map(len, drawn))), padding, dtype=input_ids.dtype)
    for row, tokens in enumerate(drawn):
        new[row, : len(tokens)] = torch.tensor(tokens)
    return torch.cat((input_ids, new.to(input_ids.device)), dim=1)


def _tokenizer_of(model: Any) -> Any:
    name = getattr(model, "name_or_path", "")
    if not name:
        raise InputError(
            "the model has no name_or_path to load its tokenizer from; pass "
            "custom_generate=functools.partial(ets.generate, tokenizer=tokenizer)"
        )
    return _tokenizer_at(name)


@lru_cache(maxsize=2)
def _tokenizer_at(name: str) -> Any:
    return Checkpoint(name).tokenizer


def _listed(value: Any) -> list[Any]:
    """A value, a list, a tensor or None as a list."""
    if value is None:
        return []
    return torch.as_tensor(value).flatten().tolist()
