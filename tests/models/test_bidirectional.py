"""iLLaDA and Dream: the published equations, names and configurations, the cache, and the mask token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import linear, silu
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from ets.cli import main
from ets.models import MASKED_DIFFUSION, Family, mask_token_of
from ets.models.dream import DreamConfig, DreamModel, DreamTokenizer
from ets.models.illada import ILLaDAConfig, ILLaDAForCausalLM
from ets.models.llada import LLaDAConfig, positions_of
from ets.policies.checkpoint import Checkpoint
from ets.policies.diffusion.cache import Recalling, Recording
from ets.policies.diffusion.denoise import Schedule
from ets.policies.diffusion.policy import MaskedDiffusionPolicy
from ets.policies.settings import Caching, Unmasking
from ets.runner import run
from ets.testing import check_policy
from ets.types import InputError, Problem
from tests.conftest import MASKED_ALPHABET, canvas_oracle, random_dream, random_illada, random_llada, tiny_tokenizer
from tests.policies.diffusion.test_policy import guided

NETWORKS = {"Dream": random_dream, "illada": random_illada}
LENGTH, PADS = 12, (0, 2, 5)
SHARED = {"hidden_act": "silu", "attention_dropout": 0.0, "initializer_range": 0.02, "torch_dtype": "bfloat16"}
DREAM: dict[str, Any] = SHARED | {
    "model_type": "Dream",
    "architectures": ["DreamModel"],
    "auto_map": {"AutoConfig": "configuration_dream.DreamConfig", "AutoModel": "modeling_dream.DreamModel"},
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "mask_token_id": 151666,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "pad_token_id": 151643,
    "max_position_embeddings": 131072,
    "max_window_layers": 28,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "sliding_window": None,
    "use_sliding_window": False,
    "use_mrope": False,
    "use_cache": True,
    "tie_word_embeddings": False,
}
ILLADA: dict[str, Any] = SHARED | {
    "model_type": "illada",
    "architectures": ["ILLaDAForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_illada.ILLaDAConfig", "AutoModel": "modeling_illada.ILLaDAForCausalLM"},
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 155136,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "resid_pdrop": 0.0,
    "layer_norm_eps": None,
    "tie_word_embeddings": True,
}
LLADA = json.loads((Path(__file__).parents[1] / "golden" / "llada" / "config.json").read_text()) | {
    "d_model": 4096,
    "n_heads": 32,
    "n_kv_heads": 32,
    "n_layers": 32,
    "mlp_hidden_size": 12288,
    "max_sequence_length": 4096,
    "vocab_size": 126464,
    "embedding_size": 126464,
    "mask_token_id": 126336,
    "eos_token_id": 126081,
    "pad_token_id": 126081,
}
PUBLISHED: dict[str, tuple[dict[str, Any], type]] = {
    "Dream": (DREAM, DreamConfig),
    "DiffuCoder": (DREAM | {"pad_token_id": 151643}, DreamConfig),
    "iLLaDA": (ILLADA, ILLaDAConfig),
    "LLaDA-1.5": (LLADA, LLaDAConfig),
}


def reference_logits(weights: dict[str, torch.Tensor], ids: torch.Tensor, config: Any) -> torch.Tensor:
    """The published equations: norms and angles in float32, full attention, biases where the weights have them."""
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    width = config.hidden_size // heads
    frequencies = 1.0 / 1e6 ** (torch.arange(0, width, 2).float() / width)
    angles = torch.outer(torch.arange(ids.shape[1]).float(), frequencies)
    cos, sin = (
        torch.cat((of(angles), of(angles)), -1).to(weights["lm_head.weight"].dtype) for of in (torch.cos, torch.sin)
    )

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        wide = x.float()
        return weights[name] * (wide * (wide.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()).to(x.dtype)

    def project(x: torch.Tensor, name: str) -> torch.Tensor:
        return linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def turned(x: torch.Tensor) -> torch.Tensor:
        left, right = x.chunk(2, -1)
        return x * cos + torch.cat((-right, left), -1) * sin

    hidden = weights["model.embed_tokens.weight"][ids]
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}"
        x = norm(hidden, f"{name}.input_layernorm.weight")
        q, k, v = (
            project(x, f"{name}.self_attn.{part}_proj").unflatten(-1, (-1, width)).transpose(1, 2) for part in "qkv"
        )
        q, k = turned(q), turned(k)
        k, v = (of.repeat_interleave(heads // groups, 1) for of in (k, v))
        attention = (q @ k.transpose(2, 3) / width**0.5).softmax(-1) @ v
        hidden = hidden + project(attention.transpose(1, 2).flatten(2), f"{name}.self_attn.o_proj")
        x = norm(hidden, f"{name}.post_attention_layernorm.weight")
        gate, up = (project(x, f"{name}.mlp.{part}_proj") for part in ("gate", "up"))
        hidden = hidden + project(silu(gate) * up, f"{name}.mlp.down_proj")
    return linear(norm(hidden, "model.norm.weight"), weights["lm_head.weight"])


@pytest.fixture(scope="module", params=NETWORKS)
def model(request: pytest.FixtureRequest) -> Any:
    return NETWORKS[request.param](11, end=0)


def drawn_ids() -> torch.Tensor:
    return torch.randint(0, 11, (len(PADS), LENGTH), generator=torch.manual_seed(1))


def padding() -> torch.Tensor:
    return torch.stack([torch.arange(LENGTH) >= pad for pad in PADS]).long()


def logits(model: Any, ids: torch.Tensor, **options: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(ids, **options).logits


def same(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


# The networks.


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_network_follows_the_published_equations(model: Any, attention: str) -> None:
    ids, before = drawn_ids(), model.config._attn_implementation
    expected = reference_logits(model.state_dict(), ids, model.config)
    model.set_attn_implementation(attention)
    same(logits(model, ids), expected, 1e-5)
    model.set_attn_implementation(before)


def test_the_network_in_float32_stays_near_float64(model: Any) -> None:
    narrow = type(model)(model.config)
    narrow.load_state_dict(model.state_dict())
    same(logits(narrow.float().eval(), drawn_ids()).double(), logits(model, drawn_ids()), 1e-4)


def test_padding_is_neither_seen_nor_counted(model: Any) -> None:
    ids = drawn_ids()
    together = logits(model, ids, attention_mask=padding())
    for row, pad in enumerate(PADS):
        same(together[row, pad:], logits(model, ids[row : row + 1, pad:])[0])
    assert (logits(model, ids)[2, 5:] - together[2, 5:]).abs().max() > 1e-2


def test_requested_logits_are_rows_of_all_logits(model: Any) -> None:
    ids, at = drawn_ids(), torch.rand(len(PADS), LENGTH, generator=torch.manual_seed(0)) < 0.4
    same(logits(model, ids, logits_at=at), logits(model, ids)[at])


@pytest.mark.parametrize("window", [slice(7, 10), slice(7, 12)], ids=["dual", "prefix"])
def test_a_window_attends_to_the_recorded_keys_and_values(model: Any, window: slice) -> None:
    ids = drawn_ids()
    recording = Recording([(pad, window.start, window.stop) for pad in PADS])
    whole = logits(model, ids, attention_mask=padding(), exchange=recording)
    same(whole, logits(model, ids, attention_mask=padding()))

    def recalled(of: torch.Tensor) -> torch.Tensor:
        positions = positions_of(ids, padding())[:, window]
        exchange = Recalling(recording.cached)
        return logits(model, of[:, window], attention_mask=padding(), position_ids=positions, exchange=exchange)

    same(recalled(ids), whole[:, window])
    assert (recalled((ids + 1) % 11) - whole[:, window]).abs().max() > 1e-2


# Configurations and files.


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_configuration_loads_without_remote_code(name: str, tmp_path: Path) -> None:
    fields, expected = PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    config = AutoConfig.from_pretrained(tmp_path, trust_remote_code=False)
    assert type(config) is expected
    kept = fields.keys() - {
        "torch_dtype",
        "auto_map",
        "rope_theta",
        "rope_scaling",
        "use_cache",
        "multi_query_attention",
    }
    assert {key: getattr(config, key) for key in kept} == {key: fields[key] for key in kept}
    if name != "LLaDA-1.5":
        assert config.rope_parameters == {"rope_type": "default", "rope_theta": fields["rope_theta"]}
    assert config.model_type in MASKED_DIFFUSION


def test_the_published_shapes_have_as_many_parameters_as_the_publishers_state() -> None:
    """7.62 billion for iLLaDA, with the shared embeddings once; Dream is Qwen2.5 7B with an untied head."""
    with torch.device("meta"):
        illada, dream = ILLaDAForCausalLM(ILLaDAConfig(**ILLADA)), DreamModel(DreamConfig(**DREAM))
    assert round(illada.num_parameters() / 1e7) == 762 and round(dream.num_parameters() / 1e7) == 762
    assert "lm_head.weight" not in dict(illada.named_parameters()) and dream.lm_head.weight.shape == (152064, 3584)


@pytest.mark.parametrize("family", NETWORKS)
def test_a_saved_checkpoint_has_the_published_names_and_loads_by_its_folder(family: str, tmp_path: Path) -> None:
    model = NETWORKS[family](11, end=0)
    model.save_pretrained(tmp_path)
    layer = {f"self_attn.{part}_proj.weight" for part in "qkvo"} | {
        f"mlp.{p}_proj.weight" for p in ("gate", "up", "down")
    }
    layer |= {"input_layernorm.weight", "post_attention_layernorm.weight"}
    names = {"model.embed_tokens.weight", "model.norm.weight"}
    if family == "Dream":
        layer |= {f"self_attn.{part}_proj.bias" for part in "qkv"}
        names |= {"lm_head.weight"}
    names |= {f"model.layers.{number}.{name}" for number in range(2) for name in layer}
    assert load_file(tmp_path / "model.safetensors").keys() == names
    for loader in (AutoModel, AutoModelForCausalLM):
        loaded, report = loader.from_pretrained(tmp_path, output_loading_info=True, trust_remote_code=False)
        assert type(loaded) is type(model) and not any(report.values())
        assert torch.equal(logits(loaded.eval(), drawn_ids()), logits(model, drawn_ids()))


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (DreamConfig, "use_sliding_window", True),
        (DreamConfig, "use_mrope", True),
        (ILLaDAConfig, "layer_norm_eps", 1e-5),
    ],
)
def test_another_architecture_is_refused_in_one_line(config: Any, field: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^this .* configuration has {field} {value!r}; only .* is supported$"):
        config(**{field: value})


def dream_folder(folder: Path) -> Path:
    """A checkpoint as Dream publishes it: a slow tokenizer of its own name, and no `tokenizer.json`."""
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|beginoftext|>", "<|mask|>")
    vocabulary = {letter: number for number, letter in enumerate("abcdef")} | {"ab": 6}
    added = {token: 7 + number for number, token in enumerate(special)}
    random_dream(12, end=7).float().save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    (folder / "added_tokens.json").write_text(json.dumps(added))
    entry = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    fields = {
        "tokenizer_class": "DreamTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "bos_token": "<|beginoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "mask_token": "<|mask|>",
        "added_tokens_decoder": {str(number): entry | {"content": token} for token, number in added.items()},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    return folder


def test_a_dream_folder_loads_its_tokenizer_without_remote_code(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(dream_folder(tmp_path), trust_remote_code=False)
    assert type(tokenizer) is DreamTokenizer
    assert tokenizer("abab<|mask|>a")["input_ids"] == [6, 6, 11, 0]
    assert (tokenizer.mask_token_id, tokenizer.eos_token_id) == (11, 7)
    assert Checkpoint(str(tmp_path)).end_ids == {7}


@pytest.mark.parametrize("family", NETWORKS)
def test_the_command_line_runs_a_folder(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if family == "Dream":
        dream_folder(tmp_path)
    else:
        random_illada(len(MASKED_ALPHABET), end=0).float().save_pretrained(tmp_path)
        tiny_tokenizer(MASKED_ALPHABET).save_pretrained(tmp_path)
    reward = tmp_path / "reward.py"
    reward.write_text("def short(prompt, text):\n    return -len(text)\n")
    words = ["sample", "--prompt", "abba", "--model", str(tmp_path), "--reward", f"{reward}:short", "--max-length", "4"]
    words += ["--guide-steps", "2", "--candidates", "2", "--rollouts", "1"]
    assert main(words) == 0
    assert capsys.readouterr().out.strip()


# The mask token.


def test_the_mask_token_is_that_of_the_configuration_the_tokenizer_or_the_family() -> None:
    tokenizer = tiny_tokenizer(MASKED_ALPHABET)
    assert mask_token_of(random_llada(4, end=0).config, tokenizer) == 3
    assert mask_token_of(random_illada(4, end=0).config, tokenizer) == 3
    published = tiny_tokenizer(("<bos>", "<pad>", "<end>", "a", "b", "<[MASK]>"))
    assert published.mask_token is None
    assert mask_token_of(random_illada(6, end=2).config, published) == 5


@pytest.mark.parametrize(
    ("model", "alphabet", "message"),
    [
        (random_dream, ("<end>", "a", "<mask>", "b"), r"mask id 3 is the token 'b', but .* 'Dream' model is '<mask>'"),
        (random_dream, ("<end>", "a", "b", "c"), r"mask id 3 is the token 'c', but .* 'Dream' model is '<\|mask\|>'"),
        (random_llada, ("<end>", "a", "b"), r"mask id 3 is the token None, but .* 'llada' model is '<\|mdm_mask\|>'"),
        (random_illada, ("<end>", "a", "b", "c", "d", "e"), r"mask id 5 is the token 'e', but .* is '<\[MASK\]>'"),
    ],
)
def test_a_wrong_mask_id_is_refused_in_one_line(model: Any, alphabet: tuple[str, ...], message: str) -> None:
    checkpoint = Checkpoint.loaded(model(4, end=0), tiny_tokenizer(alphabet))
    with pytest.raises(InputError, match=message) as caught:
        MaskedDiffusionPolicy(checkpoint, Unmasking(), Schedule(4, 4, 4, 2))
    assert "\n" not in str(caught.value)


def test_a_model_without_a_mask_token_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MASKED_DIFFUSION, "illada", Family())
    with pytest.raises(InputError, match="'illada' model has no mask token: set mask_token_id"):
        mask_token_of(random_illada(4, end=0).config, tiny_tokenizer(("<end>", "a", "b", "c")))


# The policy.

PROBLEMS = [Problem("p", "abbabaabababbaab"), Problem("q", "baab")]
SHIFT = {"Dream": 1, "illada": 0, "llada": 0}


@pytest.fixture(params=("tiny_dream", "tiny_illada"))
def tiny(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def policy_of(checkpoint: Checkpoint, caching: Caching | None = None, **rule: Any) -> MaskedDiffusionPolicy:
    return MaskedDiffusionPolicy(checkpoint, Unmasking(**rule), Schedule(3, 3, 3, 3), caching=caching)


def judge(policy: MaskedDiffusionPolicy, draws: int = 3_000) -> None:
    shift = SHIFT[policy.checkpoint.config.model_type]
    oracle = canvas_oracle(policy.checkpoint, policy.schedule, policy.unmasking, shift=shift)
    check_policy(policy, oracle, PROBLEMS, draws=draws, level=1e-4)


def test_laws_hold_on_a_tiny_network(tiny: Checkpoint) -> None:
    judge(policy_of(tiny))


def test_laws_hold_with_guidance(tiny_dream: Checkpoint) -> None:
    judge(policy_of(tiny_dream, cfg=1.5), draws=1_000)


def test_a_dropped_shift_turns_the_laws_red(tiny_dream: Checkpoint) -> None:
    policy = policy_of(tiny_dream)
    policy.reader.shift = 0
    with pytest.raises(AssertionError):
        judge(policy, draws=2_000)


def test_results_do_not_depend_on_the_width(tiny: Checkpoint) -> None:
    found = []
    for width in (1, 32):
        chains = run(policy_of(tiny), guided(), PROBLEMS, width=width, seed=0, samples=4)
        found.append(sorted((c.problem.id, c.sample, c.state.tokens, c.state.path) for c in chains))
    assert found[0] == found[1] and len(found[0]) == 8


@pytest.mark.parametrize("kind", ["dual", "prefix"])
def test_laws_with_a_cache_are_those_of_two_canvases(tiny: Checkpoint, kind: str) -> None:
    schedule, caching = Schedule(4, 4, 2, 2), Caching(kind)
    policy = MaskedDiffusionPolicy(tiny, Unmasking(), schedule, caching=caching)
    shift = SHIFT[tiny.config.model_type]
    oracle = canvas_oracle(tiny, schedule, policy.unmasking, caching, shift)
    check_policy(policy, oracle, PROBLEMS, draws=500, level=1e-4)
