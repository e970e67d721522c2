"""ETS on a masked-diffusion model against the plain way, in the same run: `python benchmarks/masked_diffusion.py`

The plain way is what one writes first: every row goes through the model by itself at every denoising step, with logits
for the whole sequence and float64 Gumbel noise over the whole vocabulary, from which the confident positions of the
block are kept (LLaDA's sampler). Rows are batched, which is kind to it. Both draw M candidates and M·K completions per
guide step by the same law, one token per denoising step; the setting is the paper's GSM8K row (M 15, K 3, I 4,
block 8) with a shorter canvas. The weights are random, so canvases are hardly ever equal by chance, and what is saved
here is saved by construction.
"""

from __future__ import annotations

import argparse
from statistics import median

import fast_samplers
import numpy as np
import torch
from measuring import machine, markdown, rounds, times_faster, write_page

from ets import demo
from ets.kernel import energy_guided
from ets.models import LLaDAConfig, LLaDAModelLM
from ets.policies.checkpoint import Checkpoint
from ets.policies.masked_diffusion import MaskedDiffusionPolicy
from ets.policies.unmasking import Schedule, Unmasking
from ets.rewards import per_text
from ets.runner import run
from ets.types import Problem

SHAPE = {"d_model": 256, "n_heads": 4, "n_layers": 4, "mlp_hidden_size": 768}


def random_checkpoint(vocabulary: int, **shape: int) -> Checkpoint:
    """Random weights, and the embedded tokenizer with enough tokens added."""
    tokenizer = Checkpoint(demo.model_path("diffusion")).tokenizer
    tokenizer.add_tokens([f"<{n}>" for n in range(vocabulary - len(tokenizer))])
    torch.manual_seed(0)
    ids = {"mask_token_id": tokenizer.mask_token_id, "eos_token_id": tokenizer.eos_token_id}
    return Checkpoint.loaded(LLaDAModelLM(LLaDAConfig(vocab_size=vocabulary, **ids, **(SHAPE | shape))), tokenizer)


class Setting:
    """One prompt, M candidates, K rollouts and a schedule; what each way computed is counted as it runs."""

    def __init__(self, checkpoint: Checkpoint, prompt: int, m: int, k: int, schedule: Schedule) -> None:
        self.checkpoint, self.m, self.k, self.schedule = checkpoint, m, k, schedule
        self.vocabulary, self.mask = checkpoint.config.vocab_size, checkpoint.config.mask_token_id
        self.prompt = np.random.default_rng(0).integers(2, self.vocabulary, prompt).tolist()
        self.counts: dict[str, tuple[int, int]] = {}

    def ets(self) -> None:
        policy = MaskedDiffusionPolicy(self.checkpoint, Unmasking(), self.schedule)
        step = energy_guided(per_text(lambda _, text: len(text) % 7), candidates=self.m, rollouts=self.k, lam=1.0)
        list(run(policy, step, [Problem("p", tuple(self.prompt))], width=1, seed=0))
        self.counts["ets"] = policy.ledger.row_forwards, policy.ledger.vocabulary

    @torch.inference_mode()
    def plain(self) -> None:
        self.counts["plain"] = 0, 0
        rows = torch.tensor([self.prompt + [self.mask] * self.schedule.gen_length])
        each = self.schedule.steps_per_guide_step
        for first in range(0, self.schedule.steps, each):
            candidates = self._denoise(rows.repeat(self.m, 1), range(first, first + each))
            self._denoise(candidates.repeat_interleave(self.k, 0), range(first + each, self.schedule.steps))
            rows = candidates[:1]

    def _denoise(self, rows: torch.Tensor, steps: range) -> torch.Tensor:
        return torch.cat([self._denoise_batch(batch, steps) for batch in rows.split(self.m)])

    def _denoise_batch(self, rows: torch.Tensor, steps: range) -> torch.Tensor:
        for step in steps:
            logits = self.checkpoint.model(rows).logits.double()
            confidences = logits.softmax(-1)
            logits[..., self.mask] = -torch.inf
            drawn = (logits - (-torch.rand_like(logits).log()).log()).argmax(-1)
            confidence = confidences.gather(-1, drawn[..., None])[..., 0]
            confidence[rows != self.mask] = -torch.inf
            confidence[:, len(self.prompt) + self.schedule.block_of(step)[1] :] = -torch.inf
            kept = confidence.topk(self.schedule.quota(step), dim=-1).indices
            rows = rows.scatter(-1, kept, drawn.gather(-1, kept))
            row_forwards, vocabulary = self.counts["plain"]
            self.counts["plain"] = row_forwards + len(rows), vocabulary + rows.numel()
        return rows


DEFAULTS = {
    "plain": {"vocabulary": 32_768, "prompt": 16, "gen_length": 16, "steps": 16, "repeats": 3, "candidates": 15}
    | {"rollouts": 3, "guide_steps": 4, "block_length": 8, "width": 256, "layers": 4, "sharpness": 1.0},
    "fast": {"vocabulary": 126_464, "prompt": 700, "gen_length": 256, "steps": 64, "repeats": 1, "candidates": 2}
    | {"rollouts": 1, "guide_steps": 2, "block_length": 32, "width": 512, "layers": 6, "sharpness": 16.0},
}
"""By what is compared; each is an option."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", choices=DEFAULTS, default="plain")
    for name, value in DEFAULTS["plain"].items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value))
    given = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    options = argparse.Namespace(**(DEFAULTS[given["compare"]] | given))
    heads = max(1, options.width // 64)
    shape = {
        "d_model": options.width,
        "n_heads": heads,
        "n_layers": options.layers,
        "mlp_hidden_size": 3 * options.width,
    }
    checkpoint = random_checkpoint(options.vocabulary, **shape)
    schedule = Schedule(options.gen_length, options.steps, options.block_length, options.guide_steps)
    if options.compare == "fast":
        fast_samplers.compare(checkpoint, schedule, options)
    else:
        against_plain(checkpoint, schedule, options)


def against_plain(checkpoint: Checkpoint, schedule: Schedule, options: argparse.Namespace) -> None:
    setting = Setting(checkpoint, options.prompt, options.candidates, options.rollouts, schedule)
    Setting(checkpoint, 8, 2, 1, Schedule(8, 8, 8, 2)).ets()  # warm up
    measured = rounds((setting.ets, setting.plain), options.repeats)
    ratio, spread = times_faster(measured, slow=1, fast=0)
    seconds = {"ets": median(row[0] for row in measured), "plain": median(row[1] for row in measured)}
    rows = [
        [label, *(f"{count:,}" for count in setting.counts[way]), f"{seconds[way]:.1f}"]
        for way, label in (("plain", "plain way"), ("ets", "ets"))
    ]
    (a, b), (c, d) = setting.counts["plain"], setting.counts["ets"]
    rows.append(["times fewer, or faster", f"{a / c:.2f}", f"{b / d:.1f}", f"**{ratio:.2f}** ({spread})"])
    parameters = checkpoint.model.num_parameters() / 1e6
    text = (
        f"# ETS against the plain way, masked diffusion\n\n{__doc__.split(chr(10), 1)[1].strip()}\n\n"
        f"Random weights, {parameters:.0f}M parameters, vocabulary {options.vocabulary:,}; "
        f"M {options.candidates}, K {options.rollouts}, I {options.guide_steps}, prompt {options.prompt}, gen_length "
        f"{options.gen_length} in as many steps, block {options.block_length}; medians over {options.repeats} repeats. "
        f"Machine: {machine()}.\n\n"
        f"{markdown(['', 'row-forwards', 'vocabulary positions', 'seconds'], rows)}\n\n"
        "The spread over the repeats stands in brackets.\n"
    )
    write_page("masked_diffusion", text)


if __name__ == "__main__":
    main()
