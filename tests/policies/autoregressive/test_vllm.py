"""The vLLM policy: the laws and log-probabilities of transformers, its endings, and costs as vLLM counts them.

One engine serves the file: it takes half a minute to load. Prompts of one token more than a cache block are read fast,
once: each row computes a single position of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any

import numpy as np
import psutil
import pytest
import torch

import ets
from ets import demo
from ets.importance import ImportanceSampling
from ets.kernel import energy_guided
from ets.policies.autoregressive import vllm as vllm_engine
from ets.policies.autoregressive.engine import EnginePolicy
from ets.policies.autoregressive.transformers import TransformersPolicy
from ets.policies.autoregressive.truncation import probabilities
from ets.policies.autoregressive.vllm import CPU_BLOCK, VLLMEngine
from ets.policies.checkpoint import Checkpoint
from ets.policies.settings import Horizon, Sampling
from ets.randomness import derive
from ets.rewards import verifier
from ets.runner import run
from ets.tasks.arithmetic import Arithmetic
from ets.testing import check_law, judge_law
from ets.types import InputError, Keys, Problem
from tests.conftest import ALPHABET, random_qwen3, tiny_tokenizer
from tests.documentation import ROOT, blocks

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM here; `bash scripts/setup.sh vllm`")

DRAWS = 6_000
LEVEL = 1e-4
RULES = [Sampling(1.0), Sampling(0.7), Sampling(1.0, top_k=40, top_p=0.8)]


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint(demo.model_path(), device="cpu")


@pytest.fixture(scope="module")
def others() -> set[psutil.Process]:
    """Processes of other files, such as those of a server that the whole session has."""
    return set(psutil.Process().children(recursive=True))


@pytest.fixture(scope="module")
def engine(checkpoint: Checkpoint, others: set[psutil.Process]) -> Iterator[VLLMEngine]:
    with VLLMEngine(checkpoint, memory_gib=1, rows=1024) as engine:
        yield engine


@pytest.fixture(scope="module")
def problem(checkpoint: Checkpoint) -> Problem:
    """An arithmetic problem whose question breaks off after one token more than a cache block: "Then she loses"."""
    ids = checkpoint.tokenizer(Arithmetic().problems(67)[66].prompt)["input_ids"]
    return Problem("p", tuple(ids[: CPU_BLOCK + 1]))


def keys(count: int, salt: int = 0) -> Keys:
    return derive(np.arange(count, dtype=np.uint64), salt)


def next_law(checkpoint: Checkpoint, sampling: Sampling, tokens: Sequence[int]) -> np.ndarray:
    """The sampled distribution after all these tokens, by a full forward through transformers."""
    with torch.inference_mode():
        return probabilities(sampling, checkpoint.model(torch.tensor([tokens])).logits[0, -1]).numpy()


def law_of_pairs(checkpoint: Checkpoint, sampling: Sampling, prompt: tuple[int, ...]) -> dict[Any, float]:
    """Of the first two tokens; the second is told apart where the first one is drawn at least 100 times."""
    law: dict[Any, float] = {}
    for first, p in enumerate(next_law(checkpoint, sampling, prompt)):
        if p * DRAWS < 100 or first in checkpoint.end_ids:
            law[(first,)] = p
        else:
            law |= {(first, second): p * q for second, q in enumerate(next_law(checkpoint, sampling, (*prompt, first)))}
    return law


FAULTS = [Sampling(1.1), Sampling(0.8), Sampling(1.0, top_k=40, top_p=0.9)]


@pytest.mark.parametrize(("sampling", "fault"), list(zip(RULES, FAULTS, strict=True)), ids=map(str, RULES))
def test_laws_are_those_of_transformers(
    engine: VLLMEngine, problem: Problem, sampling: Sampling, fault: Sampling
) -> None:
    """Pairs of tokens, drawn in one request; a temperature or a top-p that is off by 0.1 would be seen."""
    policy = EnginePolicy(engine, sampling, Horizon(2, 8))
    law = law_of_pairs(engine.checkpoint, sampling, problem.prompt)
    pairs = [draw.state.tokens for draw in policy.extend(policy.start([problem]) * DRAWS, keys(DRAWS))]
    drawn = [pair if pair in law else pair[:1] for pair in pairs]
    check_law(drawn, law, level=LEVEL, what=f"pairs of tokens under {sampling}")
    assert not judge_law(drawn, law_of_pairs(engine.checkpoint, fault, problem.prompt), level=LEVEL).passed


def test_a_second_draw_with_the_same_key_has_its_own_noise(engine: VLLMEngine, problem: Problem) -> None:
    """Hot draws hardly ever repeat a token; the noise of the first one, used again, would favour its token."""
    policy = EnginePolicy(engine, Sampling(2.0), Horizon(1, 8))
    first = policy.extend(policy.start([problem]) * 1000, keys(1000, 1))
    rows = [n for n, draw in enumerate(first) if not draw.state.done]
    second = policy.extend([first[n].state for n in rows], keys(1000, 1)[rows])
    repeated = sum(draw.state.tokens[0] == draw.state.tokens[1] for draw in second)
    assert len(rows) > 900 and repeated < 0.05 * len(rows)


@pytest.mark.parametrize("sampling", RULES, ids=str)
def test_log_probabilities_agree_with_transformers(
    engine: VLLMEngine, checkpoint: Checkpoint, problem: Problem, sampling: Sampling
) -> None:
    policy = EnginePolicy(engine, sampling, Horizon(16, 48))
    for draw in policy.finish(policy.start([problem]) * 4, keys(4, 2)):
        ids = (*problem.prompt, *draw.state.tokens)
        with torch.inference_mode():
            logits = checkpoint.model(torch.tensor([ids[:-1]])).logits[0, len(problem.prompt) - 1 :]
        exact = probabilities(sampling, logits).log()[range(len(draw.state.tokens)), list(draw.state.tokens)]
        assert draw.logp == pytest.approx(float(exact.sum()), abs=1e-3)


def test_reported_log_probabilities_are_probed(engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that reports the same at every temperature is refused."""
    params = vllm_engine._params
    monkeypatch.setattr(vllm_engine, "_params", lambda request, sampling, ends: params(request, Sampling(1.0), ends))
    with pytest.raises(InputError, match="log-probabilities of the untempered model"):
        engine._require_processed_logps()


@pytest.mark.parametrize(
    ("replicas", "tensor_parallel", "gpus", "there"),
    [
        (8, 1, 0, "vLLM runs on the CPU here, as one copy"),
        (1, 2, 0, "vLLM runs on the CPU here, as one copy"),
        (2, 1, 1, "there is 1"),
        (2, 4, 4, "there are 4"),
    ],
)
def test_copies_that_take_more_gpus_than_there_are_are_refused(
    replicas: int, tensor_parallel: int, gpus: int, there: str, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with_gpus(monkeypatch, gpus)
    needed = replicas * tensor_parallel
    message = f"replicas {replicas} · tensor_parallel {tensor_parallel} take {needed} GPUs, but {there}; lower them"
    with pytest.raises(InputError, match=message):
        VLLMEngine(checkpoint, replicas=replicas, tensor_parallel=tensor_parallel)


def test_vllm_is_given_the_copies_and_the_gpus_of_each(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's own configuration of eight GPUs then has two copies with four of them each."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    _with_gpus(monkeypatch, 8)
    arguments = VLLMEngine(checkpoint, replicas=2, tensor_parallel=4).arguments
    assert (arguments["data_parallel_size"], arguments["tensor_parallel_size"]) == (2, 4)
    assert "block_size" not in arguments  # which a CPU needs
    made = AsyncEngineArgs(**arguments)
    assert (made.data_parallel_size, made.tensor_parallel_size) == (2, 4)
    with pytest.raises(InputError, match="tensor_parallel is 0"):
        VLLMEngine(checkpoint, tensor_parallel=0)


def _with_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    from vllm.platforms import current_platform

    monkeypatch.setattr(current_platform, "is_cpu", lambda: not count)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_greedy_is_that_of_transformers(engine: VLLMEngine, checkpoint: Checkpoint, problem: Problem) -> None:
    horizon = Horizon(16, 64)
    ours, theirs = EnginePolicy(engine, Sampling(0.0), horizon), TransformersPolicy(checkpoint, Sampling(0.0), horizon)
    (mine,), (other,) = (policy.greedy(policy.start([problem]), keys(1)) for policy in (ours, theirs))
    assert mine.text.text == other.text.text
    assert mine.logp == pytest.approx(other.logp, abs=1e-3)
    certain = ours.finish(ours.start([problem]), keys(1))[0]
    assert ours.deterministic and (certain.state.tokens, certain.logp) == (mine.state.tokens, 0.0)


def test_rows_end_at_end_tokens_at_any_of_five_stop_strings_and_at_the_longest_length(
    engine: VLLMEngine, problem: Problem
) -> None:
    stop = ("\n", "= ", "+", "-", "****")
    policy = EnginePolicy(engine, Sampling(1.5), Horizon(8, 12))
    stopping = Problem("s", problem.prompt, stop=stop)
    draws = policy.finish(policy.start([stopping]) * 200, keys(200, 3))
    endings = policy.endings
    for draw in draws:
        tokens = list(draw.state.tokens)
        assert draw.state.done and draw.text.text == endings.text(tokens, stop)
        assert endings.reached(tokens, stop) or len(tokens) == 12
        assert not any(endings.reached(tokens[:n], stop) for n in range(1, len(tokens)))
    texts = [endings.decode(draw.state.tokens) for draw in draws]
    assert all(any(string in text for text in texts) for string in stop[:4])
    assert any(draw.state.tokens[-1] in endings.end_ids for draw in draws)
    assert any(len(draw.state.tokens) == 12 for draw in draws)


def test_a_stop_string_across_a_guide_step_is_cut_by_us_and_the_overrun_charged(
    engine: VLLMEngine, problem: Problem
) -> None:
    """vLLM looks for stop strings in its own request's text alone."""
    horizon = Horizon(1, 24)
    plain = EnginePolicy(engine, Sampling(0.0), horizon)
    first, second = plain.finish(plain.start([problem]), keys(1))[0].state.tokens[:2]
    stop = plain.endings.decode([first])[-1] + plain.endings.decode([second])[0]
    policy = EnginePolicy(engine, Sampling(0.0), horizon)
    begun = policy.extend(policy.start([Problem("s", problem.prompt, stop=(stop,))]), keys(1))[0].state
    assert begun.tokens == (first,) and not begun.done
    draw = policy.finish([begun], keys(1))[0]
    assert draw.state.tokens == (first, second)
    assert draw.state.text == policy.endings.decode([first])[:-1]
    assert draw.cost.generated == policy.ledger.generated - 1 > 1


def counters() -> dict[str, float]:
    """vLLM's counters by name."""
    from vllm.v1.metrics.reader import Counter, get_metrics_snapshot

    totals: dict[str, float] = {}
    for metric in get_metrics_snapshot():
        if isinstance(metric, Counter):
            totals[metric.name] = totals.get(metric.name, 0) + metric.value
    return totals


def test_costs_are_what_vllm_counts(engine: VLLMEngine) -> None:
    """Rows that begin alike read whole cache blocks once, and the rest of their prompts each."""
    policy = EnginePolicy(engine, Sampling(), Horizon(32, 64))
    prompt = tuple(range(10, 10 + CPU_BLOCK + 8))
    before = counters()
    begun = policy.extend(policy.start([Problem("p", prompt)]) * 4, keys(4, 4))
    going = [draw.state for draw in begun if not draw.state.done]
    ended = policy.finish(going, keys(len(going), 5))
    read = {name: value - before[name] for name, value in counters().items()}
    assert [draw.cost.prompt for draw in begun] == [CPU_BLOCK + 8, 8, 8, 8]
    costs = [draw.cost for draw in (*begun, *ended)]
    assert policy.ledger == sum(costs[1:], costs[0])
    assert policy.ledger.generated == read["vllm:generation_tokens"]
    unread = len(costs)  # the last token of each request
    computed = read["vllm:prompt_tokens"] - read["vllm:prefix_cache_hits"] + read["vllm:generation_tokens"] - unread
    assert policy.ledger.positions == computed


def test_ets_solves_a_problem_through_vllm(engine: VLLMEngine) -> None:
    task = Arithmetic()
    policy = EnginePolicy(engine, Sampling(0.7), Horizon(32, 96))
    right = verifier(task.extract, lambda problem, answer: answer == problem.doc["answer"])
    step = energy_guided(right, candidates=4, rollouts=2, lam=0.1)
    (chain,) = run(policy, step, task.problems(1), width=1, seed=0)
    assert chain.state.done and chain.valid
    assert chain.cost.positions == policy.ledger.positions and chain.cost.generated == policy.ledger.generated
    assert all(step.log_rewards.shape == (4, 2) for step in chain.trace)
    assert task.extract(chain.problem, chain.state.text) is not None


def test_sample_takes_an_engine_as_the_page_says_and_leaves_it_open(engine: VLLMEngine) -> None:
    """The page's code over the engine of this file; what an engine does not do is refused."""
    (block,) = [b.text for b in blocks(ROOT / "docs" / "engines.md") if b.language == "python" and "VLLM" in b.text]
    of_its_own = "VLLMEngine(ets.Checkpoint(ets.demo.model_path()), memory_gib=1)"
    assert block.count(of_its_own) == 1
    names: dict[str, Any] = {"__name__": "__main__", "ours": nullcontext(engine)}
    exec(block.replace(of_its_own, "ours"), names)
    out = names["out"]
    assert out.valid and all(step.log_rewards.shape == (4, 2) for step in out.trace) and out.cost.generated > 0
    task, short = Arithmetic(), {"candidates": 3, "rollouts": 2, "block_size": 16, "max_length": 48, "progress": False}
    prompts = [problem.prompt for problem in task.problems(2)]
    outs = ets.sample(prompts, model=engine, extract=task.extract, stop=["\n"], **short)
    texts = [text.text for out in outs for step in out.trace for row in step.rollouts for text in row]
    assert len(outs) == 2 and len(set(texts)) > 1 and not any("\n" in text for text in texts)
    for name, value in (("certainty", True), ("steps", 4)):
        with pytest.raises(InputError, match=f"{name} is {value}, which the engine vllm does not have"):
            ets.sample(prompts, model=engine, extract=task.extract, **short, **{name: value})
    assert engine._closing.alive


def test_a_proposal_in_vllm_goes_on_from_candidates_with_its_own_law_and_exact_ratios(
    engine: VLLMEngine, checkpoint: Checkpoint, problem: Problem
) -> None:
    """Candidates of one token by transformers, and the second token by vLLM; a wrong candidate would be seen."""
    own, other, horizon = Sampling(1.0), Sampling(0.7), Horizon(1, 2)
    pair = ImportanceSampling(TransformersPolicy(checkpoint, own, horizon), EnginePolicy(engine, other, horizon))
    first = next(draw for draw in pair.extend(pair.start([problem]) * 20, keys(20, 8)) if not draw.state.done)
    draws = pair.finish([first.state] * DRAWS, keys(DRAWS, 9))
    ids, drawn = (*problem.prompt, *first.state.tokens), [draw.state.tokens[-1] for draw in draws]
    reference, proposal = (next_law(checkpoint, law, ids) for law in (own, other))
    check_law(drawn, dict(enumerate(proposal)), level=LEVEL, what="second tokens of the proposal")
    assert not judge_law(drawn, dict(enumerate(next_law(checkpoint, other, problem.prompt))), level=LEVEL).passed
    ratios = np.log(reference[drawn] / proposal[drawn])
    assert [draw.text.log_ratio for draw in draws] == pytest.approx(ratios.tolist(), abs=1e-3)
    assert all(draw.state.tokens[:1] == first.state.tokens for draw in draws)


def test_sample_takes_an_engine_as_its_proposal(engine: VLLMEngine, checkpoint: Checkpoint) -> None:
    short = {"candidates": 2, "rollouts": 2, "block_size": 16, "max_length": 32, "temperature": 1.9}
    out = ets.sample(Arithmetic().problems(1)[0].prompt, model=checkpoint, proposal=engine, reward=len_of, **short)
    assert out.ratios is not None and out.ratios.rollouts > 0 and out.cost.scored > 0 and engine._closing.alive
    with pytest.raises(InputError, match="proposal_engine is 'vllm', but the proposal is an engine already"):
        ets.sample("a", model=checkpoint, proposal=engine, proposal_engine="vllm", reward=len_of, **short)


def len_of(prompt: str, text: str) -> float:
    return -0.01 * len(text)


def test_threads_share_an_engine(engine: VLLMEngine, problem: Problem) -> None:
    def texts(salt: int) -> list[str]:
        policy = EnginePolicy(engine, Sampling(), Horizon(8, 32))
        return [draw.text.text for draw in policy.finish(policy.start([problem]) * 20, keys(20, salt))]

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(texts, (6, 7)))
    assert all(len(set(each)) > 1 for each in found) and found[0] != found[1]


def test_what_vllm_cannot_do_is_refused(engine: VLLMEngine) -> None:
    for temperature in (0.001, 2.5):
        with pytest.raises(InputError, match=r"samples at 0 and at 0\.01 to 2"):
            EnginePolicy(engine, Sampling(temperature), Horizon(8, 32))
    with pytest.raises(InputError, match="save it to a folder first"):
        VLLMEngine(Checkpoint.loaded(random_qwen3(len(ALPHABET), end=0), tiny_tokenizer()))
    policy = EnginePolicy(engine, Sampling(), Horizon(8, 32))
    with pytest.raises(InputError, match="leaves no room"):
        policy.start([Problem("long", (1,) * engine.context)])


def name_of(process: psutil.Process) -> str:
    """As the process itself has changed it; none of one that has ended."""
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def test_closing_ends_every_process(engine: VLLMEngine, others: set[psutil.Process], problem: Problem) -> None:
    """The last test: the engine is not there any more."""
    policy = EnginePolicy(engine, Sampling(), Horizon(8, 32))
    state, watchdog = policy.start([problem])[0], engine._loaded[0].watchdog
    assert watchdog.poll() is None
    engine.close()
    assert watchdog.poll() is not None
    left = set(psutil.Process().children(recursive=True)) - others
    assert not any("VLLM" in name_of(child) for child in left)
    with pytest.raises(InputError, match="has been closed"):
        policy.extend([state], keys(1))
