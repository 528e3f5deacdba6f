"""A task that must not run twice: duplicates, redeliveries, doubts, and a ledger that is away, with real mails."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from celery import chain
from celery.result import AsyncResult

from ops.local import Stack
from ops.processes import clean_environment, process_name
from queues import tasks
from queues.app import WarrenCelery
from queues.headers import OUTCOME
from tests.integration.helpers import PATIENCE, Run, acting_as, awaited, children, dead_letter, ready
from workers import ledger
from workers.ledger import Entry
from workers.ledgerstore import SqlStore

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("stubs", "worker")]

TASK = "email.send_email"
HOUR = 3600.0


@pytest.fixture(scope="module")
def worker(stack: Stack) -> Iterator[subprocess.Popen[bytes]]:
    """A mail worker without the rate limit, instead of the stack's own."""
    control = stack.processes
    control._rpc("stopProcess", process_name("worker-email"), True)
    beat = stack.folder / "run" / "once.alive"
    changes = {"MAIL_RATE": "0", "HEARTBEAT_FILE": str(beat)}
    environment = {**clean_environment(), **stack.environment("worker-email"), **changes}
    command = (sys.executable, "-m", "celery", "-A", "workers.app", "worker", "-Q", "email", "-n", "email@once")
    with (stack.folder / "log" / "once.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        assert awaited(beat.exists), (stack.folder / "log" / "once.log").read_text()
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)
        control._rpc("startProcess", process_name("worker-email"), True)


@pytest.fixture
def store(stack: Stack) -> SqlStore:
    return SqlStore(acting_as(stack, "worker-email"), 14)


def mails(stack: Stack, subject: str) -> int:
    return sum(subject.encode() in path.read_bytes() for path in stack.mails.glob("*.eml"))


def send(
    app: WarrenCelery, subject: str, *, key: str | None = None, doubt: str = "hold", **options: Any
) -> AsyncResult[Any]:
    kwargs = {"on_uncertain": doubt} | ({"idempotency_key": key} if key else {})
    return app.send_task(TASK, ["ada@example.com", subject, "once\n"], kwargs, **options)


def left_open(store: SqlStore, task_id: str, until: float, **attempt: Any) -> None:
    """What an attempt leaves that was killed together with its worker."""
    number = {"replays": 0, "retries": 0, "run": "left", "at": time.time(), **attempt}
    entry = Entry("claimed", task_id, until=time.time() + until, process="1@gone", **number)
    assert store.swap(ledger.key_of(TASK, task_id, None), None, entry.write())


def fresh() -> tuple[str, str]:
    return str(uuid.uuid4()), uuid.uuid4().hex


def test_a_mail_that_is_published_three_times_is_sent_once(stack: Stack, app: WarrenCelery) -> None:
    task_id, subject = fresh()
    first = send(app, subject, task_id=task_id).get(timeout=PATIENCE)
    app.backend.forget(task_id)
    for _ in range(2):
        again = send(app, subject, task_id=task_id)
    assert again.get(timeout=PATIENCE) == first, "a repeat is answered with the recorded result"
    assert awaited(lambda: ready(acting_as(stack, "operator"), "email") == 0)
    assert mails(stack, subject) == 1


def test_two_tasks_with_one_key_send_one_mail_and_the_chain_goes_on(stack: Stack, app: WarrenCelery) -> None:
    key, subject = fresh()
    first = send(app, subject, key=key).get(timeout=PATIENCE)
    mail = tasks.send_email.si("ada@example.com", subject, "twice\n", idempotency_key=key)
    step = tasks.add.si(1, 2)
    running = chain(mail, step).apply_async()
    assert running.get(timeout=PATIENCE) == 3
    assert running.parent is not None
    assert running.parent.get(timeout=PATIENCE) == {**first, "status": "duplicate"}
    assert mails(stack, subject) == 1


def test_what_may_have_been_sent_is_held_until_a_person_says(
    stack: Stack, app: WarrenCelery, store: SqlStore, run: Run
) -> None:
    for verdict, sent in (("--done", 0), ("--not-done", 1)):
        task_id, subject = fresh()
        left_open(store, task_id, -1)
        with pytest.raises(Exception, match="--done or --not-done"):
            send(app, subject, task_id=task_id).get(timeout=PATIENCE)
        letter = dead_letter(stack, "email", task_id)
        assert letter.headers["x-dead-reason"] == "in-doubt"
        asked = run("dead-letters", "replay", "email", "--id", task_id)
        assert asked.returncode == 1
        assert "--done or --not-done" in asked.stderr
        app.backend.forget(task_id)
        moved = run("dead-letters", "replay", "email", "--id", task_id, verdict)
        assert moved.returncode == 0, moved.stderr
        result = app.AsyncResult(task_id).get(timeout=PATIENCE)
        assert result["status"] == ("sent" if sent else "done")
        assert mails(stack, subject) == sent


def test_a_live_attempt_is_waited_for_and_its_success_answers(app: WarrenCelery, store: SqlStore, stack: Stack) -> None:
    task_id, subject = fresh()
    left_open(store, task_id, PATIENCE)
    waiting = send(app, subject, task_id=task_id)
    key = ledger.key_of(TASK, task_id, None)
    assert awaited(lambda: waiting.state == "STARTED")
    done = Entry("done", task_id, 0, 0, "left", time.time(), value={"status": "sent", "by": "the other"})
    ledger.settle(store, key, done)
    assert waiting.get(timeout=PATIENCE) == {"status": "sent", "by": "the other"}
    assert mails(stack, subject) == 0


def test_the_death_of_its_process_leaves_a_doubt_at_once(stack: Stack, app: WarrenCelery, store: SqlStore) -> None:
    task_id, subject = fresh()
    left_open(store, task_id, HOUR)
    with pytest.raises(Exception, match="without saying"):
        send(app, subject, task_id=task_id, headers={"x-dead-process": "1@gone"}).get(timeout=PATIENCE)
    assert mails(stack, subject) == 0


def test_a_straggler_of_an_earlier_attempt_is_dropped(stack: Stack, app: WarrenCelery, store: SqlStore) -> None:
    task_id, subject = fresh()
    left_open(store, task_id, HOUR, retries=2)
    send(app, subject, task_id=task_id)
    other = send(app, fresh()[1])
    other.get(timeout=PATIENCE)
    assert awaited(lambda: ready(acting_as(stack, "operator"), "email") == 0)
    assert mails(stack, subject) == 0
    assert Entry.read(store.read(ledger.key_of(TASK, task_id, None)) or "").retries == 2


def test_an_outcome_that_could_not_be_recorded_comes_with_its_message(
    stack: Stack, app: WarrenCelery, store: SqlStore
) -> None:
    task_id, subject = fresh()
    left_open(store, task_id, HOUR)
    done = Entry("done", task_id, 0, 0, "left", time.time(), value={"status": "sent", "attempts": 1})
    answer = send(app, subject, task_id=task_id, headers={OUTCOME: done.write()})
    assert answer.get(timeout=PATIENCE) == {"status": "sent", "attempts": 1}
    assert mails(stack, subject) == 0
    assert Entry.read(store.read(ledger.key_of(TASK, task_id, None)) or "").state == "done"


def test_a_ledger_that_is_away_costs_time_and_no_mail(stack: Stack, app: WarrenCelery, store: SqlStore) -> None:
    """The table is gone at the claim: it is made anew, the message comes again, and is sent once."""
    task_id, subject = fresh()
    with sqlite3.connect(stack.folder / "results.sqlite") as connection:
        connection.execute("DROP TABLE warren_ledger")
    connection.close()
    sent = send(app, subject, task_id=task_id)
    assert awaited(lambda: "the ledger does not answer" in (stack.folder / "log" / "once.log").read_text())
    assert mails(stack, subject) == 0
    assert sent.get(timeout=2 * PATIENCE)["status"] == "sent"
    assert mails(stack, subject) == 1


def test_a_killed_process_before_the_mail_began_costs_nothing(
    stack: Stack, app: WarrenCelery, worker: subprocess.Popen[bytes]
) -> None:
    """The claim of a mail that was not handed over yet is no doubt: another process sends it."""
    task_id, subject = fresh()
    (child,) = children(worker.pid)
    os.kill(child, signal.SIGSTOP)
    send(app, subject, task_id=task_id)
    assert awaited(lambda: ready(acting_as(stack, "operator"), "email") == 0)
    os.kill(child, signal.SIGKILL)
    assert app.AsyncResult(task_id).get(timeout=2 * PATIENCE)["status"] == "sent"
    assert mails(stack, subject) == 1
