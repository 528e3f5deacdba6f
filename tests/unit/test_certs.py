"""The authority: what its certificates prove, when they are renewed, who may read the keys."""

from __future__ import annotations

import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from ops import certs
from ops.certs import Authority, Identity, days_left, describe
from ops.errors import OpsError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def ago(days: float) -> Callable[[], datetime]:
    """A clock that stands `days` in the past."""
    return lambda: datetime.now(UTC) - timedelta(days=days)


def handshake(server: Identity, client: Identity | None, name: str, trust: Path | None = None) -> None:
    """Both sides verify each other as strictly as Python 3.13 does; raises whichever side refuses."""
    accepting = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=server.ca)
    accepting.load_cert_chain(server.cert, server.key)
    accepting.verify_mode = ssl.CERT_REQUIRED
    accepting.verify_flags |= ssl.VERIFY_X509_STRICT
    connecting = ssl.create_default_context(cafile=trust or server.ca)
    connecting.verify_flags |= ssl.VERIFY_X509_STRICT
    if client:
        connecting.load_cert_chain(client.cert, client.key)

    near, far = socket.socketpair()
    refusals: list[Exception] = []

    def serve() -> None:
        with far:
            far.settimeout(5)
            try:
                with accepting.wrap_socket(far, server_side=True) as tls:
                    tls.sendall(b"x")
            except OSError as exc:
                refusals.append(exc)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with near:
            near.settimeout(5)
            with connecting.wrap_socket(near, server_hostname=name) as tls:
                tls.recv(1)
    finally:
        thread.join()
    if refusals:
        raise refusals[0]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.ensure(tmp_path / "certs")


@pytest.mark.parametrize("name", ["rabbit.test", "10.1.2.3", "localhost", "127.0.0.1"])
def test_a_strict_client_accepts_every_name_of_a_server(authority: Authority, name: str) -> None:
    handshake(authority.server(["rabbit.test", "10.1.2.3"]), authority.client("worker-math"), name)


def test_another_name_is_refused(authority: Authority) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match=r"other\.test"):
        handshake(authority.server(["rabbit.test"]), authority.client("worker"), "other.test")


def test_a_clients_certificate_cannot_play_the_server(authority: Authority) -> None:
    client = authority.client("worker")
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        handshake(client, client, "localhost")


def test_a_servers_certificate_cannot_play_a_client(authority: Authority) -> None:
    server = authority.server([])
    with pytest.raises(ssl.SSLError):
        handshake(server, server, "localhost")


def test_another_authority_is_not_trusted(authority: Authority, tmp_path: Path) -> None:
    other = Authority.ensure(tmp_path / "other")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(authority.server([]), authority.client("worker"), "localhost", trust=other.folder / "ca.crt")


def test_what_is_good_is_kept(authority: Authority) -> None:
    before = authority.server(["a.test"]).cert.read_bytes(), authority.client("worker").cert.read_bytes()

    again = Authority.ensure(authority.folder)

    assert (again.server(["a.test"]).cert.read_bytes(), again.client("worker").cert.read_bytes()) == before


@pytest.mark.parametrize(("age", "kept"), [(certs.LEAF_DAYS - 31, True), (certs.LEAF_DAYS - 29, False)])
def test_the_last_thirty_days_renew_a_certificate(tmp_path: Path, age: float, kept: bool) -> None:
    old = Authority.ensure(tmp_path, now=ago(age)).server([]).cert.read_bytes()

    new = Authority.ensure(tmp_path).server([])

    assert (new.cert.read_bytes() == old) is kept
    assert days_left(new.cert) > certs.RENEW_DAYS


def test_new_names_make_a_new_certificate(authority: Authority) -> None:
    authority.server(["a.test"])
    handshake(authority.server(["a.test", "b.test"]), authority.client("worker"), "b.test")


def test_a_renewed_authority_stays_trusted_by_those_who_hold_the_old_file(tmp_path: Path) -> None:
    old = Authority.ensure(tmp_path / "certs", now=ago(certs.CA_DAYS - 10))
    held = tmp_path / "held.crt"
    held.write_bytes((old.folder / "ca.crt").read_bytes())

    new = Authority.ensure(old.folder)

    assert days_left(new.folder / "ca.crt") > certs.CA_DAYS - 1
    handshake(new.server([]), new.client("worker"), "localhost", trust=held)


def test_no_certificate_outlives_its_authority(tmp_path: Path) -> None:
    authority = Authority.ensure(tmp_path, now=ago(certs.CA_DAYS - 100))
    assert days_left(Authority.ensure(tmp_path).server([]).cert) == pytest.approx(
        days_left(authority.folder / "ca.crt"), abs=0.01
    )


@pytest.mark.parametrize("broken", ["broker.crt", "broker.key"])
def test_a_broken_pair_is_made_anew(authority: Authority, broken: str) -> None:
    authority.server([])
    (authority.folder / broken).write_text("nonsense")
    handshake(authority.server([]), authority.client("worker"), "localhost")


def test_keys_are_readable_by_their_owner_alone_and_the_authoritys_stays_in_its_folder(authority: Authority) -> None:
    authority.server([])
    authority.client("worker")

    keys = {path.relative_to(authority.folder).as_posix(): path for path in authority.folder.rglob("*.key")}

    assert set(keys) == {"authority/ca.key", "broker.key", "worker.key"}
    assert {path.stat().st_mode & 0o777 for path in keys.values()} == {0o600}
    assert len({path.read_bytes() for path in keys.values()}) == 3
    assert (authority.folder / "authority").stat().st_mode & 0o777 == 0o700
    assert not [path for path in authority.folder.glob(".*") if path.name != ".lock"]


def test_a_lost_authority_key_is_told_and_nothing_is_overwritten(authority: Authority) -> None:
    before = (authority.folder / "ca.crt").read_bytes()
    (authority.folder / "authority" / "ca.key").unlink()

    with pytest.raises(OpsError, match="restore the key, or remove both"):
        Authority.ensure(authority.folder)

    assert (authority.folder / "ca.crt").read_bytes() == before


@pytest.mark.parametrize("role", ["", "ca", "../x", "Broker", "a b"])
def test_a_role_must_be_a_file_name(authority: Authority, role: str) -> None:
    with pytest.raises(OpsError, match="lower-case letters"):
        authority.client(role)


def test_a_name_must_be_a_host_name(authority: Authority) -> None:
    with pytest.raises(OpsError, match="ASCII"):
        authority.server(["häschen.test"])


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OpsError, match=r"cannot write certificates in .*: choose a folder"):
        Authority.ensure(tmp_path / "file" / "certs")


def test_describe_tells_kind_role_names_and_what_expires_first(tmp_path: Path) -> None:
    Authority.ensure(tmp_path, now=ago(500)).client("expired")
    authority = Authority.ensure(tmp_path)
    authority.server(["rabbit.test"])

    listed = describe(tmp_path)

    assert [(entry.name, entry.kind) for entry in listed] == [
        ("expired.crt", "client"),
        ("broker.crt", "server"),
        ("ca.crt", "authority"),
    ]
    assert listed[0].days_left < 0
    assert listed[0].role == "expired"
    assert listed[1].names == ("rabbit.test", "localhost", "127.0.0.1")
    assert listed[2].role.startswith("Warren authority ")
    assert listed[2].not_after.tzinfo is UTC


def test_a_file_without_a_certificate_is_told_by_name(tmp_path: Path) -> None:
    (tmp_path / "x.crt").write_text("nonsense")
    with pytest.raises(OpsError, match=r"x\.crt holds no certificate"):
        days_left(tmp_path / "x.crt")
    with pytest.raises(OpsError, match=r"y\.crt \(No such file"):
        days_left(tmp_path / "y.crt")
