"""What each broker user may do, against the real broker: whatever is not listed here is denied."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import amqp
import pytest

from ops import definitions, inspection
from ops.errors import OpsError
from queues.topology import QUEUES
from tests.integration.helpers import acting_as, awaited, consumers

if TYPE_CHECKING:
    from pathlib import Path

    from ops.local import Stack
    from queues.app import WarrenCelery

pytestmark = pytest.mark.integration

Operation = tuple[str, ...]

EXCHANGES = (
    *("tasks.math", "tasks.image", "tasks.email", "tasks.monitor", "celery_delayed_27", "celery_delayed_0"),
    *("celery_delayed_delivery", "dead-letters", "undeliverable", "metrics", "beat.state", "celeryev"),
    *("celery.pidbox", "reply.celery.pidbox", "amq.topic", ""),
)
QUEUE_NAMES = (
    *("math", "image", "email", "monitor", "math.dead", "image.dead", "email.dead", "monitor.dead"),
    *("dead-letters.unread", "dead-letters.deleted", "undeliverable", "celery_delayed_0", "beat.state"),
)
#: Queues that roles make for themselves.
OWN = (
    *("math@x.celery.pidbox", "image@x.celery.pidbox", "email@x.celery.pidbox", "monitor@x.celery.pidbox"),
    *("metrics.x", "beat.lock", "another", "math.x", "a.reply.celery.pidbox", "celeryev.a"),
)
OPERATIONS: tuple[Operation, ...] = (
    *(("publish", name) for name in EXCHANGES),
    *(("read", name) for name in (*QUEUE_NAMES, *OWN)),
    *(("purge", name) for name in QUEUE_NAMES),
    *(("declare", name) for name in (*QUEUE_NAMES, *OWN)),
    *(("delete", name) for name in (*QUEUE_NAMES, *OWN)),
    *(("declare exchange", name) for name in (*EXCHANGES[:-2], "another")),
    *(("delete exchange", name) for name in (*EXCHANGES[:-2], "another")),
    *(("bind", queue, name) for queue in (*QUEUE_NAMES, *OWN) for name in EXCHANGES[:-1]),
    *(("bind exchange", one, other) for one in EXCHANGES[:-1] for other in EXCHANGES[:-1] if one != other),
)
TASKS = ("tasks.math", "tasks.image", "tasks.email", "tasks.monitor", "celery_delayed_27")


def owned(name: str) -> set[Operation]:
    """A queue of one's own; there is no right to declare that does not include these."""
    return {("declare", name), ("delete", name), ("declare exchange", name), ("delete exchange", name)}


def worker(queue: str) -> set[Operation]:
    control = f"{queue}@x.celery.pidbox"
    exchanges = (*TASKS, "dead-letters", "metrics", "celeryev", "reply.celery.pidbox")
    return {
        *(("publish", name) for name in exchanges),
        *(("read", queue), ("purge", queue), ("read", control), ("bind", control, "celery.pidbox")),
        *owned(control),
        # Binding one exchange to another takes write and read, which meet at the control exchange: every worker may
        # have copies of control commands, none may send one.
        *(("bind exchange", name, "celery.pidbox") for name in exchanges),
    }


MONITOR_READS = ("dead-letters.unread", "dead-letters.deleted")
#: The queues that Flower makes for its answers and events.
FLOWERS = ("a.reply.celery.pidbox", "celeryev.a")
ALLOWED: dict[str, set[Operation]] = {
    "producer": {("publish", name) for name in TASKS},
    "beat": {
        ("publish", "tasks.monitor"),
        ("publish", "beat.state"),
        ("read", "beat.state"),
        ("purge", "beat.state"),
        ("bind", "beat.state", "beat.state"),
        ("bind exchange", "tasks.monitor", "beat.state"),
        *owned("beat.lock"),
    },
    "exporter": {("read", "metrics.x"), ("bind", "metrics.x", "metrics"), *owned("metrics.x")},
    "flower": {
        *(("publish", "celery.pidbox"), ("bind exchange", "celery.pidbox", "celeryev")),
        ("bind exchange", "celery.pidbox", "reply.celery.pidbox"),
        *(("read", queue) for queue in FLOWERS),
        *(("bind", queue, name) for queue in FLOWERS for name in ("celeryev", "reply.celery.pidbox")),
        *(operation for queue in FLOWERS for operation in owned(queue)),
    },
    "worker-math": worker("math"),
    "worker-image": worker("image"),
    "worker-email": worker("email"),
    "worker-monitor": worker("monitor")
    | {(kind, queue) for kind in ("read", "purge") for queue in MONITOR_READS}
    # RabbitMQ 4.3 tells the state of a queue only to a user with some right on it, of which this is the least.
    | {("bind", name, "celery.pidbox") for name in QUEUE_NAMES[:8]},
}


def attempt(channel: Any, operation: Operation) -> None:
    """One operation of a client on a channel of its own; what it binds is unbound, what it sends is routed nowhere.

    Raises:
        amqp.AccessRefused: it is denied.
    """
    kind, name, *rest = operation
    if kind == "publish":
        channel.confirm_select()
        channel.basic_publish_confirm(amqp.Message("x"), exchange=name, routing_key="no-such-key")
    elif kind == "read":
        channel.basic_get(name, no_ack=True)
    elif kind == "purge":
        channel.queue_purge(name)
    elif kind == "declare":
        channel.queue_declare(name, exclusive=True)
    elif kind == "delete":
        channel.queue_delete(name)
    elif kind == "declare exchange":
        channel.exchange_declare(name, "fanout", durable=False, auto_delete=False)
    elif kind == "delete exchange":
        channel.exchange_delete(name)
    elif kind == "bind":
        channel.queue_bind(name, rest[0], "no-such-key")
        channel.queue_unbind(name, rest[0], "no-such-key")
    elif kind == "bind exchange":
        channel.exchange_bind(name, rest[0], "no-such-key")
        channel.exchange_unbind(name, rest[0], "no-such-key")


def allowed(connection: Any, operation: Operation) -> bool:
    """Whether the broker lets a user do it; rights are checked before anything is looked for."""
    channel = connection.channel()
    try:
        attempt(channel, operation)
    except amqp.AccessRefused:
        return False
    except (amqp.NotFound, amqp.PreconditionFailed, amqp.ResourceLocked):
        return True
    finally:
        if channel.is_open:
            channel.close()
    return True


@pytest.mark.parametrize("role", ALLOWED)
def test_a_role_may_do_what_is_listed_and_nothing_else(idle: Stack, role: str) -> None:
    with acting_as(idle, role).connection_for_write() as connection:
        done = {operation for operation in OPERATIONS if allowed(connection.connection, operation)}
    denied = len(OPERATIONS) - len(done)
    print(f"{role}: {len(done)} allowed, {denied} of {len(OPERATIONS) - len(ALLOWED[role] & set(OPERATIONS))} denied")
    assert done - ALLOWED[role] == set(), "allowed, and should not be"
    assert (ALLOWED[role] & set(OPERATIONS)) - done == set(), "denied, and should not be"


def test_every_role_is_in_the_matrix() -> None:
    assert {*ALLOWED, definitions.OPERATOR} == set(definitions.roles())
    assert {name for name in QUEUE_NAMES if name in QUEUES} == set(QUEUES.names), "add the queue to this file"


@pytest.mark.parametrize("role", [*ALLOWED, definitions.OPERATOR])
def test_the_management_api_is_for_operator_and_exporter_and_the_exporter_only_reads(idle: Stack, role: str) -> None:
    context = ssl.create_default_context(cafile=idle.environment(role)["BROKER_CA"])
    password = (idle.folder / "secrets" / role).read_text()
    login = base64.b64encode(f"{role}:{password}".encode()).decode()

    def ask(method: str, path: str, body: str | None = None) -> int:
        server = http.client.HTTPSConnection("localhost", idle.broker.ports.management, timeout=10, context=context)
        headers = {"Authorization": f"Basic {login}", "content-type": "application/json"}
        try:
            server.request(method, path, body=body, headers=headers)
            return server.getresponse().status
        finally:
            server.close()

    reads = role in (definitions.OPERATOR, definitions.EXPORTER)
    assert (ask("GET", "/api/queues") == 200) is reads
    if role == definitions.OPERATOR:
        return
    policy = json.dumps({"pattern": "^math$", "definition": {"max-length": 1}})
    for method, path, body in (
        ("PUT", "/api/policies/%2F/mine", policy),
        ("PUT", "/api/users/mine", json.dumps({"password": "x", "tags": "administrator"})),
        ("PUT", "/api/permissions/%2F/" + role, json.dumps({"configure": ".*", "write": ".*", "read": ".*"})),
        ("DELETE", "/api/queues/%2F/math", None),
        ("DELETE", "/api/queues/%2F/math/contents", None),
        ("GET", "/api/definitions", None),
    ):
        assert ask(method, path, body) in (401, 403), (method, path)


def shut_down(app: WarrenCelery) -> list[Any]:
    """Order every worker to end, in each way that Celery has; the answers, or the refusal's name."""
    answers: list[Any] = []
    for order in (
        app.control.shutdown,
        lambda: app.control.broadcast("shutdown", reply=True, timeout=3, limit=len(QUEUES.names)),
        lambda: app.control.broadcast("pool_shrink", arguments={"n": 9}, reply=True, timeout=3, limit=4),
    ):
        try:
            answers.append(order())
        except Exception as exc:  # noqa: BLE001 - what it is called is what the test looks at
            answers.append(type(exc).__name__)
    return answers


@pytest.mark.parametrize("role", [role for role in ALLOWED if role != definitions.FLOWER])
def test_no_other_role_reaches_a_worker(stack: Stack, role: str) -> None:
    pids = {queue.user: stack.processes.pid(queue.user) for queue in QUEUES}
    refused = shut_down(acting_as(stack, role))
    assert set(refused) == {"ControlRefusedError"}, refused
    assert {queue.user: stack.processes.pid(queue.user) for queue in QUEUES} == pids


@pytest.mark.parametrize("role", [definitions.OPERATOR, definitions.FLOWER])
def test_who_may_ask_the_workers_may_not_stop_them(stack: Stack, role: str) -> None:
    operator = acting_as(stack, role)
    operator.control_cls = "workers.remote:Control"  # as Flower's own app: it declares no exchange
    pids = {queue.user: stack.processes.pid(queue.user) for queue in QUEUES}
    _, *answers = shut_down(operator)
    for answer in answers:
        assert len(answer) == len(QUEUES.names), answer
        assert all("set REMOTE_CONTROL=full" in found["error"] for row in answer for found in row.values())
    for order in ("revoke", "rate_limit", "enable_events", "add_consumer", "cancel_consumer", "time_limit", "conf"):
        answer = operator.control.broadcast(order, arguments={"state": 1}, reply=True, timeout=3, limit=4)
        assert len(answer) == 4
        assert all("REMOTE_CONTROL=full" in found["error"] for row in answer for found in row.values())
    assert len(operator.control.ping(timeout=3)) == len(QUEUES.names)
    assert {queue.user: stack.processes.pid(queue.user) for queue in QUEUES} == pids
    assert all(consumers(acting_as(stack, definitions.OPERATOR), queue.name) for queue in QUEUES)


def test_the_questions_are_answered_and_hold_no_secret(stack: Stack) -> None:
    operator = acting_as(stack, definitions.OPERATOR)
    secret = "alice@example.com"
    running = acting_as(stack, "producer").send_task("math.reliable_task", [{"note": secret, "fail_times": 1}])
    inspect = operator.control.inspect(timeout=3, limit=4)
    for question in ("stats", "active", "scheduled", "reserved", "registered", "active_queues", "ping"):
        answers = getattr(inspect, question)()
        assert {name.partition("@")[0] for name in answers} == set(QUEUES.names), question
        text = json.dumps(answers, default=str)
        assert secret not in text
        assert not [name for name in definitions.roles() if (stack.folder / "secrets" / name).read_text() in text]
        assert "keyfile" not in text
    assert running.get(timeout=60)["attempts"] == 2


def test_without_workers_a_question_gets_a_sentence(idle: Stack) -> None:
    operator = acting_as(idle, definitions.OPERATOR)
    assert inspection.answering(operator)["workers"] == []
    with pytest.raises(OpsError, match="no worker answered: start one"):
        inspection.worker_tasks(operator, "active")


def test_full_remote_control_is_had_by_asking(stack: Stack, tmp_path: Path) -> None:
    environment = {
        **stack.environment("worker-math"),
        "REMOTE_CONTROL": "full",
        "HEARTBEAT_FILE": str(tmp_path / "alive"),
    }
    with (tmp_path / "log").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "workers.app", "worker", "-Q", "math", "-n", "math@full"],
            env=environment,
            stdout=output,
            stderr=output,
        )
    try:
        assert awaited((tmp_path / "alive").exists, 60), (tmp_path / "log").read_text()
        control = acting_as(stack, definitions.OPERATOR).control
        answer = control.rate_limit("math.add", "100/s", destination=["math@full"], reply=True, timeout=3)
        assert answer == [{"math@full": {"ok": "new rate limit set successfully"}}]
        control.shutdown(destination=["math@full"])
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def test_a_wrong_value_is_a_sentence(stack: Stack, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "workers.app", "worker", "-Q", "math"],
        env={**stack.environment("worker-math"), "REMOTE_CONTROL": "all"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "REMOTE_CONTROL='all' is unknown: set it to one of questions, full" in done.stderr
