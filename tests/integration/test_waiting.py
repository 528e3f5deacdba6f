"""Whoever waits for a task is told, when a worker's look or the broker ends it, whatever stores the results."""

from __future__ import annotations

import contextlib
import json
import uuid
from typing import TYPE_CHECKING, Any

import amqp
import pytest
from celery import chain, chord, group

from queues import canvas, tasks
from queues.app import default_app
from tests.integration.helpers import PATIENCE, acting_as, awaited, ended, lines, start
from tests.postgresql import PostgreSQL, programs
from tests.resultserver import ResultServer, forget, installed, need_store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from celery.canvas import Signature

    from ops.local import Stack

pytestmark = pytest.mark.integration


@contextlib.contextmanager
def store(kind: str, folder: Path) -> Iterator[dict[str, str]]:
    """Settings of a running result store; none for the stack's own."""
    if kind == "sqlite":
        yield {}
        return
    need_store(programs() if kind == "postgresql" else installed(), kind)
    with (PostgreSQL if kind == "postgresql" else ResultServer)(folder) as server:
        yield server.environment()


@pytest.fixture(scope="module", params=["sqlite", "redis", "postgresql"])
def deployed(idle: Stack, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Workers of math and monitor on one store, a producer that reads it; the folder of their logs."""
    folder = tmp_path_factory.mktemp(request.param)
    with store(request.param, folder) as settings, pytest.MonkeyPatch.context() as patch:
        for name, value in {**idle.environment("producer"), **settings}.items():
            patch.setenv(name, value)
        # As a producer that has no stubs, or newer ones.
        patch.setattr(canvas, "check", lambda *_: None)
        default_app.cache_clear()
        running = []
        for queue in ("math", "monitor"):
            alive = folder / f"{queue}.alive"
            environment = {**idle.environment(f"worker-{queue}"), **settings, "HEARTBEAT_FILE": str(alive)}
            running.append(start(environment, "worker", "-Q", queue, "-l", "INFO", log=folder / f"{queue}.log"))
        try:
            for queue in ("math", "monitor"):
                log = folder / f"{queue}.log"
                assert awaited(log.with_suffix(".alive").exists, 60), log.read_text()
            yield folder
        finally:
            for worker in running:
                worker.terminate()
            assert [ended(worker) for worker in running] == [0, 0]
            forget(default_app())
            default_app().close()
            default_app.cache_clear()


def errback() -> tuple[str, Signature[Any]]:
    """A task to call when another fails, and its id."""
    task_id = str(uuid.uuid4())
    return task_id, tasks.reliable_task.si({"errback": 1}).set(task_id=task_id)


def state(task_id: str) -> str:
    """How a task that must end has ended."""
    awaited(lambda: tasks.result(task_id).state in ("SUCCESS", "FAILURE", "REVOKED"), 30)
    return str(tasks.result(task_id).state)


def runs(folder: Path, task_id: str) -> int:
    """How often the math worker has begun a task."""
    found = [line for line in lines(folder / "math.log") if "task_id" in line]
    return sum(line["message"] == "task started" and line["task_id"] == task_id for line in found)


def unfit(**changes: Any) -> Signature[Any]:
    """A call that the worker's look refuses; no producer could see that of a step that gets a result."""
    return default_app().signature("math.add", args=(1,), kwargs={"nope": 1}, **changes)


def unknown() -> Signature[Any]:
    """A call of a task that workers of the monitor's queue do not have, as of a newer producer."""
    return default_app().signature("monitor.generate_report", args=(1, 2, 3), immutable=True)


def test_a_link_error_is_called_once(deployed: Path) -> None:
    told, call = errback()
    refused = (tasks.add.s(2, 3) | unfit().on_error(call)).apply_async()
    assert [state(refused.id), state(told)] == ["FAILURE", "SUCCESS"]
    late, late_call = errback()
    expired = tasks.add.apply_async([1, 2], expires=-1, link_error=late_call)
    assert [state(expired.id), state(late)] == ["REVOKED", "SUCCESS"]
    tasks.check_status().get(timeout=PATIENCE)
    assert [runs(deployed, told), runs(deployed, late)] == [1, 1]


def test_a_chords_body_and_its_errback_are_told_of_a_member_that_does_not_fit(deployed: Path) -> None:
    told, call = errback()
    body = chord([tasks.add.si(1, 1), unfit()])(tasks.xsum.s().on_error(call))
    assert [state(body.id), state(told), runs(deployed, told)] == ["FAILURE", "SUCCESS", 1]
    many = chord([tasks.add.si(1, 1), unfit()])(group(tasks.add.s(1), tasks.multiply.s(1)))
    assert [state(one.id) for one in many] == ["FAILURE", "FAILURE"]


def test_a_chords_body_is_told_of_a_members_later_step_in_another_queue(deployed: Path) -> None:
    told, call = errback()
    member = chain(tasks.add.si(1, 1), unknown(), tasks.add.si(1, 1))
    body = chord([tasks.add.si(1, 1), member])(tasks.xsum.s().on_error(call))
    assert [state(body.id), state(told), runs(deployed, told)] == ["FAILURE", "SUCCESS", 1]


def test_the_last_step_of_a_chain_is_told_by_its_id(deployed: Path) -> None:
    last = chain(tasks.add.si(1, 1), unknown(), tasks.add.si(2, 2), tasks.add.si(3, 3)).apply_async()
    assert [state(last.id), state(last.parent.id)] == ["FAILURE"] * 2
    assert state(last.parent.parent.parent.id) == "SUCCESS"
    expired = chain(tasks.add.si(1, 1), tasks.add.si(2, 2).set(expires=-1), tasks.add.si(3, 3)).apply_async()
    assert [state(expired.id), state(expired.parent.id)] == ["REVOKED"] * 2


def test_a_chord_is_told_of_a_member_that_the_broker_ends(deployed: Path, idle: Stack) -> None:
    told, call = errback()
    linked, linked_call = errback()
    member = tasks.inspect_image.si("a.jpg").on_error(linked_call)
    body = chord([tasks.add.si(1, 1), member])(tasks.xsum.s().on_error(call))
    worker = acting_as(idle, "worker-image")
    with worker.connection_for_read() as connection, connection.channel() as channel:
        message = awaited(lambda: channel.basic_get("image"))
        channel.basic_reject(message.delivery_tag, requeue=False)
    assert awaited(lambda: tasks.check_status() and tasks.result(message.headers["id"]).state == "FAILURE")
    assert "rejected" in str(tasks.result(message.headers["id"]).result)
    assert [state(body.id), state(told), state(linked)] == ["FAILURE", "SUCCESS", "SUCCESS"]
    assert [runs(deployed, told), runs(deployed, linked)] == [1, 1]


def test_what_another_producer_lets_the_broker_expire_is_recorded_as_expired(deployed: Path, idle: Stack) -> None:
    task_id = str(uuid.uuid4())
    headers = {"task": "image.inspect_image", "id": task_id}
    body = json.dumps([["a.jpg"], {}, {}]).encode()
    message = amqp.Message(body, content_type="application/json", expiration="1", application_headers=headers)
    with acting_as(idle, "producer").connection_for_write() as connection, connection.channel() as channel:
        channel.basic_publish_confirm(message, exchange="tasks.image", routing_key="image", mandatory=True)
    assert awaited(lambda: tasks.check_status() and tasks.result(task_id).state == "FAILURE")
    assert "ended it in image (expired)" in str(tasks.result(task_id).result)
