"""Runs the application in uvicorn until a signal."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from types import FrameType

import uvicorn

from ets.exits import closed_after
from ets.serving.app import Service, make_app
from ets.types import InputError

AFTER = 5
"""Seconds for the last answers after the requests under way have been ended."""


IDLE = 75
"""Seconds to the end of an idle connection. Clients end theirs earlier, httpx for example after 5 s. A request would be
lost if the server closed its connection at the same moment."""


class Server(uvicorn.Server):
    """A server that at a signal takes no further connection, and ends the requests under way after a time."""

    def __init__(self, service: Service) -> None:
        self.service, self.wait = service, service.operation.drain_seconds
        limit = int(self.wait) + AFTER
        app = make_app(service)
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=limit,
            timeout_keep_alive=IDLE,
            lifespan="on",
        )
        super().__init__(config)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the end. The signal is not raised again afterwards, so the process exits with status 0."""
        if not self.should_exit:
            self._loop.call_soon_threadsafe(self._loop.call_later, self.wait, self.service.end)
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def bound(host: str, port: int) -> socket.socket:
    """A listening socket; raises `InputError` for an address that cannot be taken."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]
        raise InputError(f"cannot listen at {host}:{port}: {reason}; choose another address") from None


def listen(service: Service, host: str, port: int) -> None:
    """Load the model, and serve until a signal. Raises `InputError` for an address that cannot be taken."""
    with closed_after(service.offer.policy), bound(host, port) as listening:
        log = logging.getLogger("ets.serving")
        log.addHandler(logging.StreamHandler(sys.stderr))
        log.setLevel(logging.INFO)
        service.offer.load()
        address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}/v1"
        keys = (
            ""
            if service.keyed or host in ("127.0.0.1", "::1", "localhost")
            else "; no key is needed: see --api-key-file"
        )
        print(f"serving {service.offer.name} at {address}{keys}", flush=True)
        Server(service).run([listening])
