"""ETS through vLLM against one plain call of vLLM, and what it computes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from floor import Floor, Forward, Shape
from measuring import Conditions, Row, Table
from random_models import described, random_checkpoint

from ets.groups import run_in_groups
from ets.kernel import energy_guided
from ets.policies.autoregressive.engine import EnginePolicy
from ets.policies.autoregressive.vllm import VLLMEngine
from ets.policies.checkpoint import Checkpoint
from ets.policies.settings import Horizon, Sampling
from ets.rewards import per_text
from ets.types import Chain, Problem, StepFn

ABOUT = """\
Compared with one `LLM.generate` call that draws as many tokens: every row to the full length, nothing that waits for
anything else, no seeds and no log-probabilities. ETS ends each guide step with its slowest rollout; with several groups
of problems over one engine, the other groups use it meanwhile. A row ends with probability {ends} at each token, so
lengths differ; seconds are per 1,000 tokens drawn. Positions of one run, by vLLM's own metrics, are compared with what
is needed: each prompt and each drawn token read once (the minimum), and, since vLLM shares whole cache blocks only,
each row's tokens after its last whole block again. The floor is of the minimum, with the weights read
as often as the chain whose tokens follow each other longest needs them."""
MEMORY_GIB = 2.0
VLLM_BLOCK = 16
"""Tokens of a cache block where `VLLMEngine` leaves the size to vLLM."""


@dataclass(frozen=True)
class Setting:
    """What is sampled: `problems`, `width` of them at a time, of whose prompts each has `prompt` tokens.

    Parameters
    ----------
    model : Qwen3Config
    ends : int
        Tokens of the vocabulary that end a text, the first ones.
    """

    model: Any
    ends: int
    prompt: int
    problems: int
    width: int
    candidates: int
    rollouts: int
    block: int
    length: int

    def __str__(self) -> str:
        return (
            f"Prompts: {self.problems} of {self.prompt} tokens, {self.width} at a time. M {self.candidates}, "
            f"K {self.rollouts}, block {self.block}, length {self.length}."
        )

    def problem(self, call: int, number: int) -> Problem:
        """Another prompt for every call, so that no cache of prompts helps."""
        ids = np.random.default_rng((call, number)).integers(self.ends, self.model.vocab_size, self.prompt)
        return Problem(f"{call} {number}", tuple(ids.tolist()))


def saved_checkpoint(setting: Setting, folder: str) -> tuple[Shape, str]:
    """Random weights in a folder; returns their shape, and it in words."""
    checkpoint = random_checkpoint(setting.model, torch.device("cpu"), torch.float32)
    checkpoint.model.config.eos_token_id = checkpoint.model.generation_config.eos_token_id = list(range(setting.ends))
    checkpoint.tokenizer.eos_token = "<0>"  # vLLM takes no end token that the model cannot draw
    checkpoint.model.save_pretrained(folder)
    checkpoint.tokenizer.save_pretrained(folder)
    return Shape.of(checkpoint.model), described(checkpoint.model)


@dataclass
class Way:
    """ETS over an engine, in a number of groups with a thread each; every call draws afresh."""

    engine: VLLMEngine
    setting: Setting
    groups: int
    generated: list[int] = field(default_factory=list)
    chains: Sequence[Chain] = ()

    def __call__(self) -> None:
        problems = [self.setting.problem(len(self.generated), number) for number in range(self.setting.problems)]
        groups = [self._group() for _ in range(self.groups)]
        self.chains = list(run_in_groups(groups, problems, width=self.setting.width, seed=self.groups))
        self.generated.append(sum(chain.cost.generated for chain in self.chains))

    def _group(self) -> tuple[EnginePolicy, StepFn]:
        setting = self.setting
        policy = EnginePolicy(self.engine, Sampling(), Horizon(setting.block, setting.length))
        reward = per_text(lambda _, text: len(text) % 7)
        return policy, energy_guided(reward, candidates=setting.candidates, rollouts=setting.rollouts, lam=1.0)


class Plain:
    """One `LLM.generate` call with as many tokens as another way drew last, over as many prompts."""

    def __init__(self, engine: VLLMEngine, like: Way) -> None:
        from vllm import LLM

        self.llm, self.like = LLM(**engine.arguments), like

    def __call__(self) -> None:
        from vllm import SamplingParams

        tokens, setting = self.like.generated[-1], self.like.setting
        rows = [setting.length] * (tokens // setting.length) + [tokens % setting.length] * (tokens % setting.length > 0)
        call = 1000 + len(self.like.generated)
        prompts = [setting.problem(call, number % setting.problems).prompt for number in range(len(rows))]
        params = [SamplingParams(max_tokens=room, ignore_eos=True) for room in rows]
        self.llm.generate([{"prompt_token_ids": list(ids)} for ids in prompts], params, use_tqdm=False)


def needed(chains: Sequence[Chain], prompt: int, block: int) -> tuple[int, int]:
    """Positions at least, and what whole cache blocks add to that.

    A request reads what lies after the last whole block before its last token, and every token that it draws but the
    last; the minimum reads each prompt, and each token that something was drawn after, once.
    """
    minimum = requested = 0
    for chain in chains:
        before = 0
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


def serial_passes(chain: Chain) -> int:
    """Passes that follow each other: of the prompt, and in each guide step of the longest row's tokens but the last."""
    passes, before = 1, 0
    for step in chain.trace:
        passes += max(len(text.tokens) for row in step.rollouts for text in row) - before - 1
        before = len(step.candidates[step.choice].tokens)
    return passes


def floor_of(chains: Sequence[Chain], minimum: int, setting: Setting, shape: Shape, conditions: Conditions) -> Floor:
    """At least: a position looks at its prompt, and every pass reads the weights."""
    prompts = len(chains) * setting.prompt
    pairs = len(chains) * setting.prompt * (setting.prompt + 1) // 2 + (minimum - prompts) * setting.prompt
    passes = max(map(serial_passes, chains))
    each = Forward(minimum // passes, pairs // passes, 0, sum(chain.cost.generated for chain in chains) // passes)
    return Floor.of(conditions.peak, shape, [each] * passes)


def counters() -> dict[str, float]:
    """vLLM's counters by name."""
    from vllm.v1.metrics.reader import Counter, get_metrics_snapshot

    totals: dict[str, float] = defaultdict(float)
    for metric in get_metrics_snapshot():
        if isinstance(metric, Counter):
            totals[metric.name] += metric.value
    return totals


def computed(way: Way) -> float:
    """Positions of one call by vLLM's own metrics, prefix-cache hits subtracted; a request's last token is not read."""
    before = counters()
    way()
    read = {name: value - before[name] for name, value in counters().items()}
    steps = [step for chain in way.chains for step in chain.trace]
    rollouts = sum(len(row) for step in steps for row in step.rollouts)
    complete = sum(len(row) for step in steps for c, row in zip(step.candidates, step.rollouts, strict=True) if c.done)
    requests = sum(len(step.candidates) for step in steps) + rollouts - complete
    return read["vllm:prompt_tokens"] - read["vllm:prefix_cache_hits"] + read["vllm:generation_tokens"] - requests


def against_plain(setting: Setting, conditions: Conditions) -> Table:
    """One group, two, and one a problem; positions are read first, since a second engine begins vLLM's metrics anew."""
    with TemporaryDirectory() as folder:
        shape, words = saved_checkpoint(setting, folder)
        with VLLMEngine(Checkpoint(folder, device="cpu"), memory_gib=MEMORY_GIB) as engine:
            ways = [Way(engine, setting, groups) for groups in dict.fromkeys((1, 2, setting.width))]
            positions = computed(ways[0])
            chains, drawn = ways[0].chains, ways[0].generated[0]
            for way in ways:
                way()  # warms up
            plain = Plain(engine, ways[0])
            plain()
            *ours, other = conditions.rounds((*ways, plain))
            minimum, partial = needed(chains, setting.prompt, engine.arguments.get("block_size", VLLM_BLOCK))
    found = floor_of(chains, minimum, setting, shape, conditions)
    share = 1000 / drawn
    floor = Floor(found.operations * share, found.bytes * share, found.seconds * share)
    against = _per_1000(other, ways[0].generated)
    rows = [
        Row(f"{way.groups} group{'s' * (way.groups > 1)}", _per_1000(seconds, way.generated), against, {}, floor)
        for way, seconds in zip(ways, ours, strict=True)
    ]
    counts = {"drawn": drawn, "minimum": minimum, "partial cache blocks": partial, "computed": int(positions)}
    rows[0].counts.update(counts | {"computed / (minimum + partial)": f"{positions / (minimum + partial):.3f}"})
    about = ABOUT.format(ends=f"{setting.ends}/{setting.model.vocab_size}")
    return Table("engines", "vLLM: ETS", about, f"{words} {setting}", rows)


def _per_1000(seconds: Sequence[float], generated: Sequence[int]) -> list[float]:
    """Seconds per 1,000 tokens of the last runs."""
    return [1000 * s / tokens for s, tokens in zip(seconds, generated[-len(seconds) :], strict=True)]
