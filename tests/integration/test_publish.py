"""A producer's three outcomes, and every wrong setting a sentence."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
import uuid
from typing import TYPE_CHECKING

import pytest

from ops.certs import Authority
from ops.local import Stack
from ops.ports import free_port
from queues.errors import BrokerUnavailableError, PublishRefusedError, PublishUnknownError
from queues.topology import QUEUES
from tests.integration.helpers import PATIENCE, acting_as, awaited, consumers, messages

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from queues.app import WarrenCelery

pytestmark = pytest.mark.integration


def sentence(app: WarrenCelery, words: str) -> None:
    with pytest.raises(BrokerUnavailableError, match=words) as caught:
        app.send_task("math.add", [1, 2])
    assert "\n" not in str(caught.value)


def test_wrong_settings_are_told_apart(stack: Stack, tmp_path: Path) -> None:
    other = Authority.ensure(tmp_path / "other")
    (tmp_path / "wrong").write_text("wrong")
    sentence(
        acting_as(stack, "producer", BROKER_CA=str(other.client("x").ca)), "certificate .* is not valid.*BROKER_CA"
    )
    sentence(acting_as(stack, "producer", BROKER_SERVER_NAME="elsewhere.example"), "is not valid .*BROKER_SERVER_NAME")
    sentence(
        acting_as(stack, "producer", BROKER_PASSWORD_FILE=str(tmp_path / "wrong")), "refused the login.*BROKER_USER"
    )
    sentence(acting_as(stack, "producer", BROKER_VHOST="/nowhere"), "refused the login.*BROKER_VHOST")
    stranger = other.client("producer")
    certificates = {"BROKER_CERT": str(stranger.cert), "BROKER_KEY": str(stranger.key)}
    sentence(acting_as(stack, "producer", PUBLISH_TIMEOUT="2", **certificates), "BROKER_CERT|no broker answers")


def test_a_plaintext_client_on_the_tls_port_gets_a_sentence_within_its_bound(stack: Stack) -> None:
    port = stack.broker.ports.amqps
    plain = {
        "BROKER_PLAINTEXT": "1",
        "BROKER_HOSTS": f"127.0.0.1:{port}",
        "BROKER_CA": "",
        "BROKER_CERT": "",
        "BROKER_KEY": "",
    }
    sentence(
        acting_as(stack, "producer", PUBLISH_TIMEOUT="2", **plain),
        "no AMQP at .* in plaintext: where it is a TLS port, drop BROKER_PLAINTEXT",
    )


def test_a_tls_client_on_a_plaintext_port_gets_a_sentence(stack: Stack, silent_port: int) -> None:
    sentence(
        acting_as(stack, "producer", PUBLISH_TIMEOUT="2", BROKER_HOSTS=f"127.0.0.1:{silent_port}"), "no broker answers"
    )


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("kind", ["closed", "silent"])
def test_a_broker_that_is_away_is_an_error_within_the_bound(stack: Stack, silent_port: int, kind: str) -> None:
    port = silent_port if kind == "silent" else free_port()
    app = acting_as(stack, "producer", BROKER_HOSTS=f"127.0.0.1:{port}", PUBLISH_TIMEOUT="3")
    began = time.monotonic()
    sentence(app, "no broker answers")
    assert time.monotonic() - began < 15, "the bound is 3 s; this is only to fail instead of hanging"


def test_the_second_host_of_a_failover_list_is_used(stack: Stack) -> None:
    hosts = f"127.0.0.1:{free_port()},127.0.0.1:{stack.broker.ports.amqps}"
    assert acting_as(stack, "producer", BROKER_HOSTS=hosts).send_task("math.add", [1, 2]).id


def test_hosts_that_swallow_everything_leave_time_for_the_next(stack: Stack, silent_port: int) -> None:
    """A node that was cut off: nothing refuses, nothing answers."""
    hosts = f"127.0.0.1:{silent_port},127.0.0.1:{silent_port},127.0.0.1:{stack.broker.ports.amqps}"
    assert acting_as(stack, "producer", BROKER_HOSTS=hosts, PUBLISH_TIMEOUT="9").send_task("math.add", [1, 2]).id


def test_each_failover_host_is_checked_under_its_own_name(stack: Stack) -> None:
    hosts = f"localhost:{free_port()},127.0.0.1:{stack.broker.ports.amqps}"
    app = acting_as(stack, "producer", BROKER_HOSTS=hosts, BROKER_SERVER_NAME="")
    assert app.send_task("math.add", [1, 2]).id


def test_a_user_without_the_right_is_refused(stack: Stack) -> None:
    exporter = acting_as(stack, "exporter")
    with pytest.raises(PublishRefusedError, match=r"may not publish to tasks\.math/math"):
        exporter.send_task("math.add", [1, 2])


def test_unroutable_is_refused_and_the_connection_serves_the_next(stack: Stack) -> None:
    operator = acting_as(stack, "operator")
    with operator.connection_for_write() as connection, connection.channel() as channel:
        channel.queue_unbind("math", "tasks.math", "math")
    try:
        producer = acting_as(stack, "producer")
        with pytest.raises(PublishRefusedError, match="no queue takes"):
            producer.send_task("math.add", [1, 2])
    finally:
        with operator.connection_for_write() as connection, connection.channel() as channel:
            channel.queue_bind("math", "tasks.math", "math")
    assert producer.send_task("math.add", [1, 2]).id


def test_a_message_too_large_is_refused_before_it_is_sent(stack: Stack) -> None:
    with pytest.raises(PublishRefusedError, match="store the data and pass its key"):
        acting_as(stack, "producer").send_task("math.reliable_task", ["x" * (17 * 1024 * 1024)])


class Proxy:
    """A TCP relay to the broker that can stop passing on what comes back, and pass on slowly what goes there."""

    def __init__(self, port: int, bytes_per_second: float = 0) -> None:
        self.port, self.bytes_per_second = port, bytes_per_second
        self.deaf = threading.Event()
        #: Bytes that went to the broker.
        self.passed = 0
        self.server = socket.create_server(("127.0.0.1", 0))
        if bytes_per_second:
            # Not megabytes, which would take in a whole message at once.
            self.server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        self.sockets: list[socket.socket] = [self.server]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.getsockname()[1]}"

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.server.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self.port))
            self.sockets += [near, far]
            threading.Thread(target=self._send, args=(near, far), daemon=True).start()
            threading.Thread(target=self._answer, args=(far, near), daemon=True).start()

    def _send(self, near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := near.recv(65536):
                far.sendall(data)
                self.passed += len(data)
                if self.bytes_per_second:
                    time.sleep(len(data) / self.bytes_per_second)

    def _answer(self, far: socket.socket, near: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(65536):
                if not self.deaf.is_set():
                    near.sendall(data)

    def close(self) -> None:
        for item in self.sockets:
            item.close()


def test_no_answer_after_the_write_is_unknown_and_one_copy_is_sent(stack: Stack) -> None:
    proxy = Proxy(stack.broker.ports.amqps)
    try:
        app = acting_as(stack, "producer", BROKER_HOSTS=proxy.address, PUBLISH_TIMEOUT="2")
        app.send_task("math.add", [1, 2])
        proxy.deaf.set()
        task_id = str(uuid.uuid4())
        with pytest.raises(PublishUnknownError, match="send again with the same task id") as caught:
            app.send_task("math.reliable_task", [{"fail": True}], task_id=task_id)
        assert caught.value.task_id == task_id
    finally:
        proxy.close()
    operator = acting_as(stack, "operator")

    def copies() -> int:
        return sum(message.headers.get("id") == task_id for message in messages(operator, "math.dead"))

    assert awaited(lambda: copies() == 1), copies()


def test_a_peer_that_takes_a_large_message_slowly_does_not_stretch_the_bound(stack: Stack) -> None:
    """Each part is taken in time: py-amqp would wait for all of them, one after the other."""
    size = 15_000_000
    proxy = Proxy(stack.broker.ports.amqps, bytes_per_second=1_000_000)
    try:
        app = acting_as(stack, "producer", BROKER_HOSTS=proxy.address, PUBLISH_TIMEOUT="3")
        app.send_task("math.add", [1, 2])
        with pytest.raises(PublishUnknownError, match="send again with the same task id"):
            app.send_task("math.reliable_task", ["x" * size])
        assert proxy.passed < size / 2, "the publish ended while most of it was still to be written"
    finally:
        proxy.close()


def test_a_broker_restart_between_two_calls_costs_no_error_and_workers_consume_again(stack: Stack) -> None:
    app = acting_as(stack, "producer")
    before = app.send_task("math.add", [1, 1])
    assert before.get(timeout=PATIENCE) == 2
    stack.processes.restart("broker")
    after = app.send_task("math.add", [2, 2])
    assert after.get(timeout=60) == 4
    operator = acting_as(stack, "operator")
    assert awaited(lambda: all(consumers(operator, queue.name) for queue in QUEUES))
    assert re.fullmatch(r"[0-9a-f-]{36}", after.id)


def test_expiry_stays_in_the_headers_and_the_brokers_own_is_never_set(stack: Stack) -> None:
    """RabbitMQ would turn every missed tick into a dead letter."""
    operator = acting_as(stack, "operator")
    with operator.connection_for_read() as connection, connection.channel() as channel:
        spy = channel.queue_declare("", exclusive=True).queue
        channel.queue_bind(spy, "tasks.math", "math")
        acting_as(stack, "producer").send_task("math.add", [1, 2], expires=3600)
        message = awaited(lambda: channel.basic_get(spy))
    assert message.headers["expires"]
    assert "expiration" not in message.properties
    assert message.properties["delivery_mode"] == 2
    assert message.headers["x-published-at"] == message.headers["x-first-published-at"]
