"""OpenAI's interfaces over a tiny real model, in threads of the test's process, with faults to order.

Completions, chat completions (by the tokenizer's chat template, or without one of the turns' contents), a scorer at
`/score`, which returns the log-probabilities of texts, and vLLM's interfaces for a reward model: `/score`, `/classify`
and `/pooling`.
"""

from __future__ import annotations

import json
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias

import numpy as np
import torch

from tests.ports import kept_port

HANG_UP = "hang up"
"""A fault: the connection is closed in the middle of an answer."""
NO_JSON = "no JSON"
"""A fault: an answer in another form."""
BLANKS = "blanks"
"""A fault: blanks without end, which keep the connection busy."""
FOREVER = float("inf")
"""A fault: silence until the server dies."""
Fault: TypeAlias = int | float | str | dict[str, Any] | Callable[[], object] | None
"""`HANG_UP`, `NO_JSON`, `BLANKS`, a status, seconds (float) of silence, what to wait for before the answer, another
answer, or none."""


LISTED = {"data": [{"id": "tiny", "max_model_len": 512}]}
"""The answer to `/v1/models`."""


class Refused(Exception):
    """A request that is answered with 400."""


class TinyServer:
    """Serves a checkpoint on the loopback address as vLLM's server does, as far as a policy looks.

    Parameters
    ----------
    checkpoint : Checkpoint
    tempered : bool
        Whether log-probabilities are those of the sampled distribution, as with `--logprobs-mode processed_logprobs`.
    text_only : bool
        Whether token ids are kept back.
    silent_end : bool
        Whether the token that ends a row is in no list.
    key : str
        The API key that it wants, if any; what it says of a wrong one repeats that.
    classifier : ets.rewards.reward_model.Classifier, optional
        The reward model.
    port : int
        0 for any that is free, which is kept when it dies.
    models : dict, optional
        The answer to `/v1/models`; None for 404.
    content : bool
        Whether log-probabilities come in llama.cpp's form.

    Attributes
    ----------
    faults : list
        What the next completions meet, one fault each.
    lives : int or None
        Completions that are left before it dies.
    seen : list
        The bodies of all completions that were asked for.
    hears, says : callable
        From a completion's body to the body that counts, and from (body, choice) to the choice of the answer.
    busy, busiest : int
        The completions under way, and the most that were at once.
    """

    def __init__(
        self,
        checkpoint: Any,
        *,
        tempered: bool = True,
        text_only: bool = False,
        silent_end: bool = False,
        key: str = "",
        classifier: Any = None,
        port: int = 0,
        models: dict[str, Any] | None = LISTED,
        content: bool = False,
    ) -> None:
        self.checkpoint, self.tempered, self.text_only, self.key = checkpoint, tempered, text_only, key
        self.silent_end, self.classifier = silent_end, classifier
        self.models, self.content = models, content
        self.hears: Callable[[dict[str, Any]], dict[str, Any]] = lambda body: body
        self.says: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]] = lambda body, choice: choice
        self.faults: list[Fault] = []
        self.lives: int | None = None
        self.seen: list[dict[str, Any]] = []
        self.busiest = self.busy = 0
        self._laws: dict[tuple[tuple[int, ...], float], Any] = {}
        self._pieces = [checkpoint.tokenizer.decode([i]) for i in range(checkpoint.config.vocab_size)]
        self._lock, self._end = threading.Lock(), threading.Event()
        self._kept = None if port else kept_port()
        self.port = port if self._kept is None else self._kept.getsockname()[1]
        self._http = _Listener(("127.0.0.1", self.port), _handler(self))
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"{self.host}/v1"

    @property
    def host(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def scorer(self) -> str:
        """The address of the scorer: ``{"prompt": …, "texts": […]}`` in, ``{"scores": […]}`` out."""
        return f"{self.host}/score"

    def __enter__(self) -> TinyServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.die()
        if self._kept is not None:
            self._kept.close()

    @property
    def dead(self) -> bool:
        return self._end.is_set()

    def die(self) -> None:
        if not self.dead:
            self._end.set()
            self._http.shutdown()
            self._http.server_close()

    def meets(self, body: dict[str, Any]) -> Fault:
        """Whether a completion meets a fault."""
        with self._lock:
            self.seen.append(body)
            if self.lives is not None:
                self.lives -= 1
            last = self.lives is not None and self.lives < 0
            fault = HANG_UP if last else self.faults.pop(0) if self.faults else None
        if last:
            self.die()
        return fault

    def answer(self, path: str, body: dict[str, Any], fault: Fault) -> dict[str, Any]:
        """A completion, drawn by the request's seed, after so many seconds, or after what is to be waited for."""
        with self._lock:
            self.busy += 1
            self.busiest = max(self.busiest, self.busy)
        try:
            if callable(fault):
                fault()
            elif fault and self._end.wait(None if fault == FOREVER else float(fault)):
                raise ConnectionAbortedError
            if self.classifier is not None and path in ("/score", "/classify", "/pooling"):
                return {"data": self._graded(path, body)}
            if "texts" in body:
                return {"scores": [self._score(body["prompt"], text) for text in body["texts"]]}
            if "messages" in body:
                return {"choices": [self._reply(body)]}
            heard = self.hears(body)
            choice = self.says(heard, self._choice(heard))
            return {"choices": [choice], "usage": {"prompt_tokens": len(heard["prompt"])}}
        finally:
            with self._lock:
                self.busy -= 1

    def _score(self, prompt: str, text: str) -> float:
        """The log-probability of a text after a prompt."""
        encode = self.checkpoint.tokenizer
        before, tokens = (list(encode(part, add_special_tokens=False)["input_ids"]) for part in (prompt, text))
        laws = [self._logps((*before, *tokens[:n]), 1.0) for n in range(len(tokens))]
        return float(sum(law[token] for law, token in zip(laws, tokens, strict=True)))

    def _graded(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The reward model's numbers in vLLM's forms; the last text comes first."""
        model = self.classifier
        if path == "/score" and "text_1" in body:
            wholes = [body["text_1"] + text for text in body["text_2"]]
        elif path != "/score" and "messages" in body:
            wholes = [model.tokenizer.apply_chat_template(body["messages"], tokenize=False)]
        elif path != "/score" and "input" in body:
            wholes = body["input"]
        else:
            raise Refused("Field required")
        rows = model.outputs([model.tokenizer(whole)["input_ids"] for whole in wholes])
        if body.get("use_activation", True):
            rows = [row.softmax(-1) if len(row) > 1 else row.sigmoid() for row in rows]
        entries = {
            "/score": lambda row: {"score": row.item()},
            "/classify": lambda row: {"label": model.config.id2label[int(row.argmax())], "probs": row.tolist()},
            "/pooling": lambda row: {"data": row.tolist()},
        }
        return [{"index": index, **entries[path](row)} for index, row in enumerate(rows)][::-1]

    def _reply(self, body: dict[str, Any]) -> dict[str, Any]:
        """A chat completion."""
        tokenizer, messages = self.checkpoint.tokenizer, body["messages"]
        whole = "".join(message["content"] for message in messages)
        if getattr(tokenizer, "chat_template", None):
            whole = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(whole, add_special_tokens=False)["input_ids"]
        top = body.get("top_logprobs", 0)
        found = self._choice(body | {"prompt": prompt, "logprobs": top, "stop_token_ids": [tokenizer.eos_token_id]})
        choice = {"index": 0, "message": {"role": "assistant", "content": found["text"]}}
        if body.get("logprobs"):
            firsts = [dict(each) for each in found["logprobs"]["top_logprobs"]]
            listed = [[{"token": token, "logprob": logp} for token, logp in first.items()] for first in firsts]
            choice["logprobs"] = {"content": [{"top_logprobs": each} for each in listed]}
        return choice

    def _choice(self, body: dict[str, Any]) -> dict[str, Any]:
        rng, stops = np.random.default_rng(body.get("seed")), body.get("stop", [])
        tokens: list[int] = []
        logprobs: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": []}
        reason = "length"
        while len(tokens) < body["max_tokens"] and reason == "length":
            logps = self._logps((*body["prompt"], *tokens), body["temperature"])
            token = int(rng.choice(len(logps), p=np.exp(logps))) if body["temperature"] else int(np.argmax(logps))
            tokens.append(token)
            said = logps if self.tempered else self._logps((*body["prompt"], *tokens[:-1]), 1.0)
            best = sorted(range(len(said)), key=lambda i: -said[i])[: body["logprobs"]]
            logprobs["tokens"].append(self._pieces[token])
            logprobs["token_logprobs"].append(float(said[token]))
            logprobs["top_logprobs"].append({self._pieces[i]: float(said[i]) for i in {*best, token}})
            if token in body["stop_token_ids"] or any(stop in self._text(tokens) for stop in stops):
                reason = "stop"
        shown = tokens[:-1] if tokens[-1] in body["stop_token_ids"] else tokens
        if self.silent_end:
            logprobs = {name: values[: len(shown)] for name, values in logprobs.items()}
        text = self._text(shown)
        text = text[: min([len(text), *(text.find(stop) for stop in stops if stop in text)])]
        ids = {} if self.text_only else {"token_ids": tokens, "prompt_token_ids": body["prompt"]}
        if self.content:
            logprobs, ids = {"content": _entries(tokens, logprobs)}, {}
        return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": reason, **ids}

    def _text(self, tokens: list[int]) -> str:
        return "".join(self._pieces[token] for token in tokens)

    def _logps(self, tokens: tuple[int, ...], temperature: float) -> Any:
        with self._lock, torch.inference_mode():
            if (tokens, temperature) not in self._laws:
                logits = self.checkpoint.model(torch.tensor([tokens])).logits[0, -1].double()
                law = (logits / (temperature or 1.0)).log_softmax(-1).numpy()
                if not np.isclose(np.exp(law).sum(), 1):  # it would be answered again and again
                    raise ArithmeticError(f"the logits after {tokens} are {logits.tolist()}")
                self._laws[tokens, temperature] = law
            return self._laws[tokens, temperature]


def _entries(tokens: list[int], logprobs: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """The log-probabilities in llama.cpp's form."""
    tops = [[{"token": t, "logprob": logp} for t, logp in top.items()] for top in logprobs["top_logprobs"]]
    rows = zip(tokens, logprobs["tokens"], logprobs["token_logprobs"], tops, strict=True)
    return [{"id": i, "token": token, "logprob": logp, "top_logprobs": top} for i, token, logp, top in rows]


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, *_: object) -> None:
        """A client that has gone away is no news."""


def _handler(server: TinyServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            if self.path != "/v1/models" or server.models is None:
                self._say(404, {"error": {"message": "Not Found"}})
            elif self._welcome():
                self._say(200, server.models)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if not self._welcome():
                return
            fault = server.meets(body)
            if fault == HANG_UP or server.dead:
                self.send_response(200)
                self.send_header("content-length", "1000")
                self.end_headers()
                self.close_connection = True
            elif fault == NO_JSON:
                self._say(200, None, b"<html></html>")
            elif isinstance(fault, dict):
                self._say(200, fault)
            elif fault == BLANKS:
                self._blank()
            elif isinstance(fault, int):
                self._say(fault, {"error": {"message": "as told"}})
            elif len(body.get("stop", [])) > 4:
                self._say(400, {"error": {"message": "at most 4 stop strings"}})
            else:
                self._answer(body, fault)

        def _blank(self) -> None:
            self.send_response(200)
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            with suppress(OSError):  # the client has gone
                while not server.dead:
                    self.wfile.write(b"1\r\n \r\n")
                    time.sleep(0.05)
            self.close_connection = True

        def _answer(self, body: dict[str, Any], fault: Fault) -> None:
            """What went wrong here is told to the client, whose error then says it, and shown."""
            try:
                answer = server.answer(self.path, body, fault)
            except ConnectionAbortedError:
                raise
            except Refused as error:
                self._say(400, {"error": {"message": str(error)}})
            except Exception as error:
                traceback.print_exc()
                self._say(500, {"error": {"message": f"the test's server failed: {error!r}"}})
            else:
                self._say(200, answer)

        def _welcome(self) -> bool:
            given = self.headers.get("authorization", "")
            if server.key and given != f"Bearer {server.key}":
                self._say(401, {"error": {"message": f"the key {given!r} is wrong"}})
                return False
            return True

        def _say(self, status: int, value: Any, content: bytes = b"") -> None:
            content = content or json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            if status == 429:
                self.send_header("retry-after", "0.3")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    return Handler
