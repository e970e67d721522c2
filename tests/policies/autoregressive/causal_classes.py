"""Every causal class of the installed transformers as a tiny random model, and the verdict on it.

    python -m tests.policies.autoregressive.causal_classes

writes the table of docs/families.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ets.kernel import energy_guided
from ets.policies.autoregressive.reader import CausalReader, reader_of
from ets.policies.autoregressive.transformers import TransformersPolicy
from ets.policies.checkpoint import Checkpoint
from ets.policies.settings import Horizon, Sampling
from ets.rewards import per_text
from ets.runner import run
from ets.types import InputError, Problem
from tests.conftest import tiny_tokenizer
from tests.policies.autoregressive.hybrids import FAMILIES, spread_out, whole_logp

PAGE = Path(__file__).parents[3] / "docs" / "families.md"
CAUSAL_CLASSES: dict[str, str] = dict(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()))
VOCABULARY = 32
LARGEST = 3_000_000
"""Parameters of a model that counts as small."""
LEVEL = 1e-4
LENGTHS = (5, 21, 60)
"""Tokens of the prompts."""
WINDOW = 40
"""Longer than the text of the reader's test, which cannot see it, and shorter than the longest prompt."""

SMALL = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"), 48),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 4),
    **dict.fromkeys(("decoder_layers", "encoder_layers", "depth"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads", "num_experts", "num_local_experts"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_experts_per_tok"), 2),
    **dict.fromkeys(("n_shared_experts", "n_group", "topk_group"), 1),
    **dict.fromkeys(("sliding_window", "attention_window_size"), WINDOW),
    "head_dim": 8,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 512),
    "n_routed_experts": 4,
    "moe_intermediate_size": 16,
}
"""Sizes by the names that configurations give them."""

LATENT = {
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "num_key_value_heads": 4,
}  # fmt: skip
INDEXED = LATENT | {"index_topk": 3, "index_n_heads": 2, "index_head_dim": 16}
ROBERTA = {"pad_token_id": 1}
ROTARY = {"rotary_dim": 8}
GEMMA4 = FAMILIES["Gemma 4"][1] | {"pad_token_id": 0, "sliding_window": WINDOW}
DERIVED = "derived"
"""In place of a size that the configuration derives from others."""
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3", "youtu"), LATENT),
    **dict.fromkeys(("deepseek_v32", "glm_moe_dsa"), INDEXED | {"first_k_dense_replace": 1}),
    **dict.fromkeys(("camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta"), ROBERTA),
    **dict.fromkeys(("xlm-roberta-xl", "xmod"), ROBERTA | {"default_language": "en_XX"}),
    **dict.fromkeys(("codegen", "gptj"), ROTARY),
    "bamba": FAMILIES["Bamba"][1] | {"attn_layer_indices": [1, 3]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "cpmant": {"dim_head": 8, "dim_ff": 48},
    "ctrl": {"dff": 48},
    "cwm": {"bos_token_id": 0},
    "falcon_h1": FAMILIES["Falcon-H1"][1],
    "gemma3n_text": FAMILIES["Gemma 3n"][1] | {"sliding_window": WINDOW},
    **dict.fromkeys(("gemma4_text", "gemma4_unified_text"), GEMMA4),
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": WINDOW},
    "granitemoehybrid": FAMILIES["Granite hybrid"][1] | {"num_hidden_layers": 2},
    "prophetnet": {"num_hidden_layers": DERIVED, "num_encoder_layers": 2, "num_decoder_layers": 2},
    "hy_v4": INDEXED | {"indexer_types": ["full", "shared"] * 2},
    "inkling_text": {
        "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8, "sliding_window_size": WINDOW,
        "rel_extent": 16,
    },
    "jamba": FAMILIES["Jamba"][1],
    "kimi_linear": LATENT | {
        "layer_types": ["linear_attention", "full_attention"], "linear_head_dim": 8, "linear_num_heads": 4,
        "num_experts_per_token": 2,
    },
    "lfm2": FAMILIES["LFM2"][1],
    "lfm2_moe": FAMILIES["LFM2 mixture of experts"][1],
    "llama4_text": FAMILIES["Llama 4"][1] | {"attention_chunk_size": WINDOW},
    "longcat_flash": LATENT | {"expert_ffn_hidden_size": 16, "zero_expert_num": 1, "moe_topk": 2},
    "mamba2": FAMILIES["Mamba-2"][1],
    "modernbert-decoder": {
        **dict.fromkeys(("pad_token_id", "bos_token_id", "cls_token_id", "sep_token_id"), 0), "local_attention": WINDOW,
    },
    "nemotron_h": FAMILIES["Nemotron-H"][1] | {"num_hidden_layers": DERIVED},
    "olmo_hybrid": FAMILIES["OLMo hybrid"][1],
    "qwen2_moe": {"shared_expert_intermediate_size": 16},
    "qwen3_5_moe_text": FAMILIES["Qwen3.5 mixture of experts"][1],
    "qwen3_5_text": FAMILIES["Qwen3.5"][1],
    "qwen3_next": FAMILIES["Qwen3-Next"][1],
    "qwen4_exp_text": FAMILIES["Qwen4 experimental"][1],
    "reformer": {
        "is_decoder": True, "axial_pos_shape": (16, 32), "axial_pos_embds_dim": (16, 16),
        "attn_layers": ["local", "lsh"] * 2, "attention_head_size": 8, "feed_forward_size": 48,
        "local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8, "num_buckets": 2,
    },
    "roc_bert": {
        "pronunciation_embed_dim": 16, "pronunciation_vocab_size": VOCABULARY, "shape_embed_dim": 16,
        "shape_vocab_size": VOCABULARY,
    },
    "xlm": {"emb_dim": 32, "n_words": VOCABULARY},
    "zamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "n_mamba_heads": 2},
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2, "mamba_d_state": 8, "n_mamba_heads": 8,
        "mamba_headdim": 8, "num_mem_blocks": 1, "adapter_rank": 4, "chunk_size": 16, "attention_head_dim": 16,
        "attention_hidden_size": 64, "time_step_min": 1e-9, "num_key_value_heads": 4, "kv_channels": 8,
        "num_query_groups": 4,
    },
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
"""By model type: what the general sizes do not say."""


class NotSmall(Exception):
    """The class cannot be built small, with the reason."""


@dataclass(frozen=True)
class Verdict:
    """`kind` is right, WRONG, refused or "not built"; `how` is how rows are read, or the reason."""

    kind: str
    how: str = ""

    def row(self, model_type: str) -> str:
        return f"| `{model_type}` | {CAUSAL_CLASSES[model_type]} | {self.kind} | {self.how} |"


def sizes_of(config_class: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The sizes that a configuration class has, under its names, and the given ones."""
    default, renamed, sizes = config_class(), getattr(config_class, "attribute_map", {}), {}
    for name, value in SMALL.items():
        fixed = name in given or name in renamed or isinstance(getattr(config_class, name, None), property)
        if not fixed and _has(default, name):
            sizes[name] = value
    if "layer_types" in given:
        sizes["num_hidden_layers"] = len(given["layer_types"])
    if "vocab_size_per_layer_input" in config_class.__dict__:
        sizes["vocab_size_per_layer_input"] = VOCABULARY
    return {name: value for name, value in (sizes | given).items() if value != DERIVED}


def _has(config: Any, name: str) -> bool:
    try:
        return hasattr(config, name)
    except Exception:  # an attribute that differs from layer to layer
        return False


def small_config(model_type: str) -> Any:
    """The configuration of a tiny model; the text model of several modalities with the others as small as they get."""
    config_class = CONFIG_MAPPING[model_type]
    parts = dict(getattr(config_class, "sub_configs", {}))
    text = f"{model_type}_text"
    if "text_config" in parts and text in CONFIG_MAPPING:
        others = {name: sizes_of(part, {}) for name, part in parts.items() if name != "text_config"}
        return config_class(text_config=small_config(text).to_dict(), **others)
    tokens = {"vocab_size": VOCABULARY, "eos_token_id": 0, "bos_token_id": None, "pad_token_id": None}
    return config_class(**tokens | {"tie_word_embeddings": False} | sizes_of(config_class, OWN.get(model_type, {})))


def small_model(model_type: str, seed: int = 0) -> Any:
    """A tiny random model in float64 whose logits differ by some units. Raises `NotSmall`."""
    try:
        config = small_config(model_type)
        with torch.device("meta"):
            parameters = sum(weights.numel() for weights in AutoModelForCausalLM.from_config(config).parameters())
        if parameters > LARGEST:
            raise NotSmall("its configuration has sizes that are not among the general ones")
        torch.manual_seed(seed)
        try:  # experts one by one, which float64 needs
            model = AutoModelForCausalLM.from_config(config, experts_implementation="eager")
        except (TypeError, ValueError):
            model = AutoModelForCausalLM.from_config(config)
    except NotSmall:
        raise
    except Exception as error:
        raise NotSmall(re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")[:120]) from error
    return spread_out(model, 0.3)


def prompts() -> Iterator[Problem]:
    rng = np.random.default_rng(0)
    for length in LENGTHS:
        yield Problem(str(length), tuple(map(int, rng.integers(1, VOCABULARY, length))))


def judge(model_type: str) -> Verdict:
    """ETS with M 2 and K 2 at widths 1 and 6: the log-probability of every text against a whole forward pass."""
    try:
        model = small_model(model_type)
    except NotSmall as reason:
        return Verdict("not built", str(reason))
    letters = ("<end>", *(chr(65 + n) for n in range(VOCABULARY - 1)))
    checkpoint = Checkpoint.loaded(model, tiny_tokenizer(letters))
    step = energy_guided(per_text(lambda prompt, text: 0.1 * len(text)), candidates=2, rollouts=2, lam=1.0)
    try:
        policy = TransformersPolicy(checkpoint, Sampling(), Horizon(6, 12), end_ids=[0])
        found = [list(run(policy, step, list(prompts()), width=width, seed=1, samples=2)) for width in (1, 6)]
    except InputError as refusal:
        reason = re.sub(r"^'loaded' \([\w-]+\) ", "", str(refusal)).replace("|", "\\|")
        return Verdict("refused", re.split(r", so its|; choose|\. |: The ", reason)[0][:110])
    alone, together = ({(c.problem.id, c.sample): c.state.tokens for c in chains} for chains in found)
    states = [chain.state for chains in found for chain in chains]
    gap = max(abs(state.logp - whole_logp(model, state.prompt, state.tokens)) for state in states)
    if not gap <= LEVEL or alone != together:
        return Verdict("WRONG", f"log-probabilities differ by {gap:.1e}")
    return Verdict("right", _how(reader_of(model, "", (1,))))


def _how(reader: CausalReader) -> str:
    ways = [
        "shared prefix" if reader.may_share else "copied prefix",
        "" if reader.may_pad else "rows of equal lengths only",
        "token by token" if reader.singly else "",
    ]
    return ", ".join(filter(None, ways))


def main() -> None:
    rows = [judge(model_type).row(model_type) for model_type in CAUSAL_CLASSES]
    before, _, rest = PAGE.read_text().partition("<!-- causal classes -->\n")
    after = rest.partition("<!-- end -->\n")[2]
    head = "| model type | class | verdict | how its rows are read, or the reason |\n| --- | --- | --- | --- |\n"
    PAGE.write_text(f"{before}<!-- causal classes -->\n{head}{chr(10).join(rows)}\n<!-- end -->\n{after}")


if __name__ == "__main__":
    main()
