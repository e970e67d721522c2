"""ETS through vLLM against one plain call of vLLM, and what it computes: `python benchmarks/engines.py`

The plain way is one `LLM.generate` call that draws as many tokens: every row to the full length, nothing that waits for
anything else, no seeds and no log-probabilities. ETS ends each guide step with its slowest rollout; with two groups of
problems over one engine, the other group uses it meanwhile. The weights are random and a row ends with probability 1/80
at each token, so lengths differ. All ways run in turn in each repeat.

Positions are compared with what is needed: each prompt and each drawn token read once (the minimum), and, since vLLM
shares whole cache blocks only, each row's tokens after its last whole block again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
from measuring import machine, markdown, rounds, write_page
from transformers import Qwen3Config, Qwen3ForCausalLM

from ets import demo
from ets.groups import run_in_groups
from ets.kernel import energy_guided
from ets.policies.autoregressive import Horizon, Sampling
from ets.policies.checkpoint import Checkpoint
from ets.policies.vllm import VLLMEngine, VLLMPolicy, engine_arguments
from ets.rewards import per_text
from ets.types import Chain, Problem, StepFn

VOCABULARY, ENDS = 8_000, 100
PROMPT = 200
MEMORY_GIB = 2.0
DEFAULTS = {
    "problems": 24,
    "width": 12,
    "candidates": 4,
    "rollouts": 2,
    "block_size": 32,
    "max_length": 96,
    "repeats": 3,
}


def save_checkpoint(folder: str) -> int:
    """Random weights of at least 50M parameters; returns how many."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=16,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
        eos_token_id=list(range(ENDS)),
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer = Checkpoint(demo.model_path()).tokenizer
    tokenizer.add_tokens([f"<{n}>" for n in range(VOCABULARY - len(tokenizer))])
    tokenizer.save_pretrained(folder)
    return model.num_parameters()


@dataclass
class Way:
    """ETS over an engine, in a number of groups with a thread each; every call draws afresh."""

    engine: VLLMEngine
    options: argparse.Namespace
    groups: int
    generated: list[int] = field(default_factory=list)
    chains: Sequence[Chain] = ()

    def __call__(self) -> None:
        problems = [_problem(len(self.generated), number) for number in range(self.options.problems)]
        groups = [self._group() for _ in range(self.groups)]
        self.chains = list(run_in_groups(groups, problems, width=self.options.width, seed=self.groups))
        self.generated.append(sum(chain.cost.generated for chain in self.chains))

    def _group(self) -> tuple[VLLMPolicy, StepFn]:
        options = self.options
        policy = VLLMPolicy(self.engine, Sampling(), Horizon(options.block_size, options.max_length))
        reward = per_text(lambda _, text: len(text) % 7)
        return policy, energy_guided(reward, candidates=options.candidates, rollouts=options.rollouts, lam=1.0)


def _problem(call: int, number: int) -> Problem:
    ids = np.random.default_rng((call, number)).integers(ENDS, VOCABULARY, PROMPT)
    return Problem(f"{call} {number}", tuple(ids.tolist()))


class Plain:
    """One `LLM.generate` call with as many tokens as another way drew last, over as many prompts."""

    def __init__(self, engine: VLLMEngine, like: Way) -> None:
        from vllm import LLM

        self.llm, self.like = LLM(**engine_arguments(engine.checkpoint, memory_gib=MEMORY_GIB)), like

    def __call__(self) -> None:
        from vllm import SamplingParams

        tokens, length, problems = self.like.generated[-1], self.like.options.max_length, self.like.options.problems
        rows = [length] * (tokens // length) + [tokens % length] * (tokens % length > 0)
        prompts = [_problem(1000 + len(self.like.generated), number % problems).prompt for number in range(len(rows))]
        params = [SamplingParams(max_tokens=room, ignore_eos=True) for room in rows]
        self.llm.generate([{"prompt_token_ids": list(ids)} for ids in prompts], params, use_tqdm=False)


def needed(chains: Sequence[Chain], block: int) -> tuple[int, int]:
    """Positions at least, and what whole cache blocks add to that.

    A request reads what lies after the last whole block before its last token, and every token that it draws but the
    last; the minimum reads each prompt, and each token that something was drawn after, once.
    """
    minimum = requested = 0
    for chain in chains:
        prompt, before = PROMPT, 0
        minimum += prompt
        requested += block * ((prompt - 1) // block)
        for step in chain.trace:
            for candidate, row in zip(step.candidates, step.rollouts, strict=True):
                length = len(candidate.tokens)
                minimum += length - before - candidate.done
                requested += _request(prompt + before, length - before, block)
                if not candidate.done:
                    minimum += sum(len(text.tokens) - length - 1 for text in row)
                    requested += sum(_request(prompt + length, len(text.tokens) - length, block) for text in row)
            before = len(step.candidates[step.choice].tokens)
    return minimum, requested - minimum


def _request(length: int, drawn: int, block: int) -> int:
    return length - block * ((length - 1) // block) + drawn - 1


def computed(engine: VLLMEngine, way: Way) -> float:
    """Positions of one call by vLLM's own metrics, prefix-cache hits subtracted; a request's last token is not read."""
    before = engine.metrics()
    way()
    read = {name: value - before.get(name, 0) for name, value in engine.metrics().items()}
    steps = [step for chain in way.chains for step in chain.trace]
    rollouts = sum(len(row) for step in steps for row in step.rollouts)
    complete = sum(len(row) for step in steps for c, row in zip(step.candidates, step.rollouts, strict=True) if c.done)
    requests = sum(len(step.candidates) for step in steps) + rollouts - complete
    return read["vllm:prompt_tokens"] - read["vllm:prefix_cache_hits"] + read["vllm:generation_tokens"] - requests


def measure(folder: str, options: argparse.Namespace) -> str:
    """The two tables: positions first, because a second engine begins vLLM's metrics anew."""
    with VLLMEngine(Checkpoint(folder, device="cpu"), memory_gib=MEMORY_GIB) as engine:
        ways = [Way(engine, options, 1), Way(engine, options, 2)]
        positions = computed(engine, ways[0])
        minimum, partial = needed(ways[0].chains, engine.block)
        for way in ways:
            way()  # warm up
        plain = Plain(engine, ways[0])
        plain()
        seconds = rounds((*ways, plain), options.repeats)
    tokens = [[*counts, counts[0]] for counts in zip(*(way.generated[-options.repeats :] for way in ways), strict=True)]
    speeds = np.array(tokens) / np.array(seconds)
    names = ("ETS, one group", "ETS, two groups", "plain")
    rows = [
        [name, f"{median(speeds[:, n]):.0f}", f"{median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}"]
        for n, name in enumerate(names)
        for ratios in [(speeds[:, n] / speeds[:, 2]).tolist()]
    ]
    counts = [f"{minimum:,}", f"{partial:,}", f"{positions:,.0f}", f"{positions / (minimum + partial):.3f}"]
    headings = ["minimum", "partial cache blocks", "computed", "computed / (minimum + partial)"]
    return (
        markdown(["", "generated tokens per second", "of plain", "spread"], rows)
        + f"\n\nOne run, cache blocks of {engine.block} tokens:\n\n"
        + markdown(["tokens drawn", *headings], [[f"{ways[0].generated[0]:,}", *counts]])
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in DEFAULTS.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        parameters = save_checkpoint(folder) / 1e6
        tables = measure(folder, options)
    setting = ", ".join(f"{name} {value}" for name, value in vars(options).items())
    write_page(
        "engines",
        f"# ETS through vLLM against one plain call\n\n{(__doc__ or '').split(chr(10), 1)[1].strip()}\n\n"
        f"Random weights, {parameters:.0f}M parameters, prompts of {PROMPT} tokens; {setting}. "
        f"Medians over the repeats. Machine: {machine()}.\n\n{tables}\n",
    )


if __name__ == "__main__":
    main()
