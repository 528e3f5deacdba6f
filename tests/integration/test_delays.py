"""Delays and retries through the broker's own delay queues: none lost, none doubled, none stopped by another's."""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from ops.depth import Depth
from ops.local import Stack
from ops.management import Management
from queues.publish import FIRST_PUBLISHED_AT
from queues.topology import QUEUES, UNDELIVERABLE
from tests.conftest import embedded
from tests.integration.helpers import acting_as, awaited, lines, messages

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from queues.app import WarrenCelery

pytestmark = pytest.mark.integration

#: What tests.integration.impatient retries, and how often, a second apart.
RETRIED, RETRIES = "math.reliable_task", 10
#: Seconds after which a delay of a few seconds is lost.
PATIENCE = 120.0
MANY = 100


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack of which only the broker runs: these tests restart it and delete queues."""
    with embedded(tmp_path_factory.mktemp("delays") / "home", only=()) as stack:
        yield stack


@pytest.fixture(scope="module")
def log(bare: Stack) -> Path:
    """Where the math worker writes."""
    return bare.folder / "log" / "impatient.log"


@pytest.fixture(scope="module")
def _worker(bare: Stack, log: Path) -> Iterator[None]:
    alive = bare.folder / "run" / "impatient.alive"
    environment = {**os.environ, **bare.environment("worker-math"), "HEARTBEAT_FILE": str(alive)}
    command = ("-m", "celery", "-A", "tests.integration.impatient", "worker", "-Q", "math", "--loglevel", "INFO")
    with log.open("w") as output:
        process = subprocess.Popen([sys.executable, *command], env=environment, stdout=output, stderr=output)
    try:
        assert awaited(alive.exists, PATIENCE), log.read_text()
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        finally:
            process.kill()


@pytest.fixture
def producer(bare: Stack) -> WarrenCelery:
    return acting_as(bare, "producer")


def starts(log: Path) -> dict[str, list[tuple[int, float]]]:
    """When each attempt of each task was started: attempt and seconds since the epoch, by id."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in lines(log):
        if line.get("message") == "task started":
            at = datetime.datetime.fromisoformat(line["time"]).timestamp()
            found.setdefault(line["task_id"], []).append((line["attempt"], at))
    return found


def run_once(log: Path, due: dict[str, float]) -> None:
    """Wait until all tasks have run, then look that none ran twice or before its time, in seconds since the epoch."""
    assert awaited(lambda: set(due) <= set(starts(log)), PATIENCE), (
        set(due) - set(starts(log)),
        log.read_text()[-2000:],
    )
    found = starts(log)
    assert {task_id: len(found[task_id]) for task_id in due if len(found[task_id]) != 1} == {}, "run twice"
    # A log line has milliseconds.
    early = {task_id: found[task_id][0][1] - at for task_id, at in due.items() if found[task_id][0][1] < at - 0.001}
    assert early == {}, "run before its time"


def delayed(app: WarrenCelery, seconds: float) -> tuple[str, float]:
    """A task that is due in some seconds: its id, and when."""
    before = time.time()
    return app.send_task("math.add", [1, 2], countdown=seconds).id, before + seconds


def waiting(stack: Stack, name: str) -> int:
    """Messages of a queue, from the queue itself."""
    with acting_as(stack, "operator").connection_for_read() as connection, connection.channel() as channel:
        count: int = channel.queue_declare(name, passive=True).message_count
        return count


def test_delays_published_before_any_worker_has_started_are_kept(
    bare: Stack, log: Path, producer: WarrenCelery, request: pytest.FixtureRequest
) -> None:
    due = dict(delayed(producer, seconds) for seconds in (0.2, 1, 2, 3, 5, 8) for _ in range(3))
    request.getfixturevalue("_worker")
    run_once(log, due)


@pytest.mark.usefixtures("_worker")
def test_delays_below_a_second_are_rounded_up(log: Path, producer: WarrenCelery) -> None:
    run_once(log, dict(delayed(producer, seconds) for seconds in (0.001, 0.1, 0.5, 0.999, 1.0, 1.001, 1.5)))


@pytest.mark.usefixtures("_worker")
def test_an_eta_is_one_moment_in_every_zone(log: Path, producer: WarrenCelery) -> None:
    moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=3)
    zones = [datetime.timezone(datetime.timedelta(hours=hours)) for hours in (-11, 0, 9)]
    etas: list[Any] = [moment.astimezone(zone) for zone in zones]
    etas += [etas[2].isoformat(), moment.astimezone(producer.timezone).replace(tzinfo=None)]
    due = {producer.send_task("math.add", [1, 2], eta=eta).id: moment.timestamp() for eta in etas}
    past = producer.send_task("math.add", [1, 2], eta=moment - datetime.timedelta(hours=1)).id
    run_once(log, {**due, past: 0.0})


@pytest.mark.usefixtures("_worker")
def test_an_expiry_counts_from_the_publish_and_does_not_shorten_the_delay(
    bare: Stack, log: Path, producer: WarrenCelery
) -> None:
    before = time.time()
    late = producer.send_task("math.add", [1, 2], countdown=4, expires=2).id
    good = producer.send_task("math.add", [1, 2], countdown=4, expires=60).id
    run_once(log, {good: before + 4})
    operator = acting_as(bare, "operator")
    found = awaited(lambda: [m for m in messages(operator, "math.dead") if m.headers.get("id") == late])
    assert [letter.headers["x-dead-reason"] for letter in found] == ["expired"]
    assert late not in starts(log)


@pytest.mark.usefixtures("_worker")
def test_ten_retries_are_ten_and_each_is_one(log: Path, producer: WarrenCelery) -> None:
    fine = [producer.send_task(RETRIED, [{"fail_times": RETRIES}]).id for _ in range(20)]
    assert awaited(lambda: all(len(starts(log).get(task_id, [])) > RETRIES for task_id in fine), 2 * PATIENCE)
    assert [producer.AsyncResult(task_id).get(timeout=PATIENCE)["attempts"] for task_id in fine] == [RETRIES + 1] * 20
    found = starts(log)
    for task_id in fine:
        assert [attempt for attempt, _ in found[task_id]] == list(range(1, RETRIES + 2))


@pytest.mark.usefixtures("_worker")
@pytest.mark.parametrize("how", ["restart", "kill"])
def test_delays_outlive_the_broker(bare: Stack, log: Path, producer: WarrenCelery, how: str) -> None:
    due = dict(delayed(producer, seconds) for seconds in (9, 11, 13, 16) for _ in range(10))
    if how == "restart":
        bare.processes.restart("broker")
    else:
        os.kill(bare.processes.pid("broker"), signal.SIGKILL)
    run_once(log, due)


@pytest.mark.usefixtures("_worker")
def test_delays_to_a_deleted_queue_stop_no_other_and_are_kept_and_counted(
    bare: Stack, log: Path, producer: WarrenCelery
) -> None:
    with acting_as(bare, "operator").connection_for_write() as connection, connection.channel() as channel:
        channel.queue_delete("image")
    lost = [producer.send_task("image.process_image", ["x.jpg", [1, 1]], countdown=2).id for _ in range(MANY)]
    run_once(log, dict(delayed(producer, 2) for _ in range(MANY)))
    assert awaited(lambda: waiting(bare, UNDELIVERABLE) == MANY, PATIENCE), waiting(bare, UNDELIVERABLE)
    kept = messages(acting_as(bare, "operator"), UNDELIVERABLE)
    assert Counter(message.headers["id"] for message in kept) == Counter(lost)
    assert all(message.headers["task"] == "image.process_image" for message in kept)
    assert all(message.headers[FIRST_PUBLISHED_AT] for message in kept)
    # The next delay, and a retry, come as ever; and what was not delivered is a number on the exporter's page.
    run_once(log, dict(delayed(producer, 1) for _ in range(5)))
    assert producer.send_task(RETRIED, [{"fail_times": 2}]).get(timeout=PATIENCE)["attempts"] == 3

    def counted() -> float | None:
        with contextlib.closing(Management.from_env(bare.environment("operator"))) as management:
            found = {family.name: family.samples for family in Depth(management.queues).collect()}
        samples = found.get("celery_undeliverable_messages", [])
        return samples[0].value if samples else None

    assert awaited(lambda: counted() == MANY, PATIENCE), counted()


def test_the_delays_exit_leads_straight_to_each_queue_and_what_is_left_to_one(bare: Stack) -> None:
    """Through the tasks' exchanges, 32 delays to a queue that is gone would stop every delay of every queue."""
    with contextlib.closing(Management.from_env(bare.environment("operator"))) as management:
        found = management.get("/api/exchanges/%2F/celery_delayed_delivery/bindings/source")
        policy = management.get("/api/exchanges/%2F/celery_delayed_delivery")["policy"]
        policies = {item["name"]: item for item in management.definitions()["policies"]}
    bindings = {(row["destination_type"], row["destination"], row["routing_key"]) for row in found}
    expected = {("queue", queue.name, f"#.{queue.routing_key}") for queue in QUEUES}
    # The test above has deleted one.
    assert bindings <= expected
    assert len(bindings) >= len(expected) - 1
    assert policy == "celery_delayed_delivery"
    assert policies["celery_delayed_delivery"]["definition"] == {"alternate-exchange": UNDELIVERABLE}
    for queue in QUEUES:
        assert not {"max-length", "max-length-bytes"} & set(policies[queue.name]["definition"])


def test_a_message_may_be_delayed_again_with_the_headers_that_it_came_with(bare: Stack) -> None:
    """The broker takes a message that names its delay queue as a place of death for a cycle, and keeps it for ever."""
    producer, operator = acting_as(bare, "producer"), acting_as(bare, "operator")
    headers: dict[str, Any] = {}
    with operator.connection_for_read() as connection, connection.channel() as channel:
        for _ in range(3):
            task_id = producer.send_task("monitor.check_status", countdown=1, headers=headers).id
            message = awaited(lambda: channel.basic_get("monitor"), PATIENCE)
            assert message is not None, "it stays in the delay queue"
            message.channel.basic_ack(message.delivery_tag)
            assert (message.headers["id"], message.headers["x-death"][0]["count"]) == (task_id, 1)
            headers = {name: value for name, value in message.headers.items() if name.startswith("x-")}


def test_a_delay_that_the_broker_cannot_hold_is_refused(bare: Stack) -> None:
    with pytest.raises(Exception, match="use a periodic task instead"):
        acting_as(bare, "producer").send_task("math.add", [1, 2], task_id=str(uuid.uuid4()), countdown=2**28)
