"""Train the embedded models: `python scripts/train_demo.py reference|small|diffusion [--out DIR] [--minutes N]`.

`reference` and `small` are Qwen3-architecture models, trained from scratch on the problems of `ets.demo.stories` only;
`diffusion` is a LLaDA-architecture model, trained from scratch on those of `ets.demo.sums` only. The learning rate
follows the clock, so a run ends when its minutes are over.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from ets.demo.family import ProblemFamily
from ets.demo.stories import STORIES
from ets.demo.sums import SUMS
from ets.models import LLaDAConfig, LLaDAModelLM
from ets.tasks.arithmetic import completion_of, prompt_of

END, MASK = "<|endoftext|>", "<|mask|>"
VOCABULARY = 512
CONTEXT = 8192
CANVAS = 24
"""Tokens of a masked-diffusion answer: the worked steps, the end token, and end tokens up to here."""


def train_tokenizer(
    family: ProblemFamily, *, single_digits: bool, special: tuple[str, ...] = ()
) -> PreTrainedTokenizerFast:
    """Byte-level pairs: any UTF-8 text round-trips. A number is spelled in single digits, or as long as is common."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=single_digits), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, *special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (prompt_of(row) + completion_of(row) for row in islice(family.training(seed=0), 5000))
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        **({"mask_token": AddedToken(MASK, special=True)} if MASK in special else {}),
    )


def causal_model(tokenizer: Any, *, heads: int, **shape: int) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        head_dim=32,
        num_attention_heads=heads,
        num_key_value_heads=heads // 3,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        **shape,
    )
    return Qwen3ForCausalLM(config)


def diffusion_model(tokenizer: Any) -> LLaDAModelLM:
    config = LLaDAConfig(
        vocab_size=len(tokenizer),
        d_model=128,
        n_heads=4,
        n_layers=4,
        mlp_hidden_size=384,
        max_sequence_length=CONTEXT,
        mask_token_id=tokenizer.mask_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LLaDAModelLM(config)


def causal_losses(model: Any, tokenizer: Any, size: int) -> Iterator[torch.Tensor]:
    """Cross-entropy of right-padded batches; only the answer and the end token are learned.

    Problems are sorted by length in groups of 16 batches, so that little of a batch is padding.
    """
    rows = STORIES.training(seed=1)
    while True:
        group = list(islice(rows, 16 * size))
        prompts = tokenizer([prompt_of(row) for row in group])["input_ids"]
        answers = tokenizer([completion_of(row) + END for row in group])["input_ids"]
        order = sorted(range(len(group)), key=lambda i: len(prompts[i]) + len(answers[i]))
        starts = torch.randperm(16).tolist()
        for start in starts:
            chosen = order[start * size : (start + 1) * size]
            length = max(len(prompts[i]) + len(answers[i]) for i in chosen)
            ids = torch.full((size, length), tokenizer.pad_token_id)
            labels = torch.full((size, length), -100)
            for n, i in enumerate(chosen):
                p, a = len(prompts[i]), len(answers[i])
                ids[n, : p + a] = torch.tensor(prompts[i] + answers[i])
                labels[n, p : p + a] = torch.tensor(answers[i])
            yield model(input_ids=ids, labels=labels).loss


def diffusion_losses(model: Any, tokenizer: Any, size: int) -> Iterator[torch.Tensor]:
    """LLaDA's objective (arXiv 2502.09992, equation 5): mask each token of the answer with probability t, weigh by 1/t.

    The t of a batch are spread evenly over (0, 1], which leaves the mean of the loss and lowers its variance.
    Batches hold prompts of one length, so nothing is padded but the answers, which is with end tokens and learned.
    """
    buckets: dict[int, list[list[int]]] = defaultdict(list)
    for row in SUMS.training(seed=1):
        prompt, answer = (tokenizer(text)["input_ids"] for text in (prompt_of(row), completion_of(row)))
        bucket = buckets[len(prompt)]
        bucket.append(prompt + answer + [tokenizer.eos_token_id] * (CANVAS - len(answer)))
        if len(bucket) < size:
            continue
        ids, t = torch.tensor(bucket), (torch.randperm(size) + torch.rand(())).add(0.001) / (size + 0.001)
        bucket.clear()
        masked = torch.rand(ids.shape) < t[:, None]
        masked[:, :-CANVAS] = False
        logits = model(input_ids=ids.masked_fill(masked, tokenizer.mask_token_id), logits_at=masked).logits
        each = cross_entropy(logits, ids[masked], reduction="none")
        yield (each / t[:, None].expand(ids.shape)[masked]).sum() / (size * CANVAS)


@dataclass(frozen=True)
class Recipe:
    """How an embedded model is made."""

    tokenizer: Callable[[], Any]
    model: Callable[[Any], Any]
    losses: Callable[[Any, Any, int], Iterator[torch.Tensor]]


def _stories_tokenizer() -> Any:
    return train_tokenizer(STORIES, single_digits=True)


RECIPES = {
    "reference": Recipe(
        _stories_tokenizer,
        lambda t: causal_model(t, heads=6, hidden_size=192, intermediate_size=512, num_hidden_layers=4),
        causal_losses,
    ),
    "small": Recipe(
        _stories_tokenizer,
        lambda t: causal_model(t, heads=3, hidden_size=96, intermediate_size=256, num_hidden_layers=3),
        causal_losses,
    ),
    "diffusion": Recipe(
        lambda: train_tokenizer(SUMS, single_digits=False, special=(MASK,)), diffusion_model, diffusion_losses
    ),
}


def train(recipe: Recipe, out: Path, minutes: float, size: int, peak: float) -> None:
    torch.manual_seed(0)
    tokenizer = recipe.tokenizer()
    model = recipe.model(tokenizer)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98))
    begun, step, running = time.time(), 0, None
    for loss in recipe.losses(model, tokenizer, size):
        done = (time.time() - begun) / (60 * minutes)
        if done >= 1:
            break
        warm = min(1.0, (step + 1) / 100)
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = (
            peak * warm * (0.02 + 0.98 * math.cos(math.pi / 2 * done) ** 2)
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if step % 100 == 0:
            print(f"{(time.time() - begun) / 60:6.1f} min  step {step:6d}  loss {running:.4f}", flush=True)
        if step % 1000 == 0:
            save(model, tokenizer, out)
    save(model, tokenizer, out)
    print(f"saved {sum(p.numel() for p in model.parameters()):,} parameters in {out} after {step} updates")


def save(model: Any, tokenizer: Any, out: Path) -> None:
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=RECIPES)
    parser.add_argument("--out", type=Path, help="where to save (default: ets/demo/assets/MODEL)")
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3)
    arguments = parser.parse_args()
    out = arguments.out or Path(__file__).parents[1] / "ets" / "demo" / "assets" / arguments.model
    train(RECIPES[arguments.model], out, arguments.minutes, arguments.batch, arguments.lr)


if __name__ == "__main__":
    main()
