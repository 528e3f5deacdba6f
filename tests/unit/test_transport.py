"""Connecting within a deadline, to peers and resolvers that do not answer."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from queues import transport
from queues.transport import addresses, deadline, patience, remaining

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def swallowed() -> Iterator[tuple[str, int]]:
    """An address at which connecting neither succeeds nor fails: its queue of connections is full."""
    with socket.socket() as server, socket.socket() as first, socket.socket() as second:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        address = server.getsockname()
        for filling in (first, second):
            filling.settimeout(0)
            filling.connect_ex(address)
        yield address


@pytest.fixture
def live() -> Iterator[tuple[str, int]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()


def entry(address: tuple[str, int]) -> Any:
    return (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address)


def test_addresses_of_a_name_share_its_time(
    monkeypatch: pytest.MonkeyPatch, swallowed: tuple[str, int], live: tuple[str, int]
) -> None:
    """py-amqp would give the first one all of it."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [entry(swallowed), entry(swallowed), entry(live)])
    wire = transport._Tcp("broker.test:5671")
    with deadline(3):
        wire._connect("broker.test", 5671, 3)
        assert remaining(0), "there is time left to talk"
    assert wire.sock.getpeername() == live
    wire.sock.close()


def test_the_last_addresss_error_is_the_names(monkeypatch: pytest.MonkeyPatch, swallowed: tuple[str, int]) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [entry(swallowed)])
    with pytest.raises(TimeoutError):
        transport._Tcp("broker.test:5671")._connect("broker.test", 5671, 0.3)


def test_a_resolver_that_does_not_answer_ends_with_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: over.wait(30))
    try:
        with deadline(0.2), pytest.raises(TimeoutError, match=r"broker\.test was not resolved in time"):
            addresses("broker.test", 5671)
    finally:
        over.set()


def test_patience_may_write_after_its_deadline_and_nobody_else() -> None:
    with deadline(20):
        assert 0 < transport.writing_time() <= 20
    assert transport.writing_time() == transport.IO_TIMEOUT
    with deadline(-1):
        with pytest.raises(TimeoutError):
            transport.writing_time()
        with patience():
            assert transport.writing_time() == transport.IO_TIMEOUT


def test_a_name_that_does_not_exist_is_the_resolvers_error() -> None:
    with deadline(20), pytest.raises(OSError, match=r"."):
        addresses("no-such-host.invalid", 5671)
    with deadline(5):
        assert {found[4][:2] for found in addresses("127.0.0.1", 5671)} == {("127.0.0.1", 5671)}
