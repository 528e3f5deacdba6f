"""What the one-shot service of the Compose deployment makes, keeps and renews."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import stat
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from ops import provision
from ops.certs import Authority, days_left
from ops.definitions import roles
from ops.errors import OpsError
from ops.given import Given
from ops.passwords import hash_password
from ops.provision import WARREN_UID, Provision
from queues.errors import ConfigurationError
from queues.topology import QUEUES, Topology

if TYPE_CHECKING:
    from pathlib import Path


def make(folder: Path, given: Given | None = None) -> list[str]:
    """Provision a folder as a user who may give nothing away."""
    return Provision(folder, given or Given(), chown=lambda *_: None).run()


def test_second_run_keeps_everything(tmp_path: Path) -> None:
    assert make(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert make(tmp_path) == []
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_nobody_else_may_read(tmp_path: Path) -> None:
    make(tmp_path)
    for path in (tmp_path, *tmp_path.iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700, path
    for name in ("rabbitmq", "valkey", "mail", *roles()):
        for path in (tmp_path / name).iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o400, path


def test_each_service_owns_its_folder(tmp_path: Path) -> None:
    owners: dict[str, tuple[int, int]] = {}
    Provision(
        tmp_path, Given(), chown=lambda path, uid, gid: owners.update({str(path.relative_to(tmp_path)): (uid, gid)})
    ).run()
    assert owners["rabbitmq"] == owners["rabbitmq/.tls.key"] == (999, 999)
    assert owners["valkey"] == (999, 999)
    assert owners["worker-math"] == owners["worker-math/.tls.key"] == (WARREN_UID, WARREN_UID)
    assert not any(path.startswith(("authority", "passwords")) for path in owners)


def test_no_key_and_no_password_is_shared(tmp_path: Path) -> None:
    make(tmp_path)
    keys = [path.read_bytes() for path in tmp_path.glob("*/tls.key")]
    passwords = [path.read_text() for path in tmp_path.glob("*/broker-password")]
    assert len(set(keys)) == len(keys) == len(roles()) + 3
    assert len(set(passwords)) == len(passwords) == len(roles())
    assert all(re.fullmatch(r"[\w-]{32}", password) for password in passwords), "a URL needs no quoting"


def test_a_service_gets_no_more_than_it_needs(tmp_path: Path) -> None:
    make(tmp_path)
    for name in ("producer", "beat", "exporter"):
        assert not (tmp_path / name / "results-password").exists()
    holders = {path.parent.name for path in tmp_path.glob("*/smtp-password")}
    assert holders == {"mail", "worker-email"}


def test_definitions_hold_the_hashes_of_the_passwords(tmp_path: Path) -> None:
    make(tmp_path)
    users = json.loads((tmp_path / "rabbitmq" / "definitions.json").read_bytes())["users"]
    assert {user["name"] for user in users} == set(roles())
    for user in users:
        password = (tmp_path / user["name"] / "broker-password").read_text()
        salt = base64.b64decode(user["password_hash"])[:4]
        assert hash_password(password, salt) == user["password_hash"]


def test_valkey_knows_a_hash_only(tmp_path: Path) -> None:
    make(tmp_path)
    conf = (tmp_path / "valkey" / "users.acl").read_text()
    password = (tmp_path / "worker-math" / "results-password").read_text()
    assert password not in conf
    assert f"#{hashlib.sha256(password.encode()).hexdigest()} " in conf


def test_certificates_are_renewed_in_their_last_days(tmp_path: Path) -> None:
    long_ago = Authority.ensure(tmp_path / "authority", now=lambda: datetime.now(UTC) - timedelta(days=370))
    long_ago.client("worker-math")
    long_ago.server(("rabbitmq",), role="rabbitmq")
    assert days_left(tmp_path / "authority" / "worker-math.crt") < 30
    make(tmp_path)
    assert days_left(tmp_path / "worker-math" / "tls.crt") > 300
    assert days_left(tmp_path / "rabbitmq" / "tls.crt") > 300


def test_a_new_name_of_the_broker_is_a_new_certificate_and_nothing_else(tmp_path: Path) -> None:
    make(tmp_path)
    written = make(tmp_path, Given(broker_names=("broker.example.com",)))
    assert written == ["rabbitmq/tls.crt", "rabbitmq/tls.key"]


def test_a_lost_password_is_made_anew_everywhere(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "passwords" / "producer").unlink()
    assert make(tmp_path) == ["rabbitmq/definitions.json", "producer/broker-password"]


def test_what_a_running_service_does_not_notice_is_said(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    folder = tmp_path / "made"
    provision = Provision(folder, Given(own=own), chown=lambda *_: None)
    provision.run()
    assert provision.advice() == [], "nothing runs yet that had other files"
    (own / "producer.password").write_text("a password of my own")
    (folder / "authority" / "valkey.crt").unlink()
    provision.run()
    assert provision.advice() == [
        "definitions.json of rabbitmq has changed: where rabbitmq runs already, `restart rabbitmq` hands it over",
        "tls.crt of valkey has changed: where valkey runs already, `run --rm apply` hands it over",
    ]
    provision.run()
    assert provision.advice() == []


def test_relay_of_the_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    public = tmp_path / "public.crt"
    public.write_bytes(b"public authorities")
    monkeypatch.setattr(provision, "PUBLIC_AUTHORITIES", public)
    folder = tmp_path / "secrets"
    make(folder, Given(smtp_host="relay.example.com", smtp_password="of-the-owner"))
    assert (folder / "worker-email" / "smtp-password").read_text() == "of-the-owner"
    assert (folder / "worker-email" / "smtp-ca.crt").read_bytes() == b"public authorities"
    make(folder)
    assert (folder / "worker-email" / "smtp-password").read_text() != "of-the-owner"
    assert (folder / "worker-email" / "smtp-ca.crt").read_bytes() == (folder / "mail" / "ca.crt").read_bytes()


def test_owners_choices_come_from_the_environment(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret\n")
    given = Given.from_env(
        {
            "BROKER_NAMES": "a.example, 10.0.0.5",
            "WARREN_AMQPS_ADDRESS": "0.0.0.0:15671",
            "SMTP_HOST": "relay.example.com",
            "SMTP_USER": "me",
            "SMTP_PASSWORD_FILE": str(tmp_path / "password"),
            "SMTP_CA": "/dev/null",
        }
    )
    assert given == Given(
        broker_names=("a.example", "10.0.0.5"),
        published="127.0.0.1:15671",
        smtp_host="relay.example.com",
        smtp_password="secret",
    )
    assert "secret" not in repr(given)


@pytest.mark.parametrize(
    ("environ", "remedy"),
    [
        ({"WARREN_AMQPS_ADDRESS": "127.0.0.1:amqps"}, "WARREN_AMQPS_ADDRESS is no address"),
        (
            {"BROKER_NAMES": "broker.example.com,https://x ::1 no!"},
            "BROKER_NAMES: https://x, no! cannot be a host name or address",
        ),
        ({"SMTP_PASSWORD_FILE": "/nowhere"}, "SMTP_PASSWORD_FILE='/nowhere' cannot be read"),
        ({"SMTP_CA": "/nowhere"}, "SMTP_CA='/nowhere' cannot be read"),
        ({"SMTP_HOST": "relay", "SMTP_USER": "me"}, "SMTP_PASSWORD_FILE is missing"),
    ],
)
def test_wrong_choices_name_the_variable(environ: dict[str, str], remedy: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(remedy)):
        Given.from_env(environ)


def test_what_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    def refuse(path: Path, *_: int) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    with pytest.raises(OpsError, match="run as root"):
        Provision(tmp_path, Given(), chown=refuse).run()


def test_a_certificate_that_is_damaged_is_one_sentence(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "authority" / "ca.crt").write_text("not a certificate")
    with pytest.raises(OpsError, match=r"ca\.crt"):
        make(tmp_path)


def test_a_changed_table_waits_until_it_is_applied(tmp_path: Path) -> None:
    """Only `warren apply` asks the broker what a change would cost; the broker imports the file at every start."""
    make(tmp_path)
    before = (tmp_path / "rabbitmq" / "definitions.json").read_bytes()
    fewer = Topology(QUEUES.queues[1:])
    unchanged = Provision(tmp_path, Given(), topology=fewer, chown=lambda *_: None)
    assert "rabbitmq/definitions.json" not in unchanged.run()
    assert (tmp_path / "rabbitmq" / "definitions.json").read_bytes() == before
    assert unchanged.advice() == [
        "the table has changed, the broker's definitions have not: `run --rm apply` shows the plan"
    ]
    applied = Provision(tmp_path, Given(), topology=fewer, take_topology=True, chown=lambda *_: None)
    assert "rabbitmq/definitions.json" in applied.run()
    assert not applied.outdated
    assert not any("the table has changed" in line for line in applied.advice())
    names = {queue["name"] for queue in json.loads((tmp_path / "rabbitmq" / "definitions.json").read_bytes())["queues"]}
    assert QUEUES.queues[0].name not in names


def test_new_passwords_are_new_for_everyone_and_valkey_takes_both_for_a_while(tmp_path: Path) -> None:
    make(tmp_path)
    places = [*tmp_path.glob("*/broker-password"), tmp_path / "worker-math" / "results-password"]
    before = {path: path.read_text() for path in places}
    provision = Provision(tmp_path, Given(), chown=lambda *_: None)
    provision.rotate_passwords()
    provision.run()
    assert all(path.read_text() != before[path] for path in places)
    users = (tmp_path / "valkey" / "users.acl").read_text()
    old = hashlib.sha256(before[tmp_path / "worker-math" / "results-password"].encode()).hexdigest()
    assert users.startswith("user default on #")
    assert f"#{old} " in users
    with pytest.raises(OpsError, match="a rotation is under way"):
        provision.rotate_passwords()
    make(tmp_path)
    assert f"#{old} " in (tmp_path / "valkey" / "users.acl").read_text(), "a start of the deployment ends no rotation"
    assert provision.retire()
    provision.run()
    assert f"#{old} " not in (tmp_path / "valkey" / "users.acl").read_text()
    assert not provision.retire()


def test_new_certificates_of_the_same_authority(tmp_path: Path) -> None:
    make(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.glob("*/tls.crt")}
    authority = (tmp_path / "rabbitmq" / "ca.crt").read_bytes()
    provision = Provision(tmp_path, Given(), chown=lambda *_: None)
    provision.rotate_certificates()
    provision.run()
    assert all(path.read_bytes() != content for path, content in before.items())
    assert (tmp_path / "rabbitmq" / "ca.crt").read_bytes() == authority
