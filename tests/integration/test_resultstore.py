"""A result store that is away: no task is lost or run twice, and its result is there when the store is."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from ops.local import Stack
from queues import tasks
from tests.integration.helpers import PATIENCE, acting_as, awaited, ready

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("stubs")]


@pytest.fixture
def locked(stack: Stack) -> Iterator[sqlite3.Connection]:
    """Nobody else can write to the store until it is rolled back."""
    with closing(sqlite3.connect(stack.folder / "results.sqlite", isolation_level=None)) as connection:
        yield connection


def test_a_result_waits_with_its_message_until_it_can_be_stored(stack: Stack, locked: sqlite3.Connection) -> None:
    tasks.add(0, 0).get(timeout=PATIENCE)
    dead = ready(acting_as(stack, "operator"), "math.dead")
    log = stack.folder / "log" / "worker-math.log"
    pid = stack.processes.pid("worker-math")
    locked.execute("BEGIN EXCLUSIVE")
    sums = [tasks.add(number, 1) for number in range(3)]
    chain = (tasks.add.s(1, 1) | tasks.add.s(40)).apply_async()
    assert chain.parent is not None
    waiting = {chain.id, chain.parent.id, *(one.id for one in sums)}

    def kept() -> bool:
        lines = [line for line in log.read_text().splitlines() if "until its result can be stored" in line]
        return all(any(task_id in line for line in lines) for task_id in waiting)

    assert awaited(kept, PATIENCE), "the chain's second step runs although the first one's result is not stored"
    locked.execute("ROLLBACK")
    assert [one.get(timeout=PATIENCE) for one in sums] == [1, 2, 3]
    assert chain.get(timeout=PATIENCE) == 42
    assert chain.parent.get(timeout=PATIENCE) == 2
    assert ready(acting_as(stack, "operator"), "math.dead") == dead
    assert stack.processes.pid("worker-math") == pid


def test_a_failure_that_could_not_be_stored_is_recorded_by_the_monitor(
    stack: Stack, locked: sqlite3.Connection
) -> None:
    operator = acting_as(stack, "operator")
    dead = ready(operator, "math.dead")
    locked.execute("BEGIN EXCLUSIVE")
    failing = tasks.reliable_task({"fail": True})
    assert awaited(lambda: ready(operator, "math.dead") == dead + 1)
    log = stack.folder / "log" / "worker-monitor.log"
    tasks.check_status()
    assert awaited(lambda: f"the failure of task {failing.id} is recorded later" in log.read_text())
    locked.execute("ROLLBACK")
    assert failing.state not in ("FAILURE", "SUCCESS")
    tasks.check_status().forget()
    assert awaited(lambda: failing.state == "FAILURE")
    assert "fail" in str(failing.result)
