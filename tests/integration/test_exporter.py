"""The exporter against real work: each count exact, depth from the real broker."""

from __future__ import annotations

from pathlib import Path

import pytest

from ops.local import Stack
from queues import tasks
from queues.topology import QUEUES
from tests.integration.exporters import Metrics, OwnExporter
from tests.integration.helpers import PATIENCE, acting_as, awaited, ready

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("stubs")]


def value(stack: Stack, name: str, **labels: str) -> float:
    return Metrics.scrape(stack.metrics_url).get(name, **labels) or 0.0


def test_each_run_is_counted_once_with_wait_and_runtime(stack: Stack) -> None:
    labels = {"queue": "math", "task": "math.multiply"}
    names = ("celery_task_started_total", "celery_task_completions_total", "celery_task_queue_wait_seconds_count")
    before = {name: value(stack, name, **labels) for name in names}
    ran = value(stack, "celery_task_runtime_seconds_count", outcome="succeeded", **labels)
    for running in [tasks.multiply(i, i) for i in range(25)]:
        running.get(timeout=PATIENCE)
    wanted = {name: count + 25 for name, count in before.items()}
    assert awaited(lambda: {name: value(stack, name, **labels) for name in names} == wanted)
    assert value(stack, "celery_task_runtime_seconds_count", outcome="succeeded", **labels) == ran + 25


@pytest.mark.parametrize("queue", QUEUES.names)
def test_a_worker_opens_no_port_and_starts_no_thread_to_be_measured(stack: Stack, queue: str) -> None:
    """The one thread besides the main one is faulthandler's, which watches the loop."""
    process = Path(f"/proc/{stack.processes.pid(f'worker-{queue}')}")
    sockets = {str(path.readlink()).removeprefix("socket:[").removesuffix("]") for path in (process / "fd").glob("*")}
    lines = [line.split() for table in ("tcp", "tcp6") for line in (process / "net" / table).read_text().splitlines()]
    listening = "0A"
    assert sockets, "it has a connection at least"
    assert [row for row in lines if row[3] == listening and row[9] in sockets] == []
    assert len(list((process / "task").iterdir())) <= 2


def test_an_error_value_counts_as_a_failure_and_a_retry_as_a_retry(stack: Stack) -> None:
    labels = {"queue": "math", "task": "math.reliable_task"}
    failures = value(stack, "celery_task_failures_total", exception="reported", **labels)
    raised = value(stack, "celery_task_failures_total", exception="PermanentError", **labels)
    retries = value(stack, "celery_task_retries_total", **labels)
    tasks.reliable_task({"fail": True}, raise_on_error=False).get(timeout=PATIENCE)
    tasks.reliable_task({"fail": True}).get(timeout=PATIENCE, propagate=False)
    tasks.reliable_task({"fail_times": 1}).get(timeout=PATIENCE)
    assert awaited(lambda: value(stack, "celery_task_failures_total", exception="reported", **labels) == failures + 1)
    assert awaited(
        lambda: value(stack, "celery_task_failures_total", exception="PermanentError", **labels) == raised + 1
    )
    assert awaited(lambda: value(stack, "celery_task_retries_total", **labels) == retries + 1)


def test_an_expired_tick_is_counted(stack: Stack) -> None:
    labels = {"queue": "monitor", "task": "monitor.check_status", "reason": "expired"}
    before = value(stack, "celery_task_revocations_total", **labels)
    tasks.check_status.apply_async(expires=-5)
    assert awaited(lambda: value(stack, "celery_task_revocations_total", **labels) == before + 1)


def test_depth_and_dead_letters_come_from_the_broker(stack: Stack) -> None:
    assert awaited(
        lambda: all(value(stack, "celery_queue_consumers", queue=name) == 1 for name in ("math", "image", "email"))
    )
    tasks.reliable_task({"fail": True}).get(timeout=PATIENCE, propagate=False)
    # The count from the queue itself: the broker's statistics are seconds old.
    dead = awaited(lambda: ready(acting_as(stack, "operator"), "math.dead"))
    assert awaited(lambda: value(stack, "celery_dead_letter_messages", queue="math") == dead)
    assert value(stack, "celery_queue_up", queue="math") == 1
    assert value(stack, "celery_broker_up") == 1


def test_a_restarted_worker_adds_to_the_sums(stack: Stack) -> None:
    labels = {"queue": "math", "task": "math.add"}
    before = value(stack, "celery_task_started_total", **labels)
    tasks.add(1, 2).get(timeout=PATIENCE)
    stack.processes.restart("worker-math")
    tasks.add(1, 2).get(timeout=PATIENCE)
    assert awaited(lambda: value(stack, "celery_task_started_total", **labels) == before + 2)


def test_an_exporter_that_the_broker_will_never_admit_ends_with_one_sentence(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("wrong")
    with OwnExporter(stack, tmp_path, "stranger", BROKER_PASSWORD_FILE=str(tmp_path / "password")) as exporter:
        exporter.start()
        assert exporter.process is not None
        assert exporter.process.wait(PATIENCE) == 2
        said = exporter.log.read_text()
    assert "refused the login: check BROKER_USER, BROKER_PASSWORD_FILE" in said
    assert "Traceback" not in said
