"""Beam search over denoising paths: against enumeration of every path, and what it refuses."""

from __future__ import annotations

import math
from heapq import nlargest
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from ets.baselines import beam, greedy
from ets.policies.checkpoint import Checkpoint
from ets.policies.diffusion.denoise import Schedule
from ets.policies.diffusion.path_search import best_pairs, best_products
from ets.policies.diffusion.policy import MaskedDiffusionPolicy
from ets.policies.settings import Caching, Unmasking
from ets.runner import run
from ets.types import Cost, InputError, Problem
from tests.conftest import canvas_oracle

PROBLEMS = [Problem(prompt, prompt) for prompt in ("ab", "ba", "abba", "b", "aab")]
ENOUGH = 3**4 * math.factorial(4)
LAWS: list[tuple[Schedule, dict[str, Any]]] = [
    (Schedule(4, 4, 4, 4), {}),
    (Schedule(4, 4, 2, 2), {"cfg": 0.5}),
    (Schedule(4, 4, 4, 4), {"remasking": "largest"}),
    (Schedule(4, 2, 4, 1), {"remasking": "largest"}),
    (Schedule(4, 3, 4, 1), {"remasking": "margin"}),
    (Schedule(4, 2, 2, 2), {"remasking": "entropy", "cfg": 0.5}),
    (Schedule(4, 4, 4, 4), {"remasking": "largest", "threshold": 0.5}),
    (Schedule(2, 2, 2, 2), {"confidence_eos_eot_inf": True}),
    (Schedule(2, 2, 2, 2), {"remasking": "maskgit_plus", "logits_eos_inf": True}),
    (Schedule(3, 3, 3, 1, "time"), {"remasking": "neg_entropy"}),
]


def searched(checkpoint: Checkpoint, schedule: Schedule, law: dict[str, Any], beams: int) -> tuple[Any, dict[str, Any]]:
    """The policy, and by problem the chain that a search found."""
    policy = MaskedDiffusionPolicy(checkpoint, Unmasking(0.5, **law), schedule)
    return policy, {chain.problem.id: chain for chain in run(policy, beam(beams), PROBLEMS, width=3, seed=0)}


def oracle_of(checkpoint: Checkpoint, schedule: Schedule, law: dict[str, Any]) -> Any:
    """The exact laws of paths at temperature 1, which is what is searched for whatever the policy's is."""
    return canvas_oracle(checkpoint, schedule, Unmasking(1.0, **law)).by_path


@pytest.mark.parametrize(("schedule", "law"), LAWS, ids=str)
def test_enough_beams_find_the_most_probable_path(
    schedule: Schedule, law: dict[str, Any], tiny_llada: Checkpoint
) -> None:
    oracle = oracle_of(tiny_llada, schedule, law)
    _, found = searched(tiny_llada, schedule, law, ENOUGH)
    for problem in PROBLEMS:
        paths = oracle.finish_law(problem, oracle.root)
        state = found[problem.id].state
        assert state.done and state.logp == pytest.approx(math.log(max(paths.values())), abs=1e-6)
        assert (state.tokens, state.path) == max(paths, key=lambda path: paths[path])


def best_of_paths(oracle: Any, problem: Problem, beams: int, mask: int) -> Any:
    """What beam search over paths is by definition."""
    kept = {oracle.root: 0.0}
    while any(mask in canvas for canvas, _ in kept):
        after: dict[Any, float] = {}
        for node, logp in kept.items():
            steps = dict(oracle._step(problem, node)) if mask in node[0] else {node: 1.0}
            after |= {there: logp + math.log(p) for there, p in steps.items()}
        kept = {node: after[node] for node in nlargest(beams, after, key=lambda node: after[node])}
    return next(iter(kept))


def test_the_blocks_after_an_end_are_no_part_of_a_path_where_they_are_left_out(tiny_llada: Checkpoint) -> None:
    """Two blocks of two positions; the end token is 0."""
    schedule, best, whole = Schedule(4, 4, 2, 2), [], []
    oracle = oracle_of(tiny_llada, schedule, {})
    _, found = searched(tiny_llada, schedule, {"stop_at_end": True}, ENOUGH)
    for problem in PROBLEMS:
        ended: list[float] = []
        for node, p in oracle.extend_law(problem, oracle.root).items():
            rest = {node: 1.0} if 0 in node[0][:2] else oracle.finish_law(problem, node)
            ended += [math.log(p * q) for q in rest.values()]
        best.append(max(ended))
        whole.append(math.log(max(oracle.finish_law(problem, oracle.root).values())))
    assert [found[problem.id].state.logp for problem in PROBLEMS] == pytest.approx(best, abs=1e-6)
    assert max(np.subtract(best, whole)) > 0.1
    assert all(found[problem.id].state.done for problem in PROBLEMS)


@pytest.mark.parametrize("beams", [1, 2, 3])
@pytest.mark.parametrize(("schedule", "law"), LAWS, ids=str)
def test_few_beams_find_what_the_definition_says(
    schedule: Schedule, law: dict[str, Any], beams: int, tiny_llada: Checkpoint
) -> None:
    oracle = oracle_of(tiny_llada, schedule, law)
    policy, found = searched(tiny_llada, schedule, law, beams)
    for problem in PROBLEMS:
        state = found[problem.id].state
        assert (state.tokens, state.path) == best_of_paths(oracle, problem, beams, policy.mask_id)


def test_one_beam_is_greedy_decoding_where_positions_do_not_depend_on_tokens(tiny_llada: Checkpoint) -> None:
    policy, found = searched(tiny_llada, Schedule(4, 2, 4, 1), {"remasking": "largest"}, 1)
    for chain in run(policy, greedy(), PROBLEMS, width=3, seed=0):
        state = found[chain.problem.id].state
        assert state.tokens == chain.state.tokens and state.logp == pytest.approx(chain.state.logp)


def test_the_pairs_are_the_most_probable_ones_where_confidences_tie() -> None:
    """Against every outcome of the draws; of equal confidences the lower position is revealed."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        logits = torch.from_numpy(rng.integers(3, size=(3, 4))).double()  # many are equal
        log_q, p = logits.log_softmax(-1), logits.softmax(-1)
        law: dict[tuple[int, int], float] = {}
        for drawn in product(range(4), repeat=3):
            q = [float(log_q[i, v]) for i, v in enumerate(drawn)]
            best = q.index(max(q))
            chance = math.prod(float(p[i, v]) for i, v in enumerate(drawn))
            law[best, drawn[best]] = law.get((best, drawn[best]), 0.0) + chance
        found = best_pairs(log_q, p, 12, 12)
        assert {
            (c.positions[0], c.tokens[0]): math.exp(c.token_logp + c.position_logp) for c in found
        } == pytest.approx(law)
        few = [c.token_logp + c.position_logp for c in best_pairs(log_q, p, 3, 3)]
        assert few == pytest.approx(np.log(sorted(law.values(), reverse=True)[:3]))


def test_a_token_without_confidence_displaces_no_better_pair() -> None:
    """Token 0 is the most probable of both positions, and its confidence counts as 0."""
    p = torch.tensor([[0.5, 0.4, 0.1], [0.5, 0.2, 0.3]], dtype=torch.float64)
    log_q = p.log()
    log_q[:, 0] = -1e300
    law: dict[tuple[int, int], float] = {}
    for drawn in product(range(3), repeat=2):
        best = max(range(2), key=lambda i: (float(log_q[i, drawn[i]]), -i))
        law[best, drawn[best]] = law.get((best, drawn[best]), 0.0) + float(p[0, drawn[0]] * p[1, drawn[1]])
    (found,) = best_pairs(log_q, p, 1, 2)
    expected = max(law.values())
    assert math.exp(found.token_logp + found.position_logp) == pytest.approx(expected)
    (without,) = best_pairs(log_q, p, 1, 1)
    assert math.exp(without.token_logp + without.position_logp) < expected - 0.01


def test_the_products_are_the_most_probable_ones() -> None:
    logp = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 5))).log_softmax(-1)
    law = {tokens: sum(float(logp[i, v]) for i, v in enumerate(tokens)) for tokens in product(range(5), repeat=3)}
    for beams in (1, 4, 125, 200):
        found = best_products(logp, [0, 2, 3], beams)
        assert [tuple(c.tokens) for c in found] == nlargest(beams, law, key=lambda tokens: law[tokens])
        assert [c.token_logp for c in found] == pytest.approx([law[tuple(c.tokens)] for c in found])


def test_costs_add_up_and_a_state_that_comes_twice_is_searched_once(tiny_llada: Checkpoint) -> None:
    """One canvas at the first step, then two."""
    policy = MaskedDiffusionPolicy(tiny_llada, Unmasking(remasking="largest"), Schedule(4, 4, 4, 4))
    state = policy.start(PROBLEMS[:1])[0]
    first, second = policy.beam([state, state], 2)
    assert (first.state, second.cost) == (second.state, Cost())
    assert first.cost.row_forwards == 1 + 2 + 2 + 2 and first.cost.rollout == 7 * (2 + 4)
    assert first.cost.generated == 2 * 4 and policy.ledger.row_forwards == 7
    with pytest.raises(InputError, match="beams is 0"):
        policy.beam([state], 0)


@pytest.mark.parametrize(
    ("steps", "law", "caching", "message"),
    [
        (2, {}, None, "'low_confidence' needs steps that reveal one position each; set steps to 4 without threshold"),
        (4, {"threshold": 0.9}, None, "'low_confidence' needs steps that reveal one position each"),
        (4, {"remasking": "random"}, None, "remasking 'random' draws positions, which beam search cannot do"),
        (4, {"remasking": "origin"}, None, "remasking 'origin' draws positions, which beam search cannot do"),
        (4, {"remasking": "entropy", "alg_temp": 0.5}, None, "'entropy' with alg_temp 0.5 draws positions"),
        (4, {"remasking": "largest"}, Caching("dual"), "beam search reads whole canvases, but there is a cache"),
    ],
)
def test_a_law_whose_paths_cannot_be_listed_is_one_line_before_the_model_is_read(
    steps: int, law: dict[str, Any], caching: Caching | None, message: str, tiny_llada: Checkpoint
) -> None:
    policy = MaskedDiffusionPolicy(tiny_llada, Unmasking(**law), Schedule(4, steps, 4, 1), caching=caching)
    with pytest.raises(InputError, match=message) as refused:
        list(run(policy, beam(2), PROBLEMS, width=1, seed=0))
    assert policy.ledger.forwards == 0 and "\n" not in str(refused.value)
