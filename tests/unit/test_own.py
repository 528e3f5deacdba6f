"""Certificates and passwords of a deployment's owner: what is taken, and the line for each that cannot be."""

from __future__ import annotations

import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ops.certs import Authority
from ops.errors import OpsError
from ops.own import Own

if TYPE_CHECKING:
    from collections.abc import Callable

SERVERS = {"rabbitmq": ("rabbitmq", "broker.example.com")}
CLIENTS = ("producer",)


@pytest.fixture
def own(tmp_path: Path) -> Own:
    """A folder as its owner would give it."""
    return Own(given(tmp_path / "own", Authority.ensure(tmp_path / "authority")))


def given(folder: Path, authority: Authority) -> Path:
    folder.mkdir(exist_ok=True)
    for name, identity in {
        "rabbitmq": authority.server(SERVERS["rabbitmq"], role="rabbitmq"),
        "producer": authority.client("producer"),
    }.items():
        shutil.copy(identity.cert, folder / f"{name}.crt")
        shutil.copy(identity.key, folder / f"{name}.key")
        shutil.copy(identity.ca, folder / "ca.crt")
    return folder


def test_what_fits_is_taken(own: Own) -> None:
    own.check(SERVERS, CLIENTS)
    assert own.has_certificates
    assert own.identity("producer").cert == own.folder / "producer.crt"


def test_nothing_given(tmp_path: Path) -> None:
    for folder in (None, Path("/dev/null"), tmp_path):
        assert not Own(folder).has_certificates
        assert Own(folder).password("producer") is None


def test_passwords(own: Own) -> None:
    (own.folder / "producer.password").write_text("with a space\n")
    assert own.password("producer") == "with a space"
    for wrong in ("", "two\nlines\n", "\n"):
        (own.folder / "producer.password").write_text(wrong)
        with pytest.raises(OpsError, match=r"producer\.password is empty or has more than one line"):
            own.password("producer")


def missing(own: Own, _: Authority) -> None:
    (own.folder / "producer.key").unlink()


def no_pem(own: Own, _: Authority) -> None:
    (own.folder / "producer.crt").write_text("nonsense")


def anothers_key(own: Own, _: Authority) -> None:
    shutil.copy(own.folder / "rabbitmq.key", own.folder / "producer.key")


def anothers_certificate(own: Own, _: Authority) -> None:
    for kind in ("crt", "key"):
        shutil.copy(own.folder / f"rabbitmq.{kind}", own.folder / f"producer.{kind}")


def another_authority(own: Own, other: Authority) -> None:
    shutil.copy(other.folder / "ca.crt", own.folder / "ca.crt")


def expired(own: Own, _: Authority) -> None:
    old = Authority.ensure(own.folder.parent / "old", now=lambda: datetime.now(UTC) - timedelta(days=500))
    given(own.folder, old)


def not_yet(own: Own, _: Authority) -> None:
    young = Authority.ensure(own.folder.parent / "young", now=lambda: datetime.now(UTC) + timedelta(days=5))
    given(own.folder, young)


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (missing, r"producer: .*producer\.key cannot be read \(No such file or directory\): give it.*"),
        (no_pem, r"producer: its files are not PEM, or the key has a password .*"),
        (anothers_key, r"producer\.key is not the key of producer\.crt: give the pair that belongs together"),
        (anothers_certificate, r"producer\.crt is not for clients: have it signed with that extended key usage"),
        (
            another_authority,
            r"rabbitmq\.crt was not signed by ca\.crt: .*\nproducer\.crt was not signed by ca\.crt: .*",
        ),
        (expired, r"rabbitmq\.crt expired on \S+: give a newer one\nproducer\.crt expired on \S+: give a newer one"),
        (not_yet, r"rabbitmq\.crt is valid from \S+ on: set the clock, or wait\nproducer\.crt is valid from .*"),
    ],
)
def test_what_does_not_fit_is_a_line(
    own: Own, tmp_path: Path, spoil: Callable[[Own, Authority], None], line: str
) -> None:
    spoil(own, Authority.ensure(tmp_path / "other"))
    with pytest.raises(OpsError) as raised:
        own.check(SERVERS, CLIENTS)
    assert re.fullmatch(line, str(raised.value))


def test_every_name_is_proven(own: Own) -> None:
    with pytest.raises(OpsError, match=r"rabbitmq\.crt proves .* and not queue\.example\.com: have it signed for"):
        own.check({"rabbitmq": ("rabbitmq", "queue.example.com")}, CLIENTS)
