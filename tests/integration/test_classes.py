"""Tasks as applications have them, class-based and with bases of their own, are guarded as ours."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

import kombu
import pytest
from billiard.exceptions import WorkerLostError
from celery.exceptions import MaxRetriesExceededError

from queues.errors import PermanentError
from queues.topology import QUEUES
from tests.integration.helpers import PATIENCE, acting_as, awaited, dead_letter, lines, start

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ops.local import Stack
    from queues.app import WarrenCelery

pytestmark = pytest.mark.integration

SECRET = "ada@example.com"


@pytest.fixture(scope="module")
def log(idle: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The log of a worker with these tasks, that sends events."""
    path = tmp_path_factory.mktemp("classes") / "log"
    environment = idle.environment("worker-math")
    arguments = ("worker", "-Q", "math", "-n", "math@classes", "-E", "--loglevel", "INFO")
    process = start(environment, *arguments, log=path, app="tests.integration.classes")
    try:
        yield path
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def producer(idle: Stack, log: Path) -> WarrenCelery:
    return acting_as(idle, "producer")


def test_they_run(producer: WarrenCelery, log: Path) -> None:
    assert producer.send_task("math.add", (2, 3)).get(timeout=PATIENCE) == 5
    assert producer.send_task("math.add", (2,), {"y": 3}).get(timeout=PATIENCE) == 5
    assert log.read_text().count("registered Task ") == 2
    assert f"registered Fatal {QUEUES.task('math.xsum')[1].time_limit}" in log.read_text()


@pytest.mark.parametrize("name", ["math.add", "math.multiply"])
def test_wrong_arguments_are_a_dead_letter_that_says_so(idle: Stack, producer: WarrenCelery, name: str) -> None:
    result = producer.send_task(name, (SECRET,))
    with pytest.raises(PermanentError, match="missing a required argument: 'y'"):
        result.get(timeout=PATIENCE)
    assert dead_letter(idle, "math", result.id).headers["x-dead-reason"] == "wrong-arguments"


def test_a_bases_own_retries(idle: Stack, producer: WarrenCelery, log: Path) -> None:
    assert producer.send_task("math.multiply", (2, 3)).get(timeout=PATIENCE) == 6
    result = producer.send_task("math.multiply", (-1, 3))
    with pytest.raises(LookupError, match="attempt 1"):
        result.get(timeout=PATIENCE)
    letter = dead_letter(idle, "math", result.id)
    assert (letter.headers["x-dead-reason"], letter.headers["x-dead-error"]) == (
        "exception",
        "LookupError: attempt 1",
    )
    retried = [line for line in lines(log) if line["message"].startswith("task retried")]
    assert {line["message"] for line in retried} == {"task retried in 1s: LookupError: attempt 0"}
    assert result.id in {line["task_id"] for line in retried}


def test_a_retry_that_is_used_up_shows_no_argument(idle: Stack, producer: WarrenCelery, log: Path) -> None:
    result = producer.send_task("math.reliable_task", ({"to": SECRET},))
    with pytest.raises(MaxRetriesExceededError) as raised:
        result.get(timeout=PATIENCE)
    assert str(raised.value) == f"Can't retry math.reliable_task[{result.id}]: its retries are used up"
    letter = dead_letter(idle, "math", result.id)
    assert letter.headers["x-dead-reason"] == "retries-exhausted"
    assert letter.headers["x-dead-error"] == f"MaxRetriesExceededError: {raised.value}"
    assert SECRET not in log.read_text()


def test_one_that_kills_its_process_ends_for_everybody(idle: Stack, producer: WarrenCelery) -> None:
    """As a dead letter, and as an event."""
    deaths = QUEUES.queue("math").child_death_limit + 1
    seen: list[dict[str, Any]] = []
    operator = acting_as(idle, "operator")
    operator.events_cls = "workers.remote:Events"
    with operator.connection_for_read() as connection:
        receiver = operator.events.Receiver(connection, handlers={"*": seen.append})
        (consumer,) = receiver.get_consumers(partial(kombu.Consumer, connection.default_channel), None)
        with consumer:
            result = producer.send_task("math.xsum", ([1, 2],))

            def events() -> list[str]:
                """What was seen of the task until it ended."""
                with contextlib.suppress(TimeoutError):
                    connection.drain_events(timeout=1)
                found = [event["type"] for event in seen if event.get("uuid") == result.id]
                return found if "task-failed" in found else []

            assert awaited(events) == [
                *(["task-received", "task-started", "task-rejected"] * (deaths - 1)),
                *("task-received", "task-started", "task-failed"),
            ]
    failed = next(event for event in seen if event["type"] == "task-failed" and event["uuid"] == result.id)
    assert failed["exception"].startswith("WorkerLostError(")
    assert "signal 9" in failed["traceback"]
    with pytest.raises(WorkerLostError):
        result.get(timeout=PATIENCE)
    letter = dead_letter(idle, "math", result.id)
    assert letter.headers["x-dead-reason"] == "worker-lost"
