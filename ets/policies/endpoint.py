"""Autoregressive models behind OpenAI's completions interface: vLLM's server, then any other that takes token ids.

Rows go to the server as token ids, one request each, with everything that changes their distribution. A server that
returns the drawn token ids and the log-probabilities of the sampled distribution is exact, like an engine in this
process; one that returns text alone is approximate, and named so.
"""

from __future__ import annotations

import asyncio
import math
import warnings
import weakref
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from ets.policies.autoregressive import Horizon, Sampling
from ets.policies.background import Background
from ets.policies.checkpoint import Checkpoint
from ets.policies.requests import Answer, Request, RequestPolicy
from ets.policies.server import WAITS, Server
from ets.transition import require_counts, require_positive
from ets.types import Followed, InputError, State

MOST_STOPS = 4
"""Stop strings that OpenAI's interface takes; the others are found on our side alone."""
PROBED = 5
"""Log-probabilities that the first requests ask for, and tokens that they draw."""
TEXT_ONLY = "text only: the server returns no token ids, so tokens and their log-probabilities are read off its text"


class Endpoint:
    """A model behind an address. Close it when done, or use it in a `with` statement; it ends with the program at last.

    Any number of threads may draw from it at once.

    Parameters
    ----------
    address : str
        Where the interface begins, such as http://localhost:8000/v1.
    checkpoint : Checkpoint
        The same model's, by path or hub name, for its tokenizer and configuration; its weights are never loaded.
    model : str, optional
        The name that the server knows the model by. By default the only one that it serves.
    key : str
        The environment variable that holds the API key, if the server wants one.
    connections : int
        Requests that are under way at once, at most.
    seconds : float
        How long the server may take for a row before it is asked again.
    waits : sequence of float
        Seconds between attempts; a random part is added, so that rows do not come back all at once.

    Attributes
    ----------
    context : int or None
        Positions of the longest row.
    approximate : str
        Why the draws are not exactly those of the law; empty for a server that is exact.
    tempered : bool
        Whether reported log-probabilities are those of the sampled distribution, not of the model at temperature 1.

    Raises
    ------
    InputError
        If the server cannot be reached, does not serve the model, or reports no log-probabilities.
    """

    def __init__(
        self,
        address: str,
        checkpoint: Checkpoint,
        *,
        model: str | None = None,
        key: str = "OPENAI_API_KEY",
        connections: int = 256,
        seconds: float = 1800.0,
        waits: Sequence[float] = WAITS,
    ) -> None:
        require_counts(connections=connections)
        require_positive(seconds=seconds)
        self.checkpoint = checkpoint
        self._server = Server(address, key=key, connections=connections, seconds=seconds, waits=waits)
        self._background = Background("endpoint")
        self.close = weakref.finalize(self, _shut_down, self._server, self._background)
        try:
            self.model, self.context = self._served(model)
            self.approximate, self.tempered = self._probe()
        except BaseException:
            self.close()
            raise
        if self.approximate:
            warnings.warn(f"{self.name} is approximate ({self.approximate})", stacklevel=2)

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def address(self) -> str:
        return self._server.address

    @property
    def name(self) -> str:
        """What errors call it."""
        return f"the server at {self.address}"

    def load(self) -> None:
        """Nothing is left to do: the server was asked for its model when the connection was made."""

    def draw(self, requests: Sequence[Request], sampling: Sampling, end_ids: Sequence[int]) -> list[Answer]:
        """Go on from each row; returns when the last one has ended.

        Raises
        ------
        InputError
            If the server has stopped, or refuses a row; requests that are still under way are cancelled.
        """
        if not self.close.alive:
            raise InputError(f"the connection to {self.name} has been closed; make another one")
        return self._background.wait(self._all(requests, sampling, end_ids))

    def interrupt(self, thread: int) -> None:
        """End the draw that the thread with this identifier waits for, if any: it raises there."""
        self._background.interrupt(thread)

    async def _all(self, requests: Sequence[Request], sampling: Sampling, end_ids: Sequence[int]) -> list[Answer]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._one(request, sampling, end_ids)) for request in requests]
        except ExceptionGroup as group_of_errors:
            raise group_of_errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _one(self, request: Request, sampling: Sampling, end_ids: Sequence[int]) -> Answer:
        said = await self._server.ask("completions", self._body(request, sampling, end_ids))
        choice = self._choice(said)
        read = self._from_text if self.approximate else _from_tokens
        tokens, logps = read(choice, request.room)
        if not tokens or len(tokens) != len(logps):
            raise InputError(f"{self.name} gives {len(tokens)} tokens and {len(logps)} log-probabilities; see its log")
        return Answer(tokens, logps, _cached(said))

    def _body(self, request: Request, sampling: Sampling, end_ids: Sequence[int], logprobs: int = 1) -> dict[str, Any]:
        """All that changes the distribution is sent, whatever the server's defaults."""
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": list(request.tokens),
            "max_tokens": request.room,
            "seed": request.seed,
            "temperature": sampling.temperature,
            "top_p": 1.0 if sampling.top_p is None else sampling.top_p,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "logprobs": logprobs,
            # From here on vLLM's own, which others have too or ignore.
            "top_k": sampling.top_k or -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "stop_token_ids": list(end_ids),
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
            "return_token_ids": True,
        }
        return body | ({"stop": list(request.stop[:MOST_STOPS])} if request.stop else {})

    def _served(self, model: str | None) -> tuple[str, int | None]:
        """The model's name there, and its context."""
        try:
            served = {each["id"]: each for each in self._background.wait(self._server.ask("models"))["data"]}
        except (KeyError, TypeError):
            raise InputError(f"{self.name} does not list its models; give an OpenAI-compatible one") from None
        if model is None and len(served) != 1:
            raise InputError(f"{self.name} serves {len(served)} models, {', '.join(map(repr, served))}; name one")
        found = model or next(iter(served))
        if found not in served:
            raise InputError(f"{self.name} does not serve {found!r}; it has {', '.join(map(repr, served))}")
        return found, served[found].get("max_model_len") or self.checkpoint.context

    def _probe(self) -> tuple[str, bool]:
        """What is approximate, and whether log-probabilities are tempered: halving T then doubles their differences."""
        bodies = [self._body(Request((0,), 0, PROBED), Sampling(t), (), logprobs=PROBED) for t in (1.0, 0.5)]
        plain, halved = (self._choice(self._background.wait(self._server.ask("completions", body))) for body in bodies)
        for choice in (plain, halved):
            if not choice["logprobs"]["token_logprobs"]:
                raise self._without_logps()
            self._require_our_tokenizer(choice)
        return "" if plain.get("token_ids") else TEXT_ONLY, _doubled(_first_logps(plain), _first_logps(halved))

    def _choice(self, said: Any) -> dict[str, Any]:
        try:
            (choice,) = said["choices"]
            if not isinstance(choice["logprobs"]["token_logprobs"], list):  # empty where a row ended at once
                raise TypeError
        except (KeyError, TypeError, ValueError):
            raise self._without_logps() from None
        return dict(choice)

    def _without_logps(self) -> InputError:
        return InputError(f"{self.name} reports no log-probabilities; start it so that it does")

    def _require_our_tokenizer(self, choice: Mapping[str, Any]) -> None:
        tokens, text = choice.get("token_ids") or [], choice.get("text", "")
        ours = self.checkpoint.tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        # Half a character is held back there, and some tokenizers drop a leading space.
        if tokens and "\ufffd" not in ours + text and ours.strip() != text.strip():
            raise InputError(
                f"{self.name} calls the tokens {tokens} {text!r}, and the tokenizer of {self.checkpoint.name!r} "
                f"{ours!r}; give the checkpoint that is served"
            )

    def _from_text(self, choice: Mapping[str, Any], room: int) -> tuple[list[int], list[float]]:
        """Tokens and log-probabilities as far as a text tells: a row that stopped has drawn an end token."""
        tokenizer = self.checkpoint.tokenizer
        tokens = list(tokenizer(choice["text"], add_special_tokens=False)["input_ids"])[:room]
        if choice.get("finish_reason") == "stop" or not tokens:
            tokens = [*tokens[: room - 1], tokenizer.eos_token_id]
        logps = [logp or 0.0 for logp in choice["logprobs"]["token_logprobs"]]
        aligned = len(logps) == len(tokens)
        return tokens, logps if aligned else [sum(logps) / len(tokens)] * len(tokens)


class EndpointPolicy(RequestPolicy):
    """p_ref as a causal language model behind an `Endpoint` under a sampling rule.

    A prompt's positions are charged whole for every row unless the server tells what its prefix cache held
    (`--enable-prompt-tokens-details` of vLLM's).

    Parameters
    ----------
    engine : Endpoint
    sampling, horizon, end_ids
        As for `RequestPolicy`.

    Attributes
    ----------
    approximate : str
        Why the draws are not exactly those of the law; empty if they are.

    Raises
    ------
    InputError
        For a temperature that servers do not sample at; and for a tempered or truncated law where an otherwise exact
        server reports log-probabilities of the model at temperature 1.
    """

    engine: Endpoint

    def __init__(
        self,
        engine: Endpoint,
        sampling: Sampling,
        horizon: Horizon,
        *,
        end_ids: Collection[int] | None = None,
    ) -> None:
        super().__init__(engine, sampling, horizon, end_ids=end_ids)
        self.approximate = engine.approximate
        plain = sampling.temperature == 1 and not sampling.truncated
        if not (engine.tempered or plain or self.deterministic or self.approximate):
            raise InputError(
                f"{engine.name} reports log-probabilities of the untempered model; start it with "
                "--logprobs-mode processed_logprobs, or sample at temperature 1 without top_k and top_p"
            )

    def follow(self, own: Sequence[State], foreign: Sequence[State]) -> list[Followed]:
        if self.approximate:
            raise InputError(
                f"{self.engine.name} is approximate, and a ratio needs the exact law; choose an exact server"
            )
        return super().follow(own, foreign)


def _from_tokens(choice: Mapping[str, Any], room: int) -> tuple[list[int], list[float]]:
    logps = [math.nan if logp is None else float(logp) for logp in choice["logprobs"]["token_logprobs"]]
    return list(choice.get("token_ids") or ()), logps


def _cached(said: Mapping[str, Any]) -> int:
    """Tokens that came from the prefix cache, if the server tells."""
    details = (said.get("usage") or {}).get("prompt_tokens_details") or {}
    return int(details.get("cached_tokens") or 0)


def _first_logps(choice: Mapping[str, Any]) -> dict[str, float]:
    """Of the most probable first tokens, by their text."""
    return dict((choice["logprobs"].get("top_logprobs") or [{}])[0] or {})


def _doubled(plain: Mapping[str, float], halved: Mapping[str, float]) -> bool:
    shared = sorted(plain.keys() & halved.keys())
    if len(shared) < 2:
        return False
    differences = [np.ptp([logps[token] for token in shared]) for logps in (plain, halved)]
    return bool(np.isclose(differences[1], 2 * differences[0], rtol=0.05))


def _shut_down(server: Server, background: Background) -> None:
    background.interrupt()  # a request whose connection is closed would be tried again
    background.wait(server.close())
    background.stop()
