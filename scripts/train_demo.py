"""Train the embedded models: `python scripts/train_demo.py reference|small [--out DIR] [--minutes N]`.

Both are Qwen3-architecture models trained from scratch, on the problems of `ets.demo.problems` only.
The learning rate follows the clock, so a run ends when its minutes are over.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from ets.demo.problems import training
from ets.tasks.arithmetic import completion_of, prompt_of

END = "<|endoftext|>"
VOCABULARY = 512
CONTEXT = 8192
SHAPES = {
    "reference": {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 6},
    "small": {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 3},
}


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level pairs with single digits: any UTF-8 text round-trips, and numbers are spelled alike everywhere."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (prompt_of(row) + completion_of(row) for row in islice(training(seed=0), 5000))
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def build_model(shape: str, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        head_dim=32,
        num_key_value_heads=SHAPES[shape]["num_attention_heads"] // 3,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        **SHAPES[shape],
    )
    return Qwen3ForCausalLM(config)


def batches(tokenizer: PreTrainedTokenizerFast, size: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Right-padded token ids and labels `[size, length]`; only the answer and the end token are learned.

    Problems are sorted by length in groups of 16 batches, so that little of a batch is padding.
    """
    rows = training(seed)
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
            yield ids, labels


def train(shape: str, out: Path, minutes: float, size: int, peak: float) -> None:
    tokenizer = train_tokenizer()
    model = build_model(shape, tokenizer)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98))
    begun, step, running = time.time(), 0, None
    for ids, labels in batches(tokenizer, size, seed=1):
        done = (time.time() - begun) / (60 * minutes)
        if done >= 1:
            break
        warm = min(1.0, (step + 1) / 100)
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = (
            peak * warm * (0.02 + 0.98 * math.cos(math.pi / 2 * done) ** 2)
        )
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if step % 100 == 0:
            print(f"{(time.time() - begun) / 60:6.1f} min  step {step:6d}  loss {running:.4f}", flush=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(f"saved {sum(p.numel() for p in model.parameters()):,} parameters in {out} after {step} updates")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--out", type=Path, help="where to save (default: ets/demo/assets/SHAPE)")
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3)
    arguments = parser.parse_args()
    out = arguments.out or Path(__file__).parents[1] / "ets" / "demo" / "assets" / arguments.shape
    train(arguments.shape, out, arguments.minutes, arguments.batch, arguments.lr)


if __name__ == "__main__":
    main()
