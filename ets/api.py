"""One call for a notebook."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeAlias, overload

from tqdm.auto import tqdm

from ets.chat import Chat, ChatTemplate, Prompt, as_chat, as_prompts
from ets.diagnostics import RatioSummary, ratio_summary
from ets.kernel import energy_guided
from ets.policies.autoregressive.server import Endpoint
from ets.policies.autoregressive.vllm import VLLMEngine
from ets.policies.checkpoint import Checkpoint
from ets.policies.levels import target_of
from ets.policies.making import fast_sampler_of, policy_of, proposal_of
from ets.policies.masked_diffusion import MaskedDiffusionPolicy
from ets.proposal import ImportanceSampling
from ets.readouts import Vote, vote
from ets.rewards import Extract, Scoring, as_extract, as_reward, majority
from ets.rewards.lifting import ReadProblem
from ets.runner import run
from ets.stopping import Decided
from ets.trace_view import trace_html, trace_text
from ets.transition import require_variety
from ets.types import Chain, Cost, InputError, Message, Policy, Problem, Reward, Step, StepFn

Local: TypeAlias = str | Path | tuple[Any, Any] | Checkpoint
"""A model that transformers runs in this process."""
Model: TypeAlias = Local | VLLMEngine | Endpoint
"""One of these, or one that is served already; its owner closes it."""
One: TypeAlias = str | Sequence[Message] | Sequence[int]
"""One prompt: text, a conversation, or token ids."""


@dataclass(frozen=True, eq=False)
class Result:
    """What `sample` returns.

    Parameters
    ----------
    text : str
        The sampled generation: the chain's own, so for a fixed reward a sample of p* up to the errors of
        finite M and K.
    answer : hashable or None
        What `extract` found in the text, if one was given.
    trace : tuple of Step
        Every guide step: candidates, rollouts, rewards, weights and the choice.
    cost : Cost
        Tokens, positions and seconds.
    valid : bool
        False if the text's reward is -inf: then it is no sample of p*.
    ratios : RatioSummary or None
        With a proposal, or a level above 0: what its importance weights are worth.
    target : str or None
        With a faster sampler of masked diffusion: what p_ref is, in words, and its level.
    vote : Vote or None
        The other readout, with `extract`: what all rollouts say. Its majority is an estimator, no sample of p*.
    approximate : str
        Why the draws are not exactly those of p_ref, with a server that returns text alone; else empty.
    prompt : str or tuple of int
        The prompt: with a chat template, the text that it wrote.
    """

    text: str
    answer: Hashable | None
    trace: tuple[Step, ...] = field(repr=False)
    cost: Cost
    valid: bool
    ratios: RatioSummary | None = None
    target: str | None = None
    vote: Vote | None = field(default=None, repr=False)
    approximate: str = ""
    prompt: str | tuple[int, ...] = field(default="", repr=False)

    def __str__(self) -> str:
        return trace_text(self.text, self.answer, self.trace, self.cost, self.notes)

    def _repr_html_(self) -> str:
        return trace_html(self.text, self.answer, self.trace, self.cost, self.notes)

    @property
    def notes(self) -> dict[str, str]:
        """What is to be said beside the trace, by heading."""
        proposal = None if self.ratios is None else str(self.ratios)
        said = {"p_ref": self.target, "proposal": proposal, "approximate": self.approximate}
        return {heading: note for heading, note in said.items() if note}


@overload
def sample(prompt: One, *, model: Model, **options: Any) -> Result: ...
@overload
def sample(prompt: Sequence[One], *, model: Model, **options: Any) -> list[Result]: ...
def sample(  # type: ignore[misc]
    prompt: One | Sequence[One],
    *,
    model: Model,
    chat: bool | str | Path | Chat | None = None,
    reward: Scoring | Reward | None = None,
    extract: Extract | None = None,
    candidates: int = 8,
    rollouts: int = 3,
    lam: float = 0.1,
    block_size: int = 64,
    max_length: int = 512,
    temperature: float = 1.0,
    top_k: int | str | None = None,
    top_p: float | str | None = None,
    steps: int | None = None,
    block_length: int | None = None,
    cfg: float | None = None,
    remasking: str | None = None,
    stop_at_end: bool | None = None,
    threshold: float | None = None,
    factor: float | None = None,
    cache: str | None = None,
    refresh: int | None = None,
    level: str | None = None,
    proposal: Local | None = None,
    proposal_temperature: float | None = None,
    clip: tuple[float, float] | None = None,
    decided: Decided | None = None,
    certainty: bool = False,
    stop: Sequence[str] = (),
    seed: int = 0,
    width: int = 8,
    progress: bool = True,
) -> Result | list[Result]:
    """Sample from p*(x | prompt) ∝ p_ref(x | prompt) · exp(reward / λ) by energy-guided test-time scaling.

    Parameters
    ----------
    prompt : str, list of messages, list of int, or a list of one of these
        Text, used as it is unless `chat` is set; a conversation, ``[{"role": "user", "content": …}, …]``, which the
        chat template writes as text; or token ids, used as they are. For several, which are all of one kind, results
        come in the same order.
    model : str, Path, (model, tokenizer), Checkpoint, VLLMEngine or Endpoint
        A checkpoint's folder or hub name, or a loaded pair. The last two checkpoints named stay loaded. Or a model that
        is served already: a `VLLMEngine` of `ets.policies.autoregressive.vllm` or an `Endpoint` of
        `ets.policies.autoregressive.server`. Calls may share an engine, and it stays open. Engines compute no certainty
        and take no proposal.
    chat : bool, str, Path or Chat, optional
        True: text is the user's turn in the tokenizer's default chat template. A name of another of its templates, the
        path of a file with one, or an `ets.Chat` with a system text and thinking on or off. Messages need a template,
        and get the default one. `Result.prompt` is the text that the template wrote.
    reward : callable, optional
        `(prompt, text) -> number`, or an `ets.types.Reward` of (problem, rollouts, chain).
    extract : callable, optional
        `text -> answer or None`, or `(problem, text) -> answer or None`. Without a reward, the reward is
        `ets.rewards.majority(extract)`, the paper's, for masked diffusion with `minimum=2`.
    candidates, rollouts, lam : int, int, float
        M, K and λ. M·K rollouts are scored in each guide step; λ is in units of the reward.
    block_size, max_length : int
        Tokens per guide step, and in all: I = ⌈max_length / block_size⌉ guide steps at most.
    temperature, top_k, top_p : float, int, float
        The law of p_ref. A checkpoint's generation_config is applied where top_k or top_p is "checkpoint", and then as
        `model.generate` applies it. Masked diffusion has no top_k and top_p.
    steps, block_length, cfg, remasking, stop_at_end : int, int, float, str, bool
        For masked diffusion (LLaDA) alone: denoising steps (by default one per token), tokens of a block (by default
        the model family's, or the whole canvas where that does not divide max_length), and the guidance, the rule and
        the early end of `ets.policies.unmasking.Unmasking`. Here block_size must divide max_length.
    threshold, factor, cache, refresh : float, float, str, int
        For masked diffusion alone, a faster sampler: parallel decoding by a threshold or a factor of `Unmasking`, and
        a "dual" or "prefix" cache with the refresh of `Caching`. It is p_ref itself: the weight of a sample is exactly
        1 (Level 0).
    level : str, optional
        For masked diffusion alone: "1" or "1F" makes the faster sampler a proposal instead, whose paths are
        weighed towards the law that `ets.policies.levels.LEVELS` names; it stands in `Result.target`. "0" is p_ref
        itself. At "1" drawn tokens must not choose positions: the fast sampler's rule is then `largest`, unless
        `remasking` is given.
    proposal : str, Path, (model, tokenizer) or Checkpoint, optional
        A cheaper model with the same vocabulary, which draws the rollouts; `model` corrects them by importance weights
        (ETS-IS). Whether that works stands in `Result.ratios`.
    proposal_temperature : float, optional
        By default the model's. The proposal has the same `top_k` and `top_p`; at "checkpoint" those of its checkpoint.
    clip : (float, float), optional
        Bounds on the importance ratios, which bias the energies.
    decided : callable, optional
        A rule of `ets.stopping` by which a chain ends as soon as going on would change nothing, or little.
    certainty : bool
        Record how certain the model is of what it draws: for the rewards `entropy` and `self_certainty`.
    stop : sequence of str
        Strings that end a generation; they are cut off its text.
    seed : int
        Results are a function of it, the prompt's place in the list, and the arguments above; through a `VLLMEngine` or
        an `Endpoint` up to rounding, which may change a text.
    width : int
        Prompts that advance together.
    progress : bool
        Show a progress bar over the prompts if there are several; ets itself prints nothing else.

    Returns
    -------
    Result or list of Result

    Raises
    ------
    InputError
        For arguments out of range, before the model is loaded; for a missing checkpoint, or a proposal with other
        tokens; for a reward that raises or returns something else than one number per text.
    """
    guide_of(reward, extract)  # a call without both is refused before anything is opened
    read = None if extract is None else as_extract(extract)
    prompts, single = as_prompts(prompt)
    problems = [_problem(n, each, as_stops(stop)) for n, each in enumerate(prompts)]
    chosen = as_chat(chat) or (Chat() if any(problem.messages for problem in problems) else None)
    level = None if level is None else str(level)
    weighed = level not in (None, "0")
    if proposal is None and not weighed:
        for name, value in (("clip", clip), ("proposal_temperature", proposal_temperature)):
            if value is not None:
                raise InputError(f"{name} is {value!r}, but there is no proposal; leave it out, or set proposal")
    length: dict[str, Any] = {"block_size": block_size, "max_length": max_length}
    law: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    canvas: dict[str, Any] = {"steps": steps, "block_length": block_length, "cfg": cfg, "remasking": remasking}
    fast: dict[str, Any] = {"threshold": threshold, "factor": factor, "cache": cache, "refresh": refresh}
    policy: Policy = _policy(
        model,
        **length,
        **law,
        **canvas,
        stop_at_end=stop_at_end,
        certainty=certainty,
        **({} if weighed else fast),
    )
    minimum = 2 if isinstance(policy, MaskedDiffusionPolicy) else 1  # as in the authors' code for LLaDA
    guide = guide_of(reward, extract, minimum)
    if chosen is not None:
        problems = _in_template(problems, chosen, policy)
    if level is not None:
        at_level = {"temperature": proposal_temperature, **fast} if weighed else {}
        if level == "1" and remasking is None:
            at_level["remasking"] = "largest"
        policy = fast_sampler_of(policy, level, clip=clip, **at_level)
    numbers: dict[str, Any] = {"candidates": candidates, "rollouts": rollouts, "lam": lam}
    step = energy_guided(guide, **numbers, decided=decided)
    if proposal is not None:
        small = partial(_checkpoint, proposal, "proposal")
        other = proposal_of(policy, small, temperature=proposal_temperature, top_k=top_k, top_p=top_p)
        policy = ImportanceSampling(policy, other, clip)
    require_variety(policy, candidates)
    policy.start(problems)  # bad prompts are named before the weights are loaded
    chains = _chains(policy, step, problems, width=width, seed=seed, progress=progress)
    at = "0" if level is None and _given(fast) else level
    target = None if at is None else f"{target_of(at)} (level {at})"
    ratios_of = partial(ratio_summary, clip=clip) if proposal is not None or weighed else None
    approximate = model.approximate if isinstance(model, Endpoint) else ""
    results = [result_of(chain, read, ratios_of, target, approximate) for chain in chains]
    return results[0] if single else results


def _problem(place: int, prompt: Prompt, stops: tuple[str, ...]) -> Problem:
    """A problem named after the place of its prompt; messages have no text yet."""
    if isinstance(prompt, str) or not prompt or isinstance(prompt[0], int):
        return Problem(str(place), prompt, stops)  # type: ignore[arg-type]
    return Problem(str(place), "", stops, messages=prompt)


def _in_template(problems: Sequence[Problem], chat: Chat, policy: Any) -> list[Problem]:
    """The problems with the prompts that the checkpoint's chat template writes; their stop strings stay."""
    for problem in problems:
        if chat.system is not None and problem.messages and problem.messages[0]["role"] == "system":
            raise InputError("the conversation has a system turn, and chat a system text; leave one of them out")
    checkpoint: Checkpoint = policy.checkpoint
    template = ChatTemplate(checkpoint.tokenizer, chat, checkpoint.name, checkpoint.end_ids)
    written = [template.problem(problem) for problem in problems]
    return [
        replace(new, stop=tuple(dict.fromkeys((*old.stop, *new.stop))))
        for old, new in zip(problems, written, strict=True)
    ]


def _chains(
    policy: Policy, step: StepFn, problems: Sequence[Problem], *, width: int, seed: int, progress: bool
) -> list[Chain]:
    """A chain of each problem, in their order; with a progress bar if there are several."""
    chains: dict[str, Chain] = {}
    with tqdm(total=len(problems), desc="prompts", disable=not progress or len(problems) < 2) as bar:
        for chain in run(policy, _told(step, bar), problems, width=width, seed=seed):
            chains[chain.problem.id] = chain
            bar.update()
    return [chains[problem.id] for problem in problems]


def guide_of(reward: Scoring | Reward | None, extract: Extract | None, minimum: int = 1) -> Reward:
    """The reward of `sample`'s two arguments, where `majority` with its `minimum` stands for a missing one.

    Raises `InputError` without either, or for what is no function.
    """
    if reward is not None:
        return as_reward(reward)
    if extract is None:
        raise InputError("neither a reward nor extract is given; pass reward=lambda prompt, text: …, or extract=…")
    return majority(extract, minimum=minimum)


def as_stops(stop: Sequence[str]) -> tuple[str, ...]:
    """Stop strings as a problem has them; raises `InputError` for one string alone, whose letters they would be."""
    if isinstance(stop, str) or not isinstance(stop, Sequence):
        raise InputError(f"stop is {stop!r}; pass a list of strings")
    return tuple(stop)


def _told(step: StepFn, bar: Any) -> StepFn:
    """The step function, telling the bar how far its chains are: prompts end together, and late."""

    def told(policy: Policy, chains: Sequence[Chain]) -> list[Chain]:
        advanced = step(policy, chains)
        under_way = sum(not chain.state.done for chain in advanced)
        bar.set_postfix_str(f"{under_way} under way, guide step {max(len(chain.trace) for chain in advanced)}")
        return advanced

    return told


def _given(options: dict[str, Any]) -> bool:
    return any(value is not None for value in options.values())


def result_of(
    chain: Chain,
    read: ReadProblem | None,
    ratios_of: Callable[[Sequence[Step]], RatioSummary] | None = None,
    target: str | None = None,
    approximate: str = "",
) -> Result:
    """What a chain that has ended says, its answer read by `read`."""
    text, trace = chain.state.text, chain.trace
    answer, ratios = read(chain.problem, text) if read else None, ratios_of(trace) if ratios_of else None
    votes = vote(read, chain) if read else None
    prompt = chain.problem.prompt
    return Result(text, answer, trace, chain.cost, chain.valid, ratios, target, votes, approximate, prompt)


def _policy(model: Model, **settings: Any) -> Policy:
    if isinstance(model, VLLMEngine | Endpoint):
        return policy_of(lambda: model.checkpoint, engine=model, **settings)
    return policy_of(lambda: _checkpoint(model), **settings)


def _checkpoint(model: Local, name: str = "model") -> Checkpoint:
    if isinstance(model, Checkpoint):
        return model
    if isinstance(model, tuple) and len(model) == 2:
        return Checkpoint.loaded(*model)
    if isinstance(model, str | Path):
        return _last_checkpoint(str(model))
    raise InputError(
        f"{name} is {model!r}; pass a checkpoint's folder or name, a Checkpoint or a (model, tokenizer) pair "
        "(a VLLMEngine or an Endpoint may be the model alone)"
    )


@lru_cache(maxsize=2)
def _last_checkpoint(name: str) -> Checkpoint:
    return Checkpoint(name)
