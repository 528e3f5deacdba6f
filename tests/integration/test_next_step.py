"""A step that was done, and whose next one cannot be sent because the result store is away."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest
from celery import chain, chord

from tests.integration.helpers import PATIENCE, acting_as, awaited, ended, lines, messages, ready, start
from tests.resultserver import ResultServer, forget, installed, need_store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ops.local import Stack

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def redis(idle: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ResultServer]:
    """A store that can go away."""
    need_store(installed(), "redis")
    with ResultServer(tmp_path_factory.mktemp("away")) as server:
        yield server


@pytest.mark.parametrize("linked", [False, True])
def test_a_step_that_was_done_waits_with_its_result_while_the_next_cannot_be_written_down(
    idle: Stack, redis: ResultServer, tmp_path: Path, linked: bool
) -> None:
    """As shipped, it would fail, and be a dead letter; run again, it would have its effect twice."""
    settings = redis.environment()
    producer = acting_as(idle, "producer", **settings)
    log, alive = tmp_path / "math.log", tmp_path / "alive"
    environment = {**idle.environment("worker-math"), **settings, "HEARTBEAT_FILE": str(alive)}
    first, link = str(uuid.uuid4()), str(uuid.uuid4())
    worker = start(environment, "worker", "-Q", "math", "-l", "INFO", log=log)
    try:
        assert awaited(alive.exists, 60), log.read_text()
        assert producer.send_task("math.add", [1, 1]).get(timeout=PATIENCE) == 2
        long = producer.signature("math.long_task", args=(3,), immutable=True).set(task_id=first)
        if linked:
            long.link(producer.signature("math.reliable_task").set(task_id=link))
        again = producer.signature("math.reliable_task")
        body = chain(long, chord([again, again], producer.signature("math.reliable_task"))).apply_async()
        assert awaited(lambda: any(line.get("task_id") == first for line in lines(log)))
        redis.stop()
        assert awaited(lambda: f"math.long_task[{first}] was done, and comes again" in log.read_text())
        redis.restart()
        assert body.get(timeout=PATIENCE)["status"] == "success"
        assert producer.AsyncResult(first).get(timeout=PATIENCE)["status"] == "success"
        begun = [line["task_id"] for line in lines(log) if line["message"] == "task started"]
        assert begun.count(first) > 1, "it is delivered again"
        assert not [m for m in messages(acting_as(idle, "operator"), "math.dead") if m.headers["id"] == first]
        if linked:
            assert producer.AsyncResult(link).get(timeout=PATIENCE)["status"] == "success"
            # It is carried itself, since it ends while the store is away.
            assert log.read_text().count(f"[{link}] was done, and comes again") <= 1, "links are not called again"
        assert ready(acting_as(idle, "operator"), "math") == 0
    finally:
        forget(producer)
        worker.terminate()
        assert ended(worker) == 0
