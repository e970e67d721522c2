"""Tiny real networks, built in memory: nothing is downloaded and nothing is mocked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

ALPHABET = ("<end>", "a", "b", "c")
MASKED_ALPHABET = ("<end>", "a", "b", "<mask>")


def tiny_tokenizer(alphabet: Sequence[str] = ALPHABET) -> Any:
    """One token per letter, an end token with id 0, and a mask token if the alphabet has one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(alphabet)}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=alphabet[0],
        mask_token="<mask>" if "<mask>" in alphabet else None,
        clean_up_tokenization_spaces=False,
    )


def random_qwen3(
    vocabulary: int, end: int | None, *, width: int = 16, layers: int = 2, spread: float = 0.4, seed: int = 0
) -> Any:
    """A Qwen3 network with random weights in float64; `spread` is the scale of its logits."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=width // 2,
        max_position_embeddings=2048,
        initializer_range=spread,
        tie_word_embeddings=False,
        eos_token_id=end,
        bos_token_id=None,
        pad_token_id=None,
    )
    return Qwen3ForCausalLM(config).double()


def random_llada(
    vocabulary: int, end: int, *, width: int = 16, layers: int = 2, spread: float = 0.5, seed: int = 47
) -> Any:
    """A LLaDA network with random weights in float64; the mask token is the last of the vocabulary.

    At this seed and a vocabulary of four, laws differ between positions, and the mask token often has the highest
    logit: neither may be ignored unseen.
    """
    import torch

    from ets.models import LLaDAConfig, LLaDAModelLM

    torch.manual_seed(seed)
    config = LLaDAConfig(
        vocab_size=vocabulary,
        d_model=width,
        mlp_hidden_size=2 * width,
        n_layers=layers,
        n_heads=2,
        max_sequence_length=2048,
        init_std=spread,
        mask_token_id=vocabulary - 1,
        eos_token_id=end,
        pad_token_id=end,
    )
    return LLaDAModelLM(config).double()


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Any:
    """A checkpoint of four tokens, small enough to enumerate."""
    from ets.policies.checkpoint import Checkpoint

    return Checkpoint.loaded(random_qwen3(len(ALPHABET), end=0), tiny_tokenizer())


def causal_oracle(policy: Any, temperature: float = 1.0) -> Any:
    """Exact laws of a policy over a tiny checkpoint: a full forward over each prefix, and nothing of the policy's."""
    import torch

    from ets.testing import AutoregressiveOracle

    model, tokenizer = policy.checkpoint.model, policy.checkpoint.tokenizer
    known: dict[tuple[int, ...], Any] = {}

    def next_token(problem: Any, tokens: tuple[int, ...]) -> Any:
        prompt = problem.prompt
        ids = (*(tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt), *tokens)
        if ids not in known:
            with torch.no_grad():
                known[ids] = (model(torch.tensor([ids])).logits[0, -1].double() / temperature).softmax(-1).numpy()
        return known[ids]

    def ended(problem: Any, tokens: tuple[int, ...]) -> bool:
        text = "".join(ALPHABET[token] for token in tokens)
        return 0 in tokens or any(stop in text for stop in problem.stop)

    return AutoregressiveOracle(next_token, ended, policy.horizon.block_size, policy.horizon.max_length)


@pytest.fixture(scope="session")
def tiny_llada() -> Any:
    """A masked-diffusion checkpoint of three tokens and the mask token."""
    from ets.policies.checkpoint import Checkpoint

    return Checkpoint.loaded(random_llada(len(MASKED_ALPHABET), end=0), tiny_tokenizer(MASKED_ALPHABET))


@pytest.fixture(scope="session")
def make_tiny(tiny_checkpoint: Any) -> Any:
    """`make_tiny(sampling=…, block_size=…, max_length=…)`: a policy over the tiny checkpoint."""
    from ets.policies.autoregressive import Horizon, Sampling
    from ets.policies.transformers import TransformersPolicy

    def make(sampling: Any = None, block_size: int = 2, max_length: int = 4, **options: Any) -> Any:
        return TransformersPolicy(tiny_checkpoint, sampling or Sampling(), Horizon(block_size, max_length), **options)

    return make
