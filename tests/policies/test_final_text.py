"""The final part of open texts never changes, whatever the tokenizer and the stop strings; and why texts ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from ets import baselines, demo
from ets.importance import ImportanceSampling
from ets.kernel import energy_guided
from ets.policies.autoregressive.law import TokenState
from ets.policies.autoregressive.transformers import TransformersPolicy
from ets.policies.checkpoint import Checkpoint
from ets.policies.diffusion.denoise import Schedule
from ets.policies.diffusion.policy import MaskedDiffusionPolicy
from ets.policies.diffusion.uniform import UniformDiffusionPolicy
from ets.policies.final_text import final_text, finish_reason
from ets.policies.registry import fast_sampler_of
from ets.policies.settings import Horizon, Sampling, UniformCanvases, UniformDenoising, Unmasking
from ets.randomness import derive
from ets.rewards import per_text
from ets.runner import run
from ets.testing import TabularPolicy
from ets.types import InputError, Keys, Policy, Problem, State
from tests.conftest import random_qwen3, tiny_tokenizer

BYTES = ("<0x0A>", "<0xC3>", "<0xA9>", "<0xE6>", "<0x97>", "<0xA5>")
PIECES = ("<end>", "a", "b", "日", *BYTES)
STOPS = [(), ("\n\n",), ("ab\n", "b"), ("日b", "é"), ("abab", "ba", "aé")]


def keys(count: int, salt: int = 0) -> Keys:
    return derive(np.arange(count, dtype=np.uint64), salt)


def byte_fallback() -> Any:
    """Letters and single bytes, as in Llama's vocabulary; a run of bytes is decoded as a whole."""
    from tokenizers import decoders

    tokenizer = tiny_tokenizer(PIECES)
    tokenizer.backend_tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def byte_level() -> Any:
    """Letters and single bytes, as in GPT-2's vocabulary: bytes stand as printable characters."""
    from tokenizers import decoders
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    names = bytes_to_unicode()
    letters = ["".join(names[byte] for byte in piece.encode()) for piece in PIECES[:4]]
    tokenizer = tiny_tokenizer([*letters, *(names[int(name[3:5], 16)] for name in BYTES)])
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@pytest.fixture(scope="module", params=[byte_fallback, byte_level])
def bytewise(request: pytest.FixtureRequest) -> TransformersPolicy:
    """A policy whose texts end within characters about as often as not."""
    checkpoint = Checkpoint.loaded(random_qwen3(len(PIECES), end=0, spread=0.3), request.param())
    return TransformersPolicy(checkpoint, Sampling(), Horizon(1, 10))


def histories(policy: Policy, problems: Sequence[Problem], salt: int = 0) -> list[list[State]]:
    """The states of each row at all guide boundaries."""
    rows = [[state] for state in policy.start(problems)]
    while going := [row for row in rows if not row[-1].done]:
        for row, draw in zip(going, policy.extend([row[-1] for row in going], keys(len(going), salt)), strict=True):
            row.append(draw.state)
        salt += 1
    return rows


def require_final(policy: Policy, rows: Sequence[Sequence[State]]) -> None:
    """Each final text begins the next one; the last is the text."""
    for row in rows:
        finals = [final_text(policy, state) for state in row]
        for before, after in pairwise(finals):
            assert after.startswith(before), (finals, [state.text for state in row])
        assert finals[0] == "" and finals[-1] == row[-1].text


def changed(rows: Sequence[Sequence[State]]) -> int:
    """How many texts of open states are no beginning of the finished text."""
    return sum(not row[-1].text.startswith(state.text) for row in rows for state in row)


@pytest.mark.parametrize("stop", STOPS)
def test_what_is_final_never_changes_within_characters_and_stop_strings(
    bytewise: TransformersPolicy, stop: tuple[str, ...]
) -> None:
    rows = histories(bytewise, [Problem(str(n), (1, 2), stop) for n in range(100)])
    require_final(bytewise, rows)
    assert changed(rows) > 5, "no text changes here, whose change final_text could prevent"
    shown = sum(len(final_text(bytewise, state)) for row in rows for state in row[1:-1])
    assert shown > 0.25 * sum(len(state.text.replace("\ufffd", "")) for row in rows for state in row[1:-1])


def test_what_is_final_never_changes_with_thinking_sections(bytewise: TransformersPolicy) -> None:
    """The tags are a and b; the stop string counts outside of them alone."""
    problems = [Problem(str(n), (3,), ("日日", "\n"), thinking=("a", "b")) for n in range(200)]
    require_final(bytewise, histories(bytewise, problems))


def test_the_embedded_models_text_at_a_high_temperature() -> None:
    """All bytes, and stop strings, in guide steps of 3 tokens."""
    policy = TransformersPolicy(Checkpoint(demo.model_path()), Sampling(6.0), Horizon(3, 24))
    rows = histories(policy, [Problem(str(n), "Question: Tom", ("\n\n", "é", " a")) for n in range(30)])
    require_final(policy, rows)
    assert any(state.text.endswith("\ufffd") for row in rows for state in row[:-1])


def open_text(policy: Any, tokens: Sequence[int], stop: tuple[str, ...] = ()) -> str:
    state = TokenState(Problem("p", (1,), stop), (1,), tuple(tokens), policy.endings.decode(tokens))
    return final_text(policy, state)


def test_how_much_of_an_open_text_is_final(bytewise: TransformersPolicy) -> None:
    """A run of fallback bytes waits for its end; a whole character of byte-level tokens does not."""
    ids = {piece: n for n, piece in enumerate(PIECES)}
    a, b, c3, a9, e6 = (ids[piece] for piece in ("a", "b", "<0xC3>", "<0xA9>", "<0xE6>"))
    fallback = bytewise.endings.decode([c3, a9, e6]) == "\ufffd" * 3
    assert open_text(bytewise, [a, b]) == "ab"
    assert open_text(bytewise, [a, c3]) == "a"
    assert open_text(bytewise, [a, c3, a9]) == ("a" if fallback else "aé")
    assert open_text(bytewise, [a, c3, a9, b]) == "aéb"
    assert open_text(bytewise, [a, c3, b]) == "a\ufffdb"
    assert open_text(bytewise, [b, a, a], ("aab",)) == "b" and open_text(bytewise, [a, a, b], ("ba",)) == "aa"
    assert open_text(bytewise, [a, b, b], ("bab",)) == "ab" and open_text(bytewise, [a, b], ("abc", "d")) == ""


@pytest.mark.parametrize("stop", [(), ("abb", "b"), ("bab", "aa")])
@pytest.mark.parametrize("blocks", [1, 3])
def test_masked_diffusion_has_the_text_before_the_first_mask(
    tiny_llada: Any, stop: tuple[str, ...], blocks: int
) -> None:
    schedule = Schedule(6, 6, 6 // blocks, 6)
    for stop_at_end in (False, True):
        policy = MaskedDiffusionPolicy(tiny_llada, Unmasking(stop_at_end=stop_at_end), schedule)
        rows = histories(policy, [Problem(str(n), "ab", stop) for n in range(100)])
        require_final(policy, rows)
        assert changed(rows) > 10
        for row in rows:
            for state in row[:-1]:
                assert len(final_text(policy, state)) <= (*state.tokens, policy.mask_id).index(policy.mask_id)
                assert stop or 0 in state.tokens or final_text(policy, state) == state.text.partition("·")[0]


@pytest.mark.parametrize("stop", [(), ("aab", "b")])
def test_uniform_diffusion_has_the_text_of_its_finished_canvases(
    tiny_diffusion_gemma: Any, stop: tuple[str, ...]
) -> None:
    policy = UniformDiffusionPolicy(
        tiny_diffusion_gemma,
        UniformDenoising(max_denoising_steps=2, t_min=0.4, t_max=0.8, entropy_bound=0.6),
        UniformCanvases(max_length=6, guide_steps=6),
    )
    rows = histories(policy, [Problem(str(n), "ab", stop) for n in range(100)])
    require_final(policy, rows)
    assert stop or {len(final_text(policy, state)) for row in rows for state in row[:-1]} == {0, 2, 4}
    assert stop or {finish_reason(policy, row[-1]) for row in rows} == {"stop", "length"}


def test_pairs_have_the_final_text_of_their_candidates(make_tiny: Callable[..., TransformersPolicy]) -> None:
    pair = ImportanceSampling(make_tiny(block_size=1), make_tiny(Sampling(0.7), block_size=1))
    require_final(pair, histories(pair, [Problem(str(n), "ab", ("ab",)) for n in range(100)]))


def test_weighed_samplers_of_diffusion_have_the_final_text_of_the_sampler(tiny_llada: Any) -> None:
    exact = MaskedDiffusionPolicy(tiny_llada, Unmasking(0.8), Schedule(4, 4, 2, 4))
    weighed = fast_sampler_of(exact, "1F", cache="prefix")
    rows = histories(weighed, [Problem(str(n), "ab", ("ab",)) for n in range(50)])
    require_final(weighed, rows)
    assert {finish_reason(weighed, row[-1]) for row in rows} == {"stop", "length"}


def test_nothing_is_final_of_a_population_before_its_end(make_tiny: Callable[..., TransformersPolicy]) -> None:
    policy = make_tiny()
    step, seen = baselines.particle_filter(per_text(lambda _, text: len(text)), particles=3, lam=1.0), list[State]()

    def watched(policy: Policy, chains: Any) -> Any:
        after = step(policy, chains)
        seen.extend(chain.state for chain in after)
        return after

    (chain,) = run(policy, watched, [Problem("p", "ab")], width=1, seed=0)
    opened = [state for state in seen if not state.done]
    assert any(state.text for state in opened) and {final_text(policy, state) for state in opened} == {""}
    assert final_text(policy, chain.state) == chain.state.text


@pytest.mark.parametrize("stop", [(), ("ab",), ("c", "bb")])
def test_a_text_ends_by_an_end_token_a_stop_string_or_its_length(
    make_tiny: Callable[..., TransformersPolicy], stop: tuple[str, ...]
) -> None:
    policy, problem = make_tiny(), Problem("p", "ab", stop, max_length=3)
    drawn = policy.finish(policy.start([problem]) * 300, keys(300))
    for draw in drawn:
        stopped = draw.state.tokens[-1] == 0 or any(each in policy.endings.decode(draw.state.tokens) for each in stop)
        assert finish_reason(policy, draw.state) == finish_reason(policy, draw.text) == ("length", "stop")[stopped]
    assert {finish_reason(policy, draw.state) for draw in drawn} == {"length", "stop"}
    assert any(len(draw.state.tokens) == 3 and finish_reason(policy, draw.state) == "stop" for draw in drawn)


def test_masked_diffusion_ends_by_an_end_token_a_stop_string_or_a_full_canvas(tiny_llada: Any) -> None:
    policy = MaskedDiffusionPolicy(tiny_llada, Unmasking(stop_at_end=True), Schedule(3, 3, 1, 3))
    drawn = policy.finish(policy.start([Problem("p", "ab", ("ba",))]) * 200, keys(200))
    for draw in drawn:
        stopped = 0 in draw.state.tokens or "ba" in policy.endings.decode(draw.state.tokens)
        assert finish_reason(policy, draw.state) == ("stop" if stopped else "length")
    assert {finish_reason(policy, draw.state) for draw in drawn} == {"length", "stop"}


def test_the_last_text_of_a_guided_chain_has_its_reason(make_tiny: Callable[..., TransformersPolicy]) -> None:
    policy, step = make_tiny(), energy_guided(per_text(lambda _, text: len(text)), candidates=2, rollouts=2, lam=1.0)
    for chain in run(policy, step, [Problem("p", "ab")], width=8, seed=0, samples=8):
        last = chain.trace[-1].candidates[chain.trace[-1].choice]
        assert finish_reason(policy, chain.state) == finish_reason(policy, last)
        assert finish_reason(policy, last) == ("stop" if last.tokens[-1] == 0 else "length")


def test_open_texts_and_policies_without_end_tokens_are_refused(make_tiny: Callable[..., TransformersPolicy]) -> None:
    policy, tabular = make_tiny(), TabularPolicy()
    with pytest.raises(InputError, match="the text is open"):
        finish_reason(policy, policy.start([Problem("p", "ab")])[0])
    with pytest.raises(InputError, match="a TabularPolicy has no end tokens"):
        final_text(tabular, tabular.start([Problem("p", "ab")])[0])
