"""The masked-diffusion driver: the published outputs, its laws, and that it computes nothing twice."""

from __future__ import annotations

import gc
import json
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ets.kernel import energy_guided
from ets.models import LLaDAModelLM
from ets.policies import token_draws as drawing
from ets.policies.checkpoint import Checkpoint
from ets.policies.diffusion import denoise as unmasking
from ets.policies.diffusion import policy as masked_diffusion
from ets.policies.diffusion import remasking as rules
from ets.policies.diffusion.canvas import PADDING, CanvasMemory
from ets.policies.diffusion.denoise import Schedule
from ets.policies.diffusion.forward import BYTES_PER_LOGIT
from ets.policies.diffusion.policy import MaskedDiffusionPolicy
from ets.policies.settings import Caching, Unmasking
from ets.policies.token_draws import pick_tokens
from ets.randomness import uniform
from ets.rewards import per_text
from ets.runner import run
from ets.testing import check_law, check_policy
from ets.types import Chain, Cost, Draw, InputError, Keys, Problem
from tests.conftest import MASKED_ALPHABET, canvas_oracle, random_llada, random_qwen3, tiny_tokenizer, whole_logits
from tests.hooks import hooked
from tests.laws.kernel import kernel_law

GOLDEN = Path(__file__).parents[2] / "golden" / "llada"
CANONICAL = [case for case in json.loads((GOLDEN / "generate.json").read_text()) if case["sampler"] == "canonical"]

# The first two stand in one batch, padded; the last in another.
PROBLEMS = [Problem("p", "abbabaabababbaab"), Problem("q", (1, 2, 2, 1, 2, 1, 1, 2, 2, 2, 1, 1, 1, 2, 1, 2, 2, 1))]
PROBLEMS += [Problem("r", "baab")]
START = PROBLEMS[:1]
END, A, B, MASK = range(4)
DRAWS, LEVEL = 20_000, 1e-4


def make(
    checkpoint: Checkpoint,
    gen_length: int = 3,
    steps: int = 3,
    block_length: int = 3,
    guide_steps: int = 3,
    memory_gib: float | None = None,
    caching: Caching | None = None,
    **rule: Any,
) -> MaskedDiffusionPolicy:
    schedule = Schedule(gen_length, steps, block_length, guide_steps)
    return MaskedDiffusionPolicy(checkpoint, Unmasking(**rule), schedule, caching=caching, memory_gib=memory_gib)


def keys(count: int, first: int = 0) -> Keys:
    return np.arange(first, first + count, dtype=np.uint64)


def liking_b(text: str) -> float:
    return 0.5 * text.count("b") - 0.25 * len(text)


def guided(candidates: int = 4, rollouts: int = 2) -> Any:
    return energy_guided(per_text(lambda _, text: liking_b(text)), candidates=candidates, rollouts=rollouts, lam=0.5)


@pytest.fixture(scope="module")
def large_vocabulary() -> Checkpoint:
    """2,000 tokens that are about equally likely: hardly any two candidates are equal."""
    alphabet = ("<end>", "a", "b", *(f"<{number}>" for number in range(1998)), "<mask>")
    return Checkpoint.loaded(random_llada(len(alphabet), end=0, spread=0.1), tiny_tokenizer(alphabet))


@dataclass
class Seen:
    """What really goes through a model."""

    rows: list[int] = field(default_factory=list)  # of each forward
    lengths: list[list[int]] = field(default_factory=list)  # each row's tokens, without padding
    columns: list[int] = field(default_factory=list)
    head: list[tuple[int, ...]] = field(default_factory=list)  # canvases and positions

    @property
    def positions(self) -> int:
        return sum(rows * columns for rows, columns in zip(self.rows, self.columns, strict=True))

    @property
    def vocabulary(self) -> int:
        return sum(canvases * positions for canvases, positions in self.head)


@contextmanager
def watching(checkpoint: Checkpoint) -> Iterator[Seen]:
    seen = Seen()

    def body(module: Any, args: tuple[Any, ...]) -> None:
        ids, mask = args
        seen.rows.append(len(ids))
        seen.columns.append(ids.shape[1])
        seen.lengths.append([ids.shape[1]] * len(ids) if mask is None else mask.sum(-1).tolist())

    def head(module: Any, args: tuple[Any, ...]) -> None:
        seen.head.append(args[0].shape[:-1])

    with hooked(checkpoint.model.base_model, body), hooked(checkpoint.model.get_output_embeddings(), head):
        yield seen


def assert_ledger_equals(ledger: Cost, seen: Seen) -> None:
    assert (ledger.positions, ledger.row_forwards) == (seen.positions, sum(seen.rows))
    assert (ledger.vocabulary, ledger.forwards) == (seen.vocabulary, len(seen.rows))


def same_draws(draws: Sequence[Draw], others: Sequence[Draw]) -> None:
    for draw, other in zip(draws, others, strict=True):
        assert (draw.state.tokens, draw.state.path, draw.state.text) == (
            other.state.tokens,
            other.state.path,
            other.state.text,
        )
        assert draw.logp == pytest.approx(other.logp, abs=1e-6)


# The publishers' outputs.


def published_checkpoint() -> Checkpoint:
    names = [f"<{number}>" for number in range(256)]
    names[250], names[251], names[1] = "<|mdm_mask|>", "<end>", "a"
    tokenizer = tiny_tokenizer(names)
    tokenizer.eos_token = "<end>"
    return Checkpoint.loaded(LLaDAModelLM.from_pretrained(GOLDEN), tokenizer)


@pytest.fixture(scope="module")
def golden() -> Checkpoint:
    return published_checkpoint()


@pytest.mark.parametrize("guide_steps", ["one", "all"])
@pytest.mark.parametrize("case", CANONICAL, ids=lambda c: f"{c['steps']}-{c['block_length']}-cfg{c['cfg_scale']}")
def test_the_published_generations_token_for_token(golden: Checkpoint, case: dict[str, Any], guide_steps: str) -> None:
    """In one guide step, and in one for each denoising step; a step reads the canvas once, or twice with guidance."""
    shape = [case[name] for name in ("gen_length", "steps", "block_length")]
    settings = {"temperature": case["temperature"], "cfg": case["cfg_scale"]}
    policy = make(golden, *shape, 1 if guide_steps == "one" else case["steps"], **settings)
    state: Any = policy.start([Problem("golden", tuple(case["prompt"]))])[0]
    while not state.done:
        state = policy.extend([state], keys(1))[0].state
    assert list(state.tokens) == case["output"]
    assert policy.ledger.row_forwards == case["steps"] * (2 if case["cfg_scale"] else 1)
    assert policy.ledger.generated == case["gen_length"]
    assert state.logp == 0.0


def test_the_published_generations_in_a_padded_batch(golden: Checkpoint) -> None:
    """Beside prompts that are longer: padding is not seen."""
    case = next(case for case in CANONICAL if case["steps"] == 48 and not case["cfg_scale"])
    policy = make(golden, 48, 48, 16, 4, temperature=0)
    prompts = [tuple(case["prompt"]), tuple(range(1, 16)), tuple(range(20, 39))]
    starts = policy.start([Problem(str(len(prompt)), prompt) for prompt in prompts])
    assert list(policy.finish(starts, keys(3))[0].state.tokens) == case["output"]
    assert policy.ledger.forwards == 48


# Laws.


@pytest.mark.parametrize(
    ("shape", "rule"),
    [
        ((3, 3, 3, 3), {}),
        ((3, 3, 3, 3), {"temperature": 0.6}),
        ((3, 3, 3, 3), {"remasking": "margin", "temperature": 2.0}),
        ((3, 3, 3, 3), {"cfg": 1.5}),
        ((3, 2, 3, 2), {}),  # quotas 2 and 1
        ((4, 2, 2, 2), {"remasking": "entropy"}),  # a guide step is a block of one step
        ((4, 4, 2, 2), {"temperature": 0.8}),  # a guide step is a block of two steps
        ((4, 4, 4, 2), {"remasking": "random", "temperature": 1.5}),  # two guide steps inside a block
        ((4, 4, 1, 2), {"cfg": 0.5}),  # a guide step is two blocks of one token
        ((6, 6, 2, 2), {"remasking": "margin"}),  # a guide step is a block and a half
    ],
)
def test_laws_hold_on_a_tiny_network(
    tiny_llada: Checkpoint, shape: tuple[int, int, int, int], rule: dict[str, Any]
) -> None:
    policy = make(tiny_llada, *shape, **rule)
    oracle = canvas_oracle(tiny_llada, policy.schedule, policy.unmasking)
    check_policy(policy, oracle, PROBLEMS, draws=DRAWS if shape[0] < 6 else 8_000, level=LEVEL)


def test_the_log_probability_of_a_path_adds_up_over_guide_steps(tiny_llada: Checkpoint) -> None:
    policy = make(tiny_llada, 4, 4, 2, 4)
    oracle = canvas_oracle(tiny_llada, policy.schedule, policy.unmasking).by_path
    law = oracle.finish_law(PROBLEMS[0], oracle.root)
    states: list[Any] = policy.start(START) * 20
    totals = np.zeros(20)
    for step in range(4):
        draws = policy.extend(states, keys(20, 20 * step))
        states = [draw.state for draw in draws]
        totals += [draw.logp for draw in draws]
        assert [draw.text.logp for draw in draws] == [state.logp for state in states] == pytest.approx(totals)
    assert totals == pytest.approx([np.log(law[state.tokens, state.path]) for state in states], abs=1e-6)


def test_the_kernel_follows_its_exact_law(tiny_llada: Checkpoint) -> None:
    policy = make(tiny_llada, gen_length=2, steps=2, block_length=2, guide_steps=2)
    oracle = canvas_oracle(tiny_llada, policy.schedule, policy.unmasking)

    def reward(canvas: tuple[int, ...]) -> float:
        return liking_b("".join(MASKED_ALPHABET[token] for token in canvas).partition("<end>")[0])

    law = kernel_law(oracle, PROBLEMS[0], reward, lam=0.5, candidates=2, rollouts=2)
    chains = run(policy, guided(2, 2), START, width=5000, seed=0, samples=4_000)
    check_law((chain.state.tokens for chain in chains), law, level=LEVEL)


def check_tiny(
    checkpoint: Checkpoint, seen_as: dict[str, Any] | None = None, draws: int = DRAWS, **options: Any
) -> None:
    """Judge a policy by the oracle of its own settings, or of others."""
    policy = make(checkpoint, **options)
    rule = replace(policy.unmasking, **seen_as or {})
    check_policy(policy, canvas_oracle(checkpoint, policy.schedule, rule), PROBLEMS, draws=draws, level=LEVEL)


@pytest.mark.parametrize(
    ("rule", "seen_as"),
    [
        ({"temperature": 0.9}, {"temperature": 0.8}),
        ({"cfg": 0.1}, {"cfg": 0.0}),
        ({"remasking": "margin"}, {"remasking": "entropy"}),
    ],
)
def test_other_settings_turn_the_laws_red(
    tiny_llada: Checkpoint, rule: dict[str, Any], seen_as: dict[str, Any]
) -> None:
    with pytest.raises(AssertionError, match="exact law"):
        check_tiny(tiny_llada, seen_as, **rule)


def test_a_position_that_stays_masked_is_drawn_anew(tiny_llada: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """A uniform that is used again at the next step has lost before, so the laws turn red."""
    monkeypatch.setattr(
        masked_diffusion, "uniform", lambda keys, step, position: uniform(keys, np.zeros_like(step), position)
    )
    with pytest.raises(AssertionError, match="exact law"):
        check_tiny(tiny_llada)


def test_a_token_and_its_place_in_the_order_are_drawn_apart(
    tiny_llada: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masked_diffusion, "derive", lambda keys, purpose: keys)
    with pytest.raises(AssertionError, match="exact law"):
        check_tiny(tiny_llada, remasking="random")


def test_each_draw_has_a_uniform_of_53_bits_from_its_row_step_and_position(
    tiny_llada: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, seen = make(tiny_llada, temperature=0), []

    def spy(probabilities: torch.Tensor, uniforms: torch.Tensor) -> Any:
        seen.append(uniforms)
        return pick_tokens(probabilities, uniforms)

    monkeypatch.setattr(unmasking, "pick_tokens", spy)
    (draw,) = policy.finish(policy.start(START), keys(1, 5))
    path: Any = draw.state.path
    assert len(seen) == 3
    for step, uniforms in enumerate(seen):
        masked = np.array([position for position in range(3) if path[position] >= step])
        assert uniforms.dtype == torch.float64
        assert uniforms.tolist() == uniform(keys(1, 5), step, masked).tolist()


def test_a_dropped_position_term_turns_the_laws_red(tiny_llada: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "_lost", lambda *of: torch.zeros(len(of[3]), dtype=torch.float64))
    with pytest.raises(AssertionError, match="logp"):
        check_tiny(tiny_llada, draws=2_000)


def test_unmasked_padding_turns_the_laws_red(tiny_llada: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    with hooked(tiny_llada.model.base_model, lambda _, args: (args[0], None)), pytest.raises(AssertionError):
        check_tiny(tiny_llada, draws=2_000)


# Batches.


@pytest.mark.parametrize("cfg", [0.0, 1.5])
@pytest.mark.parametrize("remasking", ["low_confidence", "random"])
def test_results_do_not_depend_on_the_width(tiny_llada: Checkpoint, remasking: str, cfg: float) -> None:
    found = []
    for width in (1, 32):
        policy = make(tiny_llada, 4, 4, 2, 4, remasking=remasking, cfg=cfg)
        chains = run(policy, guided(), PROBLEMS, width=width, seed=0, samples=6)
        found.append({(chain.problem.id, chain.sample): chain for chain in chains})
    alone, together = found
    assert len(alone) == len(together) == 18
    for name, chain in alone.items():
        assert chain.state.tokens == together[name].state.tokens
        assert chain.state.path == together[name].state.path
        assert [step.choice for step in chain.trace] == [step.choice for step in together[name].trace]
        texts, others = (
            [text for step in c.trace for row in step.rollouts for text in row] for c in (chain, together[name])
        )
        assert [text.tokens for text in texts] == [text.tokens for text in others]
        assert [text.logp for text in texts] == pytest.approx([text.logp for text in others], abs=1e-6)


@pytest.mark.parametrize(("block_length", "cfg"), [(2, 0.0), (3, 0.0), (3, 1.5)])
@pytest.mark.parametrize("method", ["extend", "finish"])
def test_rows_at_different_steps_of_different_problems_equal_each_alone(
    tiny_llada: Checkpoint, method: str, block_length: int, cfg: float
) -> None:
    """In one call, in no order. In blocks of two, rows at different steps have equally many masks and share a batch."""
    policy = make(tiny_llada, 6, 6, block_length, 3, cfg=cfg)
    states = policy.start(PROBLEMS)
    for _ in range(2):
        states += [draw.state for draw in policy.extend(states[-len(PROBLEMS) :], keys(len(PROBLEMS), 50))]
    order = np.random.default_rng(0).permutation(len(states) * 5) % len(states)
    together = getattr(policy, method)([states[n] for n in order], keys(len(order)))
    fresh = make(tiny_llada, 6, 6, block_length, 3, cfg=cfg)
    for number, (n, draw) in enumerate(zip(order, together, strict=True)):
        alone = replace(states[n], memory=CanvasMemory(fresh))
        same_draws(getattr(fresh, method)([alone], keys(1, number)), [draw])


def test_prompts_in_a_batch_are_padded_by_an_eighth_at_most(tiny_llada: Checkpoint) -> None:
    policy = make(tiny_llada)
    problems = [Problem(str(n), (A,) * n) for n in np.random.default_rng(0).permutation(np.arange(1, 60)).tolist()]
    with watching(tiny_llada) as seen:
        draws = policy.finish(policy.start(problems), keys(len(problems)))
    for columns, lengths in zip(seen.columns, seen.lengths, strict=True):
        assert columns == max(lengths) <= PADDING * min(lengths)
    assert PADDING == 1.125
    assert len(seen.rows) < 3 * len(problems) / 3  # far fewer batches than lengths
    assert_ledger_equals(policy.ledger, seen)
    assert policy.ledger == Cost.total([Cost(forwards=len(seen.rows)), *(draw.cost for draw in draws)])


# Nothing is computed twice.


def visited(draws: Sequence[Draw], first_step: int = 0) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The different (prompt, canvas) that the rows were at, before each step from the first on."""
    found = set()
    for draw in draws:
        state: Any = draw.state
        for step in range(first_step, max(state.path) + 1):
            at = zip(state.tokens, state.path, strict=True)
            found.add((state.prompt, tuple(token if path < step else MASK for token, path in at)))
    return found


@pytest.mark.parametrize("cfg", [0.0, 1.5])
def test_each_different_canvas_is_read_once(tiny_llada: Checkpoint, cfg: float) -> None:
    """300 rows on 3 tokens, of three problems, two of which ask the same: most meet others that drew the same."""
    policy = make(tiny_llada, 4, 4, 2, 4, cfg=cfg)
    problems = [*PROBLEMS[:2], Problem("twin", PROBLEMS[0].prompt)]
    with watching(tiny_llada) as seen:
        draws = policy.finish(policy.start(problems) * 100, keys(300))
    canvases = visited(draws)
    blind = {(len(prompt), canvas) for prompt, canvas in canvases}
    assert sum(seen.rows) == len(canvases) + (len(blind) if cfg else 0) < 800 < 4 * len(draws)
    assert_ledger_equals(policy.ledger, seen)
    assert policy.ledger.generated == 4 * len(draws)


@pytest.mark.parametrize("cfg", [0.0, 1.0])
def test_candidates_share_their_first_forward_and_rollouts_theirs(large_vocabulary: Checkpoint, cfg: float) -> None:
    """One row for M candidates of a problem, M rows for their M·K rollouts, and none for the next candidates'."""
    policy, passes = make(large_vocabulary, 8, 8, 4, 4, temperature=2.0, cfg=cfg), 2 if cfg else 1
    problems = [Problem("p", "abba"), Problem("q", "baba")]
    starts = policy.start(problems)
    chains = [Chain(problem, 0, n, state) for n, (problem, state) in enumerate(zip(problems, starts, strict=True))]
    step = guided(candidates=4, rollouts=3)
    each = []
    for _ in range(4):
        with watching(large_vocabulary) as seen:
            chains = step(policy, chains)
        each.append(seen.rows)
        distinct = [len({text.tokens for text in chain.trace[-1].candidates}) for chain in chains]
        assert distinct == [4, 4]
    # Unguided rows leave the prompt out, so the two problems' empty canvases share theirs.
    first = 2 if not cfg else 3
    candidates, rollouts = 8 * passes, 24 * passes
    assert each[0] == [first, candidates, candidates, *[rollouts] * 5]
    assert each[1] == [candidates, candidates, *[rollouts] * 3]
    assert each[2] == [candidates, candidates, rollouts]
    assert each[3] == [candidates]
    columns = 4 + 8
    assert policy.ledger.candidate == (first + 4 * candidates) * columns
    assert policy.ledger.rollout == (3 * candidates + 9 * rollouts) * columns
    assert sum(chain.cost.positions for chain in chains) == policy.ledger.positions
    assert sum(chain.cost.row_forwards for chain in chains) == policy.ledger.row_forwards == sum(map(sum, each))


def test_a_candidate_that_was_drawn_twice_is_read_once_whichever_is_chosen(tiny_llada: Checkpoint) -> None:
    policy = make(tiny_llada)
    drawn = [draw.state for draw in policy.extend(policy.start(START) * 30, keys(30))]
    twins = [state for state in drawn if state.tokens == drawn[0].tokens]
    assert len(twins) > 2
    policy.finish(twins, keys(len(twins)))
    for chosen in twins:
        with watching(tiny_llada) as seen:
            policy.extend([chosen] * 4, keys(4))
        assert seen.rows == []
        assert seen.head == [(1, 2)]


def test_the_head_sees_the_active_blocks_masks_only(tiny_llada: Checkpoint) -> None:
    policy = make(tiny_llada, 6, 4, 3, 1)  # quotas 2, 1, 2, 1
    with watching(tiny_llada) as seen:
        draws = policy.finish(policy.start(START) * 5, keys(5))
    assert [positions for _, positions in seen.head] == [3, 1, 3, 1]
    assert policy.ledger.vocabulary == seen.vocabulary == sum(draw.cost.vocabulary for draw in draws)


@pytest.mark.parametrize("cfg", [0.0, 1.5])
def test_the_ledger_is_what_the_model_saw(tiny_llada: Checkpoint, cfg: float) -> None:
    policy = make(tiny_llada, 4, 4, 2, 2, cfg=cfg, memory_gib=2e-5)
    with watching(tiny_llada) as seen:
        chains = list(run(policy, guided(), PROBLEMS, width=2, seed=0, samples=2))
    assert_ledger_equals(policy.ledger, seen)
    for name in ("candidate", "rollout", "generated", "row_forwards", "vocabulary"):
        assert getattr(policy.ledger, name) == sum(getattr(chain.cost, name) for chain in chains), name
    assert sum(chain.cost.forwards for chain in chains) == pytest.approx(policy.ledger.forwards)
    assert policy.ledger.prompt == 0


# CanvasMemory.


def test_a_memory_limit_splits_rows_without_changing_them(tiny_llada: Checkpoint) -> None:
    whole, split = make(tiny_llada), make(tiny_llada, memory_gib=1e-5)
    chains, others = (list(run(policy, guided(), START, width=3, seed=0, samples=4)) for policy in (whole, split))
    assert split.ledger.forwards > whole.ledger.forwards
    for name in ("positions", "row_forwards", "vocabulary", "generated"):
        assert getattr(split.ledger, name) == getattr(whole.ledger, name)
    for chain, other in zip(chains, others, strict=True):
        assert (chain.state.tokens, chain.state.path) == (other.state.tokens, other.state.path)


def test_the_memory_limit_counts_every_row_of_a_canvas(tiny_llada: Checkpoint) -> None:
    """Rows that share a forward still draw from logits of their own."""
    problems = [Problem(str(n), (A,) * n + (B,) * (16 - n)) for n in range(4)]
    heads = []
    for copies in (1, 200):
        policy = make(tiny_llada, memory_gib=2e5 / 2**30)
        with watching(tiny_llada) as seen:
            policy.extend(policy.start(problems) * copies, keys(4 * copies))
        heads.append(len(seen.head))
    assert heads == [1, 4]


@pytest.mark.parametrize("where", ["model", "head"])
@pytest.mark.parametrize("cfg", [0.0, 1.5])
def test_running_out_of_memory_halves_the_rows_and_says_so_once(tiny_llada: Checkpoint, where: str, cfg: float) -> None:
    """Whatever had been computed before is not computed, or charged, again."""
    policy, twin = (make(tiny_llada, cfg=cfg) for _ in range(2))

    def small_card(module: Any, args: tuple[torch.Tensor, ...]) -> None:
        if len(args[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    expected = twin.finish(twin.start(START) * 40, keys(40))
    model = tiny_llada.model
    module = model.base_model if where == "model" else model.get_output_embeddings()
    with hooked(module, small_card), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        drawn = policy.finish(policy.start(START) * 40, keys(40))
    assert [str(warning.message)[:13] for warning in caught] == ["out of memory"]
    same_draws(drawn, expected)
    assert policy.ledger.forwards >= twin.ledger.forwards
    names = ["vocabulary", "generated"] + ([] if cfg else ["positions", "row_forwards"])
    for name in names:  # with guidance, canvases of different chunks may share an unguided row no more
        assert getattr(policy.ledger, name) == getattr(twin.ledger, name), name


def test_what_is_charged_when_memory_runs_out_is_what_was_computed(
    tiny_llada: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, forward = make(tiny_llada, cfg=1.5), tiny_llada.model.base_model.forward
    computed = []

    def small_card(ids: torch.Tensor, mask: Any) -> Any:
        if len(ids) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        computed.append(ids.numel())
        return forward(ids, mask)

    monkeypatch.setattr(tiny_llada.model.base_model, "forward", small_card)
    with pytest.warns(UserWarning, match="out of memory"):
        policy.finish(policy.start(START) * 40, keys(40))
    assert policy.ledger.positions == sum(computed)
    assert policy.ledger.forwards == len(computed)


def test_a_single_row_that_is_too_much_is_refused_in_one_line(tiny_llada: Checkpoint) -> None:
    def no_card(module: Any, args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    policy = make(tiny_llada)
    refused = pytest.raises(InputError, match="out of memory with one row")
    with hooked(tiny_llada.model.base_model, no_card), refused as caught:
        policy.finish(policy.start(START), keys(1))
    assert "\n" not in str(caught.value)


def test_only_the_chosen_states_keep_memory_and_no_more_than_their_own(
    large_vocabulary: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the other candidates' hidden vectors either, of which those of the chosen one may be a slice."""
    made: list[weakref.ref[Any]] = []

    class Recorded(CanvasMemory):
        def __init__(self, owner: Any) -> None:
            super().__init__(owner)
            made.append(weakref.ref(self))

    monkeypatch.setattr(masked_diffusion, "CanvasMemory", Recorded)
    policy = make(large_vocabulary, 4, 4, 4, 2, temperature=2.0)
    problems = PROBLEMS[:2]
    chains = [Chain(p, 0, n, state) for n, (p, state) in enumerate(zip(problems, policy.start(problems), strict=True))]
    for expected in (2, 0):  # ended states have nothing to go on from
        chains = guided()(policy, chains)
        gc.collect()
        kept = [memory.hidden for ref in made if (memory := ref()) is not None and memory.hidden is not None]
        assert len(kept) == expected
        for hidden in kept:
            assert hidden.untyped_storage().nbytes() == hidden.numel() * hidden.element_size()


# Ends and texts.


def spelled(tokens: Sequence[int]) -> str:
    """The text of a canvas by its definition, one letter a token."""
    letters = "".join({A: "a", B: "b", MASK: "·", END: "$"}[token] for token in tokens)
    return letters.partition("$")[0].rstrip("·")


def test_texts_end_at_the_first_end_token_and_show_masks_as_dots(tiny_llada: Checkpoint) -> None:
    policy = make(tiny_llada, 4, 4, 4, 4, remasking="random")
    states, seen = policy.start(START) * 300, set()
    for step in range(4):
        draws = policy.extend(states, keys(300, 300 * step))
        states = [draw.state for draw in draws]
        for draw in draws:
            assert draw.text.text == draw.state.text == spelled(draw.state.tokens)
            seen.add(draw.text.text)
    assert {"", "·a", "a·b", "··b", "abab"} <= seen
    assert not any("mask" in text or "end" in text for text in seen)


def test_texts_are_cut_at_the_first_stop_string(tiny_llada: Checkpoint) -> None:
    """Whatever was revealed behind it; across a mask nothing is found. The law of the canvas is the same."""
    stopping = Problem("p", PROBLEMS[0].prompt, stop=("ba", "bb"))
    policy = make(tiny_llada, 4, 4, 4, 4, remasking="random")
    starts = [policy.start([problem])[0] for problem in (stopping, PROBLEMS[0])]
    for method in (policy.extend, policy.finish):
        cut, whole = (method([start] * 200, keys(200)) for start in starts)
        assert [draw.state.tokens for draw in cut] == [draw.state.tokens for draw in whole]
        for one, other in zip(cut, whole, strict=True):
            places = [at for at in (other.text.text.find(stop) for stop in stopping.stop) if at >= 0]
            assert one.text.text == other.text.text[: min(places, default=None)]
    assert any(one.text.text != other.text.text for one, other in zip(cut, whole, strict=True))


def first_end(tokens: Sequence[int]) -> int:
    return tokens.index(END) if END in tokens else len(tokens)


@pytest.mark.parametrize("remasking", ["low_confidence", "random"])
@pytest.mark.parametrize("shape", [(6, 6, 2, 1), (6, 6, 2, 6), (6, 3, 2, 3)])
def test_stopping_at_the_end_changes_no_text(
    tiny_llada: Checkpoint, shape: tuple[int, int, int, int], remasking: str
) -> None:
    """The same keys give the same texts, with fewer forwards; by extending as by finishing."""
    count = 100
    full, short = (make(tiny_llada, *shape, remasking=remasking, stop_at_end=stop) for stop in (False, True))
    expected = full.finish(full.start(START) * count, keys(count))
    found = short.finish(short.start(START) * count, keys(count))
    for one, other in zip(found, expected, strict=True):
        assert one.state.done and one.text.done
        assert one.state.text == other.state.text
        end = first_end(one.state.tokens)
        assert end == first_end(other.state.tokens)
        assert one.state.tokens[:end] == other.state.tokens[:end]
        assert one.state.path[:end] == other.state.path[:end]
        assert all((token == END) for token, path in zip(one.state.tokens, one.state.path, strict=True) if path < 0)
        assert one.logp >= other.logp  # of fewer draws
        drawn = sum(path >= 0 for path in one.state.path)
        assert one.cost.generated == drawn == min(6, end // 2 * 2 + 2)  # to the end of its block
    assert short.ledger.row_forwards < full.ledger.row_forwards
    assert short.ledger.generated < full.ledger.generated == 6 * count


def test_stopping_at_the_end_ends_a_row_while_others_go_on(tiny_llada: Checkpoint) -> None:
    """Guide step by guide step too; what has ended in the middle of one takes no part in the rest of it."""
    policy = make(tiny_llada, 6, 6, 2, 3, stop_at_end=True)
    draws = policy.extend(policy.start(START) * 100, keys(100))
    for draw in draws:
        assert draw.state.done == draw.text.done == (END in draw.state.tokens[:2])
    going = [draw.state for draw in draws if not draw.state.done]
    assert 0 < len(going) < 100
    assert all(state.tokens[2:] == (MASK,) * 4 and state.step == 2 for state in going)


def test_rows_go_on_after_an_end_token_by_default(tiny_llada: Checkpoint) -> None:
    policy = make(tiny_llada, 6, 6, 2, 3)
    assert not policy.unmasking.stop_at_end
    draws = policy.extend(policy.start(START) * 100, keys(100))
    assert any(END in draw.state.tokens for draw in draws)
    assert not any(draw.state.done for draw in draws)


def test_a_familys_own_end_tokens_end_texts_too(tiny_llada: Checkpoint) -> None:
    """LLaDA ends a turn with a token that its configuration does not name."""
    tokenizer = tiny_tokenizer(("<end>", "a", "<|eot_id|>", "<mask>"))
    policy = make(Checkpoint.loaded(tiny_llada.model, tokenizer), remasking="random")
    draws = policy.finish(policy.start([Problem("p", (1, 1, 2))]) * 50, keys(50))
    assert {draw.text.text for draw in draws} == {"", "a", "aa", "aaa"}


# What is refused.


def test_logits_that_are_no_numbers_are_refused_by_name() -> None:
    model = random_llada(len(MASKED_ALPHABET), end=0)
    with torch.no_grad():
        model.get_output_embeddings().weight[B, 0] = torch.nan
    policy = make(Checkpoint.loaded(model, tiny_tokenizer(MASKED_ALPHABET)))
    with pytest.raises(InputError, match="NaN or infinite logits for problem 'p'"):
        policy.extend(policy.start(PROBLEMS), keys(3))


def test_an_autoregressive_checkpoint_is_refused_by_its_architecture(tiny_checkpoint: Checkpoint) -> None:
    with pytest.raises(
        InputError, match=r"is a 'qwen3' model, which does not unmask; take the engine transformers, or .*llada"
    ) as caught:
        make(tiny_checkpoint)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (Problem("x", "ab<mask>"), "problem 'x' holds the mask token"),
        (Problem("x", (A, MASK)), "problem 'x' holds the mask token"),
        (Problem("x", "a" * 2046), "'x' has 2046 tokens, which leaves no room for a generation of 3 .* 2048"),
        (Problem("x", ""), "problem 'x' is empty"),
        (Problem("x", "a", stop=("",)), "stop string ''"),
    ],
)
def test_prompts_that_cannot_be_continued_are_refused_by_name(
    tiny_llada: Checkpoint, problem: Problem, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make(tiny_llada).start([PROBLEMS[0], problem])
    assert make(tiny_llada).start([Problem("y", "a" * 2045)])


@pytest.mark.parametrize("memory_gib", [0, -1.0, float("nan")])
def test_a_memory_limit_out_of_range_is_refused(tiny_llada: Checkpoint, memory_gib: float) -> None:
    with pytest.raises(InputError, match="memory_gib is"):
        make(tiny_llada, memory_gib=memory_gib)


def test_states_that_have_ended_or_are_foreign_are_refused(tiny_llada: Checkpoint, make_tiny: Any) -> None:
    policy = make(tiny_llada)
    done = [draw.state for draw in policy.finish(policy.start(START), keys(1))]
    for states in (done, make_tiny().start(START)):
        for method in (policy.extend, policy.finish):
            with pytest.raises(InputError, match="of another policy or has ended"):
                method(states, keys(1))


def test_several_candidates_at_temperature_zero_are_refused_before_the_weights_are_loaded(
    tiny_llada: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_llada.model.save_pretrained(tmp_path)
    tiny_llada.tokenizer.save_pretrained(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "model", property(lambda self: pytest.fail("the weights were loaded")))
        policy = make(Checkpoint(str(tmp_path)), temperature=0)
        with pytest.raises(InputError, match="all 4 draws from a state would be equal"):
            list(run(policy, guided(), START, width=1, seed=0))
    (chain,) = run(make(Checkpoint(str(tmp_path)), temperature=0), guided(1, 1), START, width=1, seed=0)
    assert chain.state.done


def test_several_candidates_at_temperature_zero_are_allowed_in_random_order(tiny_llada: Checkpoint) -> None:
    """The order makes the texts differ."""
    policy = make(tiny_llada, 4, 4, 4, 2, temperature=0, remasking="random")
    chains = list(run(policy, guided(), START, width=4, seed=0, samples=4))
    assert len({text.tokens for chain in chains for text in chain.trace[0].candidates}) > 1
    draws = policy.finish(policy.start(START) * 50, keys(50))
    assert {round(draw.logp, 9) for draw in draws} == {round(-float(np.log(24)), 9)}  # that of the order alone


def test_random_qwen_and_llada_networks_are_what_the_tests_take_them_for() -> None:
    """Laws differ between positions, and the mask token has the highest logit somewhere."""
    model = random_llada(len(MASKED_ALPHABET), end=0).eval()
    with torch.no_grad():
        logits = model(torch.tensor([[A, B, A, MASK, MASK, MASK]])).logits[0, -3:]
    assert logits.dtype == random_qwen3(4, end=0).dtype == torch.float64
    assert MASK in logits.argmax(-1)
    p = logits[:, :MASK].softmax(-1)
    assert min((p[i] - p[j]).abs().sum() for i, j in ((0, 1), (0, 2), (1, 2))) > 0.1


def test_states_of_another_policy_are_refused(tiny_llada: Checkpoint) -> None:
    """They may keep what was computed with other guidance or other weights."""
    policy, other = make(tiny_llada), make(tiny_llada, cfg=2.0)
    (start,) = policy.start(START)
    policy.finish([start], keys(1))
    with pytest.raises(InputError, match="a state is of another policy"):
        other.finish([start], keys(1))


def test_rows_of_one_canvas_are_split_where_memory_asks_for_it(
    tiny_llada: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their canvas is still read once."""
    whole, split = make(tiny_llada), make(tiny_llada)
    draws = whole.finish(whole.start(START) * 30, keys(30))
    monkeypatch.setattr(masked_diffusion, "BYTES_PER_CANVAS", 5 * 3 * 4 * BYTES_PER_LOGIT)
    same_draws(split.finish(split.start(START) * 30, keys(30)), draws)
    assert split.ledger.row_forwards == whole.ledger.row_forwards
    assert split.ledger.vocabulary > whole.ledger.vocabulary


# Certainty.


def certainty_afresh(policy: MaskedDiffusionPolicy, state: Any, logits_of: Any) -> tuple[int, float, float]:
    """By a whole forward over the canvas before each denoising step, of the untempered law without the mask token."""
    tokens, path, sums, drawn = np.array(state.tokens), np.array(state.path), np.zeros(2), 0
    for step in sorted(set(path[path >= 0].tolist())):
        canvas = tuple(np.where((path >= 0) & (path < step), tokens, MASK).tolist())
        logits = logits_of(policy.checkpoint.model, state.prompt, canvas)
        if s := policy.unmasking.cfg:
            without = logits_of(policy.checkpoint.model, (MASK,) * len(state.prompt), canvas)
            logits = without + (s + 1) * (logits - without)
        p = logits[path == step][:, :MASK].softmax(-1).numpy()
        sums += -(p * np.log(p)).sum(), -np.log(MASK * p).mean(-1).sum()
        drawn += len(p)
    return drawn, *sums


@pytest.mark.parametrize(
    "rule",
    [
        {"temperature": 0.7},
        {"cfg": 1.5, "remasking": "margin"},
        {"remasking": "largest", "threshold": 0.4},  # several positions a step
        {"stop_at_end": True},  # what is filled after the end is not drawn
    ],
)
def test_certainty_adds_up_over_guide_steps_and_rollouts(tiny_llada: Checkpoint, rule: dict[str, Any]) -> None:
    """Of each position when it is revealed; rows that share a canvas reveal different ones."""
    schedule = Schedule(6, 6, 2, 3)
    policy = MaskedDiffusionPolicy(tiny_llada, Unmasking(**rule), schedule, certainty=True)
    states: list[Any] = [state for state in policy.start(PROBLEMS[1:]) for _ in range(6)]
    drawn: list[Draw] = []
    for number, draw in enumerate((policy.extend, policy.extend, policy.finish)):
        latest = draw(states, keys(len(states), 100 * number))
        states = [each.state for each in latest if not each.state.done]
        drawn += latest
    assert len({each.state.tokens for each in drawn}) > 10
    logits_of = cache(whole_logits)
    for each in drawn:
        found, expected = each.text.certainty, certainty_afresh(policy, each.state, logits_of)
        assert found is not None and found == each.state.certainty  # type: ignore[attr-defined]
        assert (found.tokens, found.entropy, found.self_certainty) == pytest.approx(expected, abs=1e-5)
    assert rule.get("stop_at_end", False) == any(d.state.done and d.text.certainty.tokens < 6 for d in drawn)  # type: ignore[union-attr]


def test_certainty_is_recorded_where_asked_and_changes_no_draw(tiny_llada: Checkpoint) -> None:
    texts = []
    for certainty in (False, True):
        policy = MaskedDiffusionPolicy(tiny_llada, Unmasking(), Schedule(4, 4, 2, 2), certainty=certainty)
        texts.append([draw.text for draw in policy.finish(policy.start(PROBLEMS) * 5, keys(15))])
    off, on = texts
    assert [(t.tokens, t.logp) for t in off] == [(t.tokens, t.logp) for t in on]
    assert all(text.certainty is None for text in off) and all(text.certainty is not None for text in on)


@pytest.mark.parametrize("remasking", ["low_confidence", "entropy"])
@pytest.mark.parametrize("draw", ["finish", "greedy"])
def test_working_on_few_rows_at_a_time_changes_no_bit(
    large_vocabulary: Checkpoint, remasking: str, draw: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows share canvases first, and do not later; the head reads all canvases of a batch together either way."""

    def drawn() -> tuple[list[Any], list[tuple[int, ...]]]:
        policy = make(large_vocabulary, remasking=remasking)
        with watching(large_vocabulary) as seen:
            candidates = [draw.state for draw in policy.extend(policy.start(PROBLEMS) * 3, keys(9))]
            draws = getattr(policy, draw)([state for state in candidates for _ in range(2)], keys(18, 100))
        return [(each.state.tokens, each.state.path, each.logp, each.cost) for each in draws], seen.head

    expected = drawn()
    monkeypatch.setitem(drawing.TOGETHER, "cpu", 1)
    assert drawn() == expected


@pytest.mark.parametrize(("module", "name"), [(unmasking, "pick_tokens"), (masked_diffusion, "certainty_of")])
def test_rows_that_run_out_of_memory_between_two_slices_are_drawn_once(
    large_vocabulary: Checkpoint, module: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later slice of a step fails, while tokens are drawn or certainty is told: the first ones are drawn again."""
    monkeypatch.setitem(drawing.TOGETHER, "cpu", 1)

    def drawn() -> list[Any]:
        policy = MaskedDiffusionPolicy(large_vocabulary, Unmasking(), Schedule(6, 6, 6, 2), certainty=True)
        draws = policy.extend(policy.start(PROBLEMS) * 3, keys(9))
        return [(draw.state.tokens, draw.state.path, draw.logp, draw.text.certainty, draw.cost) for draw in draws]

    expected, right, calls = drawn(), getattr(module, name), iter(range(10**6))

    def fails_once(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == 12:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return right(*args, **kwargs)

    monkeypatch.setattr(module, name, fails_once)
    with pytest.warns(UserWarning, match="out of memory"):
        assert drawn() == expected
