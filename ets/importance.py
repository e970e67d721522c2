"""A reference policy whose rollouts a cheaper proposal draws: Algorithm 2 of Li et al., arXiv 2601.21484.

Every step function takes the pair as a policy. The draws of the pair carry the logarithm of an importance ratio.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from ets.types import Cost, Draw, InputError, Keys, Policy, Problem, Proposal, Scored, Scorer, State
from ets.weights import effective_draws

S = TypeVar("S", bound="WrappedState")
ENOUGH = 32
"""The least number of rollouts whose effective sample size `NoiseWarning` tests."""
NOISE = 0.1
"""Below this share of effective rollouts, `NoiseWarning` warns."""


@dataclass(frozen=True, eq=False)
class WrappedState:
    """A state with further data, around the state that a policy has drawn."""

    drawn: State

    @property
    def problem(self) -> Problem | None:
        return getattr(self.drawn, "problem", None)

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.drawn.tokens

    @property
    def text(self) -> str:
        return self.drawn.text

    @property
    def done(self) -> bool:
        return self.drawn.done


@dataclass(frozen=True, eq=False)
class PairedState(WrappedState):
    """The states of both policies: `drawn` and `logp` belong to the reference policy."""

    proposal: State
    logp: float = 0.0

    @property
    def logps(self) -> tuple[float, ...]:
        """The log-probability of each token; empty after a rollout, whose tokens the proposal has drawn."""
        return () if self.drawn is self.proposal else getattr(self.drawn, "logps", ())


class ImportanceSampling:
    """A policy whose candidates come from the reference p_ref and whose rollouts come from a proposal q.

    A rollout's text carries `log_ratio` = log p_ref(x_0 | x_s) - log q(x_0 | x_s), over all tokens that q drew (the end
    token and the tokens of a trimmed stop string included), under the laws that were sampled. A weight exp(log_ratio)
    is proper: E_q[exp(log_ratio) f(x_0)] = E_ref[f(x_0)] for every f, if no ratio is clipped and the support of q
    contains the support of p_ref. For a q with a smaller support, the mean ratio is below 1 (`RatioSummary.mean`).

    A truncated p_ref (top-k, top-p) gives weight 0 to each rollout that leaves its support: after 100 tokens perhaps
    nearly all rollouts. In half precision even rollouts inside the support may get weight 0, because one forward pass
    over a rollout and passes over single tokens differ in the last digits. Leave the reference policy untruncated.

    Parameters
    ----------
    reference : Scorer
        p_ref.
    proposal : Proposal
        q: another model, or the same model under another law.
    clip : (float, float), optional
        Bounds on the ratio, which reduce its variance and add a bias. A ratio of zero stays zero.

    Raises
    ------
    InputError
        For policies that do not fit each other, or bounds that do not enclose 1.
    """

    def __init__(self, reference: Policy, proposal: Policy, clip: tuple[float, float] | None = None) -> None:
        if not isinstance(reference, Scorer):
            raise InputError(f"a {type(reference).__name__} cannot score what a proposal drew; leave the proposal out")
        if not isinstance(proposal, Proposal):
            raise InputError(f"a {type(proposal).__name__} cannot follow another policy; choose another proposal")
        if proposal.deterministic:
            raise InputError("at temperature 0 the proposal draws one text only, which has no ratio; raise it")
        reference.require_proposal(proposal)
        self.reference, self.proposal, self.clip, self._clip = reference, proposal, clip, Clip(clip)
        self._warn_of_noise = NoiseWarning()
        if close := getattr(proposal, "close", None):  # a policy over an engine has it
            self.close = close

    weighed = True  # `ets.step.require_unweighed`

    @property
    def ledger(self) -> Cost:
        return self.reference.ledger + self.proposal.ledger

    @property
    def deterministic(self) -> bool:
        return self.reference.deterministic

    def load(self) -> None:
        """Load the weights of both policies, as far as they have any.

        The proposal comes first: vLLM takes its share of a GPU at once, the reference policy's cache what is left.
        """
        for policy in (self.proposal, self.reference):
            getattr(policy, "load", lambda: None)()

    def start(self, problems: Sequence[Problem]) -> list[State]:
        pairs = zip(self.reference.start(problems), self.proposal.start(problems), strict=True)
        return [PairedState(*pair) for pair in pairs]

    def extend(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        """Candidates of the reference policy; the proposal reads the tokens of the candidates."""
        pairs = states_of(PairedState, states)
        drawn = self.reference.extend([pair.drawn for pair in pairs], keys)
        followed = self.proposal.follow([pair.proposal for pair in pairs], [draw.state for draw in drawn])
        return [
            replace(draw, state=PairedState(draw.state, there.state, draw.text.logp), cost=draw.cost + there.cost)
            for draw, there in zip(drawn, followed, strict=True)
        ]

    def finish(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        """Rollouts of the proposal, scored by the reference policy; `Draw.logp` is the proposal's log-probability."""
        pairs = states_of(PairedState, states)
        drawn = self.proposal.finish([pair.proposal for pair in pairs], keys)
        scored = self.reference.logp([pair.drawn for pair in pairs], [draw.state for draw in drawn])
        weighed = [self._weighed(*row) for row in zip(pairs, drawn, scored, strict=True)]
        self._warn_of_noise([draw.text.log_ratio for draw in weighed])
        return weighed

    def _weighed(self, before: PairedState, draw: Draw, scored: Scored) -> Draw:
        ratio = self._clip(scored.logp - draw.logp)
        text = replace(draw.text, logp=before.logp + scored.logp, log_ratio=ratio)
        return Draw(PairedState(draw.state, draw.state, text.logp), text, draw.logp, draw.cost + scored.cost)


class NoiseWarning:
    """Warns once if fewer than a share `NOISE` of at least `ENOUGH` rollouts is effective."""

    def __init__(self) -> None:
        self._given = False

    def __call__(self, log_ratios: Sequence[float]) -> None:
        if self._given or len(log_ratios) < ENOUGH:
            return
        effective = effective_draws(np.array(log_ratios))
        if effective < NOISE * len(log_ratios):
            self._given = True
            impossible = sum(ratio == -math.inf for ratio in log_ratios)
            outside = f", and {impossible} are impossible under its top-k or top-p: leave top-k and top-p out" * (
                impossible > 0
            )
            warnings.warn(
                f"of {len(log_ratios)} rollouts of the proposal {effective:.1f} are effective{outside}: the correction "
                "is mostly noise; choose a proposal nearer to the model, larger guide steps, or none",
                stacklevel=2,
            )


def states_of(kind: type[S], states: Sequence[State]) -> list[S]:
    """The states, if all are of one kind of `WrappedState`; else raises `InputError`."""
    found = [state for state in states if isinstance(state, kind)]
    if len(found) != len(states):
        raise InputError("a state belongs to another policy; draw from the states of this policy")
    return found


class Clip:
    """Bounds on an importance ratio, taken on its logarithm; a ratio of zero stays zero.

    Raises
    ------
    InputError
        Unless 0 ≤ lowest < 1 < highest.
    """

    def __init__(self, bounds: tuple[float, float] | None) -> None:
        self._bounds = -math.inf, math.inf
        if bounds is None:
            return
        try:
            low, high = (float(bound) for bound in bounds)
        except (TypeError, ValueError):
            raise InputError(f"clip is {bounds!r}; give two numbers, the lowest and the highest ratio") from None
        if not 0 <= low < 1 < high:
            raise InputError(
                f"clip is {bounds!r}; its bounds must enclose 1, which is the ratio's mean, as in (0.1, 10)"
            )
        self._bounds = (math.log(low) if low else -math.inf), math.log(high)

    def __call__(self, log_ratio: float) -> float:
        return log_ratio if log_ratio == -math.inf else min(max(log_ratio, self._bounds[0]), self._bounds[1])
