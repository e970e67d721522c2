"""ETS on a causal model in seconds: `python benchmarks/autoregressive.py [--compare plain|proposal]`

Against the plain way, or with a proposal against without, in the same run.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
import torch
from measuring import machine, markdown, rounds, times_faster, write_page
from transformers import Qwen3Config, Qwen3ForCausalLM

from ets import demo
from ets.kernel import energy_guided
from ets.policies.autoregressive import Horizon, Sampling
from ets.policies.checkpoint import Checkpoint
from ets.policies.kv_cache import Memory, RowCache, fork
from ets.policies.transformers import TransformersPolicy
from ets.rewards import per_text
from ets.runner import run
from ets.types import Cost, Problem

PLAIN = """\
The plain way is what one writes first: at every guide step, `model.generate` on M repeated prompts for the candidates,
then `model.generate` on M·K repeated prefixes for the rollouts, no cache carried over. Both draw as many tokens from
the same random weights, and there is no end token, so the work is the same at every repeat. The bound is the time of
the bare forward passes alone: same rows, same cache, nothing sampled."""
PROPOSAL = """\
ETS-IS lets a proposal of a quarter of the width and depth draw the rollouts, and scores them with the model in parallel
forwards. It is judged by seconds: each rollout's tokens go through the model all the same, so positions show no saving,
and generated tokens would hide that cost."""
VOCABULARY = 32_000
SHAPE = {
    "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 8,
    "num_key_value_heads": 4,
}  # fmt: skip
QUARTER = {
    "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # fmt: skip


PROPOSED = [
    "prompt", "ets (s)", "ets-is (s)", "times faster", "spread", "ets: positions", "ets-is: model's positions",
    "ets-is: proposal's positions",
]  # fmt: skip


def random_checkpoint(shape: dict[str, int] = SHAPE) -> Checkpoint:
    """Random weights, by default about 50M parameters, and a tokenizer whose end token the model cannot draw."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        head_dim=64,
        tie_word_embeddings=True,
        eos_token_id=None,
        bos_token_id=None,
        **shape,
    )
    tokenizer = Checkpoint(demo.model_path()).tokenizer
    tokenizer.add_tokens([f"<{n}>" for n in range(VOCABULARY - len(tokenizer))] + ["<never drawn>"])
    tokenizer.eos_token = "<never drawn>"
    return Checkpoint.loaded(Qwen3ForCausalLM(config), tokenizer)


class Setting:
    """One prompt, M candidates, K rollouts, and guide steps of `block` tokens up to `length`."""

    def __init__(self, checkpoint: Checkpoint, prompt: int, m: int, k: int, block: int, length: int) -> None:
        self.checkpoint, self.m, self.k, self.block, self.length = checkpoint, m, k, block, length
        self.prompt = np.random.default_rng(0).integers(0, VOCABULARY, prompt).tolist()

    def ets(self, small: Checkpoint | None = None) -> tuple[Cost, Cost]:
        """With a proposal, if there is a small model; what the two computed."""
        horizon = Horizon(self.block, self.length)
        policy = TransformersPolicy(self.checkpoint, Sampling(), horizon)
        proposal = None if small is None else TransformersPolicy(small, Sampling(), horizon)
        numbers: dict[str, Any] = {"candidates": self.m, "rollouts": self.k, "lam": 1.0, "proposal": proposal}
        step = energy_guided(per_text(lambda _, text: len(text) % 7), **numbers)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # random weights are no good proposal for each other
            list(run(policy, step, [Problem("p", tuple(self.prompt))], width=1, seed=0))
        return policy.ledger, proposal.ledger if proposal else Cost()

    def plain(self) -> None:
        tokens = self.prompt
        for step in range(1, self.length // self.block + 1):
            candidates = self._generate([tokens] * self.m, self.block)
            rest = self.length - step * self.block
            if rest:
                self._generate([row for row in candidates for _ in range(self.k)], rest)
            tokens = candidates[0]

    def _generate(self, rows: list[list[int]], count: int) -> list[list[int]]:
        ids = torch.tensor(rows)
        options: dict[str, Any] = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "pad_token_id": 0}
        drawn = self.checkpoint.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count, **options
        )
        return drawn.tolist()

    @torch.inference_mode()
    def bare_forwards(self) -> None:
        """The forward passes of `ets` alone."""
        memory = Memory(self._read(RowCache(SHAPE["num_hidden_layers"], len(self.prompt), [0]), [self.prompt]), 0)
        for step in range(1, self.length // self.block + 1):
            candidates = self._advance(fork([memory] * self.m, self.block), self.block)
            rest = self.length - step * self.block
            if rest:
                rows = [Memory(candidates, m) for m in range(self.m) for _ in range(self.k)]
                self._advance(fork(rows, rest), rest - 1)
            memory = Memory(candidates, 0)

    def _advance(self, cache: RowCache, columns: int) -> RowCache:
        for _ in range(columns):
            self._read(cache, [[1]] * len(cache.lengths))
        return cache

    def _read(self, cache: RowCache, tokens: list[list[int]]) -> RowCache:
        ids = torch.tensor(tokens)
        positions = torch.tensor(cache.lengths)[:, None] + torch.arange(ids.shape[1])
        self.checkpoint.model(
            input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        cache.advance(ids.shape[1])
        return cache


def measure(setting: Setting, repeats: int) -> list[str]:
    """Medians over repeats, each repeat running all three in turn; the ratio is taken repeat by repeat."""
    measured = rounds((setting.ets, setting.plain, setting.bare_forwards), repeats)
    ours, plain, bare = (f"{median(column):.1f}" for column in zip(*measured, strict=True))
    ratio, spread = times_faster(measured, slow=1, fast=0)
    bound, _ = times_faster(measured, slow=1, fast=2)
    return [str(len(setting.prompt)), plain, ours, bare, f"**{ratio:.2f}**", spread, f"{bound:.2f}"]


def measure_proposal(setting: Setting, small: Checkpoint, repeats: int) -> list[str]:
    """ETS-IS against ETS: the ratio is taken repeat by repeat."""
    measured = rounds((setting.ets, lambda: setting.ets(small)), repeats)
    plain, ours = (f"{median(column):.1f}" for column in zip(*measured, strict=True))
    ratio, spread = times_faster(measured, slow=0, fast=1)
    without, (model, proposal) = setting.ets()[0], setting.ets(small)
    positions = [f"{cost.positions:,}" for cost in (without, model, proposal)]
    return [str(len(setting.prompt)), plain, ours, f"**{ratio:.2f}**", spread, *positions]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", choices=("plain", "proposal"), default="plain")
    parser.add_argument("--prompts", type=int, nargs="+", default=[200, 1000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--rollouts", type=int, default=3)
    parser.add_argument("--block-size", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=128)
    options = parser.parse_args()
    checkpoint, shape = (
        random_checkpoint(),
        (options.candidates, options.rollouts, options.block_size, options.max_length),
    )
    Setting(checkpoint, 32, 2, 2, 4, 8).ets()  # warm up
    settings = [Setting(checkpoint, prompt, *shape) for prompt in options.prompts]
    parameters = checkpoint.model.num_parameters() / 1e6
    conditions = (
        f"Random weights, {parameters:.0f}M parameters; "
        f"M {shape[0]}, K {shape[1]}, block {shape[2]}, length {shape[3]}; "
        f"medians over {options.repeats} repeats. Machine: {machine()}."
    )
    (against_plain if options.compare == "plain" else with_proposal)(settings, options.repeats, conditions)


def against_plain(settings: Sequence[Setting], repeats: int, conditions: str) -> None:
    headings = ["prompt", "plain way (s)", "ets (s)", "bare forwards (s)", "times faster", "spread", "bound"]
    rows = [measure(setting, repeats) for setting in settings]
    text = (
        "# ETS against the plain way, autoregressive\n\n`python benchmarks/autoregressive.py`\n\n"
        f"{PLAIN}\n\n{conditions}\n\n{markdown(headings, rows)}\n\n"
        "`times faster` is the plain way's seconds over ours; `bound` the same if only the bare forwards took time.\n"
    )
    write_page("autoregressive", text)


def with_proposal(settings: Sequence[Setting], repeats: int, conditions: str) -> None:
    small = random_checkpoint(QUARTER)
    settings[0].ets(small)  # warm up
    rows = [measure_proposal(setting, small, repeats) for setting in settings]
    text = (
        "# ETS-IS against ETS, autoregressive\n\n`python benchmarks/autoregressive.py --compare proposal`\n\n"
        f"{PROPOSAL}\n\n{conditions} The proposal has "
        f"{small.model.num_parameters() / 1e6:.1f}M parameters, most of them its embedding's.\n\n"
        f"{markdown(PROPOSED, rows)}\n\n"
        "`times faster` is ETS's seconds over those of ETS-IS: the median of the repeats' own ratios, not the ratio of "
        "the medians.\n"
    )
    write_page("autoregressive_proposal", text)


if __name__ == "__main__":
    main()
