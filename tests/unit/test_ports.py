"""Ports are chosen once, by one process, and listened on by the service that was told."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from ops import ports

ASK = "import sys; from ops import ports; print(ports.keep(int(sys.argv[1]), fresh=True))"


def others_can_have(port: int) -> str:
    """What another process is told that wants a port."""
    return subprocess.run(
        [sys.executable, "-c", ASK, str(port)], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_a_chosen_port_is_below_those_of_outgoing_connections_and_nobody_else_chooses_it() -> None:
    port = ports.free_port()
    assert port in ports.RANGE
    assert port != ports.free_port()
    assert others_can_have(port) == "False"


def test_its_service_can_listen_on_it_again_and_again_and_is_noticed() -> None:
    port = ports.free_port()
    for _ in range(2):
        assert ports.is_free(port)
        with socket.create_server((ports.HOST, port)), socket.create_connection((ports.HOST, port), timeout=10):
            assert not ports.is_free(port)
            assert not ports.keep(port)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((ports.HOST, port), timeout=10)


def test_a_port_with_a_listener_is_kept_by_nobody_and_a_remembered_one_by_the_first() -> None:
    with socket.create_server((ports.HOST, 0)) as server:
        assert not ports.keep(server.getsockname()[1])
    port = next(port for port in reversed(ports.RANGE) if ports.keep(port))
    assert others_can_have(port) == "False"
