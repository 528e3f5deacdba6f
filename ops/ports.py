"""Ports of the loopback address, for services that are told where to listen."""

from __future__ import annotations

import random
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container

HOST = "127.0.0.1"
#: Below the range that the kernel takes for outgoing connections, so that one that was chosen stays free; and at
#: random, so that stacks which start at once do not choose the same.
RANGE = range(20_000, 30_000)
#: Ports that this process keeps.
_KEPT: set[int] = set()


def is_free(port: int) -> bool:
    """Whether a port can be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def keep(port: int, *, fresh: bool = False) -> bool:
    """Keep a port from others until this process ends; its service, as all that reuse addresses, can listen on it.

    A broker takes seconds until it listens: without this, another stack that starts meanwhile may choose the same.

    Args:
        port: what to keep.
        fresh: nobody has used it of late, so that closed connections which linger on it are somebody else's.

    Returns:
        Whether it is this process's now; False where somebody else listens on it or keeps it.
    """
    if port in _KEPT:
        return is_free(port)
    kept = socket.socket()
    try:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, not fresh)
        kept.bind((HOST, port))
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except OSError:
        kept.close()
        return False
    kept.detach()  # bound until the process ends, and never listened on
    _KEPT.add(port)
    return True


def free_port(taken: Container[int] = ()) -> int:
    """A port that nobody listens on or keeps; this process keeps it from now on."""
    while True:
        port = random.choice(RANGE)
        if port not in taken and port not in _KEPT and keep(port, fresh=True):
            return port
