"""What a producer is told by a server that it cannot trust or understand: a real one, of TLS, on this machine."""

from __future__ import annotations

import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from ops.certs import Authority, Identity
from queues.app import create_app
from queues.errors import BrokerUnavailableError
from queues.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def serve(server: socket.socket, identity: Identity, *, once: bool = False) -> None:
    """Shake hands with whoever shows a certificate of the same authority; `once` leaves all but the first waiting."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=identity.ca)
    context.load_cert_chain(identity.cert, identity.key)
    context.verify_mode = ssl.CERT_REQUIRED
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        try:
            with context.wrap_socket(connection, server_side=True) as tls:
                tls.recv(8)
        except OSError:
            pass
        if once:
            return


@pytest.fixture
def port() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server
        server.shutdown(socket.SHUT_RDWR)


def refusal(
    server: socket.socket, identity: Identity, tmp_path: Path, environ: dict[str, str], *, once: bool = False
) -> str:
    """What sending a task to that server ends with."""
    threading.Thread(target=serve, args=(server, identity), kwargs={"once": once}, daemon=True).start()
    (tmp_path / "password").write_text("secret")
    settings = Settings.from_env(
        {
            "BROKER_HOSTS": f"127.0.0.1:{server.getsockname()[1]}",
            "BROKER_PASSWORD_FILE": str(tmp_path / "password"),
            "PUBLISH_TIMEOUT": "2",
            **environ,
        }
    )
    with create_app(settings) as app, pytest.raises(BrokerUnavailableError) as caught:
        app.send_task("math.add", [1, 2])
    # Kombu's and py-amqp's own errors would be ninety lines of traceback before the sentence.
    assert caught.value.__suppress_context__
    return str(caught.value)


def test_an_expired_certificate_is_to_be_renewed(tmp_path: Path, port: socket.socket) -> None:
    past = Authority.ensure(tmp_path / "past", now=lambda: datetime.now(UTC) - timedelta(days=500))
    said = refusal(port, past.server(["127.0.0.1"]), tmp_path, {"BROKER_CA": str(past.folder / "ca.crt")})
    assert "is not valid (certificate has expired): renew it at the broker" in said


def test_another_name_is_to_be_told(tmp_path: Path, port: socket.socket) -> None:
    authority = Authority.ensure(tmp_path / "ca")
    wanted = {"BROKER_CA": str(authority.folder / "ca.crt"), "BROKER_SERVER_NAME": "elsewhere.example"}
    said = refusal(port, authority.server(["rabbit.example"]), tmp_path, wanted)
    assert "check BROKER_HOSTS, or set BROKER_SERVER_NAME to a name that it carries" in said


def test_another_authority_is_to_be_checked(tmp_path: Path, port: socket.socket) -> None:
    other = Authority.ensure(tmp_path / "other")
    server = Authority.ensure(tmp_path / "ca").server(["127.0.0.1"])
    said = refusal(port, server, tmp_path, {"BROKER_CA": str(other.folder / "ca.crt")})
    assert "check BROKER_CA, the file of the authority that signed it" in said


def test_a_plaintext_client_is_told_of_tls(tmp_path: Path, port: socket.socket) -> None:
    said = refusal(port, Authority.ensure(tmp_path / "ca").server(["127.0.0.1"]), tmp_path, {"BROKER_PLAINTEXT": "1"})
    assert "where it is a TLS port, drop BROKER_PLAINTEXT and set BROKER_CA" in said


@pytest.mark.parametrize("once", [False, True])
def test_a_client_that_is_not_admitted_is_told_of_its_certificate(
    tmp_path: Path, port: socket.socket, once: bool
) -> None:
    """Also where the last attempt, cut short by the deadline, has less to say than the first."""
    past = Authority.ensure(tmp_path / "ca", now=lambda: datetime.now(UTC) - timedelta(days=500)).client("producer")
    authority = Authority.ensure(tmp_path / "ca")
    files = {"BROKER_CA": str(past.ca), "BROKER_CERT": str(past.cert), "BROKER_KEY": str(past.key)}
    said = refusal(port, authority.server(["127.0.0.1"]), tmp_path, files, once=once)
    # The server's alert may be lost with the connection, and the reason with it.
    assert "no TLS with 127.0.0.1" in said
    assert "BROKER_CERT and BROKER_KEY" in said
