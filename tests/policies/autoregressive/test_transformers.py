"""The transformers policy: its laws, that it computes nothing twice, and that it ends where it should."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ets.kernel import energy_guided
from ets.policies.autoregressive import cache as kv_cache
from ets.policies.autoregressive import truncation
from ets.policies.autoregressive.cache import Prefix, RowCache
from ets.policies.autoregressive.reader import CausalReader, reader_of
from ets.policies.autoregressive.transformers import TransformersPolicy
from ets.policies.checkpoint import Checkpoint
from ets.policies.settings import Horizon, Sampling
from ets.policies.token_draws import pick_tokens
from ets.rewards import per_text
from ets.runner import run
from ets.testing import check_policy, frequencies, optimal_law, total_variation
from ets.types import InputError, Problem
from tests.conftest import ALPHABET, causal_oracle, random_qwen3, tiny_tokenizer
from tests.hooks import what_is_read

PROBLEMS = [Problem("p", "abc"), Problem("q", (1, 3, 3, 2, 1)), Problem("r", "b")]
DRAWS = 10_000
"""Per law test; faults are seen with 2,000."""
LEVEL = 1e-4


def counts_of_b(text: str) -> float:
    return 0.5 * text.count("b") - 0.25 * len(text)


@pytest.fixture
def _sharing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefixes are shared, however short they are."""
    monkeypatch.setitem(kv_cache.SAVED, "cpu", 0)


def test_laws_hold_with_stop_strings(make_tiny: Any) -> None:
    stopping = [dataclasses.replace(problem, stop=("ab", "c")) for problem in PROBLEMS]
    policy = make_tiny(block_size=1)
    check_policy(policy, causal_oracle(policy), stopping, draws=DRAWS, level=LEVEL)


def test_laws_hold_with_stop_strings_that_do_not_count_while_the_model_thinks(make_tiny: Any) -> None:
    """Tags of one letter, of which the prompt "cba" ends with the opening one."""
    problems = [Problem("q", "abb", stop=("bc", "cb", "ac")), Problem("r", "cba", stop=("c",))]
    thinking = [dataclasses.replace(problem, thinking=("a", "b")) for problem in problems]
    policy = make_tiny(block_size=1)
    check_policy(policy, causal_oracle(policy), thinking, draws=DRAWS, level=LEVEL)


@pytest.mark.usefixtures("_sharing")
def test_laws_hold_where_prefixes_are_shared(make_tiny: Any) -> None:
    policy = make_tiny(Sampling(temperature=0.8))
    check_policy(policy, causal_oracle(policy, 0.8), PROBLEMS, draws=DRAWS, level=LEVEL)


@pytest.mark.usefixtures("_sharing")
@pytest.mark.parametrize("fault", ["mask", "groups"])
def test_a_prefix_read_wrongly_turns_the_laws_red(make_tiny: Any, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Its padding unmasked, or one row's taken for another's."""

    class Faulty(Prefix):
        def __init__(self, cache: RowCache, rows: Sequence[int]) -> None:
            super().__init__(cache, rows)
            if fault == "mask":
                self.mask = None
            else:
                self.groups = self.groups.flip(0)

    monkeypatch.setattr(kv_cache, "Prefix", Faulty)
    policy = make_tiny()
    with pytest.raises(AssertionError):
        check_policy(policy, causal_oracle(policy), PROBLEMS, draws=2_000, level=LEVEL)


def test_unmasked_padding_turns_the_laws_red(make_tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RowCache, "mask", lambda *_: None)
    monkeypatch.setattr(RowCache, "token_mask", lambda *_: None)
    policy = make_tiny()
    with pytest.raises(AssertionError):
        check_policy(policy, causal_oracle(policy), PROBLEMS, draws=2_000, level=LEVEL)


@pytest.mark.parametrize("sampling", [Sampling(top_k=2), Sampling(top_p=0.6), Sampling(0.6, top_k=3, top_p=0.7)])
def test_truncated_laws_are_renormalised(make_tiny: Any, sampling: Sampling) -> None:
    """The temperature first, then top-k, then top-p of what is left."""
    policy = make_tiny(sampling)
    plain = causal_oracle(policy, sampling.temperature)

    def next_token(problem: Problem, tokens: tuple[int, ...]) -> np.ndarray:
        p = plain.next_token(problem, tokens)
        kept = np.argsort(-p)[: sampling.top_k]
        if sampling.top_p:  # of what top-k left, renormalised
            kept = kept[: int(np.searchsorted(np.cumsum(p[kept]) / p[kept].sum(), sampling.top_p)) + 1]
        q = np.zeros_like(p)
        q[kept] = p[kept] / p[kept].sum()
        return q

    oracle = dataclasses.replace(plain, next_token=next_token)
    check_policy(policy, oracle, PROBLEMS, draws=DRAWS, level=LEVEL)


def test_uniforms_keep_their_53_bits(make_tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, seen = make_tiny(), []

    def spy(probabilities: torch.Tensor, uniforms: torch.Tensor) -> Any:
        seen.append((probabilities.dtype, uniforms.dtype))
        return pick_tokens(probabilities, uniforms)

    monkeypatch.setattr(truncation, "pick_tokens", spy)
    policy.finish(policy.start(PROBLEMS), np.arange(3, dtype=np.uint64))
    assert set(seen) == {(torch.float64, torch.float64)}


def test_temperature_zero_takes_the_most_probable_token(make_tiny: Any) -> None:
    policy = make_tiny(Sampling(temperature=0))
    oracle = causal_oracle(policy)
    for problem, draw in zip(
        PROBLEMS, policy.finish(policy.start(PROBLEMS), np.arange(3, dtype=np.uint64)), strict=True
    ):
        tokens: tuple[int, ...] = ()
        while len(tokens) < 4 and 0 not in tokens:
            tokens = (*tokens, int(oracle.next_token(problem, tokens).argmax()))
        assert draw.state.tokens == tokens
        assert draw.logp == 0.0


def test_ets_on_a_tiny_network_approaches_the_optimal_law(make_tiny: Any) -> None:
    """4,000 draws have a noise floor of about 0.02 here; M = 1 is the reference law."""
    policy = make_tiny(block_size=1, max_length=2)
    reference = causal_oracle(policy).finish_law(PROBLEMS[0], ())
    optimal = optimal_law(reference, lambda tokens: counts_of_b("".join(ALPHABET[t] for t in tokens if t)), lam=0.5)
    distances = []
    for candidates in (1, 4, 12):
        step = energy_guided(per_text(lambda _, text: counts_of_b(text)), candidates=candidates, rollouts=1, lam=0.5)
        chains = run(policy, step, PROBLEMS[:1], width=4000, seed=0, samples=4_000)
        distances.append(total_variation(frequencies(chain.state.tokens for chain in chains), optimal))
    assert distances[0] > 2 * distances[1] > 3 * distances[2]
    assert distances[2] < 0.04


def never_ending(prompt_length: int) -> tuple[TransformersPolicy, Problem]:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<never drawn>"])
    tokenizer.eos_token = "<never drawn>"
    model = random_qwen3(len(ALPHABET), end=None)
    policy = TransformersPolicy(Checkpoint.loaded(model, tokenizer), Sampling(), Horizon(32, 128))
    prompt = np.random.default_rng(0).integers(0, len(ALPHABET), prompt_length)
    return policy, Problem("p", tuple(prompt.tolist()))


@pytest.mark.parametrize("length", [200, 1000])
def test_nothing_is_computed_twice(length: int) -> None:
    """Positions that the model really saw, for M 8, K 3, block 32, length 128: at most 1.02 times the minimum."""
    policy, problem = never_ending(length)
    reader_of(policy.checkpoint.model, "tiny", problem.prompt)  # tests the model once
    step = energy_guided(per_text(lambda _, text: text.count("a")), candidates=8, rollouts=3, lam=1.0)
    with what_is_read(policy.checkpoint.model) as shapes:
        (chain,) = run(policy, step, [problem], width=1, seed=0)
    seen = [rows * columns for rows, columns in shapes]
    minimum = length + sum(8 * 32 + 8 * 3 * (128 - 32 * (i + 1)) for i in range(4))
    assert sum(seen) <= 1.02 * minimum
    assert sum(seen) == policy.ledger.positions == chain.cost.positions
    assert len(seen) == policy.ledger.forwards
    assert len(chain.state.tokens) == 128
    assert chain.cost.prompt == length


def test_prompts_of_several_problems_are_read_once_and_unpadded(make_tiny: Any) -> None:
    policy = make_tiny()
    step = energy_guided(per_text(lambda _, text: text.count("a")), candidates=4, rollouts=2, lam=1.0)
    list(run(policy, step, PROBLEMS, width=3, seed=0, samples=3))
    assert policy.ledger.prompt == 3 + 5 + 1


def test_memory_limit_splits_rows_without_changing_them(make_tiny: Any) -> None:
    step = energy_guided(per_text(lambda _, text: text.count("a")), candidates=4, rollouts=2, lam=1.0)
    whole, split = make_tiny(), make_tiny(memory_gib=1e-5)
    chains, others = (list(run(p, step, PROBLEMS, width=3, seed=0, samples=4)) for p in (whole, split))
    assert split.ledger.forwards > whole.ledger.forwards
    assert split.ledger.positions == whole.ledger.positions
    for chain, other in zip(chains, others, strict=True):
        assert chain.state.tokens == other.state.tokens


def test_memory_limits_count_logits(make_tiny: Any) -> None:
    """A row of a large vocabulary holds more bytes in its logits than in its cache."""
    policy = make_tiny()
    policy.finish(policy.start(PROBLEMS[:1]), np.arange(1, dtype=np.uint64))
    config = policy.checkpoint.config
    assert policy._reader.bytes_of(3) - policy._reader.bytes_of(0) == 3 * policy._reader.bytes_of_a_row[0]
    assert policy._reader.bytes_of(0) == 2 * config.vocab_size * policy.checkpoint.model.dtype.itemsize


def test_running_out_of_memory_halves_the_rows_and_says_so_once(
    make_tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, keys = make_tiny(), np.arange(40, dtype=np.uint64)
    expected = policy.finish(policy.start(PROBLEMS[:1]) * 40, keys)
    read = CausalReader.read

    def small_card(reader: CausalReader, cache: Any, tokens: Any, last: int = 1) -> torch.Tensor:
        if len(tokens) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return read(reader, cache, tokens, last)

    monkeypatch.setattr(CausalReader, "read", small_card)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        drawn = policy.finish(policy.start(PROBLEMS[:1]) * 40, keys)
    assert [str(warning.message)[:13] for warning in caught] == ["out of memory"]
    assert [draw.state.tokens for draw in drawn] == [draw.state.tokens for draw in expected]


def test_a_stop_string_ends_a_row_across_token_and_candidate_borders(make_tiny: Any) -> None:
    """The stop string lies across the border of the first block of one token, and is cut off the text."""
    policy = make_tiny(block_size=1)
    problem = Problem("s", "ab", stop=("bc",))
    start = policy.start([problem])[0]
    candidates = policy.extend([start] * 400, np.arange(400, dtype=np.uint64))
    begun = [draw.state for draw in candidates if draw.state.text == "b"]
    finished = policy.finish(begun, np.arange(len(begun), dtype=np.uint64))
    ended = [draw for draw in finished if draw.state.tokens[:2] == (2, 3)]
    assert ended
    for draw in ended:
        assert draw.state.tokens == (2, 3)
        assert draw.state.text == ""
        assert draw.state.done
    assert all("bc" not in draw.text.text for draw in finished)


def test_ended_rows_keep_no_cache(make_tiny: Any) -> None:
    policy = make_tiny()
    draws = policy.finish(policy.start(PROBLEMS), np.arange(3, dtype=np.uint64))
    assert all(draw.state.memory is None for draw in draws)


def test_only_the_chosen_rows_of_a_cache_are_kept(make_tiny: Any) -> None:
    """After a guide step one candidate goes on; the cache of all M is let go when it does."""
    policy = make_tiny(block_size=1)
    drawn = policy.extend(policy.start(PROBLEMS[:1]) * 50, np.arange(50, dtype=np.uint64))
    chosen = next(draw.state for draw in drawn if not draw.state.done)
    before = chosen.memory.cache
    policy.extend([chosen] * 4, np.arange(4, dtype=np.uint64))
    assert len(before.lengths) > 1
    assert len(chosen.memory.cache.lengths) == 1


def test_logits_that_are_no_numbers_are_refused_by_name() -> None:
    model = random_qwen3(len(ALPHABET), end=0)
    with torch.no_grad():
        model.lm_head.weight[2, 0] = torch.nan
    policy = TransformersPolicy(Checkpoint.loaded(model, tiny_tokenizer()), Sampling(), Horizon(1, 3))
    with pytest.raises(InputError, match="NaN or infinite logits for problem 'p'"):
        policy.finish(policy.start(PROBLEMS[:1]), np.arange(1, dtype=np.uint64))


def test_states_that_have_ended_or_are_foreign_are_refused(make_tiny: Any) -> None:
    policy = make_tiny()
    done = [draw.state for draw in policy.finish(policy.start(PROBLEMS), np.arange(3, dtype=np.uint64))]
    with pytest.raises(InputError, match="has ended"):
        policy.extend(done, np.arange(3, dtype=np.uint64))


def test_layers_that_cannot_be_forked_are_refused(tiny_checkpoint: Any) -> None:
    model = random_qwen3(len(ALPHABET), end=0)
    model.config.layer_types = ["full_attention", "no_such_attention"]
    with pytest.raises(InputError, match="layers of the type no_such_attention cannot be forked"):
        TransformersPolicy(Checkpoint.loaded(model, tiny_tokenizer()), Sampling(), Horizon(1, 2))


def certainty_afresh(policy: TransformersPolicy, problem: Problem, tokens: tuple[int, ...]) -> tuple[int, float, float]:
    """By a whole forward over each prefix, of the untempered law."""
    oracle, sums = causal_oracle(policy), np.zeros(2)
    for n in range(len(tokens)):
        p = oracle.next_token(problem, tokens[:n])
        sums += -(p * np.log(p)).sum(), -np.log(len(p) * p).mean()
    return len(tokens), *sums


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(0.6, top_k=3, top_p=0.9)])
def test_certainty_adds_up_over_guide_steps_and_rollouts(make_tiny: Any, sampling: Sampling) -> None:
    """It is of the model's own law, whatever is sampled; rows end at different lengths."""
    policy = make_tiny(sampling, max_length=6, certainty=True)
    problems = [*PROBLEMS, dataclasses.replace(PROBLEMS[0], id="s", stop=("ab",))] * 8
    states: list[Any] = policy.start(problems)
    texts = []
    for number, draw in enumerate((policy.extend, policy.extend, policy.finish)):
        drawn = draw(states, np.arange(len(states), dtype=np.uint64) + 100 * number)
        texts += [(each.state, each.text) for each in drawn]
        states = [each.state for each in drawn if not each.state.done]
    assert len({len(text.tokens) for _, text in texts}) > 4
    for state, text in texts:
        assert text.certainty == state.certainty
        expected = certainty_afresh(policy, state.problem, text.tokens)
        assert dataclasses.astuple(text.certainty) == pytest.approx(expected, abs=1e-5)


def test_certainty_is_not_known_of_what_was_read_or_searched(make_tiny: Any) -> None:
    policy = make_tiny(certainty=True)
    starts = policy.start(PROBLEMS[:1])
    (drawn,) = policy.extend(starts, np.zeros(1, np.uint64))
    (followed,) = policy.follow(starts, [drawn.state])
    (rollout,) = policy.finish([followed.state], np.zeros(1, np.uint64))
    assert drawn.text.certainty is not None and rollout.text.certainty is None
    assert policy.beam(starts, 2)[0].text.certainty is None
    assert policy.greedy(starts, np.zeros(1, np.uint64))[0].text.certainty is not None


@pytest.mark.parametrize("look_every", [2, 3, 100])
def test_looking_less_often_changes_no_draw_and_charges_all_that_is_read(make_tiny: Any, look_every: int) -> None:
    """Prompts of three lengths, of which one has a stop string; blocks of five tokens, then rollouts to the end."""
    problems = [*PROBLEMS, dataclasses.replace(PROBLEMS[0], id="s", stop=("ab",))] * 10
    policies = [make_tiny(block_size=5, max_length=9, certainty=True, look_every=n) for n in (None, look_every)]
    states, keys = [policy.start(problems) for policy in policies], np.arange(40, dtype=np.uint64)
    ended, positions = 0, [0, 0]
    for draw in ("extend", "finish"):
        often, seldom = ([*getattr(p, draw)(s, keys)] for p, s in zip(policies, states, strict=True))
        for one, other in zip(often, seldom, strict=True):
            assert one.state.tokens == other.state.tokens and one.state.done == other.state.done
            assert other.logp == pytest.approx(one.logp, abs=1e-5)
            assert dataclasses.astuple(other.text.certainty) == pytest.approx(
                dataclasses.astuple(one.text.certainty), abs=1e-5
            )
            ended += one.state.done and len(one.state.tokens) < 9
        room, begun = (5, 0) if draw == "extend" else (4, 5)
        for row in often:
            new = len(row.state.tokens) - begun
            positions[0] += new - row.state.done
            positions[1] += min(-(-new // look_every) * look_every, room) - row.state.done
        going = [n for n, row in enumerate(often) if not row.state.done]
        states, keys = [[rows[n].state for n in going] for rows in (often, seldom)], keys[going]
    assert ended > 10
    assert [policy.ledger.candidate + policy.ledger.rollout for policy in policies] == positions
    assert positions[1] > positions[0]


def test_what_the_model_reads_of_ended_rows_is_in_the_ledger(make_tiny: Any) -> None:
    policy = make_tiny(max_length=9, look_every=4)
    with what_is_read(policy.checkpoint.model) as shapes:
        policy.finish(policy.start(PROBLEMS[:1]) * 30, np.arange(30, dtype=np.uint64))
    assert sum(rows * columns for rows, columns in shapes) == policy.ledger.positions
    assert policy.ledger.rollout > policy.ledger.generated - 30


WAITING = {getattr(torch.ops.aten, name).default for name in ("is_nonzero", "item", "_local_scalar_dense", "nonzero")}
BRINGING = ("tolist", "numpy", "cpu", "item", "__bool__")


class _Waits(TorchDispatchMode):
    """Counts what makes the host wait for a device: numbers and positions that are asked for.

    What brings tensors to the host dispatches nothing where they are there already, so its calls are counted too.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.count = 0
        for name in BRINGING:
            monkeypatch.setattr(torch.Tensor, name, self._counted(getattr(torch.Tensor, name)))

    def _counted(self, bring: Any) -> Any:
        def call(*of: Any, **given: Any) -> Any:
            self.count += 1
            return bring(*of, **given)

        return call

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function in WAITING
        return function(*args, **(kwargs or {}))


@pytest.fixture
def waits(make_tiny: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`waits(length, look_every)`: how often the host waits while rows of different prompts are drawn to a length."""

    def count(length: int, look_every: int) -> int:
        policy = make_tiny(max_length=length, end_ids=[], look_every=look_every)
        states = [state for state in policy.start(PROBLEMS) for _ in range(2)]
        with monkeypatch.context() as patched, _Waits(patched) as waiting:
            policy.finish(states, np.arange(len(states), dtype=np.uint64))
        return waiting.count

    return count


@pytest.mark.parametrize("saved", [0, 10**6])
def test_between_two_looks_no_token_is_waited_for(waits: Any, monkeypatch: pytest.MonkeyPatch, saved: int) -> None:
    """Rows of different lengths, whether they share their prompts or are padded; each look takes both its numbers."""
    monkeypatch.setitem(kv_cache.SAVED, "cpu", saved)
    assert waits(8, 1000) == waits(64, 1000)
    assert waits(64, 1) - waits(8, 1) >= 2 * (64 - 8)
