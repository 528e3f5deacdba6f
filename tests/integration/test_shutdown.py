"""SIGTERM to a worker: what runs ends and is acknowledged, what waits stays for the next one, and the exit code is 0.

How soon an idle one ends is measured beside stock Celery by the fault suite (`sigterm`).
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.integration.helpers import acting_as, awaited, children, ended, processes, ready, start

if TYPE_CHECKING:
    from pathlib import Path

    from ops.local import Stack

pytestmark = pytest.mark.integration

WORKER = ("worker", "-Q", "math", "-n", "math@end")


def test_what_runs_is_finished_and_acknowledged_and_what_waits_is_left(idle: Stack, tmp_path: Path) -> None:
    environment = {**idle.environment("worker-math"), "HEARTBEAT_FILE": str(tmp_path / "alive")}
    producer, operator = acting_as(idle, "producer"), acting_as(idle, "operator")
    log = tmp_path / "log"
    worker = start(environment, *WORKER, log=log)
    try:
        assert awaited((tmp_path / "alive").exists, 60), log.read_text()
        pid = worker.pid
        running = [producer.send_task("math.long_task", [4]) for _ in children(pid)]
        waiting = producer.send_task("math.add", [20, 22])
        assert awaited(lambda: all(task.state in {"STARTED", "PROGRESS"} for task in running)), log.read_text()
        worker.send_signal(signal.SIGTERM)
        assert ended(worker) == 0, log.read_text()
    finally:
        worker.kill()
    assert [task.state for task in running] == ["SUCCESS"] * len(running)
    assert not (tmp_path / "alive").exists()
    # The broker has taken back what nobody acknowledged: the one that had not begun.
    assert ready(operator, "math") == 1
    worker = start(environment, *WORKER, log=log)
    try:
        assert waiting.get(timeout=60) == 42
    finally:
        worker.terminate()
        assert ended(worker) == 0
    assert ready(operator, "math") == 0
    assert "Traceback" not in log.read_text()


def test_a_loop_that_stalls_ends_its_worker_with_the_stacks_in_the_log(idle: Stack, tmp_path: Path) -> None:
    """Nothing restarts a container that is merely unhealthy."""
    environment = {**idle.environment("worker-math"), "HEARTBEAT_FILE": str(tmp_path / "alive")}
    log = tmp_path / "log"
    worker = start(environment, *WORKER, "--loglevel", "INFO", log=log, app="tests.integration.stalling")
    try:
        assert awaited(lambda: "math@end ready" in log.read_text(), 60), log.read_text()
        pids = children(worker.pid)
        worker.send_signal(signal.SIGUSR2)
        code = ended(worker)
    finally:
        worker.kill()
    said = log.read_text()
    assert code == 1, said
    assert "Timeout (" in said
    assert "in stall" in said, "the place where the loop stands"
    assert pids
    assert awaited(lambda: not set(pids) & set(processes(str(tmp_path)))), "the processes that run tasks end with it"
