from __future__ import annotations

import os
import time
from types import SimpleNamespace
from typing import Any

import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from celery.exceptions import Reject

from workers import limits
from workers.limits import LOOK_AGAIN, Pool, Waits


class Request:
    """What Celery makes for each run of a task."""


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    made = Waits()
    monkeypatch.setattr(limits, "waits", made)
    return made


def run(monkeypatch: pytest.MonkeyPatch) -> float:
    """Begin a run of a task in this process; gives the time."""
    task = SimpleNamespace(request=Request())
    monkeypatch.setattr(limits, "get_current_worker_task", lambda: task)
    return time.monotonic()


def pool(accepted: float, **changes: Any) -> Any:
    """A pool in which this process runs job 1."""
    made = Pool.__new__(Pool)
    result = SimpleNamespace(_worker_pid=os.getpid(), _time_accepted=accepted, _timeout=20, correlation_id="id")
    made._cache = {1: result}
    made.__dict__.update({"longest": 100.0, **changes})
    return made


def test_waits_within_one_run_add_up(waits: Waits, monkeypatch: pytest.MonkeyPatch) -> None:
    accepted = run(monkeypatch)
    assert waits.of(os.getpid(), accepted) == (0, False)
    with waits.waiting():
        assert waits.of(os.getpid(), accepted)[1]
    first, waiting = waits.of(os.getpid(), accepted)
    assert first > 0
    assert not waiting
    with waits.waiting():
        pass
    assert waits.of(os.getpid(), accepted)[0] > first


def test_what_the_run_before_waited_does_not_count(waits: Waits, monkeypatch: pytest.MonkeyPatch) -> None:
    before = run(monkeypatch)
    with waits.waiting():
        time.sleep(0.01)
    accepted = run(monkeypatch)
    assert waits.of(os.getpid(), accepted) == (0, False)
    with waits.waiting():
        pass
    assert 0 < waits.of(os.getpid(), accepted)[0] < waits.of(os.getpid(), before)[0] + 0.01


def test_a_child_writes_and_its_parent_reads(waits: Waits, monkeypatch: pytest.MonkeyPatch) -> None:
    accepted = run(monkeypatch)
    child = os.fork()
    if child == 0:
        with waits.waiting():
            time.sleep(0.01)
        os._exit(0)
    os.waitpid(child, 0)
    assert waits.of(child, accepted)[0] >= 0.01
    assert waits.of(os.getpid(), accepted) == (0, False)


def test_a_limit_within_the_wait_sends_the_message_back(waits: Waits, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch)
    with pytest.raises(Reject) as raised, waits.waiting():
        raise SoftTimeLimitExceeded
    assert raised.value.requeue


def test_a_limit_is_put_off_by_what_was_waited_and_once(waits: Waits, monkeypatch: pytest.MonkeyPatch) -> None:
    made = pool(run(monkeypatch))
    assert made._more(1) == 0
    with waits.waiting():
        time.sleep(0.01)
    assert made._more(1) == pytest.approx(waits.of(os.getpid(), 0)[0])
    assert made._more(1) == 0
    with waits.waiting():
        assert made._more(1) == LOOK_AGAIN, "not in a busy loop"
    assert made._more(2) == 0, "a job that is ready"


def test_a_limit_is_not_put_off_beyond_what_the_broker_allows(waits: Waits, monkeypatch: pytest.MonkeyPatch) -> None:
    made = pool(run(monkeypatch), longest=20.0)
    with waits.waiting():
        time.sleep(0.01)
        assert made._more(1) == 0
