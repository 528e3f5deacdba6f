"""A process of the pool that does nothing any more does not keep its place."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.integration.helpers import PATIENCE, acting_as, awaited, children, ended, lines, start

if TYPE_CHECKING:
    from pathlib import Path

    from ops.local import Stack

pytestmark = pytest.mark.integration


def test_a_process_that_stands_still_between_two_tasks_is_replaced(idle: Stack, tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    environment = {**idle.environment("worker-math"), "JOURNAL": str(tmp_path / "journal"), "DEAF": "5"}
    producer = acting_as(idle, "producer")
    worker = start(environment, "worker", "-Q", "math", "--loglevel", "INFO", log=log, app="tests.integration.lab")
    try:
        assert producer.send_task("math.add", [1, 1]).get(timeout=PATIENCE) == 2
        for process in children(worker.pid):
            os.kill(process, signal.SIGSTOP)
        sent = [producer.send_task("math.add", [number, 1]) for number in range(6)]
        assert [task.get(timeout=PATIENCE) for task in sent] == [1, 2, 3, 4, 5, 6]
        assert awaited(lambda: sum("it is replaced" in line["message"] for line in lines(log)) >= 2)
        worker.terminate()
        assert ended(worker) == 0
    finally:
        worker.kill()
        worker.wait()


def test_a_worker_that_has_lost_its_places_ends_and_its_messages_are_run_by_the_next(
    idle: Stack, tmp_path: Path
) -> None:
    log = tmp_path / "worker.log"
    environment = {**idle.environment("worker-math"), "JOURNAL": str(tmp_path / "journal")}
    losing = {"LOSE": "2", "LOST": "5", "HEARTBEAT_FILE": str(tmp_path / "heartbeat")}
    producer = acting_as(idle, "producer")
    task = producer.send_task("math.add", [1, 1])
    worker = start({**environment, **losing}, "worker", "-Q", "math", log=log, app="tests.integration.lab")
    assert ended(worker, PATIENCE) == 2, log.read_text()
    assert any("not all 2 processes are busy" in line["message"] for line in lines(log) if line["level"] == "critical")
    assert not (tmp_path / "heartbeat").exists()
    assert task.state == "PENDING"
    worker = start(environment, "worker", "-Q", "math", log=tmp_path / "next.log", app="tests.integration.lab")
    try:
        assert task.get(timeout=PATIENCE) == 2
    finally:
        worker.terminate()
        ended(worker)
