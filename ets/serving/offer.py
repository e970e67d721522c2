"""What an operator serves: a model, methods, rewards, and the most that a request may ask for."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from ets.chat import Chat, ChatTemplate
from ets.evaluation.methods import METHODS, MethodSettings
from ets.evaluation.run import Loadable
from ets.policies.registry import law_of, minimum_votes
from ets.rewards.lifting import pattern_extract
from ets.rewards.registry import COMPARING
from ets.serving.operation import Limits
from ets.serving.requests import ChatCompletion, Completion, Guidance, RequestError, TextCompletion
from ets.step import require_counts, require_positive, require_variety
from ets.types import InputError, Policy, Problem, StepFn

LAWS = 16
"""Laws whose policies are kept: a law is a temperature, a truncation, and the length of a guide step."""
LAW = ("temperature", "top_p", "top_k")
"""The fields of a request that change the reference policy."""


@dataclass(frozen=True)
class Order:
    """A request that has been checked against the offer: what `ets.serving.work.Work` runs.

    Parameters
    ----------
    problems : tuple of Problem
        One for each prompt.
    samples : int
        Texts for each prompt, n.
    policy : Policy
    step : StepFn
    final : bool
        Whether the text after a guide step is final.
    method, reward : str
    seed : int, optional
        Without a seed the answer has random numbers of its own.
    """

    problems: tuple[Problem, ...]
    samples: int
    policy: Policy
    step: StepFn
    final: bool
    method: str
    reward: str
    seed: int | None


class Offer:
    """The model, the methods and the rewards of a server.

    Parameters
    ----------
    name : str
        The model's name for clients.
    opened : callable
        `(law) -> Policy`, from the values of `LAW`, block_size and max_length that a request sets.
    settings : MethodSettings
        The guide settings of a request without settings.
    methods : sequence of str
        Keys of `ets.evaluation.methods.METHODS`; the first is that of a request without a method.
    rewards : mapping of str to str
        By the names that clients use: a name that `ets.rewards.registry.named_reward` takes. The first is that of a
        request without a reward.
    tokens : int, optional
        The budget of a request without a budget, for methods with a budget of tokens.
    extract : str, optional
        A pattern that finds answers, for methods and rewards that compare answers.
    limits : Limits, optional
    chat : Chat, optional
        How conversations become prompts.

    Raises
    ------
    InputError
        For values out of range, or a method or a reward that cannot be served.
    """

    def __init__(
        self,
        name: str,
        opened: Callable[[Mapping[str, Any]], Policy],
        settings: MethodSettings,
        methods: Sequence[str],
        rewards: Mapping[str, str],
        *,
        tokens: int | None = None,
        extract: str | None = None,
        limits: Limits | None = None,
        chat: Chat | None = None,
    ) -> None:
        self.name, self.methods, self.rewards, self.tokens = name, tuple(methods), dict(rewards), tokens
        self._opened, self._laws = opened, OrderedDict[tuple[tuple[str, Any], ...], Policy]()
        self._turn = threading.Lock()
        self._reader: Any = SimpleNamespace(name=name, extract=pattern_extract(extract) if extract else None)
        self._answers = extract is not None
        self._require_settings(settings)
        self.policy: Any = self._policy({})
        self._own_law = law_of(self.policy)
        self.settings = replace(settings, minimum=settings.minimum or minimum_votes(self.policy))
        limits = limits or Limits()
        self._most, self._most_texts = _most(limits, settings, tokens), limits.most_texts
        self._template = _template(self.policy, chat)
        for method in self.methods:
            for reward in self.rewards.values():
                self._step(method, replace(self.settings, reward=reward), tokens)

    def _require_settings(self, settings: MethodSettings) -> None:
        require_counts(candidates=settings.candidates, rollouts=settings.rollouts)
        require_positive(lam=settings.lam)
        servable = [name for name, method in METHODS.items() if method.of_one_prompt]
        for name in self.methods:
            if name not in servable:
                raise InputError(f"the method {name!r} cannot be served; choose from {', '.join(servable)}")
            if METHODS[name].answers and not self._answers:
                raise InputError(f"the method {name} compares answers; add --extract with a pattern that finds them")
            if METHODS[name].in_tokens and self.tokens is None:
                raise InputError(f"the method {name} spends a budget of tokens; add --tokens")
        for name, code in self.rewards.items():
            if code in COMPARING and not self._answers:
                raise InputError(f"the reward {name} compares answers; add --extract with a pattern that finds them")
        if not self.methods:
            raise InputError("no method is served; name at least one")
        if not self.rewards:
            raise InputError("no reward is given; add --reward file.py:function, or serve a name such as likelihood")

    def load(self) -> None:
        """Load the weights, or the engine."""
        if isinstance(self.policy, Loadable):
            self.policy.load()

    def order(self, asked: Completion) -> Order:
        """What a request orders.

        Raises
        ------
        RequestError
            For another model, values beyond the limits, or a prompt that cannot be continued.
        """
        if asked.model != self.name:
            unknown = f"the model {asked.model!r} is not served; take {self.name!r}"
            raise RequestError(404, unknown, "model", "model_not_found")
        self._require_short(asked)
        try:
            policy = self._policy(self._law(asked))
            problems = tuple(self._problems(asked))
            method, reward = self._chosen("method", asked.ets.method), self._chosen("reward", asked.ets.reward)
            settings, tokens = self._settings(asked.ets, method, reward)
            step = self._step(method, settings, tokens)
            entry = METHODS[method]
            if entry.kind != "averaged":
                require_variety(policy, 2 if entry.in_tokens else settings.candidates)
        except InputError as error:
            raise RequestError(400, str(error)) from None
        self._require_few(len(problems) * asked.n)
        final = entry.by_steps is not None
        return Order(problems, asked.n, policy, step, final, method, reward, asked.seed)

    def _step(self, name: str, settings: MethodSettings, tokens: int | None) -> StepFn:
        method = METHODS[name]
        size = tokens if method.in_tokens else settings.candidates
        return (method.by_steps or method.step)(self._reader, settings, size)  # type: ignore[arg-type]

    def _chosen(self, what: str, name: str | None) -> str:
        known = self.methods if what == "method" else tuple(self.rewards)
        if name is not None and name not in known:
            raise RequestError(400, f"the {what} {name!r} is not served; choose from {', '.join(known)}", f"ets.{what}")
        return known[0] if name is None else name

    def _settings(self, asked: Guidance, method: str, reward: str) -> tuple[MethodSettings, int | None]:
        if asked.tokens is not None and not METHODS[method].in_tokens:
            unspent = f"the method {method} has no budget of tokens; leave tokens out"
            raise RequestError(400, unspent, "ets.tokens")
        if asked.trace and METHODS[method].in_tokens:  # its suffix moves are no guide steps
            raise RequestError(400, f"the method {method} has no trace; leave trace out", "ets.trace")
        given = {name: getattr(asked, name) for name in ("candidates", "rollouts", "tokens", "lam")}
        given = {name: value for name, value in given.items() if value is not None}
        for name, most in self._most.items():
            if given.get(name, 0) > most:
                raise RequestError(400, f"{name} is {given[name]}, and this server allows {most}", f"ets.{name}")
        tokens = given.pop("tokens", self.tokens)
        return replace(self.settings, reward=self.rewards[reward], **given), tokens

    def _require_short(self, asked: Completion) -> None:
        """Raise `RequestError` for a text longer than those of the server's own policy."""
        lengths = getattr(self.policy, "lengths", ())
        if asked.max_tokens is not None and lengths and asked.max_tokens > lengths[-1]:
            long = f"{asked.length_field} is {asked.max_tokens}, and this server allows {lengths[-1]}"
            raise RequestError(400, long, asked.length_field)

    def _require_few(self, texts: int) -> None:
        if texts > self._most_texts:
            many = f"the request asks for {texts} texts, and this server allows {self._most_texts}"
            raise RequestError(400, many, "n")

    def _law(self, asked: Completion) -> dict[str, Any]:
        """The values that differ from the server's own law: requests of equal laws share forward passes."""
        law = {name: getattr(asked, name) for name in LAW} | {"block_size": asked.ets.block_size}
        if not self._tokens_end_anywhere:
            law["max_length"] = asked.max_tokens
        if law["top_p"] == 1 and self._own_law.get("top_p") is None:
            law["top_p"] = None
        return {name: value for name, value in law.items() if value is not None and value != self._own_law.get(name)}

    @property
    def _tokens_end_anywhere(self) -> bool:
        """Whether rows of one policy may have limits of their own; for diffusion the length belongs to the law."""
        return hasattr(self.policy, "horizon")

    def _policy(self, law: Mapping[str, Any]) -> Policy:
        key = tuple(sorted(law.items()))
        with self._turn:
            if key not in self._laws:
                self._laws[key] = self._opened(law)
                if len(self._laws) > LAWS:
                    del self._laws[next(each for each in self._laws if each)]  # the server's own law stays
            self._laws.move_to_end(key)
            return self._laws[key]

    def _problems(self, asked: Completion) -> list[Problem]:
        length = asked.max_tokens if self._tokens_end_anywhere else None
        shared: dict[str, Any] = {"stop": asked.stops, "max_length": length}
        if isinstance(asked, TextCompletion):
            if not asked.prompts:
                raise RequestError(400, "prompt is empty; give at least one", "prompt")
            return [Problem(str(n), prompt, **shared) for n, prompt in enumerate(asked.prompts)]
        assert isinstance(asked, ChatCompletion)
        problem = Problem("0", "", messages=asked.conversation, **shared)
        if self._template is None:
            none = "the model has no chat template; take /v1/completions, or serve with --chat-template"
            raise RequestError(400, none, "messages")
        return [self._template.problem(problem)]


def _template(policy: Any, chat: Chat | None) -> ChatTemplate | None:
    """The policy's chat template; None for a tokenizer without one, unless the operator asks for it by `chat`."""
    checkpoint = getattr(policy, "checkpoint", None)
    if checkpoint is None and chat is None:
        return None
    if checkpoint is None:
        raise InputError("the policy has no checkpoint, whose tokenizer holds the chat template; leave it out")
    try:
        found = ChatTemplate(checkpoint.tokenizer, chat or Chat(), checkpoint.name, checkpoint.end_ids)
        _ = found.text
    except InputError:
        if chat is None:
            return None
        raise
    return found


def _most(limits: Limits, settings: MethodSettings, tokens: int | None) -> dict[str, int]:
    """The limits of a request's settings, by name."""
    most = {
        "candidates": limits.most_candidates or settings.candidates,
        "rollouts": limits.most_rollouts or settings.rollouts,
        "tokens": limits.most_tokens or tokens or 0,
    }
    return {name: value for name, value in most.items() if value}
