"""Exact and cached samplers of masked diffusion in one run: `python benchmarks/masked_diffusion.py --compare fast`

Each sampler draws one completion from the empty canvas, and one ETS sample of M candidates and K completions a guide
step (Level 0: the sampler is p_ref, its weight exactly 1). The last row weighs a guided sample's paths at Level 1, with
as many exact forwards as it had steps on a stale cache. The caches are refreshed at each block's first step. The
weights are random; the head is scaled so that largest probabilities lie on both sides of 0.9, and how many steps the
threshold leaves out depends on that scale: read its row as an example. Vocabulary work, the same for all but the last,
weighs more here than in LLaDA-8B, whose body is 13 times its head.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import numpy as np
from measuring import machine, markdown, rounds, times_faster, write_page

from ets.kernel import energy_guided
from ets.policies.canvas_cache import Caching
from ets.policies.checkpoint import Checkpoint
from ets.policies.levels import weighed_sampler
from ets.policies.masked_diffusion import MaskedDiffusionPolicy
from ets.policies.unmasking import Schedule, Unmasking
from ets.rewards import per_text
from ets.runner import run
from ets.types import Cost, Problem

SAMPLERS: dict[str, tuple[Unmasking, Caching | None]] = {
    "exact": (Unmasking(), None),
    "prefix cache": (Unmasking(), Caching("prefix")),
    "dual cache": (Unmasking(), Caching("dual")),
    "dual cache, threshold 0.9": (Unmasking(remasking="largest", threshold=0.9), Caching("dual")),
}
WEIGHED = "dual cache, threshold 0.9"
"""The sampler that is measured at Level 1 too."""


def compare(checkpoint: Checkpoint, schedule: Schedule, options: argparse.Namespace) -> None:
    """Measure all samplers in turn and write the page."""
    prompt = tuple(np.random.default_rng(0).integers(2, options.vocabulary, options.prompt).tolist())
    problem, costs = Problem("p", prompt), dict[str, tuple[Cost, Cost]]()
    step = energy_guided(
        per_text(lambda _, text: len(text) % 7), candidates=options.candidates, rollouts=options.rollouts, lam=1.0
    )

    def completion(name: str) -> Callable[[], None]:
        def work() -> None:
            policy = policy_of(name, checkpoint, replace(schedule, guide_steps=1))
            policy.finish(policy.start([problem]), np.zeros(1, np.uint64))
            costs[name] = policy.ledger, Cost()

        return work

    def guided(name: str) -> Callable[[], None]:
        def work() -> None:
            policy = policy_of(name, checkpoint, schedule)
            list(run(policy, step, [problem], width=1, seed=0))
            costs[name] = costs[name][0], policy.ledger

        return work

    def at_level_1() -> None:
        fast, exact = (policy_of(name, checkpoint, schedule) for name in (WEIGHED, "exact"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of random weights, a stale cache says little
            list(run(weighed_sampler(exact, fast, "1"), step, [problem], width=1, seed=0))
        costs["level 1"] = Cost(), fast.ledger + exact.ledger

    checkpoint.model.get_output_embeddings().weight.data.mul_(options.sharpness)
    works = [*(way(name) for name in SAMPLERS for way in (completion, guided)), at_level_1]
    measured = rounds(works, options.repeats)
    rows = []
    for n, name in enumerate(SAMPLERS):
        cells = [name, f"{costs[name][0].forwards:.0f}"]
        for way in (0, 1):
            ratio, spread = times_faster(measured, slow=way, fast=2 * n + way)
            seconds = median(row[2 * n + way] for row in measured)
            cells += [f"{costs[name][way].positions:,}", f"{seconds:.1f}", f"**{ratio:.2f}** ({spread})"]
        rows.append(cells)
    ratio, spread = times_faster(measured, slow=1, fast=-1)
    seconds = median(row[-1] for row in measured)
    positions = f"{costs['level 1'][1].positions:,}"
    rows.append([f"{WEIGHED}, Level 1", "", "", "", "", positions, f"{seconds:.1f}", f"**{ratio:.2f}** ({spread})"])
    headings = ["", "steps", *["positions", "s per completion", "times faster"]]
    headings += ["positions", "s per guided sample", "times faster"]
    write_page("fast_diffusion", _page(checkpoint, schedule, options, markdown(headings, rows)))


def policy_of(name: str, checkpoint: Checkpoint, schedule: Schedule) -> MaskedDiffusionPolicy:
    unmasking, caching = SAMPLERS[name]
    return MaskedDiffusionPolicy(checkpoint, unmasking, schedule, caching=caching)


def _page(checkpoint: Checkpoint, schedule: Schedule, options: argparse.Namespace, table: str) -> str:
    config = checkpoint.config
    return (
        "# Fast samplers of masked diffusion\n\n`python benchmarks/masked_diffusion.py --compare fast`\n\n"
        f"{(__doc__ or '').split(chr(10), 1)[1].strip()}\n\n"
        f"Random weights: width {config.d_model}, {config.n_layers} layers, MLP {config.mlp_hidden_size}, vocabulary "
        f"{options.vocabulary:,}, {checkpoint.model.num_parameters() / 1e6:.0f}M parameters. Prompt {options.prompt}, "
        f"gen_length {schedule.gen_length}, block {schedule.block_length}, {schedule.steps} denoising steps at most; "
        f"M {options.candidates}, K {options.rollouts}, I {schedule.guide_steps}; repeats: {options.repeats}. "
        f"Machine: {machine()}.\n\n{table}\n\nThe spread over the repeats stands in brackets.\n"
    )
