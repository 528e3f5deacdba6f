"""The embedded node: who is let in, where it listens, and that nothing is left of it."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import time
from dataclasses import astuple, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import amqp
import pytest

from ops import broker as module
from ops.broker import EmbeddedBroker, find_rabbitmq
from ops.certs import Authority, Identity
from ops.errors import MissingProgramError, OpsError, UnreachableError
from ops.node import Ports
from ops.passwords import generate_password, hash_password
from tests.conftest import need_rabbitmq

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.integration

REFUSED = (ssl.SSLError, ConnectionError)  # an alert, or only the end of the connection
USER, PASSWORD, NAME = "app", generate_password(), "rabbit.test"


def definitions(*queues: str) -> dict[str, Any]:
    return {
        "vhosts": [{"name": "warren"}],
        "users": [
            {
                "name": USER,
                "password_hash": hash_password(PASSWORD),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": "management",
            }
        ],
        "permissions": [{"user": USER, "vhost": "warren", "configure": "^$", "write": ".*", "read": ".*"}],
        "queues": [
            {
                "name": queue,
                "vhost": "warren",
                "durable": True,
                "auto_delete": False,
                "arguments": {"x-queue-type": "quorum"},
            }
            for queue in queues
        ],
    }


def make(folder: Path, server: Identity, wanted: dict[str, Any], client: Identity | None = None) -> EmbeddedBroker:
    return EmbeddedBroker(
        folder,
        server_cert=server.cert,
        server_key=server.key,
        ca=server.ca,
        definitions=wanted,
        consumer_timeout_s=1800,
        client=client,
    )


def processes(folder: Path) -> dict[int, str]:
    """What runs with the folder as its home or in its command line, by pid."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment, command = (entry / "environ").read_bytes(), (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(f"HOME={folder}/home") in environment or os.fsencode(folder) in command:
            found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace")
    return found


def nothing_left(folder: Path) -> bool:
    """The node's helpers end by themselves, a moment after it."""
    for _ in range(40):
        if not processes(folder):
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="module", autouse=True)
def rabbitmq() -> None:
    need_rabbitmq()


@pytest.fixture(scope="module", autouse=True)
def other_epmd() -> Iterator[None]:
    """Stands where the epmd of another RabbitMQ would be: nobody may call it."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", 4369))
        except OSError:
            yield  # a real one
        else:
            listener.listen()
            listener.settimeout(0)
            yield
            with pytest.raises(BlockingIOError):
                listener.accept()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.ensure(tmp_path_factory.mktemp("certs"))


@pytest.fixture(scope="module")
def client(authority: Authority) -> Identity:
    return authority.client("worker")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.ensure(tmp_path_factory.mktemp("stranger"))


@pytest.fixture(scope="module")
def broker(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority, client: Identity
) -> Iterator[EmbeddedBroker]:
    folder = tmp_path_factory.mktemp("a folder with spaces") / "broker"
    with make(folder, authority.server([NAME]), definitions("math"), client) as running:
        assert "[error]" not in running.log_path.read_text()
        yield running
    assert nothing_left(folder)


def connect(
    broker: EmbeddedBroker,
    identity: Identity | None,
    *,
    name: str = NAME,
    trust: Path | None = None,
    user: str = USER,
    password: str = PASSWORD,
) -> None:
    options: dict[str, Any] = {
        "ca_certs": trust or broker.ca,
        "cert_reqs": ssl.CERT_REQUIRED,
        "server_hostname": name,
    }
    if identity:
        options |= {"certfile": identity.cert, "keyfile": identity.key}
    connection = amqp.Connection(
        f"127.0.0.1:{broker.ports.amqps}",
        userid=user,
        password=password,
        virtual_host="warren",
        ssl=options,
        connect_timeout=5,
        read_timeout=5,
    )
    with connection:
        connection.channel().queue_declare("math", passive=True)


def test_a_client_with_certificate_and_password_finds_its_queue(broker: EmbeddedBroker, client: Identity) -> None:
    connect(broker, client)


def test_a_client_without_a_certificate_is_refused(broker: EmbeddedBroker) -> None:
    with pytest.raises(REFUSED):
        connect(broker, None)


def test_a_client_of_another_authority_is_refused(broker: EmbeddedBroker, stranger: Authority) -> None:
    with pytest.raises(REFUSED):
        connect(broker, stranger.client("worker"))


def test_an_expired_client_is_refused(broker: EmbeddedBroker, authority: Authority) -> None:
    expired = Authority.ensure(authority.folder, now=lambda: datetime.now(UTC) - timedelta(days=500)).client("expired")
    with pytest.raises(REFUSED):
        connect(broker, expired)


def test_a_servers_certificate_does_not_admit_a_client(broker: EmbeddedBroker, authority: Authority) -> None:
    server = authority.server([NAME])
    with pytest.raises(REFUSED):
        connect(broker, server)


def test_a_client_that_trusts_another_authority_leaves(
    broker: EmbeddedBroker, client: Identity, stranger: Authority
) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(broker, client, trust=stranger.folder / "ca.crt")


def test_a_client_that_expects_another_name_leaves(broker: EmbeddedBroker, client: Identity) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        connect(broker, client, name="other.test")


def test_a_plaintext_client_gets_no_amqp(broker: EmbeddedBroker) -> None:
    with socket.create_connection(("127.0.0.1", broker.ports.amqps), timeout=5) as plain:
        plain.sendall(b"AMQP\x00\x00\x09\x01")
        try:
            answer = plain.recv(16)
        except ConnectionResetError:
            answer = b""
    assert answer[:1] in {b"", b"\x15"}  # nothing, or a TLS alert


@pytest.mark.parametrize(("user", "password"), [(USER, "wrong"), ("guest", "guest")])
def test_wrong_passwords_and_guest_are_refused(
    broker: EmbeddedBroker, client: Identity, user: str, password: str
) -> None:
    with pytest.raises(amqp.AccessRefused):
        connect(broker, client, user=user, password=password)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_management_api_asks_for_a_password_and_no_certificate(
    broker: EmbeddedBroker, version: ssl.TLSVersion
) -> None:
    context = ssl.create_default_context(cafile=broker.ca)
    context.minimum_version = context.maximum_version = version
    connection = http.client.HTTPSConnection("localhost", broker.ports.management, timeout=5, context=context)
    token = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

    connection.request("GET", "/api/queues/warren", headers={"Authorization": f"Basic {token}"})
    answer = connection.getresponse()
    queues = json.loads(answer.read())
    connection.close()

    assert (answer.status, [queue["name"] for queue in queues]) == (200, ["math"])


def test_it_listens_on_loopback_alone(broker: EmbeddedBroker) -> None:
    listing = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout
    listening = {line.split()[3] for line in listing.splitlines() if f"pid={broker.pid}," in line}
    assert listening == {f"127.0.0.1:{port}" for port in astuple(broker.ports)}


def test_the_process_is_the_node_itself(broker: EmbeddedBroker) -> None:
    assert Path(f"/proc/{broker.pid}/comm").read_text() == "beam.smp\n"


def test_no_epmd_is_started_even_when_rabbitmq_looks_after_it(broker: EmbeddedBroker) -> None:
    # What it does every 60 s; the second message is answered when the first has been dealt with.
    broker.ctl("eval", "rabbit_epmd_monitor ! check, sys:get_state(rabbit_epmd_monitor).")
    running = processes(broker.folder)
    assert broker.pid in running
    assert not [command for command in running.values() if "epmd -daemon" in command]
    assert not list(broker.log_path.parent.glob("erl_crash.dump"))


def test_nothing_of_etc_is_read(broker: EmbeddedBroker) -> None:
    assert f"config file(s) : {broker.folder}/rabbitmq.conf\n" in broker.log_path.read_text()
    assert "/etc/rabbitmq" not in broker.log_path.read_text()


def test_what_it_keeps_is_for_its_owner_alone(broker: EmbeddedBroker) -> None:
    assert broker.folder.stat().st_mode & 0o777 == 0o700
    assert (broker.folder / "home" / ".erlang.cookie").stat().st_mode & 0o777 == 0o400
    written = [path for path in broker.folder.rglob("*") if path.is_file()]
    assert not [path for path in written if PASSWORD.encode() in path.read_bytes()]


def test_one_node_at_a_time_runs_from_a_folder(broker: EmbeddedBroker, authority: Authority) -> None:
    second = make(broker.folder, authority.server([NAME]), definitions("math"))
    assert second.running()
    with pytest.raises(OpsError, match="already runs from"):
        second.start()
    assert broker.running()


def test_ctl_answers_and_tells_what_failed(broker: EmbeddedBroker) -> None:
    assert broker.ctl("list_users", "--silent").splitlines() == [f"{USER}\t[management]"]
    with pytest.raises(OpsError, match="rabbitmqctl nonsense failed: Command 'nonsense' not found"):
        broker.ctl("nonsense")


def test_a_process_manager_runs_it_and_a_taken_port_is_replaced(
    tmp_path: Path, authority: Authority, client: Identity
) -> None:
    broker = make(tmp_path / "broker", authority.server([NAME]), definitions("math"))
    broker.prepare()
    before = broker.ports
    # A terminal full of RabbitMQ's and Erlang's variables must not matter.
    shell = os.environ | {"RABBITMQ_NODENAME": "rabbit", "ERL_FLAGS": "-sname x", "RABBITMQ_CONFIG_FILE": "/dev/null"}
    with subprocess.Popen(broker.command(), env=shell, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            broker.wait(alive=lambda: process.poll() is None)
            assert Path(f"/proc/{process.pid}/comm").read_text() == "beam.smp\n"
            process.send_signal(signal.SIGINT)
            connect(broker, client)
            broker.ease_stop()
        finally:
            process.terminate()
        assert process.wait(timeout=10) == 0
    assert nothing_left(broker.folder)
    with pytest.raises(UnreachableError, match="no broker runs from"):
        broker.ctl("status")

    with socket.create_server(("127.0.0.1", before.amqps)):
        again = make(broker.folder, authority.server([NAME]), definitions("image"), client)
        with again:
            assert replace(again.ports, amqps=before.amqps) == before
            assert again.ports.amqps != before.amqps
            names = again.ctl("list_queues", "--vhost", "warren", "--silent", "name").split()
            assert sorted(names) == ["image", "math"]
    assert nothing_left(broker.folder)


def test_an_expired_server_is_told_at_start_and_stopped(tmp_path: Path) -> None:
    past = Authority.ensure(tmp_path / "certs", now=lambda: datetime.now(UTC) - timedelta(days=500))
    broker = make(tmp_path / "broker", past.server([NAME]), definitions())
    with pytest.raises(OpsError, match=r"certificate is not accepted \(certificate has expired\): renew it"):
        broker.start()
    assert broker.pid is None
    assert nothing_left(broker.folder)


def test_a_start_that_fails_shows_the_log(tmp_path: Path, authority: Authority) -> None:
    server = replace(authority.server([NAME]), key=tmp_path / "lost.key")
    broker = make(tmp_path / "broker", server, definitions())
    with pytest.raises(OpsError, match=r"(?s)the broker ended while it started: see .*keyfile invalid"):
        broker.start()
    assert nothing_left(broker.folder)


def test_a_folder_that_cannot_be_used_is_one_sentence(tmp_path: Path, authority: Authority) -> None:
    server = authority.server([NAME])
    (tmp_path / "file").touch()
    with pytest.raises(OpsError, match=r"cannot write the broker's folder .*: remove it, or choose another"):
        make(tmp_path / "file" / "broker", server, definitions()).prepare()
    with pytest.raises(OpsError, match="without '#'"):
        make(tmp_path / "c#" / "broker", server, definitions()).prepare()
    with pytest.raises(OpsError, match="run `make up`"):
        Ports.load(tmp_path / "nowhere")


def test_a_missing_rabbitmq_names_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PLACES", ("/nonexistent",))
    with pytest.raises(MissingProgramError, match=r"apt-get install rabbitmq-server.*make demo.*docker-compose"):
        find_rabbitmq()


def test_passwords_are_hashed_as_rabbitmq_does() -> None:
    # The example of RabbitMQ's documentation, "Computing Password Hashes".
    assert hash_password("test12", bytes.fromhex("908dc60a")) == "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR"
    assert hash_password("test12") != hash_password("test12")
    assert re.fullmatch(r"[A-Za-z0-9_-]{32}", generate_password())
    assert shutil.which("flock")
