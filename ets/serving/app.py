"""The HTTP server: OpenAI's interfaces, health and metrics over an `Offer`."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, aclosing, asynccontextmanager, contextmanager
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from ets import __version__
from ets.serving.answers import DONE, Answer, event, usage_of
from ets.serving.batches import Batches, RequestPolicy, alone
from ets.serving.metrics import Metrics
from ets.serving.offer import Offer, Order
from ets.serving.operation import Operation
from ets.serving.requests import ChatCompletion, Completion, RequestError, TextCompletion, read_request
from ets.serving.work import LOOK, Advanced, Desk, Update, Work, ending

T = TypeVar("T")
log = logging.getLogger("ets.serving")


class Gone(Exception):
    """The client has closed the connection."""


class Service:
    """Answers requests by the work of threads.

    Parameters
    ----------
    offer : Offer
    operation : Operation
    keys : sequence of str
        Bearer keys; without keys every request is answered.
    """

    def __init__(self, offer: Offer, operation: Operation, keys: Sequence[str] = ()) -> None:
        self.offer, self.operation = offer, operation
        self._keys = [_digest(key) for key in keys]
        self.desk = Desk(operation.width, operation.queue)
        self._works: set[Work] = set()
        self.metrics = Metrics(lambda: self.desk.waiting, lambda: self.desk.working, lambda: self.stuck)
        self._ending = False
        self._batches = None if hasattr(offer.policy, "beside") else Batches()

    @property
    def keyed(self) -> bool:
        return bool(self._keys)

    @property
    def stuck(self) -> int:
        """Requests that have been answered, while their threads still run: their reward hangs, or a draw ends late."""
        self._works = {work for work in self._works if work.alive}
        return sum(work.answered for work in self._works)

    def close(self) -> None:
        """End all work."""
        self.end()
        if self._batches is not None:
            self._batches.close()

    def end(self) -> None:
        """End all requests, which are answered with status 503, as later ones are."""
        self._ending = True
        for work in self._works:
            work.end()

    def require_key(self, header: str | None) -> None:
        """Raise `RequestError` unless the header Authorization holds a key; the comparison takes the same time."""
        scheme, _, given = (header or "").partition(" ")
        found = _digest(given.strip())
        right = [hmac.compare_digest(found, key) for key in self._keys]
        if self._keys and not (any(right) and scheme.lower() == "bearer"):
            raise RequestError(
                401, "the API key is missing or wrong; send Authorization: Bearer KEY", code="invalid_api_key"
            )

    async def updates(self, order: Order) -> AsyncGenerator[tuple[Advanced, Work]]:
        """What a request's thread tells, until all its texts are complete. Raises `RequestError` if it fails."""
        until, told = time.monotonic() + self.operation.seconds, asyncio.Queue[Update]()
        loop = asyncio.get_running_loop()

        def tell(update: Update) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(told.put_nowait, update)

        async with self.desk.place(until):
            if self._ending:
                raise ending()
            work = Work(order, *self._joined(order), tell)
            self._works = {each for each in self._works if each.alive} | {work}
            try:
                while True:
                    update = await self._next(told, work, until)
                    if isinstance(update, RequestError):
                        raise update
                    yield update, work
                    if update.done:
                        return
            finally:
                work.end()

    def _joined(self, order: Order) -> tuple[RequestPolicy, AbstractContextManager[None]]:
        """The policy for the thread of a request, and the thread's share in the model."""
        found: Any = order.policy
        policy = alone(found.beside()) if self._batches is None else self._batches.policy(found)
        return policy, self._share(policy)

    @contextmanager
    def _share(self, policy: RequestPolicy) -> Iterator[None]:
        """Batches wait for the thread while it is in this context; at the end its work is counted."""
        if self._batches is not None:
            self._batches.join()
        try:
            yield
        finally:
            self.metrics.spent(policy.ledger)
            if self._batches is not None:
                self._batches.leave()

    async def _next(self, told: asyncio.Queue[Update], work: Work, until: float) -> Update:
        while True:
            try:
                async with asyncio.timeout(LOOK):  # not wait_for, which may swallow a cancellation in Python 3.11
                    return await told.get()
            except TimeoutError:
                if self._ending:
                    raise ending() from None
                limit = self.operation.reward_seconds
                if work.rewarding > limit:
                    slow = f"the reward {work.order.reward!r} took longer than {limit:g} s"
                    raise RequestError(500, slow, code="reward_timeout") from None
                if time.monotonic() > until:
                    late = (
                        f"the request took longer than {self.operation.seconds:g} s; ask for less, or try again later"
                    )
                    raise RequestError(504, late, code="timeout") from None

    async def answered(self, answer: Answer) -> dict[str, Any]:
        """The whole answer."""
        async with aclosing(self.updates(answer.order)) as updates:
            async for update, work in updates:
                if update.done:
                    return await _made(answer, answer.whole, update.chains, self._usage(answer, update, work))
        raise AssertionError("the last update is done")

    async def streamed(self, answer: Answer, begun: float) -> AsyncGenerator[str]:
        """The answer as events. The first one comes with the first update, so that an early error has its status."""
        first = True
        async with aclosing(self.updates(answer.order)) as updates:
            async for update, work in updates:
                pieces = await _made(answer, answer.pieces, update.chains)
                if first:
                    first = False
                    self.metrics.first_text(time.monotonic() - begun)
                    pieces = answer.opening() + pieces
                if update.done:
                    pieces += answer.closing(update.chains, self._usage(answer, update, work))
                for piece in pieces:
                    yield event(piece)
        yield DONE

    def _usage(self, answer: Answer, update: Advanced, work: Work) -> dict[str, Any]:
        usage = usage_of(answer.order, update.chains, work.policy.prompt_tokens)
        self.metrics.answer(usage["prompt_tokens"], usage["completion_tokens"])
        answer.usage, answer.texts = usage, [chain.state.text for chain in update.chains]
        return usage


async def _made(answer: Answer, make: Callable[..., T], *given: Any) -> T:
    """What `make` returns. The places of log-probabilities in long texts take seconds, so a thread finds them."""
    return await asyncio.to_thread(make, *given) if answer.asked.asks_logprobs else make(*given)


async def complete(service: Service, request: Request, kind: type[Completion]) -> Response:
    """Answer a request, and write its line into the log at the end of the answer."""
    begun, answer = time.monotonic(), None
    record: dict[str, Any] = {"path": request.url.path}
    try:
        service.require_key(request.headers.get("authorization"))
        asked = read_request(kind, await _body(request, service.operation))
        order = await asyncio.to_thread(service.offer.order, asked)
        answer = Answer(asked, order)
        record |= {"id": answer.id, "method": order.method, "reward": order.reward, "stream": asked.stream}
        if service.operation.log_prompts:
            record["prompts"] = [problem.raw_prompt for problem in order.problems]
        if not asked.stream:
            body = await unless_gone(request.receive, service.answered(answer))
            response: Response = JSONResponse(body)
        else:
            events = service.streamed(answer, begun)
            first = await unless_gone(request.receive, anext(events))
            return EventStream(first, events, lambda status: _finish(service, status, record, answer, begun))
    except RequestError as error:
        response = _error(error)
        record["error"] = str(error) if service.operation.log_prompts else error.outline
    except (Gone, ClientDisconnect):
        response = Response(status_code=499)
    _finish(service, response.status_code, record, answer, begun)
    return response


def _finish(service: Service, status: int, record: dict[str, Any], answer: Answer | None, begun: float) -> None:
    """Count an answered request, and log it."""
    seconds = time.monotonic() - begun
    service.metrics.request(record["path"], status, seconds)
    usage = answer.usage if answer else None
    if service.operation.log_prompts and answer:
        record["texts"] = answer.texts
    log.info(json.dumps({**record, "status": status, "seconds": round(seconds, 4), "usage": usage}, ensure_ascii=False))


def make_app(service: Service) -> FastAPI:
    """The application over a service, which it closes at its end."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(title="ets serve", version=__version__, lifespan=life, openapi_url=None, redirect_slashes=False)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await complete(service, request, TextCompletion)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return await complete(service, request, ChatCompletion)

    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        service.require_key(request.headers.get("authorization"))
        return {"object": "list", "data": [_model(service.offer)]}

    @app.get("/v1/models/{name:path}")
    async def model(request: Request, name: str) -> dict[str, Any]:
        service.require_key(request.headers.get("authorization"))
        if name != service.offer.name:
            raise RequestError(404, f"the model {name!r} is not served", "model", "model_not_found")
        return _model(service.offer)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        desk = service.desk
        return {"status": "ok", "working": desk.working, "waiting": desk.waiting, "stuck": service.stuck}

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        service.require_key(request.headers.get("authorization"))
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        return _error(error)

    @app.exception_handler(Exception)  # a fault of this server, which is logged with its traceback too
    async def failed(request: Request, error: Exception) -> Response:
        return _error(RequestError(500, f"the server failed: {type(error).__name__}", code="internal_error"))

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        there = "/v1/chat/completions, /v1/completions, /v1/models, /health, /metrics"
        return _error(
            RequestError(error.status_code, f"{request.method} {request.url.path}: {error.detail}; there is {there}")
        )

    return app


def _model(offer: Offer) -> dict[str, Any]:
    ets = {"methods": list(offer.methods), "rewards": list(offer.rewards)}
    return {"id": offer.name, "object": "model", "created": 0, "owned_by": "ets", "ets": ets}


def _error(error: RequestError) -> JSONResponse:
    headers = None if error.wait is None else {"Retry-After": str(error.wait)}
    return JSONResponse(error.body, error.status, headers)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


async def _body(request: Request, operation: Operation) -> bytes:
    """The body of a request; raises `RequestError` as soon as it is too long, and if it does not come in time."""
    try:
        async with asyncio.timeout(operation.seconds):
            return await _read(request, operation.body_kib * 1024)
    except TimeoutError:
        raise RequestError(408, f"the body did not come within {operation.seconds:g} s", code="timeout") from None


async def _read(request: Request, most: int) -> bytes:
    large = RequestError(413, f"the body is larger than {most} bytes; send less, or raise --body-kib")
    if int(request.headers.get("content-length", "0")) > most:
        raise large
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise large
    return bytes(body)


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """What the work returns; raises `Gone` after it has been cancelled, if the client closes the connection first."""
    working: asyncio.Future[T] = asyncio.ensure_future(work)
    leaving: asyncio.Future[None] = asyncio.ensure_future(_closed(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Gone
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _closed(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events. When the client closes the connection, the source of the events is closed at once.

    Parameters
    ----------
    first : str
    events : async generator of str
    finish : callable
        Gets the status at the end: 200, 499 where the client has gone, or that of an error.
    """

    def __init__(self, first: str, events: AsyncGenerator[str], finish: Callable[[int], None]) -> None:
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self._first, self._events, self._finish = first, events, finish

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = 200
        try:
            status = await unless_gone(receive, self._sent(send))
        except Gone:
            status = 499
        finally:
            self._finish(status)

    async def _sent(self, send: Send) -> int:
        status, head = 200, {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(head)
        async with aclosing(self._events):
            await send(_part(self._first))
            try:
                async for each in self._events:
                    await send(_part(each))
            except RequestError as error:
                status = error.status
                await send(_part(event(error.body) + DONE))
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return status


def _part(text: str) -> dict[str, Any]:
    return {"type": "http.response.body", "body": text.encode(), "more_body": True}
