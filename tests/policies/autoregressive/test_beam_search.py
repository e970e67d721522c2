"""transformers' beam search through our policy: against its definition and against exhaustive search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from ets.baselines import beam
from ets.policies.autoregressive.transformers import TransformersPolicy
from ets.policies.checkpoint import Checkpoint
from ets.policies.settings import Horizon, Sampling
from ets.runner import run
from ets.types import Draw, InputError, Problem
from tests.conftest import ALPHABET, best_of_beams, causal_oracle, random_qwen3, tiny_tokenizer
from tests.hooks import what_is_read

LENGTH, COUNT = 5, 10
STOP = ("ab", "cc")


def problems(stop: tuple[str, ...] = ()) -> list[Problem]:
    """Prompts of one to six tokens."""
    rng = np.random.default_rng(0)
    prompts = [tuple(rng.integers(0, len(ALPHABET), n % 6 + 1).tolist()) for n in range(COUNT)]
    return [Problem(str(n), prompt, stop) for n, prompt in enumerate(prompts)]


@pytest.fixture(scope="module")
def rarely_ending() -> Checkpoint:
    """An end token that is unlikely enough for the most probable texts to differ in length."""
    model = random_qwen3(len(ALPHABET), end=0, spread=0.5, seed=5)
    with torch.no_grad():
        model.lm_head.weight[0] *= 0.3
    return Checkpoint.loaded(model, tiny_tokenizer())


@pytest.fixture(scope="module")
def oracle(rarely_ending: Checkpoint) -> Any:
    return causal_oracle(make(rarely_ending))


def most_probable(law: Any) -> tuple[int, ...]:
    return max(law, key=lambda outcome: law[outcome])


def make(checkpoint: Checkpoint, sampling: Sampling | None = None, **options: Any) -> TransformersPolicy:
    return TransformersPolicy(checkpoint, sampling or Sampling(), Horizon(2, LENGTH), **options)


def search(policy: TransformersPolicy, asked: Sequence[Problem], beams: int) -> list[Draw]:
    return policy.beam(policy.start(asked), beams)


@pytest.mark.parametrize("stop", [(), STOP])
@pytest.mark.parametrize("beams", [1, 2, 3, 4])
def test_a_few_beams_find_what_the_definition_says(
    rarely_ending: Checkpoint, oracle: Any, beams: int, stop: tuple[str, ...]
) -> None:
    """Of problems of different lengths in one batch; the log-probability is untempered whatever is sampled."""
    policy, asked = make(rarely_ending, Sampling(0.3, top_k=2)), problems(stop)
    for problem, draw in zip(asked, search(policy, asked, beams), strict=True):
        tokens = best_of_beams(oracle, problem, beams)
        assert draw.state.tokens == draw.text.tokens == tokens and draw.state.done and draw.text.done
        assert draw.logp == draw.text.logp == pytest.approx(np.log(oracle.finish_law(problem, ())[tokens]), abs=1e-5)
        assert not any(string in draw.text.text for string in stop)


@pytest.mark.parametrize("stop", [(), STOP])
def test_a_beam_for_every_prefix_finds_the_most_probable_text(
    rarely_ending: Checkpoint, oracle: Any, stop: tuple[str, ...]
) -> None:
    policy, asked = make(rarely_ending), problems(stop)
    few = search(policy, asked, 1)
    lengths, improved = set(), 0
    for problem, draw, other in zip(asked, search(policy, asked, 4**4), few, strict=True):
        law = oracle.finish_law(problem, ())
        assert draw.state.tokens == most_probable(law)
        lengths.add(len(draw.state.tokens))
        improved += draw.logp > other.logp + 1e-6
    assert len(lengths) > 1 and improved  # so that neither the first token nor one beam decides


def test_every_position_that_the_model_reads_is_charged(make_tiny: Any) -> None:
    """Prompts once; then `beams` rows for each problem until the last search is over."""
    policy, asked = make_tiny(max_length=LENGTH), problems()
    with what_is_read(policy.checkpoint.model) as seen:
        chains = list(run(policy, beam(3), asked, width=COUNT, seed=0, samples=2))
    assert sum(rows * columns for rows, columns in seen) == policy.ledger.positions
    assert sum(chain.cost.positions for chain in chains) == policy.ledger.positions
    assert sum(chain.cost.generated for chain in chains) == policy.ledger.generated == policy.ledger.rollout
    assert len(seen) == policy.ledger.forwards == pytest.approx(sum(chain.cost.forwards for chain in chains))
    assert policy.ledger.prompt == sum(len(problem.prompt) for problem in asked)
    assert len(seen) <= 2 * (6 + LENGTH)  # two batches: prompts of six lengths, then one forward a token


def test_a_state_that_comes_twice_is_searched_once(rarely_ending: Checkpoint) -> None:
    policy = make(rarely_ending)
    first, second = policy.start(problems()[:2])
    draws = policy.beam([first, second, first], 3)
    assert draws[0].state is draws[2].state and draws[0].state is not draws[1].state
    assert draws[2].cost.positions == draws[2].cost.generated == 0 < draws[0].cost.generated
    assert sum(draw.cost.positions for draw in draws) == policy.ledger.positions


def test_it_goes_on_from_states_on_the_way(rarely_ending: Checkpoint, oracle: Any) -> None:
    """Of different lengths, in one call; a stop string may have begun before."""
    policy, asked = make(rarely_ending), problems(STOP)
    drawn = policy.extend(policy.start(asked), np.arange(COUNT, dtype=np.uint64))
    states = [draw.state for draw in drawn if not draw.state.done]
    mixed = [*states, *policy.start(asked[:3])]
    for state, draw in zip(mixed, policy.beam(mixed, 4**4), strict=True):
        law = oracle.finish_law(state.problem, state.tokens)
        best = most_probable(law)
        assert draw.state.tokens == best
        assert draw.logp == pytest.approx(np.log(law[best]), abs=1e-5)
        assert draw.text.logp == pytest.approx(state.logp + draw.logp)


def test_a_stop_string_that_began_in_the_prompt_is_none(rarely_ending: Checkpoint, oracle: Any) -> None:
    """transformers' own stop strings would end these at their first token."""
    found = {problem.id: best_of_beams(oracle, problem, 2) for problem in problems()}
    longer = [problem for problem in problems() if len(found[problem.id]) > 2]
    asked = [Problem(p.id, p.prompt, (ALPHABET[p.prompt[-1]] + ALPHABET[found[p.id][0]],)) for p in longer]
    drawn = search(make(rarely_ending), asked, 2)
    assert [draw.state.tokens for draw in drawn] == [best_of_beams(oracle, problem, 2) for problem in asked]
    assert sum(len(draw.state.tokens) > 2 for draw in drawn) > 1


def test_the_rules_of_a_checkpoints_generation_config_are_not_applied(rarely_ending: Checkpoint) -> None:
    model, asked = rarely_ending.model, problems()
    plain = [draw.state.tokens for draw in search(make(rarely_ending), asked, 3)]
    own = model.generation_config
    rules = GenerationConfig(
        repetition_penalty=9.0, suppress_tokens=[1], no_repeat_ngram_size=1, min_new_tokens=4, num_beams=7
    )
    try:
        model.generation_config = rules
        found = [draw.state.tokens for draw in search(make(rarely_ending), asked, 3)]
        assert model.generation_config is rules
    finally:
        model.generation_config = own
    assert found == plain


def test_several_end_tokens_all_end() -> None:
    tokenizer = tiny_tokenizer()
    model = random_qwen3(len(ALPHABET), end=0, spread=0.5, seed=5)
    model.config.eos_token_id = [0, 3]
    policy = make(Checkpoint.loaded(model, tokenizer))
    assert policy.endings.end_ids == {0, 3}
    found = search(policy, problems(), 2)
    assert {draw.state.tokens[-1] for draw in found} >= {0, 3}
    assert all(not {0, 3} & set(draw.state.tokens[:-1]) for draw in found)


def test_a_memory_limit_splits_the_problems_without_changing_them(rarely_ending: Checkpoint) -> None:
    whole, split = make(rarely_ending), make(rarely_ending, memory_gib=1e-5)
    found, others = (search(policy, problems(), 3) for policy in (whole, split))
    assert split.ledger.forwards > whole.ledger.forwards
    assert [draw.state.tokens for draw in found] == [draw.state.tokens for draw in others]


def test_logits_that_are_no_numbers_are_refused_by_name() -> None:
    model = random_qwen3(len(ALPHABET), end=0)
    with torch.no_grad():
        model.lm_head.weight[2, 0] = torch.nan
    with pytest.raises(InputError, match="NaN or infinite logits for problem '0'"):
        search(make(Checkpoint.loaded(model, tiny_tokenizer())), problems()[:1], 2)


def test_states_that_have_ended_are_refused(rarely_ending: Checkpoint) -> None:
    policy = make(rarely_ending)
    with pytest.raises(InputError, match="has ended"):
        policy.beam([search(policy, problems()[:1], 2)[0].state], 2)
