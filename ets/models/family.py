"""What the masked-diffusion driver has to know of a model family: data, so that a new one costs a few lines."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Conventions of a masked-diffusion model family that its checkpoints share.

    Parameters
    ----------
    mask_field : str
        The configuration's field that holds the mask token's id.
    end_tokens : tuple of str
        Tokens that end a text, beside those that the configuration and the tokenizer name.
    block_length : int
        Block of the semi-autoregressive order, where the user names none.
    shift : int
        Logits for the token at a position are found this many positions to its left: 0, or 1 for models that were
        made from autoregressive ones.
    """

    mask_field: str = "mask_token_id"
    end_tokens: tuple[str, ...] = ()
    block_length: int = 32
    shift: int = 0
