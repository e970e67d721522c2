"""One call for a notebook."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, overload

from tqdm.auto import tqdm

from ets.certificate import Certificate, certificate
from ets.chat import Chat, ChatTemplate, Prompt, as_chat, as_prompts
from ets.diagnostics import RatioSummary, ratio_summary
from ets.kernel import energy_guided
from ets.policies.checkpoint import Checkpoint
from ets.policies.opening import Model, as_level, in_use, opened_policy, proposal_in_use, weighed_by
from ets.policies.registry import SETTINGS, minimum_votes
from ets.policies.settings import Weighing, Weights
from ets.readouts import Vote, vote, weighted
from ets.rejection import exact
from ets.rewards import Extract, Scoring, as_extract, as_reward, majority
from ets.rewards.lifting import ReadProblem
from ets.runner import run
from ets.settings import Guide, Spending, fields_of, made, require_known, with_settings
from ets.step import Decided, require_counts, require_rows, require_variety
from ets.suffix_moves import refined
from ets.trace_view import trace_html, trace_text
from ets.types import Chain, Cost, InputError, Message, Policy, Problem, Reward, Step, StepFn, Text
from ets.walk import lengths_of

One: TypeAlias = str | Sequence[Message] | Sequence[int]
"""One prompt: text, a conversation, or token ids."""

OWNERS = (Guide, Spending, Weights, *SETTINGS, Weighing)
"""The dataclasses of the settings of `sample`."""


@dataclass(frozen=True, eq=False)
class Result:
    """What `sample` returns.

    Parameters
    ----------
    text : str
        The sampled generation: for a fixed reward a sample of p*, up to the errors of finite M and K, or of a finite
        budget of tokens. With `highest` it is an exact sample where `certificate.exact` is True.
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
    weighted : Text or None
        A text among all rollouts of all guide steps, in proportion to their weights, by `ets.readouts.weighted`. For a
        fixed finite reward it tends to p* as `text` does, and is nearer at the same M. None with `tokens` or `step`.
    approximate : str
        Why the draws are not exactly those of p_ref, with a server that returns text alone; else empty.
    prompt : str or tuple of int
        The prompt: with a chat template, the text that it wrote.
    certificate : Certificate or None
        With `tokens`: whether the text is an exact sample of p*, and else what the texts say about p*.
    """

    text: str
    answer: Hashable | None
    trace: tuple[Step, ...] = field(repr=False)
    cost: Cost
    valid: bool
    ratios: RatioSummary | None = None
    target: str | None = None
    vote: Vote | None = field(default=None, repr=False)
    weighted: Text | None = field(default=None, repr=False)
    approximate: str = ""
    prompt: str | tuple[int, ...] = field(default="", repr=False)
    certificate: Certificate | None = None

    def __str__(self) -> str:
        return trace_text(self.text, self.answer, self.trace, self.cost, self.notes)

    def _repr_html_(self) -> str:
        return trace_html(self.text, self.answer, self.trace, self.cost, self.notes)

    @property
    def notes(self) -> dict[str, str]:
        """What is to be said beside the trace, by heading."""
        proposal = None if self.ratios is None else str(self.ratios)
        certified = None if self.certificate is None else str(self.certificate)
        said = {"p_ref": self.target, "proposal": proposal, "approximate": self.approximate, "certificate": certified}
        return {heading: note for heading, note in said.items() if note}


@overload
def sample(prompt: One, *, model: Model | Policy, **options: Any) -> Result: ...
@overload
def sample(prompt: Sequence[One], *, model: Model | Policy, **options: Any) -> list[Result]: ...
@with_settings(*OWNERS)
def sample(
    prompt: One | Sequence[One],
    *,
    model: Model | Policy,
    chat: bool | str | Path | Chat | None = None,
    reward: Scoring | Reward | None = None,
    extract: Extract | None = None,
    step: Callable[..., StepFn] = energy_guided,
    decided: Decided | None = None,
    stop: Sequence[str] = (),
    seed: int = 0,
    width: int = 8,
    progress: bool = True,
    **settings: Any,
) -> Result | list[Result]:
    """Sample from p*(x | prompt) ∝ p_ref(x | prompt) · exp(reward / λ) by energy-guided test-time scaling.

    Parameters
    ----------
    prompt : str, list of messages, list of int, or a list of these
        Text, used as it is unless `chat` is set; a conversation, ``[{"role": "user", "content": …}, …]``, which the
        chat template writes as text; or token ids, used as they are. Several prompts are all of one kind; their results
        come in the same order.
    model : str, Path, (model, tokenizer), Checkpoint, VLLMEngine, Endpoint or Policy
        A checkpoint's folder, GGUF file or hub name, or a loaded pair, which keeps its training mode and attention. The
        last two checkpoints by name stay loaded. The address of an OpenAI-compatible server, ``http://…/v1``, whose
        tokenizer is read from the path or name that the server lists; with the setting `endpoint` the address, the
        model is the served checkpoint. A `VLLMEngine` or an `Endpoint` runs already; calls may share it, and it stays
        open. A `Policy` is used as it is, and takes no settings of policies.
    chat : bool, str, Path or Chat, optional
        True: text is the user's turn in the tokenizer's default chat template. A name of another of its templates, the
        path of a file with a template, or an `ets.Chat`. Messages need a template, and get the default one.
        `Result.prompt` is the text that the template wrote.
    reward : callable, optional
        `(prompt, text) -> number`, or an `ets.types.Reward` of (problem, rollouts, chain); either may be an `async def`
        function, whose calls for the texts of a guide step run concurrently. The prompt is the argument
        `prompt`: text, a tuple of messages, or token ids, never the text that a chat template writes.
    extract : callable, optional
        `text -> answer or None`, or `(problem, text) -> answer or None`. Without a reward, the reward is
        `ets.rewards.majority(extract)`, the paper's, for masked diffusion with `minimum=2`. With both, `reward` alone
        steers the sampling, and `extract` reads `Result.answer` and `Result.vote`.
    step : callable
        Makes the step function from the reward and the keywords candidates, rollouts and lam: `ets.energy_guided`, or
        another function of its form, such as `ets.baselines.retained_rollouts`.
    decided : callable, optional
        A rule of `ets.stopping`, for `energy_guided` alone: a chain ends as soon as the rule finds it decided.
    stop : sequence of str
        Strings that end a generation; they are cut off its text.
    seed : int
        Results are a function of it, the prompt's place in the list, and the settings; through a `VLLMEngine` or an
        `Endpoint` up to rounding, which may change a text.
    width : int
        Prompts that advance together.
    progress : bool
        Show a progress bar over the prompts if there are several.
    {settings}

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
    require_counts(width=width)
    if not callable(step):
        raise InputError(f"step is {step!r}; it must be a function of a reward, such as ets.energy_guided")
    read = None if extract is None else as_extract(extract)
    prompts, single = as_prompts(prompt)
    problems = [_problem(n, each, as_stops(stop)) for n, each in enumerate(prompts)]
    chosen = as_chat(chat) or (Chat() if any(problem.messages for problem in problems) else None)
    given = {name: value for name, value in settings.items() if value is not None}
    require_known(settings, OWNERS, inspect.signature(sample).parameters)
    guide, weighing = made(Guide, given), made(Weighing, {**given, "level": as_level(given)})
    values = {name: value for name, value in given.items() if name in fields_of(*SETTINGS)}
    spending = made(Spending, given)
    if spending.tokens is None:
        require_counts(candidates=guide.candidates, rollouts=guide.rollouts)
        require_rows(guide.candidates * guide.rollouts, f"{guide.candidates} candidates with {guide.rollouts} rollouts")
    with in_use(model, values) as (model, values), proposal_in_use(weighing) as weighing:
        policy = opened_policy(model, values, weighing, made(Weights, given).dtype)
        if chosen is not None:
            problems = _in_template(problems, chosen, policy)
        if spending.tokens is not None or spending.highest is not None:
            _require_budget_alone(given, step, decided)
            steered = within_budget(guide_of(reward, extract, minimum_votes(policy)), guide.lam, spending)
        else:
            rule = {} if decided is None else {"decided": decided}
            steered = step(guide_of(reward, extract, minimum_votes(policy)), **vars(guide), **rule)
        policy, target = weighed_by(policy, values, weighing)
        require_variety(policy, 2 if spending.tokens else guide.candidates)
        policy.start(problems)  # bad prompts are named before the weights are loaded
        chains = _chains(policy, steered, problems, width=width, seed=seed, progress=progress)
    ratios_of = partial(ratio_summary, clip=weighing.clip) if getattr(policy, "weighed", False) else None
    approximate = getattr(model, "approximate", "")
    results = [result_of(chain, read, ratios_of, target, approximate) for chain in chains]
    pairs = list(zip(results, chains, strict=True))
    if spending.tokens is not None:
        results = [replace(result, certificate=certificate(chain.trace)) for result, chain in pairs]
    elif step is energy_guided and hasattr(policy, "lengths"):
        steps = len(lengths_of(policy).least)
        results = [replace(result, weighted=weighted(chain, steps)) for result, chain in pairs]
    return results[0] if single else results


def within_budget(reward: Reward, lam: float, spending: Spending) -> StepFn:
    """`ets.refined` on a budget of tokens; with the largest reward `ets.exact`, whose rejection has half of the budget.

    Raises `InputError` for a largest reward without a budget.
    """
    if spending.tokens is None:
        raise InputError(f"highest is {spending.highest}, but there is no budget for rejection; add tokens")
    require_counts(tokens=spending.tokens)
    if spending.highest is None:
        return refined(reward, lam=lam, budget=spending.tokens)
    return exact(reward, lam=lam, highest=spending.highest, limit=spending.tokens // 2, budget=spending.tokens)


def _require_budget_alone(given: Mapping[str, Any], step: Callable[..., StepFn], decided: Decided | None) -> None:
    """Raise `InputError` for what a budget of tokens replaces."""
    for name in ("candidates", "rollouts"):
        if name in given:
            raise InputError(f"{name} is {given[name]}, and tokens stands in place of M and K; leave one of them out")
    if step is not energy_guided or decided is not None:
        raise InputError("step and decided are for guide steps, and tokens stands in place of them; leave one out")


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
    checkpoint: Checkpoint | None = getattr(policy, "checkpoint", None)
    if checkpoint is None:
        raise InputError("the policy has no checkpoint, whose tokenizer holds the chat template; leave chat out")
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
    looks = {"desc": "prompts", "bar_format": "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"}
    with tqdm(total=len(problems), disable=not progress or len(problems) < 2, **looks) as bar:
        for chain in run(policy, _shown(step, bar), problems, width=width, seed=seed):
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


def _shown(step: StepFn, bar: Any) -> StepFn:
    """The step function, which shows in the bar how far its chains are: prompts end together, and late."""

    def stepped(policy: Policy, chains: Sequence[Chain]) -> list[Chain]:
        advanced = step(policy, chains)
        under_way = sum(not chain.state.done for chain in advanced)
        bar.set_postfix_str(f"{under_way} under way, guide step {max(len(chain.trace) for chain in advanced)}")
        return advanced

    return stepped


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
    return Result(
        text,
        answer,
        trace,
        chain.cost,
        chain.valid,
        ratios,
        target,
        vote=vote(read, chain) if read else None,
        approximate=approximate,
        prompt=chain.problem.prompt,
    )
