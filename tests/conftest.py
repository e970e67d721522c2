"""Tiny real networks, built in memory: nothing is downloaded and nothing is mocked."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, permutations, product
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from hypothesis import HealthCheck, settings

# The tests' servers stand at the loopback address and want no key, whatever proxy and key this machine has.
os.environ["no_proxy"] = "127.0.0.1"
os.environ.pop("OPENAI_API_KEY", None)
# Nor are they one of several processes that something launched, or shown in a terminal of any width.
for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "COLUMNS", "LINES"):
    os.environ.pop(name, None)

# IFEval splits texts by NLTK's punkt_tab: here one without any abbreviations, so that nothing is downloaded.
os.environ["NLTK_DATA"] = str(Path(__file__).parent / "data" / "nltk")

# By default an example that takes 0.2 s, or data that take 1 s, are failures: on a busy machine, any may.
settings.register_profile("patient", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# Laws are tested on tens of thousands of chains, whose small objects the collector of cycles walks again and again.
gc.set_threshold(50_000, 10, 10)

ALPHABET = ("<end>", "a", "b", "c")
MASKED_ALPHABET = ("<end>", "a", "b", "<mask>")
Refused: TypeAlias = Callable[[list[str], str], None]


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in a hook of this name
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Processes that share the tests take whole files, for their fixtures; one takes all that loads vLLM.

    These tests, which take longest, come first, so that no process waits for them at the end.
    """
    if not config.pluginmanager.hasplugin("xdist"):
        return
    first = {item for item in items if _loads_vllm(item)}
    for item in items:
        item.add_marker(pytest.mark.xdist_group("vllm" if item in first else str(item.path)))
    items.sort(key=lambda item: item not in first)


def _loads_vllm(item: pytest.Item) -> bool:
    if "vllm_address" in getattr(item, "fixturenames", ()) or item.path.name == "test_vllm.py":
        return True
    return "through_vllm" in item.name or item.name.endswith("[vllm]")  # by a script, or as one engine of all


def tiny_tokenizer(alphabet: Sequence[str] = ALPHABET) -> Any:
    """One token per letter, an end token with id 0, and a mask token if the alphabet has one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(alphabet)}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=alphabet[0],
        mask_token="<mask>" if "<mask>" in alphabet else None,
        clean_up_tokenization_spaces=False,
    )


def random_qwen3(
    vocabulary: int, end: int | None, *, width: int = 16, layers: int = 2, spread: float = 0.4, seed: int = 0
) -> Any:
    """A Qwen3 network with random weights in float64; `spread` is the scale of its logits."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=width // 2,
        max_position_embeddings=2048,
        initializer_range=spread,
        tie_word_embeddings=False,
        eos_token_id=end,
        bos_token_id=None,
        pad_token_id=None,
    )
    return Qwen3ForCausalLM(config).double()


def random_llada(
    vocabulary: int, end: int, *, width: int = 16, layers: int = 2, spread: float = 0.5, seed: int = 47
) -> Any:
    """A LLaDA network with random weights in float64; the mask token is the last of the vocabulary.

    At this seed and a vocabulary of four, laws differ between positions, and the mask token often has the highest
    logit: neither may be ignored unseen.
    """
    import torch

    from ets.models import LLaDAConfig, LLaDAModelLM

    torch.manual_seed(seed)
    config = LLaDAConfig(
        vocab_size=vocabulary,
        d_model=width,
        mlp_hidden_size=2 * width,
        n_layers=layers,
        n_heads=2,
        max_sequence_length=2048,
        init_std=spread,
        mask_token_id=vocabulary - 1,
        eos_token_id=end,
        pad_token_id=end,
    )
    return LLaDAModelLM(config).double()


def random_dream(vocabulary: int, end: int, *, width: int = 16, layers: int = 2, spread: float = 0.5) -> Any:
    """A Dream network with random weights in float64; the mask token is the last of the vocabulary."""
    from ets.models.dream import DreamConfig, DreamModel

    return _random_decoder(
        DreamConfig, DreamModel, vocabulary, end, width, layers, spread, mask_token_id=vocabulary - 1
    )


def random_illada(vocabulary: int, end: int, *, width: int = 16, layers: int = 2, spread: float = 0.5) -> Any:
    """An iLLaDA network with random weights in float64; the configuration names no mask token."""
    from ets.models.illada import ILLaDAConfig, ILLaDAForCausalLM

    return _random_decoder(ILLaDAConfig, ILLaDAForCausalLM, vocabulary, end, width, layers, spread)


def _random_decoder(
    config: Any, model: Any, vocabulary: int, end: int, width: int, layers: int, spread: float, **fields: Any
) -> Any:
    import torch

    torch.manual_seed(3)
    shape = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    special = {"eos_token_id": end, "pad_token_id": end, "bos_token_id": None}
    length = {"max_position_embeddings": 2048, "rope_theta": 1e6}
    network = model(
        config(vocab_size=vocabulary, initializer_range=spread, **shape, **heads, **special, **length, **fields)
    )
    for name, weight in network.named_parameters():
        if name.endswith("bias"):  # transformers begins with biases of 0
            torch.nn.init.normal_(weight, std=spread)
    return network.double().eval()


SHARED: list[Any] = []
"""The checkpoints that all tests of a process use."""


def shared(model: Any, tokenizer: Any) -> Any:
    from ets.policies.checkpoint import Checkpoint

    SHARED.append(Checkpoint.loaded(model, tokenizer))
    return SHARED[-1]


def left_on_shared() -> set[Any]:
    if not SHARED:
        return set()
    from tests.hooks import left_on

    return {(number, *left) for number, checkpoint in enumerate(SHARED) for left in left_on(checkpoint.model)}


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """A hook on a shared network would act in whichever tests this process takes next: they fail by chance."""
    before = left_on_shared()
    yield
    assert left_on_shared() <= before, "this test left a hook on a shared network, or left it in training"


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Any:
    """A checkpoint of four tokens, small enough to enumerate; its reading is tested here, so that no test sees that."""
    from ets.policies.autoregressive.reader import reader_of

    checkpoint = shared(random_qwen3(len(ALPHABET), end=0), tiny_tokenizer())
    reader_of(checkpoint.model, "tiny", (1, 2, 3))
    return checkpoint


@pytest.fixture(scope="session")
def tiny_diffusion_gemma() -> Any:
    """A uniform-diffusion checkpoint of three tokens, with canvases of two."""
    from tests.laws.uniform import random_diffusion_gemma

    return shared(random_diffusion_gemma(), tiny_tokenizer(ALPHABET[:3]))


def causal_oracle(policy: Any, temperature: float = 1.0) -> Any:
    """Exact laws of a policy over a tiny checkpoint: a full forward over each prefix, and nothing of the policy's."""
    import torch

    from ets.testing import AutoregressiveOracle

    model, tokenizer = policy.checkpoint.model, policy.checkpoint.tokenizer
    known: dict[tuple[int, ...], Any] = {}

    def next_token(problem: Any, tokens: tuple[int, ...]) -> Any:
        prompt = problem.prompt
        ids = (*(tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt), *tokens)
        if ids not in known:
            with torch.no_grad():
                known[ids] = (model(torch.tensor([ids])).logits[0, -1].double() / temperature).softmax(-1).numpy()
        return known[ids]

    def ended(problem: Any, tokens: tuple[int, ...]) -> bool:
        text = "".join(ALPHABET[token] for token in tokens)
        return 0 in tokens or any(stopped(text, stop, problem) for stop in problem.stop)

    def stopped(text: str, stop: str, problem: Any) -> bool:
        places = [n for n in range(len(text)) if text.startswith(stop, n)]
        begun = problem.prompt[-1:] if problem.prompt[-1:] in problem.thinking[:1] else ""
        tags = [[letter for letter in begun + text[:n] if letter in problem.thinking] for n in places]
        return any(not before or before[-1] == problem.thinking[1] for before in tags)

    return AutoregressiveOracle(next_token, ended, policy.horizon.block_size, policy.horizon.max_length)


def best_of_beams(oracle: Any, problem: Any, beams: int) -> tuple[int, ...]:
    """Beam search by its definition, to the last token, over the exact next-token laws."""
    import numpy as np

    running, finished = {(): 0.0}, {}
    while running:
        longer = {
            (*tokens, token): logp + np.log(p)
            for tokens, logp in running.items()
            for token, p in enumerate(oracle.next_token(problem, tokens))
        }
        ranked = sorted(longer, key=lambda tokens: -longer[tokens])
        over = [len(tokens) == oracle.max_length or oracle.ended(problem, tokens) for tokens in ranked]
        finished |= {t: longer[t] for t, end in list(zip(ranked, over, strict=True))[:beams] if end}
        running = {t: longer[t] for t in [t for t, end in zip(ranked, over, strict=True) if not end][:beams]}
    return max(finished, key=lambda tokens: finished[tokens])


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of the embedded small model with a chat template."""
    from tests.chatting import chat_checkpoint

    return chat_checkpoint(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="session")
def tiny_llada() -> Any:
    """A masked-diffusion checkpoint of three tokens and the mask token."""
    return shared(random_llada(len(MASKED_ALPHABET), end=0), tiny_tokenizer(MASKED_ALPHABET))


@pytest.fixture(scope="session")
def tiny_dream() -> Any:
    """As `tiny_llada`, of the architecture of Dream."""
    return shared(random_dream(len(MASKED_ALPHABET), end=0), tiny_tokenizer(MASKED_ALPHABET))


@pytest.fixture(scope="session")
def tiny_illada() -> Any:
    """As `tiny_llada`, of the architecture of iLLaDA."""
    return shared(random_illada(len(MASKED_ALPHABET), end=0), tiny_tokenizer(MASKED_ALPHABET))


def canvas_oracle(checkpoint: Any, schedule: Any, unmasking: Any, caching: Any = None, shift: int = 0) -> Any:
    """Exact laws of unmasking with a tiny checkpoint, of the policy's settings and nothing else of it.

    Each canvas goes through the whole model alone, and every draw of its masks is ranked as the rule says. With a cache
    the laws are over paths. The logits for a token stand `shift` positions to its left.
    """
    from ets.testing import CanvasSchedule, MaskedDiffusionOracle, enumerated_step
    from ets.testing.masked_laws import MaskedPathOracle
    from tests.laws.masked import TimedSchedule, canvas_before, parallel_bar

    tokenizer = checkpoint.tokenizer
    mask = tokenizer.mask_token_id
    shape = (schedule.gen_length, schedule.block_length, schedule.steps, schedule.guide_steps)
    numbers = TimedSchedule(*shape, schedule.eps) if schedule.quotas == "time" else CanvasSchedule(*shape)
    bar = parallel_bar(unmasking.threshold, unmasking.factor)

    def law(problem: Any, canvas: tuple[int, ...], step: int, origin: tuple[int, ...]) -> Any:
        prompt = problem.prompt if isinstance(problem.prompt, tuple) else tokenizer(problem.prompt)["input_ids"]
        block = numbers.block(len(canvas) - canvas.count(mask))
        if origin == canvas:
            found = whole_logits(checkpoint.model, prompt, canvas, shift)
        else:
            last = block.stop if caching.cache == "dual" else len(canvas)
            found = cached_logits(checkpoint.model, prompt, canvas, origin, range(block.start, last), shift)
        if unmasking.cfg:
            without = whole_logits(checkpoint.model, [mask] * len(prompt), canvas, shift)
            found = without + (unmasking.cfg + 1) * (found - without)
        if unmasking.logits_eos_inf:
            found[:, tokenizer.eos_token_id] = -math.inf
        tempered = found / unmasking.temperature
        scored = tempered.clone() if unmasking.remasking in DREAM_RULES else found
        if unmasking.confidence_eos_eot_inf:
            scored[:, tokenizer.eos_token_id] = -math.inf
        tempered[:, mask] = -math.inf
        ranks = canvas_scores(scored.softmax(-1), unmasking.remasking, mask)
        masked = [j for j in block if canvas[j] == mask]
        if unmasking.alg_temp:
            return noisy_step(tempered.softmax(-1).numpy(), ranks / unmasking.alg_temp, masked, numbers.quotas[step])
        return enumerated_step(tempered.softmax(-1).numpy(), ranks, masked, numbers.quotas[step], bar)

    def by_canvas(problem: Any, canvas: tuple[int, ...]) -> Any:
        return law(problem, canvas, numbers.step(len(canvas) - canvas.count(mask)), canvas) if mask in canvas else {}

    def by_path(problem: Any, canvas: tuple[int, ...], path: tuple[int, ...]) -> Any:
        step, each = numbers.step_at(path), numbers.steps_per_block
        refreshed = step - (step % each % caching.refresh if caching.refresh else step % each)
        return law(problem, canvas, step, canvas_before(canvas, path, refreshed, mask)) if mask in canvas else {}

    if caching is None:
        return MaskedDiffusionOracle(by_canvas, numbers, mask)
    return MaskedPathOracle(by_path, numbers, mask)


DREAM_RULES = ("maskgit_plus", "topk_margin", "neg_entropy")
"""The rules whose scores belong to the tempered distribution with the mask token."""


def noisy_step(p: Any, log_weights: Any, masked: Sequence[int], quota: int) -> Any:
    """The law of a step that draws positions without replacement: the sum over the orders of each set."""
    weights, law = {j: math.exp(log_weights[j, 0]) for j in masked}, {}
    for positions in combinations(masked, quota):
        chance = 0.0
        for order in permutations(positions):
            left = [sum(weights.values()) - sum(weights[i] for i in order[:n]) for n in range(quota)]
            chance += math.prod(weights[i] / rest for i, rest in zip(order, left, strict=True))
        for tokens in product(range(p.shape[1]), repeat=quota):
            drawn = math.prod(float(p[i, v]) for i, v in zip(positions, tokens, strict=True))
            if drawn:
                law[positions, tokens] = chance * drawn
    return law


def whole_logits(model: Any, prompt: Sequence[int], canvas: Sequence[int], shift: int = 0) -> Any:
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *canvas]])).logits[0]
    return logits[len(prompt) - shift : len(logits) - shift]


def cached_logits(
    model: Any, prompt: Sequence[int], canvas: Sequence[int], origin: Sequence[int], window: range, shift: int = 0
) -> Any:
    """Logits in a window of the canvas that looks at the rest of another one, the last refresh; 0 elsewhere.

    In one pass over both, in which the refresh looks at itself alone.
    """
    import torch

    columns = torch.arange(len(prompt) + window.start - shift, len(prompt) + window.stop)
    ids = torch.tensor([[*prompt, *origin, *(((*prompt, *canvas))[column] for column in columns)]])
    whole = len(prompt) + len(origin)
    sees = torch.zeros(ids.shape[1], ids.shape[1], dtype=torch.bool)
    sees[:, :whole] = True
    sees[whole:, columns] = False
    sees[whole:, whole:] = True
    positions = torch.cat((torch.arange(whole), columns))[None]
    with torch.no_grad():
        found = model(ids, attention_mask=sees[None, None], position_ids=positions).logits[0, whole:]
    logits = found.new_zeros(len(canvas), found.shape[-1])
    logits[list(window)] = found[: len(window)]
    return logits


def canvas_scores(q: Any, remasking: str, mask: int) -> Any:
    """How a rule ranks each token at each position, from the distribution `[L, V]` of its scores."""
    import torch

    tokens = q.clone()
    tokens[:, mask] = 0
    largest = tokens.amax(-1, keepdim=True).log().expand_as(q)
    tokens /= tokens.sum(-1, keepdim=True)
    ranked = tokens.sort(descending=True).values
    first, second = q.sort(descending=True).values[:, :2].unbind(-1)
    by_rule = {
        "maskgit_plus": q.log(),
        "topk_margin": (first - second)[:, None].expand_as(q),
        "neg_entropy": torch.where(q > 0, q * q.log(), 0).sum(-1, keepdim=True).expand_as(q),
        "low_confidence": q.log(),
        "largest": largest,
        "margin": (ranked[:, :1] - ranked[:, 1:2]).expand_as(q),
        "entropy": torch.where(tokens > 0, tokens * tokens.log(), 0).sum(-1, keepdim=True).expand_as(q),
        "sequential": torch.zeros_like(q),
    }
    return None if remasking == "random" else by_rule[remasking].numpy()


@pytest.fixture(scope="session")
def make_tiny(tiny_checkpoint: Any) -> Any:
    """`make_tiny(sampling=…, block_size=…, max_length=…)`: a policy over the tiny checkpoint."""
    from ets.policies.autoregressive.transformers import TransformersPolicy
    from ets.policies.settings import Horizon, Sampling

    def make(sampling: Any = None, block_size: int = 2, max_length: int = 4, **options: Any) -> Any:
        return TransformersPolicy(tiny_checkpoint, sampling or Sampling(), Horizon(block_size, max_length), **options)

    return make


@pytest.fixture(scope="session")
def vllm_address() -> Iterator[str]:
    """vLLM's own server with the embedded model, one for the whole session: it takes half a minute to come up."""
    from tests.vllm_server import vllm_server

    with vllm_server() as address:
        yield address


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refused:
    """`refused(words, message)`: the command ends in one line, which holds the message, and loads no weights."""
    from ets.cli import main
    from ets.policies.checkpoint import Checkpoint

    def require(words: list[str], message: str) -> None:
        monkeypatch.setattr(Checkpoint, "model", property(lambda self: pytest.fail("the weights were loaded")))
        assert main(words) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and message in error

    return require
