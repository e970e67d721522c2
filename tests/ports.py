"""A port for a server that is still to come."""

from __future__ import annotations

import socket


def kept_port() -> socket.socket:
    """A socket that keeps a free port on the loopback address, until it is closed.

    Nothing else is given the port; only who asks for it by its number, and may use addresses again as servers may
    (SO_REUSEADDR), can listen there.
    """
    kept = socket.socket()
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    kept.bind(("127.0.0.1", 0))
    return kept
