"""Uniform diffusion (DiffusionGemma): its law, transformers' own sampler, the shared work, and the front doors."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ets
from ets.cli import main, parser_of
from ets.commands.evaluate import plan_of
from ets.policies.checkpoint import Checkpoint
from ets.policies.diffusion import uniform
from ets.policies.diffusion.entropy_bound import Denoised, UniformLaw, UniformSchedule, accepted, denoise
from ets.policies.diffusion.uniform import UniformDiffusionPolicy
from ets.policies.diffusion.uniform_reader import UniformReader
from ets.policies.registry import policy_of
from ets.testing import check_law
from ets.types import Cost, InputError, Keys, Problem
from tests.conftest import ALPHABET, Refused, tiny_tokenizer
from tests.hooks import hooked
from tests.laws.uniform import Node, UniformOracle, accepted_by_hand, random_diffusion_gemma, saved_diffusion_gemma

LEVEL = 1e-4
PROBLEM = Problem("p", "abbab")
"""Longer than the sliding window of three earlier tokens."""
SHORT: dict[str, Any] = {
    "max_length": 2,
    "max_denoising_steps": 3,
    "t_min": 0.2,
    "t_max": 0.9,
    "entropy_bound": 0.6,
    "stability_threshold": 1,
    "confidence_threshold": 1.0,
}
"""One canvas of at most three steps; a good part of the canvases end early."""
LONG = SHORT | {"max_length": 4}


def make(checkpoint: Checkpoint, **settings: Any) -> UniformDiffusionPolicy:
    policy = policy_of(lambda: checkpoint, engine="uniform-diffusion", **settings)
    assert isinstance(policy, UniformDiffusionPolicy)
    return policy


def keys(count: int, first: int = 0) -> Keys:
    return np.arange(first, first + count, dtype=np.uint64)


def oracle_of(policy: UniformDiffusionPolicy) -> UniformOracle:
    return UniformOracle(policy.checkpoint.model, policy.checkpoint.tokenizer, policy.schedule, policy.denoising)


@pytest.fixture(scope="module")
def oracle(tiny_diffusion_gemma: Checkpoint) -> UniformOracle:
    return oracle_of(make(tiny_diffusion_gemma, **SHORT))


@pytest.fixture(scope="module")
def letters() -> Checkpoint:
    """Eleven tokens and canvases of four."""
    model = random_diffusion_gemma(11, 4, use_bidirectional_attention="vision")
    return Checkpoint.loaded(model, tiny_tokenizer((ALPHABET[0], *"abcdefghij")))


LETTERS: dict[str, Any] = {
    "max_length": 12,
    "max_denoising_steps": 4,
    "entropy_bound": 2.0,
    "confidence_threshold": 1.0,
}


# The law


def judged(policy: UniformDiffusionPolicy, oracle: UniformOracle, level: float) -> None:
    draws = 10_000
    start = policy.start([PROBLEM])[0]
    outcomes = [oracle.outcome(draw.state) for draw in policy.finish([start] * draws, keys(draws))]
    check_law(outcomes, oracle.finish_law(PROBLEM, oracle.root), level=level)


def test_the_paths_of_a_canvas_follow_the_exact_law_with_early_ends(
    tiny_diffusion_gemma: Checkpoint, oracle: UniformOracle
) -> None:
    law = oracle.finish_law(PROBLEM, oracle.root)
    early = sum(p for (path, _), p in law.items() if len(path) < 3)
    assert 0.2 < early < 0.8
    judged(make(tiny_diffusion_gemma, **SHORT), oracle, LEVEL)


def without_conditioning(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(UniformReader, "_conditioned", lambda self, signals: contextlib.nullcontext())


def without_schedule(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(UniformLaw, "temperature", lambda law, step: law.t_max)


def without_renoising(patch: pytest.MonkeyPatch) -> None:
    """Positions that are not accepted keep their tokens."""
    read, logits_of = [], UniformReader.logits

    def logits(self: UniformReader, prefixes: Any, canvases: torch.Tensor, signals: Any) -> torch.Tensor:
        read.append(canvases)
        return logits_of(self, prefixes, canvases, signals)

    def kept(logits: torch.Tensor, of: torch.Tensor, uniforms: torch.Tensor, bound: float) -> Denoised:
        found, p = denoise(logits, of, uniforms, bound), logits.double().softmax(-1)
        chosen = accepted(torch.special.entr(p).sum(-1), bound)[of]
        tokens = torch.where(chosen, found.tokens, read[-1][of])
        return Denoised(found.best, found.entropy, tokens, found.logp)

    patch.setattr(UniformReader, "logits", logits)
    patch.setattr(uniform, "denoise", kept)


def accepting_everything(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(uniform, "denoise", lambda logits, of, uniforms, bound: denoise(logits, of, uniforms, float("inf")))


def never_stopping_early(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(UniformLaw, "ends", lambda law, step, unchanged, entropy: step == 2)


@pytest.mark.parametrize(
    "mutate",
    [without_conditioning, without_schedule, without_renoising, accepting_everything, never_stopping_early],
)
def test_a_mutated_policy_turns_the_law_red(
    mutate: Any, tiny_diffusion_gemma: Checkpoint, oracle: UniformOracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At level 1e-3, whose simulation takes a tenth of the time."""
    mutate(monkeypatch)
    with pytest.raises(AssertionError, match="exact law"):
        judged(make(tiny_diffusion_gemma, **SHORT), oracle, 1e-3)


def test_log_probabilities_equal_those_of_full_forward_passes(letters: Checkpoint) -> None:
    """Of every drawn canvas, over three canvases; the tokens are the most probable ones of the last steps."""
    policy = make(letters, **LETTERS)
    problems = [Problem("p", "abcdefgh"), Problem("q", "ji")]
    states = [state for state in policy.start(problems) for _ in range(4)]
    oracle, lengths = oracle_of(policy), Counter[int]()
    for draw in policy.finish(states, keys(8)):
        state: Any = draw.state
        terms, tokens = oracle.replay(state.problem, [tuple(canvas.tolist()) for canvas in state.path])
        assert state.step_logps == pytest.approx(terms, abs=1e-9)
        assert draw.logp == pytest.approx(sum(terms), abs=1e-9)
        assert state.tokens == tokens[: len(state.tokens)] and 0 not in state.tokens[:-1]
        lengths[len(tokens)] += 1
    assert len(lengths) > 1, "all texts have the same number of canvases"


def test_the_accepted_positions_are_those_of_the_rule_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        entropies = torch.rand(6, generator=generator, dtype=torch.float64)
        found = accepted(entropies, 0.9).nonzero()[:, 0].tolist()
        assert set(found) == accepted_by_hand(entropies.tolist(), 0.9)
    assert accepted(torch.tensor([0.5, 0.5, 0.5]), 0.5).tolist() == [True, True, False]


# transformers' own sampler


def generated(checkpoint: Checkpoint, count: int, **changed: Any) -> list[tuple[int, ...]]:
    """Texts of `generate`, up to and with the end token."""
    from transformers.models.diffusion_gemma.generation_diffusion_gemma import EntropyBoundSamplerConfig

    settings = LONG | changed
    options = {"max_new_tokens": settings["max_length"], "eos_token_id": 0, "return_dict_in_generate": False}
    options |= {"sampler_config": EntropyBoundSamplerConfig(settings["entropy_bound"])}
    options |= {name: settings[name] for name in ("max_denoising_steps", "t_min", "t_max")}
    options |= {name: settings[name] for name in ("stability_threshold", "confidence_threshold")}
    prompt = torch.tensor([checkpoint.tokenizer(PROBLEM.prompt)["input_ids"]] * count)
    torch.manual_seed(1)
    found = checkpoint.model.generate(prompt, **options)[:, prompt.shape[1] :]
    return [tuple(row[: row.index(0) + 1] if 0 in row else row) for row in found.tolist()]


def two_sample_p(first: Sequence[Any], second: Sequence[Any], simulations: int = 20_000) -> float:
    """The p-value of the G-statistic that two samples have one law, simulated by permutations."""
    counts = [Counter(first), Counter(second)]
    outcomes = sorted({*first, *second})
    table = np.array([[count[outcome] for outcome in outcomes] for count in counts], float)
    total, rng = table.sum(0), np.random.default_rng(0)

    def statistic(left: Any) -> Any:
        right = total - left
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = [np.where(n > 0, n * np.log(n / total), 0.0) for n in (left, right)]
        return (terms[0] + terms[1]).sum(-1)

    drawn = rng.multivariate_hypergeometric(total.astype(int), len(first), size=simulations, method="marginals")
    return float((1 + np.sum(statistic(drawn.astype(float)) >= statistic(table[0]) - 1e-9)) / (1 + simulations))


@pytest.mark.parametrize(("changed", "equal"), [({}, True), ({"t_max": 1.8}, False), ({"entropy_bound": 2.5}, False)])
def test_texts_have_the_law_of_transformers_generate(
    tiny_diffusion_gemma: Checkpoint, changed: dict[str, Any], equal: bool
) -> None:
    """Two canvases, over a prompt beyond the sliding window; level 1e-4. Another law of `generate` turns it red."""
    policy, count = make(tiny_diffusion_gemma, **LONG), 4_000
    start = policy.start([PROBLEM])[0]
    texts = [draw.text.tokens for draw in policy.finish([start] * count, keys(count))]
    assert len(set(texts)) > 10
    assert (two_sample_p(texts, generated(tiny_diffusion_gemma, count, **changed)) >= LEVEL) is equal


# Rows


def test_results_do_not_depend_on_the_batch(letters: Checkpoint) -> None:
    """Width 1 against 32, and chunks of few rows: equal tokens, and equal log-probabilities up to rounding."""
    policy = make(letters, guide_steps=6, **LETTERS)
    problems = [Problem(str(n), "abcdefghij"[: 3 + n % 4]) for n in range(32)]
    middle = [draw.state for draw in policy.extend(policy.start(problems), keys(32))]
    tight = make(letters, guide_steps=6, memory_gib=1e-5, **LETTERS)
    chunked = tight.finish([draw.state for draw in tight.extend(tight.start(problems), keys(32))], keys(32, 50))
    for n, (problem, draw, other) in enumerate(
        zip(problems, policy.finish(middle, keys(32, 50)), chunked, strict=True)
    ):
        alone = policy.extend(policy.start([problem]), keys(1, n))[0]
        assert alone.text.tokens == middle[n].tokens
        for end in (policy.finish([alone.state], keys(1, 50 + n))[0], other):
            assert end.text.tokens == draw.text.tokens and end.logp == pytest.approx(draw.logp, abs=1e-6)


@contextmanager
def positions_read(model: Any) -> Iterator[Counter[str]]:
    """Token positions and passes of the encoder and of the decoder, by a hook on each."""
    seen = Counter[str]()

    def count(kind: str, field: str) -> Any:
        def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            seen[kind] += kwargs[field].numel()
            seen["forwards"] += 1

        return hook

    encoder, decoder = model.base_model.encoder, model.base_model.decoder
    with (
        hooked(encoder, count("encoder", "input_ids"), with_kwargs=True),
        hooked(decoder, count("decoder", "decoder_input_ids"), with_kwargs=True),
    ):
        yield seen


def test_shared_work_is_done_once(letters: Checkpoint) -> None:
    """The prompt is read once, a finished canvas once per history, and completions share their first pass."""
    policy = make(letters, guide_steps=12, **LETTERS | {"confidence_threshold": 0.0})  # a step each, no early ends
    start, spent = policy.start([PROBLEM])[0], list[Cost]()
    with positions_read(letters.model) as seen:
        candidates = policy.extend([start] * 5, keys(5))
        assert seen == {"encoder": 5, "decoder": 5 * 4, "forwards": 2}
        spent += [draw.cost for draw in candidates]
        seen.clear()
        states = [draw.state for draw in candidates for _ in range(3)]
        again = policy.extend(states, keys(15, 20))
        assert seen == {"decoder": 5 * 4, "forwards": 1}  # five canvases for fifteen rows
        spent += [draw.cost for draw in again]
        seen.clear()
        ends = policy.finish([draw.state for draw in again], keys(15, 40))
        spent += [draw.cost for draw in ends]
        histories = {tuple(draw.text.tokens[: 4 * n]) for draw in ends for n in (1, 2) if len(draw.text.tokens) > 4 * n}
        passes = sum(10 if len(d.text.tokens) > 8 else 6 if len(d.text.tokens) > 4 else 2 for d in ends)
        assert seen["encoder"] == 4 * len(histories)
        assert seen["decoder"] == 4 * passes  # no two of these rows draw equal canvases
    total = Cost.total(spent)
    assert (total.positions, total.prompt) == (5 + 5 * 4 * 2 + seen["encoder"] + seen["decoder"], 5)
    assert (policy.ledger.positions, policy.ledger.vocabulary) == (total.positions, total.vocabulary)
    assert policy.ledger.forwards == 3 + seen["forwards"]


def test_equal_first_canvases_are_encoded_once(tiny_diffusion_gemma: Checkpoint) -> None:
    policy = make(tiny_diffusion_gemma, **LONG)
    with positions_read(tiny_diffusion_gemma.model) as seen:
        ends = policy.finish(policy.start([PROBLEM]) * 64, keys(64))
    firsts = {draw.text.tokens[:2] for draw in ends if len(draw.text.tokens) > 2}
    assert seen["encoder"] == 5 + 2 * len(firsts) and len(firsts) <= 4


# Texts


def test_an_open_canvas_shows_its_most_probable_tokens(letters: Checkpoint) -> None:
    policy = make(letters, guide_steps=12, **LETTERS)
    start = policy.start([PROBLEM])[0]
    for draw in policy.extend([start] * 8, keys(8)):
        state: Any = draw.state
        _, best, _ = oracle_of(policy).reading(
            tuple(letters.tokenizer(PROBLEM.prompt)["input_ids"]), _opened(state.path[0])
        )
        assert state.tokens == best[: best.index(0) + 1] if 0 in best else best
        assert not draw.text.done and len(state.path) == 2


def _opened(canvas: Any) -> Node:
    return Node().opened(tuple(canvas.tolist()))


def test_a_text_ends_at_an_end_token_and_at_a_stop_string(letters: Checkpoint) -> None:
    policy, problem = make(letters, **LETTERS), Problem("p", "abbab", stop=("d",))
    ends = policy.finish(policy.start([problem]) * 40, keys(40))
    ended = [draw for draw in ends if draw.text.tokens[-1] == 0]
    stopped = [draw for draw in ends if 4 in draw.text.tokens]
    assert ended and stopped and all(draw.state.done for draw in ends)
    assert all("<end>" not in draw.text.text and "d" not in draw.text.text for draw in ends)
    for draw in stopped:  # the canvas of the stop string is the last
        assert draw.text.tokens.index(4) // 4 == (len(draw.text.tokens) - 1) // 4


def test_certainty_is_that_of_the_last_denoising_steps(letters: Checkpoint) -> None:
    policy = make(letters, certainty=True, **LETTERS | {"max_length": 4})
    oracle = oracle_of(policy)
    draw = policy.finish(policy.start([PROBLEM]), keys(1))[0]
    state: Any = draw.state
    path = [tuple(canvas.tolist()) for canvas in state.path]
    node = _opened(state.path[0])
    for canvas in path[1:]:
        node = node.drawn(canvas)
    oracle.reading(oracle.prompt(PROBLEM), node)
    law, n = policy.denoising, len(path)
    warmth = law.t_min + (law.t_max - law.t_min) * (1 - (n - 1) / 4)
    raw = (oracle.known[oracle.prompt(PROBLEM), (), node.canvases] * warmth).double()[: len(state.tokens)]
    entropy = torch.distributions.Categorical(logits=raw).entropy().sum()
    assert draw.text.certainty is not None and draw.text.certainty.tokens == len(state.tokens)
    assert draw.text.certainty.entropy == pytest.approx(float(entropy), abs=1e-5)


# Settings, and what is refused


def test_guide_steps_split_the_denoising_steps_evenly() -> None:
    schedule = UniformSchedule(4, 2, 6, 4)
    assert [schedule.boundary(step) for step in (0, 2, 3, 6, 11)] == [3, 3, 6, 9, 12]
    assert (schedule.after_canvas(0), schedule.after_canvas(5), schedule.after_canvas(6)) == (6, 6, 12)
    with pytest.raises(InputError, match="guide_steps 5 does not divide the 12 denoising steps of 2 canvases"):
        UniformSchedule(4, 2, 6, 5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"t_min": 0.9, "t_max": 0.8}, "t_min 0.9 is above t_max 0.8"),
        ({"t_max": 0.0, "t_min": 0.0}, "t_max is 0"),
        ({"entropy_bound": -0.1}, "entropy_bound is -0.1"),
        ({"max_denoising_steps": 0}, "max_denoising_steps is 0"),
        ({"stability_threshold": 1.5}, "stability_threshold is 1.5"),
        ({"confidence_threshold": float("nan")}, "confidence_threshold is nan"),
        ({"temperature": 0.5}, "temperature is 0.5, which the engine uniform-diffusion does not have"),
        ({"guide_steps": 7}, "guide_steps 7 does not divide"),
    ],
)
def test_values_out_of_range_are_refused(
    tiny_diffusion_gemma: Checkpoint, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make(tiny_diffusion_gemma, **values)


def test_other_models_and_prompts_are_refused(
    tiny_diffusion_gemma: Checkpoint, tiny_llada: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="is a 'llada' model, which has no uniform diffusion"):
        make(tiny_llada)
    for engine in ("transformers", "masked-diffusion", "vllm"):
        with pytest.raises(InputError, match="diffusion"):
            policy_of(lambda: tiny_diffusion_gemma, engine=engine)
    with pytest.raises(InputError, match="leaves no room for a generation of 4000"):
        make(tiny_diffusion_gemma, max_length=4000).start([PROBLEM])
    policy = make(tiny_diffusion_gemma, **SHORT)
    with pytest.raises(InputError, match="of another policy or has ended"):
        policy.finish(make(tiny_diffusion_gemma, **SHORT).start([PROBLEM]), keys(1))
    larger = Checkpoint.loaded(tiny_diffusion_gemma.model, tiny_tokenizer())
    with pytest.raises(InputError, match="has the token id 3, and the model has embeddings of 3"):
        make(larger, **SHORT).start([Problem("p", "c")])
    monkeypatch.setattr(tiny_diffusion_gemma.config, "image_token_id", 2)
    with pytest.raises(InputError, match="holds the image token"):
        policy.start([PROBLEM])


def test_nan_logits_are_refused_in_one_line() -> None:
    model = random_diffusion_gemma()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    policy = make(Checkpoint.loaded(model, tiny_tokenizer(ALPHABET[:3])), **SHORT)
    with pytest.raises(InputError, match="NaN or infinite logits"):
        policy.finish(policy.start([PROBLEM]), keys(1))


# A checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_diffusion_gemma(tmp_path_factory.mktemp("gemma"))


def test_a_checkpoints_architecture_chooses_the_engine_and_its_settings_the_law(folder: Path) -> None:
    """Missing settings are those that `generate` takes."""
    policy = policy_of(lambda: Checkpoint(str(folder)), max_length=6, t_min=0.5)
    assert isinstance(policy, UniformDiffusionPolicy)
    assert policy.denoising == UniformLaw(6, 0.9, 0.5, 0.3, 1, 0.005)
    assert policy.schedule == UniformSchedule(4, 2, 6, 2)  # six tokens are rounded up to two canvases


def test_a_checkpoint_is_sampled_from_python_and_from_the_command_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guide: dict[str, Any] = {"candidates": 3, "rollouts": 2, "max_length": 8, "guide_steps": 4}
    result = ets.sample("1+2=", model=str(folder), reward=lambda prompt, text: -len(text), **guide)
    words = ["sample", "--model", str(folder), "--prompt", "1+2=", "--reward", "likelihood", "--max-length", "8"]
    assert main([*words, "--candidates", "3", "--rollouts", "2", "--guide-steps", "4"]) == 0
    assert 1 <= len(result.trace) <= 4 and "guide step 1: chose" in capsys.readouterr().out


EVAL = ["eval", "--engine", "uniform-diffusion", "--task", "sums", "--count", "2", "--shots", "0"]
METHODS = "plain,majority,best-of-n,one-step,ets,particles,retained"


def test_methods_are_evaluated(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", str(folder), "--methods", METHODS, "--candidates", "2", "--rollouts", "2", "--minimum", "1"]
    assert main([*EVAL, *words, "--max-length", "8", "--guide-steps", "4", "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "ETS (M 2, K 2), vote" in shown and "majority voting" in shown and "particle filter" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "greedy"], "UniformDiffusionPolicy has no greedy decoding; leave the method greedy out"),
        (["--methods", "beam"], "UniformDiffusionPolicy has no beam search"),
        (["--methods", "ets-is,ets", "--proposal", "x"], "UniformDiffusionPolicy takes no proposal"),
        (["--methods", "plain", "--remasking", "random"], "remasking is 'random', which the engine uniform-diffusion"),
    ],
)
def test_methods_and_settings_of_other_engines_are_refused(
    folder: Path, refused: Refused, words: list[str], message: str
) -> None:
    words = [str(folder) if word == "x" else word for word in words]
    refused([*EVAL, "--model", str(folder), *words], message)


def test_a_comparison_of_all_methods_leaves_out_the_searches() -> None:
    words = ["compare", "--engine", "uniform-diffusion", "--tasks", "sums", "--model", "somewhere"]
    methods = plan_of(parser_of().parse_args(words)).methods
    assert "ets" in methods and not {"greedy", "beam", "base", "ets-is"} & set(methods)
