"""Time limits stand still while the broker takes nothing: what a task publishes is waited for, and nothing is lost."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from celery import chain

from ops.local import Stack
from queues.topology import QUEUES
from tests.conftest import embedded
from tests.integration.helpers import PATIENCE, acting_as, alarmed, awaited, calm, ended, lines, ready, start

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from celery.result import AsyncResult

    from queues.app import WarrenCelery

pytestmark = pytest.mark.integration

#: Far below what the alarm lasts.
LIMITS = {"soft_time_limit": 2, "time_limit": 3}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack of which only the broker runs."""
    with embedded(tmp_path_factory.mktemp("limits") / "home", only=()) as stack:
        yield stack


@pytest.fixture
def producer(bare: Stack) -> WarrenCelery:
    return acting_as(bare, "producer")


@contextlib.contextmanager
def worker(stack: Stack, log: Path, app: str = "workers.app") -> Iterator[None]:
    """A math worker."""
    environment = stack.environment("worker-math")
    process = start(environment, "worker", "-Q", "math", "--loglevel", "INFO", log=log, app=app)
    try:
        yield
    finally:
        process.terminate()
        ended(process)


def chained(app: WarrenCelery) -> AsyncResult[int]:
    """A chain whose first step's limits are short."""
    first = app.signature("math.add", args=(1, 1), immutable=True).set(**LIMITS)
    return chain(first, app.signature("math.add", args=(20, 22), immutable=True), app=app).apply_async()


def said(log: Path, words: str) -> set[str]:
    """The tasks of which the worker's log says this."""
    return {word for line in lines(log) if words in line["message"] for word in line["message"].split()}


def starts(log: Path, task_id: str) -> int:
    """How often a task was started."""
    return sum(line["message"] == "task started" and line["task_id"] == task_id for line in lines(log))


def test_a_chains_step_and_a_retry_wait_longer_than_their_limits(
    bare: Stack, producer: WarrenCelery, tmp_path: Path
) -> None:
    log = tmp_path / "worker.log"
    whole = chained(producer)
    retried = producer.send_task("math.reliable_task", [{"fail_times": 1}], **LIMITS)
    wanted = {whole.parent.id, retried.id}
    with alarmed(bare), worker(bare, log):
        # Said when a limit would have ended the task.
        assert awaited(lambda: wanted <= said(log, "its time limits stand still")), log.read_text()
        calm(bare)
        assert whole.get(timeout=PATIENCE) == 42
        assert retried.get(timeout=PATIENCE)["attempts"] == 2
    assert {task_id: starts(log, task_id) for task_id in wanted} == {whole.parent.id: 1, retried.id: 2}
    assert ready(acting_as(bare, "operator"), QUEUES.queue("math").dead_letter) == 0


def test_what_waits_as_long_as_the_broker_lets_it_keep_its_message_gives_it_back(
    bare: Stack, producer: WarrenCelery, tmp_path: Path
) -> None:
    log = tmp_path / "worker.log"
    whole = chained(producer)
    retried = producer.send_task("math.reliable_task", [{"fail_times": 1}], **LIMITS)
    given_back = (whole.parent.id, retried.id)
    with alarmed(bare), worker(bare, log, app="tests.integration.brief"):
        assert awaited(lambda: all(starts(log, task_id) > 1 for task_id in given_back)), log.read_text()
        calm(bare)
        assert whole.get(timeout=PATIENCE) == 42
        assert retried.get(timeout=PATIENCE)["attempts"] == 2
    assert ready(acting_as(bare, "operator"), QUEUES.queue("math").dead_letter) == 0
