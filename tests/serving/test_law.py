"""Texts that come through HTTP follow the exact law of ETS at finite M and K, at their λ and temperature."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import pytest

from ets.policies.registry import policy_of
from ets.serving.operation import Limits
from ets.testing import Law, check_law, judge_law, total_variation
from ets.types import Policy, Problem
from tests.conftest import ALPHABET, causal_oracle
from tests.laws.kernel import kernel_law
from tests.serving.serving import Served, offered, served

M, K, PROMPT, END = 3, 2, "abc", 0
SETTINGS = {"block_size": 2, "max_length": 4}
LEVEL = 1e-4
Asked: TypeAlias = tuple[float, float]
"""λ and the temperature of a request."""


def liking(prompt: Any, text: str) -> float:
    """The reward. It depends on the end of a text, so that the law depends on K."""
    return 0.3 * text.count("a") - text.endswith("b") + 2.5 * text.endswith("c")


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Any) -> Iterator[Served]:
    def opened(law: Mapping[str, Any]) -> Policy:
        return policy_of(lambda: tiny_checkpoint, **{**SETTINGS, **law})

    limits, settings = Limits(most_texts=1000), {"candidates": M, "rollouts": K, "lam": 0.5}
    with served(offered(opened, rewards={"liking": liking}, limits=limits, **settings)) as found:
        yield found


def exact(checkpoint: Any, asked: Asked, candidates: int = M, rollouts: int = K) -> Law:
    """The law of the text and the reason of its end, which together name all tokens."""
    lam, temperature = asked
    policy = policy_of(lambda: checkpoint, temperature=temperature, **SETTINGS)
    numbers: dict[str, Any] = {"lam": lam, "candidates": candidates, "rollouts": rollouts}
    oracle = causal_oracle(policy, temperature)
    law = kernel_law(oracle, Problem("p", PROMPT), lambda tokens: liking(PROMPT, spelled(tokens)), **numbers)
    return {(spelled(tokens), "stop" if tokens[-1] == END else "length"): p for tokens, p in law.items()}


def spelled(tokens: Sequence[int]) -> str:
    return "".join(ALPHABET[token] for token in tokens if token != END)


def completions(server: Served, asked: Sequence[Asked], *, texts: int, clients: int = 8) -> list[list[tuple[str, str]]]:
    """The texts of each request, with the reasons of their ends; seeds are numbers of requests."""

    def complete(seed: int) -> list[tuple[str, str]]:
        lam, temperature = asked[seed]
        answer = server.complete(PROMPT, n=texts, seed=seed, temperature=temperature, ets={"lam": lam})
        return [(choice["text"], choice["finish_reason"]) for choice in answer["choices"]]

    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(complete, range(len(asked))))


def test_ten_thousand_texts_follow_the_exact_law(server: Served, tiny_checkpoint: Any) -> None:
    """At level 1e-4, with fixed seeds: 20 requests of 500 texts, eight at once."""
    asked = (0.5, 1.0)
    law, found = exact(tiny_checkpoint, asked), completions(server, [asked] * 20, texts=500)
    outcomes = [outcome for each in found for outcome in each]
    assert len(outcomes) == 10_000
    check_law(outcomes, law, level=LEVEL)
    uniform = exact(tiny_checkpoint, (1e6, 1.0))  # as of a choice that ignores the reward
    for other in (uniform, exact(tiny_checkpoint, asked, M - 1, K), exact(tiny_checkpoint, asked, M, K - 1)):
        assert total_variation(law, other) > 0.04 and not judge_law(outcomes, other, level=0.01).passed


def test_requests_at_once_follow_their_own_laws(server: Served, tiny_checkpoint: Any) -> None:
    """Requests of two λ share batches, and those of another temperature come between them."""
    kinds: list[Asked] = [(0.5, 1.0), (2.0, 1.0), (0.5, 0.6)]
    found = completions(server, kinds * 6, texts=400, clients=6)
    for n, asked in enumerate(kinds):
        outcomes = [outcome for each in found[n :: len(kinds)] for outcome in each]
        check_law(outcomes, exact(tiny_checkpoint, asked), level=LEVEL / len(kinds), what=f"texts of {asked}")
        for other in kinds[:n] + kinds[n + 1 :]:
            assert not judge_law(outcomes, exact(tiny_checkpoint, other), level=0.01).passed
