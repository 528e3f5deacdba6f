"""Time limits stand still while the broker takes nothing: what a task publishes is waited for, and nothing is lost."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from celery import chain

from ops.local import Stack
from queues.app import create_app
from queues.settings import Settings
from queues.topology import QUEUES
from tests.conftest import embedded
from tests.integration.helpers import (
    OPENED,
    PATIENCE,
    acting_as,
    alarmed,
    awaited,
    calm,
    dead_letter,
    ended,
    lines,
    ready,
    start,
)
from tests.integration.lab_table import LAB

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

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


@pytest.fixture
def lab(bare: Stack) -> WarrenCelery:
    """A producer that knows the tests' own tasks, too."""
    app = create_app(Settings.from_env(bare.environment("producer")), LAB, name="test-lab")
    OPENED.append(app)
    return app


def dead(stack: Stack) -> int:
    """How many dead letters there are; none where no task did anything wrong."""
    return ready(acting_as(stack, "operator"), QUEUES.queue("math").dead_letter)


@contextlib.contextmanager
def worker(stack: Stack, log: Path, app: str = "workers.app", **changes: str) -> Iterator[subprocess.Popen[bytes]]:
    """A math worker."""
    environment = {**stack.environment("worker-math"), "JOURNAL": str(log.parent / "journal"), **changes}
    process = start(environment, "worker", "-Q", "math", "--loglevel", "INFO", log=log, app=app)
    try:
        yield process
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
    assert dead(bare) == 0


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
    assert dead(bare) == 0


def journal(log: Path) -> dict[str, list[str]]:
    """What each task of the lab said, by its id."""
    said: dict[str, list[str]] = {}
    path = log.parent / "journal"
    for line in path.read_text().splitlines() if path.exists() else []:
        task_id, word, *_ = line.split()
        said.setdefault(task_id, []).append(word)
    return said


def test_what_publishes_for_ever_ends_at_its_limit_once(bare: Stack, lab: WarrenCelery, tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    sent = [lab.send_task("math.fan_out", [pause]) for pause in (0, 0.005, 0, 0.005)]
    with worker(bare, log, app="tests.integration.lab"):
        for task in sent:
            assert dead_letter(bare, "math", task.id).headers["x-dead-reason"] == "time-limit"
        assert {task.state for task in sent} == {"FAILURE"}
        # Another task behind them runs, and they do not.
        assert lab.send_task("math.announce").get(timeout=PATIENCE) == 42
    found = journal(log)
    assert [found[task.id] for task in sent] == [["begun", "soft"]] * len(sent)
    assert not said(log, "its time limits stand still")
    assert not said(log, "is sent again")


@pytest.mark.parametrize("name", ["math.announce", "math.charge"])
def test_a_task_that_publishes_in_an_alarm_runs_on_after_it(
    bare: Stack, lab: WarrenCelery, tmp_path: Path, name: str
) -> None:
    log = tmp_path / "worker.log"
    task = lab.send_task(name)
    with alarmed(bare), worker(bare, log, app="tests.integration.lab"):
        assert awaited(lambda: task.id in said(log, "its time limits stand still")), log.read_text()
        calm(bare)
        assert task.get(timeout=PATIENCE) == 42
    assert journal(log)[task.id] == ["begun", "done"]


def test_the_soft_limit_reaches_a_tasks_code_within_a_publish_that_waits_too_long(
    bare: Stack, lab: WarrenCelery, tmp_path: Path
) -> None:
    log = tmp_path / "worker.log"
    task = lab.send_task("math.announce")
    with alarmed(bare), worker(bare, log, app="tests.integration.lab", LONGEST="6"):
        assert awaited(lambda: journal(log).get(task.id) == ["begun", "soft"]), log.read_text()
        assert awaited(lambda: task.state == "FAILURE")
        calm(bare)
        # The broker's own, without a reason, where it did not confirm ours in time.
        assert dead_letter(bare, "math", task.id)
    assert starts(log, task.id) == 1


def test_limits_stand_still_while_the_worker_stops(bare: Stack, producer: WarrenCelery, tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    whole = chained(producer)
    before = dead(bare)
    with alarmed(bare), worker(bare, log) as process:
        assert awaited(lambda: starts(log, whole.parent.id) == 1)
        process.terminate()
        # Twice as long as the hard limit.
        began = time.monotonic()
        assert awaited(lambda: time.monotonic() > began + 2 * LIMITS["time_limit"])
        assert process.poll() is None
        calm(bare)
        assert ended(process) == 0
    with worker(bare, tmp_path / "another.log"):
        assert whole.get(timeout=PATIENCE) == 42
    assert dead(bare) == before


@contextlib.contextmanager
def password_changed(stack: Stack) -> Iterator[None]:
    """The worker's password is another one at the broker."""
    secret = Path(stack.environment("worker-math")["BROKER_PASSWORD_FILE"]).read_text().strip()
    stack.broker.ctl("change_password", "worker-math", "another")
    try:
        yield
    finally:
        stack.broker.ctl("change_password", "worker-math", secret)


def test_a_refused_login_is_tried_at_leisure_and_ends_the_worker_with_its_messages_kept(
    bare: Stack, producer: WarrenCelery, tmp_path: Path
) -> None:
    log = tmp_path / "worker.log"
    ready_line = " ready."
    with worker(bare, log) as process:
        assert awaited(lambda: any(line["message"].endswith(ready_line) for line in lines(log)))
        with password_changed(bare):
            # A process that has no connection yet needs one for the next step.
            whole = chained(producer)
            assert awaited(lambda: said(log, "is sent again")), log.read_text()
            began = time.monotonic()
            assert process.wait(PATIENCE) == 2, log.read_text()
            tried = [line for line in lines(log) if "is sent again" in line["message"]]
            assert len(tried) <= 3 + (time.monotonic() - began) / 5
            assert any("refused the login" in line["message"] and line["level"] == "critical" for line in lines(log))
    with worker(bare, tmp_path / "another.log"):
        assert whole.get(timeout=PATIENCE) == 42
    assert starts(log, whole.parent.id) + starts(tmp_path / "another.log", whole.parent.id) == 2
