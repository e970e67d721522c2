"""Block-causal diffusion: the laws of the published samplers, exact caches, and no position computed twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ets.cli import main
from ets.models import MASKED_DIFFUSION, Family
from ets.policies.checkpoint import Checkpoint
from ets.policies.diffusion import blocks
from ets.policies.diffusion.blocks import AlignedSchedule, BlockReader
from ets.policies.diffusion.canvas import CanvasMemory
from ets.policies.diffusion.denoise import Schedule
from ets.policies.diffusion.path_probability import path_probabilities, path_steps
from ets.policies.diffusion.policy import MaskedDiffusionPolicy
from ets.policies.registry import fast_sampler_of, policy_of
from ets.policies.settings import Caching
from ets.runner import run
from ets.testing import check_policy
from ets.types import Draw, InputError, Problem
from tests.block_causal import MASK, MODELS, SHIFT, block_oracle, path_logps, tiny
from tests.conftest import MASKED_ALPHABET, tiny_tokenizer
from tests.hooks import hooked
from tests.policies.diffusion.test_policy import guided, keys, make, same_draws

INSIDE, ALIGNED = Problem("p", "abbab"), Problem("q", (1, 2, 2, 1, 2, 1, 1, 2))
PROBLEMS = [INSIDE, ALIGNED, Problem("r", "a"), Problem("s", "abbabba")]
"""Prompts of 5, 8, 1 and 7 tokens: with blocks of two all but the second end inside a block."""
FAMILIES = list(MODELS)
TOLERANCE = {"sdar": 1e-9, "fast_dllm": 1e-9, "sdar_moe": 1e-6, "llada2": 1e-6}
"""Of log-probabilities in float64; the routers compute in float32, as published."""


def family_policy(family: str, *shape: int, **settings: Any) -> MaskedDiffusionPolicy:
    return make(tiny(family), *shape, **settings)


def check_law(family: str, problem: Problem, *shape: int, align: bool = True, **rule: Any) -> None:
    """Judge a policy on a problem, and on the others for independence and costs."""
    policy = family_policy(family, *shape, **rule)
    oracle = block_oracle(policy, problem, SHIFT[family], align)
    others = [other for other in PROBLEMS if other is not problem]
    check_policy(policy, oracle, [problem, *others], draws=4_000, level=1e-4)


# Laws.


@pytest.mark.parametrize(
    ("problem", "shape", "rule"),
    [
        (INSIDE, (4, 4, 2, 4), {}),  # blocks of 1, 2 and 1 positions; every denoising step is a guide step
        (ALIGNED, (4, 4, 2, 2), {"temperature": 0.7}),  # a guide step is a block
    ],
    ids=["inside", "aligned"],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_laws_hold_on_a_tiny_network(
    family: str, problem: Problem, shape: tuple[int, int, int, int], rule: dict[str, Any]
) -> None:
    check_law(family, problem, *shape, **rule)


@pytest.mark.parametrize("family", ["sdar", "fast_dllm"])
def test_laws_hold_with_a_threshold(family: str) -> None:
    """A guide step ends inside a block, after two positions or more."""
    check_law(family, INSIDE, 4, 4, 2, 2, threshold=0.4)


def test_laws_hold_from_left_to_right() -> None:
    """Blocks of 3 positions and of one."""
    check_law("sdar", INSIDE, 4, 4, 4, 4, remasking="sequential")


def test_laws_hold_where_a_step_reveals_two_positions() -> None:
    check_law("sdar", INSIDE, 4, 2, 2, 2, remasking="entropy")


@pytest.mark.parametrize("problem", [INSIDE, ALIGNED], ids=lambda problem: problem.id)
def test_laws_hold_with_several_sub_blocks(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of four tokens in sub-blocks of two: places 0, 1, 2 and 3, then 4; or 0, 1 and 2, 3 of a fresh block."""
    name = "Fast_dLLM_Qwen"
    monkeypatch.setitem(MASKED_DIFFUSION, name, replace(MASKED_DIFFUSION[name], sub_block=2))
    check_law("fast_dllm", problem, 4, 4, 4, 2)


def test_sub_blocks_are_filled_from_left_to_right_and_the_first_token_of_a_block_alone() -> None:
    """With the published numbers: a block of 32 tokens in sub-blocks of 8, after a prompt of 30 tokens."""
    plan, tokens = AlignedSchedule(64, 64, 32, 1, sub_block=8), np.full(64, MASK)
    groups, step = [], 0
    while (masked := plan.masked_at(step, tokens, MASK, prompt_length=30)).size or step < 96:
        if masked.size:
            groups.append((masked + 30).tolist())
            tokens[masked] = 0
        else:
            step += 32
    block = [[32], list(range(33, 40)), *(list(range(first, first + 8)) for first in (40, 48, 56))]
    assert groups == [
        [30, 31],
        *block,
        *([place + 32 for place in group] for group in block[:4]),
        [88, 89, 90, 91, 92, 93],
    ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_log_probabilities_are_those_of_whole_forwards(family: str, dtype: torch.dtype) -> None:
    """Over guide steps and rollouts, of prompts of all lengths together; each canvas goes through the model alone."""
    checkpoint = Checkpoint.loaded(MODELS[family]().to(dtype), tiny_tokenizer(MASKED_ALPHABET))
    policy, tolerance = make(checkpoint, 8, 8, 4, 4), TOLERANCE[family] if dtype == torch.float64 else 1e-4
    states: list[Any] = [state for state in policy.start(PROBLEMS) for _ in range(3)]
    for draw in (policy.extend, policy.extend, policy.finish):
        states = [drawn.state for drawn in draw(states, keys(len(states), 7))]
    for state in states:
        made = state.step_logps[sorted(set(state.path)), 0]
        assert made == pytest.approx(path_logps(policy, state.prompt, state, SHIFT[family]), abs=tolerance)


@pytest.mark.parametrize("family", FAMILIES)
def test_results_do_not_depend_on_the_width(family: str) -> None:
    found = []
    for width in (1, 32):
        chains = run(family_policy(family, 6, 6, 2, 3), guided(), PROBLEMS, width=width, seed=0, samples=4)
        found.append({(chain.problem.id, chain.sample): chain for chain in chains})
    alone, together = found
    assert len(alone) == len(together) == 4 * len(PROBLEMS)
    for name, chain in alone.items():
        assert (chain.state.tokens, chain.state.path) == (together[name].state.tokens, together[name].state.path)
        logps = [
            [text.logp for step in c.trace for row in step.rollouts for text in row] for c in (chain, together[name])
        ]
        assert logps[0] == pytest.approx(logps[1], abs=1e-6)


def test_stopping_at_the_end_changes_no_text() -> None:
    """Of prompts that end inside a block, too."""
    full, short = (family_policy("sdar", 6, 6, 2, 3, stop_at_end=stop) for stop in (False, True))
    expected, found = (
        policy.finish([state for state in policy.start(PROBLEMS) for _ in range(40)], keys(160))
        for policy in (full, short)
    )
    assert [draw.state.text for draw in found] == [draw.state.text for draw in expected]
    assert all(draw.state.done for draw in found) and short.ledger.generated < full.ledger.generated == 6 * 160


# Mutations.


def test_blocks_that_are_counted_from_the_canvas_turn_the_laws_red(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AlignedSchedule, "block_of", Schedule.block_of)
    with pytest.raises((AssertionError, IndexError)):  # a position may stand behind the columns of the block
        check_law("sdar", INSIDE, 4, 4, 2, 2)


def test_a_mask_that_is_not_aligned_turns_the_laws_red(monkeypatch: pytest.MonkeyPatch) -> None:
    right = BlockReader._mask
    monkeypatch.setattr(
        BlockReader, "_mask", lambda self, *places: right(self, *(np.where(p < 0, p, p + 1) for p in places))
    )
    with pytest.raises(AssertionError):
        check_law("sdar", INSIDE, 4, 4, 2, 2)


def test_a_dropped_shift_turns_the_laws_red(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "Fast_dLLM_Qwen"
    monkeypatch.setitem(MASKED_DIFFUSION, name, replace(MASKED_DIFFUSION[name], shift=0))
    with pytest.raises(AssertionError):
        check_law("fast_dllm", ALIGNED, 4, 4, 2, 2)


def test_the_first_token_of_a_block_from_the_block_itself_turns_the_laws_red(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the logits at its place, not at the last place of the block before."""
    right = BlockReader._keep

    def wrong(self: Any, canvas: Any, fresh: Any, hidden: Any, row: int) -> None:
        right(self, canvas, fresh, hidden, row)
        cached = canvas.memory.cached
        if cached.last is not None and self._start(canvas) == self._stop(canvas):
            canvas.memory.cached = replace(cached, last=hidden[-2])

    monkeypatch.setattr(BlockReader, "_keep", wrong)
    with pytest.raises(AssertionError):
        check_law("fast_dllm", ALIGNED, 4, 4, 2, 2)


def test_keys_of_a_block_with_masks_turn_the_laws_red(monkeypatch: pytest.MonkeyPatch) -> None:
    """The columns of the last denoising step are kept, and the finished block is not encoded."""
    right = BlockReader._keep

    def stale(self: Any, canvas: Any, fresh: Any, hidden: Any, row: int) -> None:
        before, columns = self._prefix(canvas), self._columns(canvas)
        right(self, canvas, fresh, hidden, row)
        if len(canvas.masked) == 1 and self._stop(canvas) % self.block_length == 0:
            kept = [layer[:, row, :, len(hidden) - columns :].clone() for layer in fresh]
            canvas.memory.cached = before.extended(kept, hidden[-1])

    monkeypatch.setattr(BlockReader, "_keep", stale)
    with pytest.raises(AssertionError):
        check_law("sdar", ALIGNED, 4, 4, 2, 2)


# Nothing is computed twice.


def blocks_of(prompt: Sequence[int], length: int, block: int) -> list[tuple[int, int]]:
    """The absolute positions of all blocks of prompt and canvas; the last may be cut."""
    total = len(prompt) + length
    return [(first, min(first + block, total)) for first in range(0, total, block)]


def fewest_positions(draws: Sequence[Draw], block: int, shift: int) -> int:
    """The columns of the block for each different canvas, and each different finished block once."""
    canvases, finished, columns = set[Any](), set[Any](), 0
    for draw in draws:
        state: Any = draw.state
        tokens, path, prompt = np.array(state.tokens), np.array(state.path), state.prompt
        for step in sorted(set(state.path)):
            canvas = tuple(np.where(path < step, tokens, MASK).tolist())
            place = len(prompt) + canvas.index(MASK)
            start, stop = next(b for b in blocks_of(prompt, len(tokens), block) if b[0] <= place < b[1])
            if (prompt, canvas) not in canvases:
                canvases.add((prompt, canvas))
                columns += 0 if shift and place == start else stop - start
            whole = (*prompt, *canvas)
            finished |= {(prompt, whole[:end]) for end in range(block, start + 1, block)}
    return columns + block * len(finished)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.id)
def test_the_positions_are_the_fewest_and_the_ledger_counts_them(family: str, problem: Problem) -> None:
    policy, columns = family_policy(family, 6, 6, 2, 3), list[int]()
    with hooked(policy.checkpoint.model.base_model, lambda _, args: columns.append(args[0].numel())):
        (start,) = policy.start([problem])
        candidates = policy.extend([start] * 4, keys(4))
        rollouts = policy.finish([draw.state for draw in candidates for _ in range(3)], keys(12, 50))
    assert sum(columns) == fewest_positions(rollouts, 2, SHIFT[family])
    assert policy.ledger.positions == sum(columns) == sum(d.cost.positions for d in [*candidates, *rollouts])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["extend", "finish"])
def test_a_state_inside_a_block_goes_on_as_if_it_were_read_afresh(family: str, method: str) -> None:
    """Guide steps of one position, so that states stand at every place of a block; the prompt is not read again."""
    policy, fresh = (family_policy(family, 6, 6, 3, 6) for _ in range(2))
    states: list[Any] = policy.start(PROBLEMS)
    for _ in range(4):
        states += [draw.state for draw in policy.extend(states[-len(PROBLEMS) :], keys(len(PROBLEMS), 50))]
    order = np.random.default_rng(0).permutation(len(states) * 3) % len(states)
    before = policy.ledger
    together = getattr(policy, method)([states[n] for n in order], keys(len(order)))
    for number, (n, draw) in enumerate(zip(order, together, strict=True)):
        alone = replace(states[n], memory=CanvasMemory(fresh))
        same_draws(getattr(fresh, method)([alone], keys(1, number)), [draw])
    again = sum(len(states[n].prompt) // 3 * 3 for n in order)
    assert (policy.ledger - before).positions < fresh.ledger.positions - again / 2


def test_forks_share_the_tensors_of_finished_blocks() -> None:
    policy = family_policy("sdar", 6, 6, 2, 3)
    candidates = [draw.state for draw in policy.extend(policy.start([ALIGNED]) * 6, keys(6))]
    after: list[Any] = [draw.state for draw in policy.extend(candidates, keys(6, 20))]
    prefixes = [state.memory.cached for state in after]
    assert {prefix.length for prefix in prefixes} == {8, 10} or {prefix.length for prefix in prefixes} == {10}
    assert len({prefix.parts[0][0].data_ptr() for prefix in prefixes}) == 1
    for prefix in prefixes:
        for part in prefix.parts:
            assert part[0].untyped_storage().nbytes() == part[0].numel() * part[0].element_size()


def test_a_memory_limit_splits_rows_without_changing_them() -> None:
    whole, split = family_policy("sdar", 6, 6, 2, 3), family_policy("sdar", 6, 6, 2, 3, memory_gib=1e-5)
    starts = [[state for state in policy.start(PROBLEMS) for _ in range(6)] for policy in (whole, split)]
    same_draws(split.finish(starts[1], keys(24)), whole.finish(starts[0], keys(24)))
    assert split.ledger.forwards > whole.ledger.forwards


def test_padding_is_counted_and_seen_by_nobody() -> None:
    """Prompts of nearly equal lengths share their forward passes."""
    problems = [Problem(str(n), "ab" * 8 + "a" * n) for n in range(5)]
    policy, computed = family_policy("sdar", 4, 4, 2, 2), list[tuple[int, ...]]()
    with hooked(policy.checkpoint.model.base_model, lambda _, args: computed.append(args[0].shape)):
        draws = policy.finish(policy.start(problems), keys(5))
    assert (policy.ledger.positions, policy.ledger.row_forwards) == (
        sum(rows * columns for rows, columns in computed),
        sum(rows for rows, _ in computed),
    )
    assert policy.ledger.forwards == len(computed) < sum(rows for rows, _ in computed) / 2
    assert computed[:2] == [(4, 20), (1, 22)]  # whole blocks of the prompts, and the first block of the canvas
    for problem, key, draw in zip(problems, keys(5), draws, strict=True):
        alone = family_policy("sdar", 4, 4, 2, 2)
        same_draws(alone.finish(alone.start([problem]), np.array([key])), [draw])


# Recorded paths, faster samplers, and beam search.


@pytest.mark.parametrize("level", ["1", "1F"])
@pytest.mark.parametrize("rule", [{"remasking": "random"}, {"remasking": "margin", "alg_temp": 0.5}])
def test_weights_towards_a_block_causal_model_average_to_one(rule: dict[str, Any], level: str) -> None:
    """Of 2000 paths at another temperature, within four standard errors (a level of 6e-5)."""
    exact = policy_of(lambda: tiny("sdar"), max_length=4, guide_steps=2, block_length=2, **rule)
    fast = fast_sampler_of(exact, level, temperature=1.4)
    draws = fast.finish(fast.start([INSIDE]) * 2000, keys(2000))
    ratios = np.exp([draw.text.log_ratio for draw in draws])
    assert abs(ratios.mean() - 1) <= 4 * ratios.std() / 2000**0.5 and ratios.std() > 0.1


@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_paths_have_the_log_probabilities_that_were_recorded(family: str, positions: bool) -> None:
    """All canvases are read together, and each finished block once."""
    policy = family_policy(family, 6, 6, 2, 3)
    draws = policy.finish([state for state in policy.start(PROBLEMS) for _ in range(4)], keys(16))
    ends: list[Any] = [draw.state for draw in draws]
    starts: list[Any] = [state for state in policy.start(PROBLEMS) for _ in range(4)]
    paths = [path_steps(*pair, MASK) for pair in zip(starts, ends, strict=True)]
    found = path_probabilities(policy, paths, positions=positions)
    for end, path in zip(ends, found, strict=True):
        recorded = end.step_logps[sorted(set(end.path))]
        assert path.tokens == pytest.approx(recorded[:, 0], abs=TOLERANCE[family])
        assert path.positions == pytest.approx(recorded[:, 1] if positions else 0, abs=TOLERANCE[family])
    assert policy.ledger.scored == sum(path.cost.scored for path in found) == policy.ledger.rollout


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("problem", [INSIDE, ALIGNED], ids=lambda problem: problem.id)
def test_enough_beams_find_the_most_probable_path(family: str, problem: Problem) -> None:
    policy = family_policy(family, 4, 4, 2, 2)
    oracle = block_oracle(policy, problem, SHIFT[family]).by_path
    law = oracle.finish_law(problem, oracle.root)
    (draw,) = policy.beam(policy.start([problem]), 200)
    best = max(law, key=lambda path: law[path])
    assert (draw.state.tokens, draw.state.path) == best  # type: ignore[attr-defined]
    assert draw.logp == pytest.approx(np.log(law[best]), abs=1e-6)


# Settings.


def test_the_block_length_and_the_threshold_are_the_published_ones() -> None:
    """Of the checkpoint's configuration and the family, where the user sets none."""
    checkpoint = tiny("sdar")
    policy: Any = policy_of(lambda: checkpoint, max_length=8, block_size=4)
    assert (policy.schedule.block_length, policy.unmasking.threshold) == (2, 0.85)
    with pytest.warns(UserWarning, match="block_length is 4, but 'loaded' is a model for blocks of 2"):
        policy = policy_of(lambda: checkpoint, max_length=8, block_size=4, block_length=4, threshold=0.5)
    assert (policy.schedule.block_length, policy.unmasking.threshold) == (4, 0.5)
    for setting in ({"factor": 1.0}, {"remasking": "margin"}):
        policy = policy_of(lambda: checkpoint, max_length=8, block_size=4, **setting)
        assert policy.unmasking.threshold is None
    with pytest.raises(InputError, match="gen_length 9 is no multiple of block_length 2"):
        policy_of(lambda: checkpoint, max_length=9, block_size=3)


def test_a_family_with_a_shift_fills_the_first_token_of_a_block_alone() -> None:
    with pytest.raises(InputError, match="shift is 1, but a block-causal family fills the first token of a block"):
        Family(block_causal=True, shift=1)


def test_a_model_with_sub_blocks_has_no_quotas() -> None:
    message = "steps 2 are fewer than the 4 tokens of gen_length, but a model with sub-blocks has no quotas"
    with pytest.raises(InputError, match=message):
        family_policy("fast_dllm", 4, 2, 2, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"caching": Caching("dual")},
            "cache is 'dual', but 'loaded' is block-causal and has an exact cache; leave it out",
        ),
        ({"cfg": 1.0}, "cfg is 1.0, but 'loaded' is block-causal, which excludes guidance; set cfg to 0"),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_inexact_caches_and_guidance_are_refused(family: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        family_policy(family, 4, 4, 2, 2, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_faster_sampler_keeps_the_blocks_and_is_weighed(family: str) -> None:
    exact = family_policy(family, 4, 4, 2, 2, remasking="largest")
    fast: Any = fast_sampler_of(exact, threshold=0.5)
    assert fast.unmasking.threshold == 0.5 and fast.schedule == exact.schedule
    pair: Any = fast_sampler_of(exact, "1", temperature=0.7, threshold=0.5)
    prompt = (1, 2, 2, 1, 2)
    for draw in pair.finish(pair.start([INSIDE]) * 8, keys(8)):
        path = draw.state.drawn
        q, p = (path_logps(policy, prompt, path, SHIFT[family]).sum() for policy in (pair.sampler, exact))
        assert draw.text.log_ratio == pytest.approx(p - q, abs=1e-5)


def test_a_model_that_records_no_keys_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = family_policy("sdar", 4, 4, 2, 2)
    monkeypatch.setattr(blocks._BlockKeys, "update", lambda self, keys, values, *_, **__: (keys, values))
    with pytest.raises(InputError, match="SDARForCausalLM recorded 0 of 2 layers; pass keys and values through"):
        policy.finish(policy.start([INSIDE]), keys(1))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_implementations_of_attention_give_the_same_draws(implementation: str) -> None:
    expected, model = family_policy("sdar", 6, 6, 2, 3), MODELS["sdar"]()
    model.set_attn_implementation(implementation)
    policy = make(Checkpoint.loaded(model, tiny_tokenizer(MASKED_ALPHABET)), 6, 6, 2, 3)
    draws, others = (each.finish(each.start(PROBLEMS) * 4, keys(16)) for each in (policy, expected))
    for draw, other in zip(draws, others, strict=True):
        assert draw.state.tokens == other.state.tokens
        assert draw.logp == pytest.approx(other.logp, abs=1e-4)  # eager attention has its softmax in float32


def test_an_implementation_without_masks_is_refused() -> None:
    model = MODELS["sdar"]()
    model.config._attn_implementation = "flash_attention_2"
    policy = make(Checkpoint.loaded(model, tiny_tokenizer(MASKED_ALPHABET)), 4, 4, 2, 2)
    with pytest.raises(InputError, match="has the attention 'flash_attention_2', which takes no block-causal mask"):
        policy.finish(policy.start([INSIDE]), keys(1))


@pytest.mark.filterwarnings("ignore:block_length is 4")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_folder_runs_from_the_command_line(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    MODELS[family]().float().save_pretrained(tmp_path)
    tiny_tokenizer(MASKED_ALPHABET).save_pretrained(tmp_path)
    numbers = ["--gen-length", "8", "--block-size", "4", "--block-length", "4", "--candidates", "3", "--seed", "1"]
    words = ["sample", "--model", str(tmp_path), "--prompt", "abbab", "--reward", "likelihood", *numbers]
    assert main(words) == 0
    assert set(capsys.readouterr().out.splitlines()[0]) <= set("ab")
