"""A memory alarm: consumers go on, producers are told, nothing is lost."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator

import pytest
from celery._state import _task_stack

from ops.local import Stack
from queues import tasks
from tests.integration.helpers import PATIENCE, acting_as, alarmed, awaited, calm, messages, ready

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("stubs")]


@pytest.fixture
def alarm(stack: Stack) -> Iterator[None]:
    with alarmed(stack):
        yield


def test_consumers_drain_producers_are_told_and_a_blocked_retry_waits(
    stack: Stack, request: pytest.FixtureRequest
) -> None:
    producer = acting_as(stack, "producer", PUBLISH_TIMEOUT="3")
    producer.send_task("math.add", [1, 2])
    running = [tasks.long_task(1) for _ in range(6)]
    retrying = tasks.reliable_task({"fail_times": 1})
    # Its first step outlasts the seconds in which a busy machine gets to the alarm.
    chain = (tasks.long_task.si(6) | tasks.add.si(20, 22)).apply_async()
    request.getfixturevalue("alarm")
    for task in running:
        assert task.get(timeout=PATIENCE)["status"] == "success"
    # The connection is told that it is blocked when it first publishes; what that publish became is not known.
    with pytest.raises(Exception, match=r"send again with the same task id|blocked by a memory or disk alarm"):
        producer.send_task("math.add", [1, 2])
    fresh = acting_as(stack, "producer", PUBLISH_TIMEOUT="3")
    with pytest.raises(Exception, match=r"send again with the same task id|blocked by a memory or disk alarm"):
        fresh.send_task("math.add", [1, 2])
    assert not chain.ready()
    calm(stack)
    assert chain.get(timeout=PATIENCE) == 42
    assert retrying.get(timeout=PATIENCE)["attempts"] == 2
    assert awaited(lambda: tasks.add(1, 1).get(timeout=PATIENCE) == 2)


def test_what_a_task_publishes_during_an_alarm_is_written_once(stack: Stack, request: pytest.FixtureRequest) -> None:
    """Its bound passes several times meanwhile; a second copy would run a second time."""
    app = acting_as(stack, "worker-math", PUBLISH_TIMEOUT="1")
    operator = acting_as(stack, "operator")
    spy = f"test.spy.{uuid.uuid4().hex}"

    @app.task(name="test.sender", shared=False, lazy=False)
    def sender() -> None: ...

    with operator.connection_for_write() as connection, connection.channel() as channel:
        channel.queue_declare(spy, durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"})
        channel.queue_bind(spy, "tasks.math", "math")
        try:
            app.send_task("math.add", [1, 2])
            request.getfixturevalue("alarm")
            sent: list[str] = []

            def publish() -> None:
                _task_stack.push(sender)
                sender.push_request(called_directly=False, id="sender")
                sent.append(app.send_task("math.add", [2, 2]).id)

            thread = threading.Thread(target=publish)
            thread.start()
            thread.join(6)
            assert thread.is_alive(), "it waits for the alarm to end"
            calm(stack)
            thread.join(PATIENCE)
            assert awaited(lambda: ready(operator, spy) >= 2)
            assert [message.headers["id"] for message in messages(operator, spy)].count(sent[0]) == 1
        finally:
            channel.queue_delete(spy)
