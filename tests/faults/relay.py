"""A TLS server between a client and the broker, with a certificate of our choice: the one that a client must refuse."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from ops.certs import Identity
from ops.issuer import common_name, signed

if TYPE_CHECKING:
    from pathlib import Path

    from ops.certs import Authority


class Relay:
    """Takes a client's TLS connection, and passes on what it reads over one of its own."""

    def __init__(self, server: Identity, client: Identity, target: int) -> None:
        self._target = target
        self._theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._theirs.load_cert_chain(server.cert, server.key)
        self._ours = ssl.create_default_context(cafile=client.ca)
        self._ours.load_cert_chain(client.cert, client.key)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with contextlib.suppress(OSError), plain, contextlib.ExitStack() as stack:
            near = stack.enter_context(self._theirs.wrap_socket(plain, server_side=True))
            far = stack.enter_context(
                self._ours.wrap_socket(
                    socket.create_connection(("127.0.0.1", self._target), 5), server_hostname="localhost"
                )
            )
            far.settimeout(60)
            back = threading.Thread(target=pass_on, args=(far, near), daemon=True)
            back.start()
            pass_on(near, far)
            back.join(5)


def pass_on(start: socket.socket, end: socket.socket) -> None:
    """Forward until either end is gone."""
    with contextlib.suppress(OSError):
        while data := start.recv(65536):
            end.sendall(data)
    for side in (start, end):
        with contextlib.suppress(OSError):
            side.shutdown(socket.SHUT_RDWR)


def forged(authority: Authority, folder: Path, *, name: str, expired: bool = False) -> Identity:
    """A server's certificate of the right authority, for another name or past its end."""
    folder.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    start = datetime.now(UTC) - timedelta(days=100 if expired else 0)
    certificate = signed(
        authority.certificate,
        authority._key,
        common_name(name),
        key,
        start,
        90,
        usage=ExtendedKeyUsageOID.SERVER_AUTH,
        names=[name],
    )
    files = Identity(ca=authority.folder / "ca.crt", cert=folder / f"{name}.crt", key=folder / f"{name}.key")
    files.cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files
