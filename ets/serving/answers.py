"""Answers in OpenAI's shapes: whole, or in pieces as soon as guide steps are final."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ets.evaluation.traces import compact_trace
from ets.policies.final_text import final_text, finish_reason
from ets.serving.offer import Order
from ets.serving.requests import ChatCompletion, Completion, RequestError
from ets.types import Chain, Cost, InputError, Policy, State

DONE = "data: [DONE]\n\n"
"""The end of a stream."""


def event(value: Any) -> str:
    """A server-sent event with a JSON value."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


@dataclass
class Answer:
    """The answer to a request. Its choices are the texts of the prompts in order, `n` for each prompt.

    Parameters
    ----------
    asked : Completion
    order : Order
    """

    asked: Completion
    order: Order
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))
    usage: dict[str, Any] | None = None
    texts: list[str] = field(default_factory=list)
    """The complete texts, for the log."""
    _sent: dict[int, int] = field(default_factory=dict)  # characters, by choice
    _tokens: dict[int, int] = field(default_factory=dict)  # tokens with log-probabilities that were sent, by choice

    @property
    def chat(self) -> bool:
        return isinstance(self.asked, ChatCompletion)

    def whole(self, chains: Sequence[Chain], usage: dict[str, Any]) -> dict[str, Any]:
        """The answer in one piece, from all chains in order."""
        choices = [self._choice(self._index(chain), chain) for chain in chains]
        return {**self._frame(choices, whole=True), "usage": usage, **self._traces(chains)}

    def opening(self) -> list[dict[str, Any]]:
        """The pieces before the first text: the role of each choice in a chat."""
        count = len(self.order.problems) * self.asked.n if self.chat else 0
        role = {"role": "assistant", "content": ""}
        return [self._frame([_piece(index, {"delta": role}, None)]) for index in range(count)]

    def pieces(self, chains: Sequence[Chain]) -> list[dict[str, Any]]:
        """The new text of each chain that has some, or that has ended."""
        found = []
        for chain in chains:
            index, ended = self._index(chain), chain.state.done
            if self._sent.get(index) == -1:
                continue
            sent = self._sent.get(index, 0)
            new = _final_text(self.order.policy, chain.state)[sent:] if chain.valid else ""
            if new or ended:
                self._sent[index] = -1 if ended else sent + len(new)
                reason = _finish_reason(self.order.policy, chain) if ended else None
                body = {"delta": {"content": new} if new else {}} if self.chat else {"text": new}
                found.append(self._frame([_piece(index, body, reason, self._logprobs(index, chain, sent + len(new)))]))
        return found

    def closing(self, chains: Sequence[Chain], usage: dict[str, Any]) -> list[dict[str, Any]]:
        """The last piece: the usage and the traces, as far as the request asks for them."""
        if not self.asked.with_usage and not self.asked.ets.trace:
            return []
        return [{**self._frame([]), **({"usage": usage} if self.asked.with_usage else {}), **self._traces(chains)}]

    def _index(self, chain: Chain) -> int:
        return int(chain.problem.id) * self.asked.n + chain.sample

    def _frame(self, choices: list[dict[str, Any]], *, whole: bool = False) -> dict[str, Any]:
        kind = ("chat.completion" if whole else "chat.completion.chunk") if self.chat else "text_completion"
        name = f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}"
        return {"id": name, "object": kind, "created": self.created, "model": self.asked.model, "choices": choices}

    def _choice(self, index: int, chain: Chain) -> dict[str, Any]:
        text = chain.state.text if chain.valid else ""
        body = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
        reason = _finish_reason(self.order.policy, chain)
        return _piece(index, body, reason, self._logprobs(index, chain, len(text)))

    def _logprobs(self, index: int, chain: Chain, length: int) -> dict[str, Any] | None:
        """The log-probabilities of the tokens of the first `length` characters, without tokens of earlier pieces."""
        if not self.asked.asks_logprobs:
            return None
        state: Any = chain.state
        if len(getattr(state, "logps", ())) < len(state.tokens):
            none = "the model's log-probabilities of single tokens are not known; leave logprobs out"
            raise RequestError(400, none, "logprobs")
        decode, first = self.order.policy.endings.decode, self._tokens.get(index, 0)  # type: ignore[attr-defined]
        ends = self.order.policy.endings.end_ids  # type: ignore[attr-defined]
        offsets, last = [], first
        while last < len(state.tokens) and state.tokens[last] not in ends:
            offset = len(decode(state.tokens[:last]))
            if offset >= length:
                break
            offsets.append(offset)
            last += 1
        self._tokens[index] = last
        tokens = [decode([token]) for token in state.tokens[first:last]]
        logps = list(state.logps[first:last])
        if not self.chat:
            return {"tokens": tokens, "token_logprobs": logps, "top_logprobs": None, "text_offset": offsets}
        content = [
            {"token": token, "logprob": logp, "bytes": _bytes(token), "top_logprobs": []}
            for token, logp in zip(tokens, logps, strict=True)
        ]
        return {"content": content, "refusal": None}

    def _traces(self, chains: Sequence[Chain]) -> dict[str, Any]:
        """The traces of all chains, in the form of `traces.jsonl`, if the request asks for them."""
        if not self.asked.ets.trace:
            return {}
        traces = [
            {
                "method": self.order.method,
                "problem": chain.problem.id,
                "sample": chain.sample,
                "prompt": chain.problem.prompt if isinstance(chain.problem.prompt, str) else "",
                **compact_trace(chain.trace),
            }
            for chain in chains
        ]
        return {"ets": {"traces": traces}}


def _final_text(policy: Policy, state: State) -> str:
    """As `final_text`; nothing of an open text is known to be final under a policy without end tokens."""
    try:
        return state.text if state.done else final_text(policy, state)
    except InputError:
        return ""


def _finish_reason(policy: Any, chain: Chain) -> str:
    """As `finish_reason`, or "content_filter" for a text that the reward forbids, which is not sent.

    Under a policy without end tokens, "length" is the reason of a text of the greatest length.
    """
    state = chain.state
    if not chain.valid:
        return "content_filter"
    try:
        return finish_reason(policy, state)
    except InputError:
        return "length" if len(state.tokens) == max(getattr(policy, "lengths", (0,))) else "stop"


def _bytes(token: str) -> list[int] | None:
    """The bytes of a token; None for a part of a character."""
    return None if "\ufffd" in token else list(token.encode())


def _piece(
    index: int, body: dict[str, Any], reason: str | None, logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"index": index, **body, "logprobs": logprobs, "finish_reason": reason}


def usage_of(order: Order, chains: Sequence[Chain], prompts: int) -> dict[str, Any]:
    """The usage: tokens of the prompts and of the texts, and under `ets` everything that was spent."""
    cost = Cost.total(chain.cost for chain in chains)
    completion = sum(_length(order, chain) for chain in chains)
    spent = {
        "generated_tokens": cost.generated,
        "positions": cost.positions,
        "prompt_positions": cost.prompt,
        "candidate_positions": cost.candidate,
        "rollout_positions": cost.rollout,
        "scored_positions": cost.scored,
        "forwards": round(cost.forwards, 3),
        "reward_calls": cost.rewarded,
        "invalid_texts": sum(not chain.valid for chain in chains),  # every weight was zero: no samples of p*
        "reward_seconds": round(cost.reward_seconds, 4),
        "seconds": round(max((sum(s.cost.seconds for s in chain.trace) for chain in chains), default=0.0), 4),
    }
    return {
        "prompt_tokens": prompts,
        "completion_tokens": completion,
        "total_tokens": prompts + completion,
        "ets": spent,
    }


def _length(order: Order, chain: Chain) -> int:
    """Tokens of a text, with its end token and without what stands behind it on a canvas."""
    tokens = chain.state.tokens
    ends = set(order.policy.checkpoint.end_ids) if hasattr(order.policy, "checkpoint") else set()
    return next((n + 1 for n, token in enumerate(tokens) if token in ends), len(tokens))
