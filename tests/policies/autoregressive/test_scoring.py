"""A proposal on tiny networks: what is followed and scored, that nothing is read twice, and the law of the pair.

Each law test has level 1e-4 and a fixed seed.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest

from ets.importance import ImportanceSampling
from ets.kernel import energy_guided
from ets.policies import token_draws as drawing
from ets.policies.autoregressive import scoring as reading
from ets.policies.autoregressive import transformers as transformers_policy
from ets.policies.autoregressive.transformers import TransformersPolicy
from ets.policies.autoregressive.truncation import probabilities
from ets.policies.checkpoint import Checkpoint
from ets.policies.settings import Horizon, Sampling
from ets.randomness import derive
from ets.rewards import per_text
from ets.runner import run
from ets.testing import check_law, optimal_law, total_variation
from ets.types import Cost, InputError, Problem
from tests.conftest import ALPHABET, causal_oracle, random_qwen3, tiny_tokenizer
from tests.laws.kernel import kernel_law

PROBLEM = Problem("p", "abc")
PROBLEMS = [PROBLEM, Problem("q", (1, 3, 3, 2, 1)), Problem("r", "b")]
LAM, LEVEL = 0.5, 1e-4


@pytest.fixture(scope="session")
def small_checkpoint() -> Checkpoint:
    """Other weights, another width and depth, the same tokens."""
    return Checkpoint.loaded(random_qwen3(len(ALPHABET), end=0, width=8, layers=1, seed=3), tiny_tokenizer())


@pytest.fixture
def make_pair(make_tiny: Any, small_checkpoint: Checkpoint) -> Any:
    """`make_pair(reference=Sampling(…), proposal=Sampling(…), block_size, max_length)`."""

    def make(
        reference: Sampling | None = None, proposal: Sampling | None = None, block_size: int = 2, max_length: int = 5
    ) -> ImportanceSampling:
        horizon = Horizon(block_size, max_length)
        small = TransformersPolicy(small_checkpoint, proposal or Sampling(), horizon)
        return ImportanceSampling(make_tiny(reference, block_size, max_length), small)

    return make


def keys(count: int, salt: int = 0) -> Any:
    return derive(np.arange(count, dtype=np.uint64), salt)


def path_logp(oracle: Any, problem: Problem, before: tuple[int, ...], after: tuple[int, ...]) -> float:
    """By one full forward a token, nothing cached."""
    with np.errstate(divide="ignore"):
        return sum(
            float(np.log(oracle.next_token(problem, after[:n])[after[n]])) for n in range(len(before), len(after))
        )


def quietly(pair: ImportanceSampling, states: Any, row_keys: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pair.finish(states, row_keys)


@pytest.mark.parametrize("stop", [(), ("ab", "cc")])
@pytest.mark.parametrize("columns", [1, 16])
def test_ratios_cover_exactly_the_tokens_that_the_proposal_drew(
    make_pair: Any, stop: Any, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of different lengths, end tokens and stop strings across the candidate's border: no padding in a sum."""
    monkeypatch.setattr(reading, "COLUMNS", columns)
    pair = make_pair(Sampling(0.7), Sampling(1.3), max_length=9)
    mine, its = causal_oracle(pair.reference, 0.7), causal_oracle(pair.proposal, 1.3)
    problems = [dataclasses.replace(problem, stop=stop) for problem in PROBLEMS]
    drawn = pair.extend([state for state in pair.start(problems) for _ in range(6)], keys(18))
    going = [draw for draw in drawn if not draw.state.done for _ in range(3)]
    rollouts = quietly(pair, [draw.state for draw in going], keys(len(going), 1))
    assert len({len(rollout.state.tokens) for rollout in rollouts}) > 3
    for before, after in zip(going, rollouts, strict=True):
        problem, ends = before.state.drawn.problem, (before.state.tokens, after.state.tokens)
        of_reference, of_proposal = (path_logp(oracle, problem, *ends) for oracle in (mine, its))
        assert after.text.log_ratio == pytest.approx(of_reference - of_proposal, abs=1e-9)
        assert after.text.logp == pytest.approx(path_logp(mine, problem, (), ends[1]), abs=1e-9)
        assert after.logp == pytest.approx(of_proposal, abs=1e-9)


def test_the_next_guide_step_goes_on_from_what_the_proposal_has_read(make_pair: Any) -> None:
    """A second extension from a followed state draws and weighs as a pair that read everything at once."""
    pair = make_pair(max_length=9)
    first = next(d for d in pair.extend(pair.start([PROBLEM]) * 8, keys(8)) if not d.state.done)
    second = next(d for d in pair.extend([first.state] * 8, keys(8, 1)) if not d.state.done)
    fresh = make_pair(max_length=9)
    start = fresh.start([PROBLEM])[0]
    followed = fresh.proposal.follow([start.proposal], [second.state.drawn])[0].state
    again = fresh.proposal.finish([followed], keys(1, 2))[0]
    rollout = quietly(pair, [second.state], keys(1, 2))[0]
    assert rollout.state.tokens == again.state.tokens
    assert rollout.logp == pytest.approx(again.logp, abs=1e-9)


def test_nothing_is_read_twice(make_pair: Any) -> None:
    """The prompt once a model, candidates once by the proposal, rollouts but their last token by the reference."""
    pair = make_pair(block_size=2, max_length=5)
    start = pair.start([PROBLEM])[0]
    drawn = pair.extend([start] * 16, keys(16))
    distinct = {draw.state.tokens for draw in drawn if not draw.state.done}
    assert 1 < len(distinct) < len([draw for draw in drawn if not draw.state.done])  # equal ones are read once
    assert pair.proposal.ledger == Cost(prompt=3, scored=2 * len(distinct), forwards=2)
    before = pair.reference.ledger
    going = [draw.state for draw in drawn if not draw.state.done]
    rollouts = quietly(pair, going, keys(len(going)))
    scored = (pair.reference.ledger - before).scored
    paths = {(rollout.state.tokens[:2], rollout.state.tokens[2:]) for rollout in rollouts}
    longest = max(len(new) for _, new in paths) - 1
    assert 0 < scored <= longest * sum(len(new) > 1 for _, new in paths)  # the shorter ones' padding is charged
    assert Cost.total(draw.cost for draw in (*drawn, *rollouts)).positions == pair.ledger.positions


@pytest.mark.parametrize("width", [2, 4])
def test_the_chains_of_a_problem_share_its_prompt_in_both_models(make_pair: Any, width: int) -> None:
    pair = make_pair()
    step = energy_guided(per_text(lambda _, text: 0.0), candidates=3, rollouts=2, lam=LAM)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(list(run(pair, step, [PROBLEM], width=width, seed=0, samples=4))) == 4
    assert pair.reference.ledger.prompt == pair.proposal.ledger.prompt == len(PROBLEM.prompt)


def test_the_passes_of_both_models_are_charged(make_pair: Any) -> None:
    pair, reward = make_pair(), per_text(lambda _, text: text.count("a"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        step = energy_guided(reward, candidates=3, rollouts=2, lam=LAM)
        chains = list(run(pair, step, PROBLEMS, width=2, seed=0))
    assert sum(chain.cost.forwards for chain in chains) == pytest.approx(pair.ledger.forwards)
    assert pair.ledger.forwards > max(pair.reference.ledger.forwards, pair.proposal.ledger.forwards) > 0


@pytest.mark.parametrize("chunk", ["rows", "columns", "probabilities"])
def test_chunks_change_no_ratio(make_pair: Any, chunk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def ratios() -> list[float]:
        pair = make_pair(max_length=9)
        if chunk == "rows" and small:
            pair.reference._memory._bytes = pair.proposal._memory._bytes = 1.0
        drawn = pair.extend(pair.start(PROBLEMS) * 4, keys(12))
        states = [draw.state for draw in drawn if not draw.state.done]
        return [rollout.text.log_ratio for rollout in quietly(pair, states, keys(len(states), 1))]

    small = False
    expected, small = ratios(), True
    if chunk == "columns":
        monkeypatch.setattr(reading, "LOGIT_BYTES", 1)
    if chunk == "probabilities":
        monkeypatch.setitem(drawing.TOGETHER, "cpu", 1)
    np.testing.assert_allclose(ratios(), expected, atol=1e-9)


def test_a_token_that_the_reference_cannot_draw_has_weight_zero(make_pair: Any) -> None:
    pair = make_pair(Sampling(top_k=2), Sampling(), max_length=4)
    start = pair.start([PROBLEM])[0]
    going = [d.state for d in pair.extend([start] * 8, keys(8)) if not d.state.done]
    ratios = np.array([r.text.log_ratio for r in quietly(pair, going * 20, keys(20 * len(going), 1))])
    assert np.isneginf(ratios).any() and np.isfinite(ratios).any() and not np.isnan(ratios).any()
    assert np.exp(ratios).mean() == pytest.approx(1, abs=0.5)


@pytest.mark.parametrize(
    "samplings", [(Sampling(0.8), Sampling(0.8)), (Sampling(), Sampling(1.6))], ids=["weights", "temperature"]
)
def test_weights_are_proper(make_pair: Any, samplings: Any) -> None:
    """Law 2 with a proposal, E_q[w · 1{x_0}] = p_ref(x_0 | x_s): each w is p_ref / q, and the draws follow q."""
    pair = make_pair(*samplings, max_length=4)
    start, laws = pair.start([PROBLEM])[0], zip((pair.reference, pair.proposal), samplings, strict=True)
    state = next(d.state for d in pair.extend([start] * 8, keys(8)) if not d.state.done)
    rollouts = quietly(pair, [state] * 6_000, keys(6_000, 1))
    p, q = (causal_oracle(policy, s.temperature).finish_law(PROBLEM, state.tokens) for policy, s in laws)
    tokens, weights = [r.state.tokens for r in rollouts], np.exp([r.text.log_ratio for r in rollouts])
    check_law(tokens, q, level=LEVEL)
    np.testing.assert_allclose(weights, [p[x] / q[x] for x in tokens], rtol=1e-9)


def liking(text: str) -> float:
    return 0.4 * text.count("b") - 0.25 * len(text)


def sampled(pair: ImportanceSampling, candidates: int, rollouts: int, draws: int) -> list[tuple[int, ...]]:
    reward = per_text(lambda _, text: liking(text))
    step = energy_guided(reward, candidates=candidates, rollouts=rollouts, lam=LAM)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [c.state.tokens for c in run(pair, step, [PROBLEM], width=2_000, seed=0, samples=draws)]


def test_the_kernel_follows_its_exact_law_on_tiny_networks(make_pair: Any) -> None:
    """At finite M and K, and (in that law) towards p*."""
    pair = make_pair(Sampling(0.9), Sampling(1.2), block_size=1, max_length=3)
    oracles = causal_oracle(pair.reference, 0.9), causal_oracle(pair.proposal, 1.2)

    def reward(tokens: tuple[int, ...]) -> float:
        return liking("".join(ALPHABET[token] for token in tokens if token))

    def law(m: int) -> Any:
        return kernel_law(oracles[0], PROBLEM, reward, lam=LAM, candidates=m, rollouts=2, proposal=oracles[1])

    check_law(sampled(pair, 3, 2, 3_000), law(3), level=LEVEL)
    optimal = optimal_law(oracles[0].finish_law(PROBLEM, ()), reward, LAM)
    distances = [total_variation(law(m), optimal) for m in (3, 32, 256)]
    assert distances[0] > 4 * distances[1] > 16 * distances[2]


def test_scores_at_temperature_1_turn_that_law_red(make_pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = make_pair(Sampling(0.3), Sampling(1.2), block_size=1, max_length=3)
    oracles = causal_oracle(pair.reference, 0.3), causal_oracle(pair.proposal, 1.2)

    def reward(tokens: tuple[int, ...]) -> float:
        return liking("".join(ALPHABET[token] for token in tokens if token))

    law = kernel_law(oracles[0], PROBLEM, reward, lam=LAM, candidates=4, rollouts=2, proposal=oracles[1])
    true, at_1 = reading.score_paths, partial(probabilities, Sampling(1.0))
    monkeypatch.setattr(transformers_policy, "score_paths", lambda forward, law, paths: true(forward, at_1, paths))
    with pytest.raises(AssertionError, match="exact law"):
        check_law(sampled(pair, 4, 2, 3_000), law, level=LEVEL)


def test_padding_in_a_sum_turns_ratios_red(make_pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutation of the first test here: every row's columns are counted, padding as token 0."""

    def padded(scores: Any, paths: Any, rows: Any, logits: Any, at: int, law: Any) -> None:
        for r, n in enumerate(rows):
            for column in range(logits.shape[1]):
                tokens = (*paths[n].tokens, *[0] * 99)
                scores[n].logp += float(law(logits[r, column])[tokens[at + column]].log())

    monkeypatch.setattr(reading, "_add", padded)
    with pytest.raises(AssertionError):
        test_ratios_cover_exactly_the_tokens_that_the_proposal_drew(make_pair, (), 16, monkeypatch)


def test_proposals_that_do_not_fit_are_refused_before_anything_is_drawn(make_tiny: Any) -> None:
    def proposal(alphabet: tuple[str, ...] = ALPHABET, max_length: int = 4, **options: Any) -> TransformersPolicy:
        checkpoint = Checkpoint.loaded(random_qwen3(len(alphabet), end=0), tiny_tokenizer(alphabet))
        return TransformersPolicy(checkpoint, options.pop("sampling", Sampling()), Horizon(2, max_length), **options)

    cases = {
        "token 'b' is 2 in the model's vocabulary and 3": proposal(("<end>", "a", "c", "b")),
        "token 'd' is missing in the model's": proposal(("<end>", "a", "b", "c", "d")),
        "ends at the tokens \\[0\\] and the proposal at \\[0, 3\\]": proposal(end_ids=(0, 3)),
        "max_length is 4 for the model and 5": proposal(max_length=5),
        "at temperature 0": proposal(sampling=Sampling(0.0)),
    }
    for message, policy in cases.items():
        with pytest.raises(InputError, match=message):
            ImportanceSampling(make_tiny(), policy)


def test_a_proposal_that_read_another_prompt_is_refused(make_pair: Any) -> None:
    pair = make_pair()
    mine, its = pair.start([PROBLEM])[0], pair.start(PROBLEMS[2:])[0]
    drawn = pair.reference.extend([mine.drawn], keys(1))[0]
    with pytest.raises(InputError, match="do not go on from the model's"):
        pair.proposal.follow([its.proposal], [drawn.state])


def test_a_token_beyond_the_models_own_has_weight_zero_and_one_beyond_the_proposals_is_refused(make_tiny: Any) -> None:
    """Heads of one family may be padded to different sizes: ids beyond the tokenizer have no text."""
    padded = Checkpoint.loaded(random_qwen3(len(ALPHABET) + 2, end=0, seed=3), tiny_tokenizer())
    wide, narrow = TransformersPolicy(padded, Sampling(), Horizon(2, 4)), make_tiny()
    pair = ImportanceSampling(narrow, wide)
    start = pair.start([PROBLEM])[0]
    state = next(d.state for d in pair.extend([start] * 8, keys(8)) if not d.state.done)
    rollouts = quietly(pair, [state] * 40, keys(40, 1))
    beyond = [max(r.state.tokens) >= len(ALPHABET) for r in rollouts]
    assert 0 < sum(beyond) < 40
    assert [r.text.log_ratio == -math.inf for r in rollouts] == beyond
    other = ImportanceSampling(wide, narrow)
    drawn = wide.extend([other.start([PROBLEM])[0].drawn] * 40, keys(40))  # type: ignore[attr-defined]
    unknown = next(d.state for d in drawn if max(d.state.tokens) >= len(ALPHABET) and not d.state.done)
    with pytest.raises(InputError, match="is beyond the 4 that the proposal knows"):
        narrow.follow([narrow.start([PROBLEM])[0]], [unknown])
