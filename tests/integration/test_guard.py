"""No message stops a worker: what cannot be run is a dead letter with its reason, and the next message runs."""

from __future__ import annotations

import bz2
import datetime
import gzip
import json
import os
import signal
import uuid
from collections.abc import Callable
from typing import Any

import amqp
import pytest
from billiard.exceptions import TimeLimitExceeded

from ops.local import Stack
from queues import tasks
from queues.app import WarrenCelery
from queues.topology import QUEUES
from tests.integration.helpers import PATIENCE, acting_as, awaited, messages

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("stubs")]

GOOD: dict[str, Any] = {"task": "math.add", "id": None, "lang": "py", "timelimit": [None, None], "retries": 0}
BODY = json.dumps([[1, 2], {}, {}]).encode()


def case(
    reason: str, body: bytes = BODY, drop: str = "", content_type: str = "application/json", **headers: Any
) -> Any:
    kept = {name: value for name, value in {**GOOD, **headers}.items() if name != drop}
    return pytest.param(
        reason,
        body,
        kept,
        content_type,
        id=f"{reason}-{uuid.uuid5(uuid.NAMESPACE_OID, repr((body[:50], headers, drop, content_type))).hex[:6]}",
    )


HOSTILE = [
    case("malformed", drop="id"),
    case("malformed", drop="task"),
    case("malformed", id=5),
    case("malformed", id="x" * 300),
    case("malformed", task=None),
    case("malformed", timelimit="zz1"),
    case("malformed", timelimit=[1]),
    case("malformed", timelimit=[-1, None]),
    case("malformed", retries="many"),
    case("malformed", eta="tomorrow"),
    case("malformed", expires={"a": 1}),
    case("malformed", stamped_headers=5),
    case("malformed", stamped_headers=5, eta="2020-01-01T00:00:00"),
    case("malformed", shadow=[1]),
    case("malformed", chord=5),
    case("malformed", eta="0000-01-01T00:00:00"),
    case("malformed", b'[[1, 2], {}, {"errbacks": [5]}]'),
    case("malformed", b'[[1, 2], {}, {"chain": "x"}]'),
    case("malformed", b"[[" + b"[" * 700 + b"]" * 700 + b", 1], {}, {}]"),
    case("undecodable", b"[" * 100_000 + b"]" * 100_000),
    case("undecodable", b"[[" + b"9" * 6000 + b", 1], {}, {}]"),
    case("malformed", b"null"),
    case("malformed", b"5"),
    case("malformed", b"[1, 2]"),
    case("malformed", b'{"args": [1, 2]}'),
    case("malformed", b'[{"x": 1}, {}, {}]'),
    case("malformed", b"[[1, 2], [], {}]"),
    case("malformed", b"[[1, 2], {}, 7]"),
    case("undecodable", b"[[1, 2], {}, "),
    case("undecodable", b"\xff\xfe\x00"),
    case("malformed", b""),
    case("content-type", content_type="application/x-python-serialize"),
    case("content-type", content_type="text/plain"),
    case("compressed", gzip.compress(BODY, mtime=0), compression="application/x-gzip"),
    case("compressed", bz2.compress(b"0" * 300_000_000)[:400], compression="application/x-bz2"),
    case("compressed", compression="nonsense"),
    case("unknown-task", task="math.newer"),
    case("unknown-task", task="image.process_image"),
    case("wrong-arguments", b"[[1], {}, {}]"),
    case("wrong-arguments", b'[[1, 2], {"z": 3}, {}]'),
    case("not_a_number", b'[["a", "b"], {}, {}]'),
]


def publish(app: WarrenCelery, body: bytes, headers: dict[str, Any], content_type: str) -> str:
    """Put raw bytes into the math queue, marked so that the test finds them again."""
    mark = uuid.uuid4().hex
    with app.connection_for_write() as connection, connection.channel() as channel:
        message = amqp.Message(
            body,
            content_type=content_type,
            content_encoding="utf-8",
            application_headers={**headers, "mark": mark},
            delivery_mode=2,
        )
        channel.basic_publish_confirm(message, exchange="tasks.math", routing_key="math", mandatory=True)
    return mark


def buried(stack: Stack, mark: str, queue: str = "math") -> Any:
    operator = acting_as(stack, "operator")

    def look() -> Any:
        found = [
            message for message in messages(operator, f"{queue}.dead") if (message.headers or {}).get("mark") == mark
        ]
        return found[0] if found else None

    return awaited(look)


@pytest.mark.parametrize(("reason", "body", "headers", "content_type"), HOSTILE)
def test_what_cannot_be_run_is_a_dead_letter_with_its_reason(
    stack: Stack, reason: str, body: bytes, headers: dict[str, Any], content_type: str
) -> None:
    pid = stack.processes.pid("worker-math")
    headers = {**headers, "id": str(uuid.uuid4())} if "id" in headers and headers["id"] is None else headers
    mark = publish(acting_as(stack, "producer"), body, headers, content_type)
    letter = buried(stack, mark)
    assert letter is not None
    assert letter.headers["x-dead-reason"] == reason
    assert letter.headers["x-dead-queue"] == "math"
    assert letter.headers["x-dead-worker"].startswith("math@")
    assert letter.body == (body if isinstance(letter.body, bytes) else body.decode("utf-8", "replace"))
    assert tasks.add(1, 1).get(timeout=PATIENCE) == 2
    assert stack.processes.pid("worker-math") == pid
    if reason in ("unknown-task", "wrong-arguments", "not_a_number"):
        assert awaited(lambda: tasks.result(headers["id"]).state == "FAILURE")


@pytest.mark.parametrize("headers", [{"retries": None}, {"x-child-deaths": "many"}, {"x-replays": [1]}])
def test_what_only_looks_odd_is_run(stack: Stack, headers: dict[str, Any]) -> None:
    task_id = str(uuid.uuid4())
    publish(acting_as(stack, "producer"), BODY, {**GOOD, "id": task_id, **headers}, "application/json")
    assert tasks.result(task_id).get(timeout=PATIENCE) == 3


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_a_task_whose_process_dies_is_run_again_and_then_a_dead_letter(stack: Stack, how: signal.Signals) -> None:
    pid = stack.processes.pid("worker-math")
    told = str(uuid.uuid4())
    running = tasks.long_task.apply_async([60], link_error=tasks.reliable_task.s().set(task_id=told))
    killed: set[int] = set()

    def kill_its_process() -> bool:
        if running.state == "FAILURE":
            return True
        child = process_of(stack, running.id)
        if child and child not in killed:
            killed.add(child)
            os.kill(child, how)
        return False

    assert awaited(kill_its_process, 60)
    assert stack.processes.pid("worker-math") == pid
    operator = acting_as(stack, "operator")
    found = awaited(lambda: [m for m in messages(operator, "math.dead") if m.headers.get("id") == running.id])
    assert [letter.headers["x-dead-reason"] for letter in found] == ["worker-lost"]
    assert len(killed) == 3
    assert tasks.result(told).get(timeout=PATIENCE)["status"] == "success"
    assert tasks.add(1, 1).get(timeout=PATIENCE) == 2
    assert starts(stack, told) == 1


def starts(stack: Stack, task_id: str) -> int:
    """How often a task was started, as the worker's log says."""
    log = (stack.folder / "log" / "worker-math.log").read_text()
    return sum("task started" in line and task_id in line for line in log.splitlines())


def process_of(stack: Stack, task_id: str) -> int | None:
    """The child that runs a task now, as the worker says."""
    answers = acting_as(stack, "operator").control.inspect(timeout=1, limit=4).active(safe=True) or {}
    return next((task["worker_pid"] for found in answers.values() for task in found if task["id"] == task_id), None)


def reason(stack: Stack, call: Callable[[], Any]) -> str:
    running = call()
    running.get(timeout=PATIENCE, propagate=False)
    operator = acting_as(stack, "operator")
    found = awaited(lambda: [m for m in messages(operator, "math.dead") if m.headers.get("id") == running.id])
    assert len(found) == 1
    return str(found[0].headers["x-dead-reason"])


def test_failures_of_tasks_carry_their_reason(stack: Stack) -> None:
    assert reason(stack, lambda: tasks.reliable_task({"fail": True})) == "asked_to_fail"
    assert reason(stack, lambda: tasks.long_task.apply_async([5], soft_time_limit=1)) == "time-limit"
    assert reason(stack, lambda: tasks.add.apply_async([1, 2], expires=-5)) == "expired"


def test_a_process_that_does_not_answer_is_killed_at_the_hard_limit(stack: Stack) -> None:
    pid = stack.processes.pid("worker-math")
    told = str(uuid.uuid4())
    errback = tasks.reliable_task.s().set(task_id=told)
    running = tasks.long_task.apply_async([30], time_limit=4, soft_time_limit=3, link_error=errback)
    child = awaited(lambda: process_of(stack, running.id))
    assert child
    os.kill(child, signal.SIGSTOP)
    with pytest.raises(TimeLimitExceeded):
        running.get(timeout=PATIENCE)
    operator = acting_as(stack, "operator")
    found = awaited(lambda: [m for m in messages(operator, "math.dead") if m.headers.get("id") == running.id])
    assert [letter.headers["x-dead-reason"] for letter in found] == ["time-limit"]
    assert tasks.result(told).get(timeout=PATIENCE)["status"] == "success"
    assert tasks.add(1, 1).get(timeout=PATIENCE) == 2
    assert starts(stack, told) == 1, "Celery tells it twice"
    assert stack.processes.pid("worker-math") == pid


def die(operator: WarrenCelery, task_id: str) -> None:
    """Dead-letter a task as the broker does at the delivery limit."""
    death = {
        "queue": "math",
        "reason": "delivery_limit",
        "count": 1,
        "exchange": "tasks.math",
        "routing-keys": ["math"],
    }
    headers = {**GOOD, "id": task_id, "x-death": [death]}
    message = amqp.Message(BODY, content_type="application/json", content_encoding="utf-8", application_headers=headers)
    with operator.connection_for_write() as connection, connection.channel() as channel:
        channel.basic_publish_confirm(message, exchange="dead-letters", routing_key="math", mandatory=True)


def test_what_the_broker_ends_on_its_own_is_recorded_as_a_failure(stack: Stack) -> None:
    """As at the delivery limit, when the worker died as well: the broker dead-letters, nobody is left to say so."""
    task_id = str(uuid.uuid4())
    operator = acting_as(stack, "operator")
    for unusable in ("\ud800", "a\0b"):
        die(operator, unusable)  # read first, and in nobody's way
    die(operator, task_id)
    tasks.check_status()
    assert awaited(lambda: tasks.result(task_id).state == "FAILURE")
    assert "delivery_limit" in str(tasks.result(task_id).result)
    assert [m for m in messages(operator, "math.dead") if m.headers.get("id") == task_id]


def test_a_death_before_its_replay_does_not_end_a_task_that_runs_again(stack: Stack) -> None:
    """The monitor may read a dead letter late: when it was away, or had many to read."""
    task_id = str(uuid.uuid4())
    operator = acting_as(stack, "operator")
    body = json.dumps([[15], {}, {}]).encode()
    again = {**GOOD, "id": task_id, "task": "math.long_task", "x-replays": 1}
    publish(acting_as(stack, "producer"), body, again, "application/json")
    assert awaited(lambda: tasks.result(task_id).state in ("STARTED", "PROGRESS"))
    die(operator, task_id)
    tasks.check_status()
    assert awaited(lambda: not messages(operator, "dead-letters.unread"))
    assert tasks.result(task_id).state != "FAILURE"
    assert tasks.result(task_id).get(timeout=PATIENCE)["status"] == "success"


def test_messages_that_come_early_hold_no_place(stack: Stack) -> None:
    """Celery would keep them, as many as the worker has processes, and take nothing else until they are due."""
    app = acting_as(stack, "producer")
    later = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=12)).isoformat()
    early = [str(uuid.uuid4()) for _ in range(2 * QUEUES.queue("math").concurrency)]
    for task_id in early:
        publish(app, BODY, {**GOOD, "id": task_id, "eta": later}, "application/json")
    assert tasks.add(1, 1).get(timeout=8) == 2
    assert [tasks.result(task_id).state for task_id in early] == ["PENDING"] * len(early)
    assert [tasks.result(task_id).get(timeout=PATIENCE) for task_id in early] == [3] * len(early)


class Broken(amqp.Message):
    """A message whose correlation id is no UTF-8."""

    def _serialize_properties(self) -> bytes:
        written: bytes = super()._serialize_properties()
        return written.replace(b"xyz", b"\xff\xfe\xfd")


def test_properties_that_cannot_be_decoded_do_not_end_the_worker(stack: Stack) -> None:
    """As shipped, py-amqp closes the connection over them, and the next worker's over the same message."""
    pid = stack.processes.pid("worker-math")
    mark = uuid.uuid4().hex
    with acting_as(stack, "producer").connection_for_write() as connection, connection.channel() as channel:
        message = Broken(mark, content_type="application/json", correlation_id="xyz", delivery_mode=2)
        channel.basic_publish_confirm(message, exchange="tasks.math", routing_key="math", mandatory=True)
    operator = acting_as(stack, "operator")
    found = awaited(lambda: [m for m in messages(operator, "math.dead") if m.body in (mark, mark.encode())])
    assert [letter.headers["x-dead-reason"] for letter in found] == ["undecodable"]
    assert tasks.add(1, 1).get(timeout=PATIENCE) == 2
    assert stack.processes.pid("worker-math") == pid
