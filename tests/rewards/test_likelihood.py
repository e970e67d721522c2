"""The log-probability of a text as a reward, and its ratio to the log-probability under another model."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import ets
from ets.baselines import particle_filter
from ets.kernel import energy_guided
from ets.policies.checkpoint import Checkpoint
from ets.rewards import likelihood, likelihood_ratio
from ets.runner import run
from ets.step import RewardError, reads_prefixes
from ets.testing import TabularPolicy, check_law, judge_law
from ets.types import Chain, InputError, Problem, Text
from tests.conftest import ALPHABET, causal_oracle, random_llada, random_qwen3, tiny_tokenizer

PROBLEM = Problem("p", "a prompt")


@pytest.mark.parametrize("per_token", [False, True])
def test_it_is_the_log_probability_under_what_was_sampled_in_all_or_per_token(per_token: bool) -> None:
    policy = TabularPolicy(max_length=4, block_size=2, temperature=1.7, seed=1)
    start = policy.start([PROBLEM])[0]
    texts = [draw.text for draw in policy.finish([start] * 50, np.arange(50, dtype=np.uint64))]
    law = policy.oracle.finish_law(PROBLEM, ())
    rewards = likelihood(per_token=per_token)(PROBLEM, texts, Chain(PROBLEM, 0, 1, start))
    for text, reward in zip(texts, rewards, strict=True):
        assert reward == pytest.approx(np.log(law[text.tokens]) / (len(text.tokens) if per_token else 1))
    assert len({len(text.tokens) for text in texts}) > 2


def test_it_counts_what_came_before_the_guide_step() -> None:
    policy = TabularPolicy(max_length=4, block_size=2, seed=1)
    keys = np.arange(20, dtype=np.uint64)
    open_states = [d.state for d in policy.extend(policy.start([PROBLEM]) * 20, keys) if not d.state.done]
    texts = [draw.text for draw in policy.finish(open_states, keys[: len(open_states)])]
    law = policy.oracle.finish_law(PROBLEM, ())
    rewards = likelihood()(PROBLEM, texts, Chain(PROBLEM, 0, 1, open_states[0]))
    assert rewards == pytest.approx([np.log(law[text.tokens]) for text in texts])


OTHER = random_qwen3(len(ALPHABET), end=0, seed=5)


@pytest.fixture
def policy(tiny_checkpoint: Any) -> Any:
    return ets.TransformersPolicy(tiny_checkpoint, ets.Sampling(0.8), ets.Horizon(1, 3))


def log_law(model: Any, prompt: str, tokens: tuple[int, ...], temperature: float) -> float:
    """log p(tokens | prompt) by one plain forward."""
    before = [ALPHABET.index(letter) for letter in prompt]
    with torch.no_grad():
        logits = model(torch.tensor([[*before, *tokens]])).logits[0].double() / temperature
    steps = logits.log_softmax(-1)[len(before) - 1 : -1]
    return float(steps[range(len(tokens)), list(tokens)].sum())


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_ratio_is_the_difference_of_two_log_probabilities(policy: Any, temperature: float) -> None:
    """Of texts that have ended, by a token or by length, and of unfinished ones."""
    problem = Problem("p", "abc")
    start, keys = policy.start([problem])[0], np.arange(40, dtype=np.uint64)
    texts = [draw.text for draw in (*policy.finish([start] * 40, keys), *policy.extend([start] * 40, keys))]
    assert {text.done for text in texts} == {True, False} and len({len(text.tokens) for text in texts}) == 3
    reward = likelihood_ratio((OTHER, tiny_tokenizer()), temperature=temperature)
    found = reward(problem, texts, Chain(problem, 0, 1, start))
    expected = [log_law(OTHER, "abc", text.tokens, temperature) - text.logp for text in texts]
    assert found == pytest.approx(expected, abs=1e-9)
    assert reads_prefixes(reward) and reward(problem, [Text((), "", 0.0, False)], Chain(problem, 0, 1, start)) == [0.0]


def test_at_lam_1_the_target_is_the_other_model(policy: Any) -> None:
    """The weight exp(r) of every text turns p_ref into p_other exactly: the target's normaliser is 1."""
    problem = Problem("p", "ab")
    start = policy.start([problem])[0]
    law = causal_oracle(policy, 0.8).finish_law(problem, ())
    texts = [Text(tokens, policy.endings.text(tokens, ()), math.log(p), True) for tokens, p in law.items() if p]
    rewards = likelihood_ratio((OTHER, tiny_tokenizer()))(problem, texts, Chain(problem, 0, 1, start))
    target = {text.tokens: math.exp(text.logp + r) for text, r in zip(texts, rewards, strict=True)}
    assert math.fsum(target.values()) == pytest.approx(1, abs=1e-9)
    assert max(abs(target[tokens] - p) for tokens, p in law.items()) > 0.05


def test_a_particle_filter_by_the_ratio_draws_the_other_model(policy: Any) -> None:
    """At a level of 1e-4 with 200 chains of 32 particles, whose bias is far too small to be seen; p_ref is seen."""
    problem = Problem("p", "ab")
    reward = likelihood_ratio((OTHER, tiny_tokenizer()))
    step = particle_filter(reward, particles=32, lam=1.0)
    drawn = [chain.state.tokens for chain in run(policy, step, [problem], width=100, seed=0, samples=200)]
    other = ets.TransformersPolicy(Checkpoint.loaded(OTHER, tiny_tokenizer()), ets.Sampling(), policy.horizon)
    check_law(drawn, causal_oracle(other).finish_law(problem, ()), level=1e-4)
    assert not judge_law(drawn, causal_oracle(policy, 0.8).finish_law(problem, ()), level=1e-4).passed


def test_what_cannot_be_compared_is_one_line(policy: Any) -> None:
    with pytest.raises(InputError, match="not autoregressive"):
        likelihood_ratio((random_llada(4, end=0), tiny_tokenizer()))
    with pytest.raises(InputError, match=r"temperature is 0; it must be"):
        likelihood_ratio((OTHER, tiny_tokenizer()), temperature=0)
    with pytest.raises(InputError, match=r"no checkpoint at ../nowhere"):
        likelihood_ratio("./nowhere")
    foreign = likelihood_ratio((random_qwen3(4, end=0), tiny_tokenizer(("<end>", "c", "b", "a"))))
    step = energy_guided(foreign, candidates=40, rollouts=1, lam=1.0)
    with pytest.raises(RewardError, match="the tokens of problem 'p' are not those of") as caught:
        list(run(policy, step, [Problem("p", "ab")], width=1, seed=0))
    assert "\n" not in str(caught.value)
