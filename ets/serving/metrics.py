"""Counters of a server for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ets.types import Cost

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The counters. `waiting`, `working` and `stuck` return the requests in each state when they are read."""

    def __init__(self, waiting: Callable[[], int], working: Callable[[], int], stuck: Callable[[], int]) -> None:
        self._registry = kept = CollectorRegistry()
        name, text = "ets_requests", "Requests, by path and status."
        self._requests = Counter(name, text, ["path", "status"], registry=kept)
        name, text = "ets_request_seconds", "Seconds to the end of the answer."
        self._seconds = Histogram(name, text, registry=kept, buckets=SECONDS)
        name, text = "ets_first_text_seconds", "Seconds to the first streamed text."
        self._first = Histogram(name, text, registry=kept, buckets=SECONDS)
        name, text = "ets_tokens", "Tokens of prompts and of answers, and all tokens that were drawn."
        self._tokens = Counter(name, text, ["kind"], registry=kept)
        name, text = "ets_positions", "Token positions that the model computed."
        self._positions = Counter(name, text, registry=kept)
        for name, count in (("waiting", waiting), ("working", working), ("stuck", stuck)):
            Gauge(f"ets_requests_{name}", f"Requests that are {name}.", registry=kept).set_function(count)

    def request(self, path: str, status: int, seconds: float) -> None:
        self._requests.labels(path, status).inc()
        self._seconds.observe(seconds)

    def first_text(self, seconds: float) -> None:
        self._first.observe(seconds)

    def answer(self, prompt: int, completion: int) -> None:
        self._tokens.labels("prompt").inc(prompt)
        self._tokens.labels("completion").inc(completion)

    def spent(self, cost: Cost) -> None:
        """Count the work of a request, answered or not."""
        self._tokens.labels("generated").inc(cost.generated)
        self._positions.inc(cost.positions)

    def text(self) -> bytes:
        """The exposition format of Prometheus."""
        return generate_latest(self._registry)
