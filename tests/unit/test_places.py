from __future__ import annotations

import os
import signal
from collections import deque
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from celery.worker import state

from workers import places
from workers.guard import Undertaker
from workers.limits import Pool
from workers.places import DEAF, LOST, UNUSED, Places

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE, GONE = 1000, 1001


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


class Request:
    """A task that the worker holds."""

    def __init__(self, name: str) -> None:
        self.id = name


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(places, "time", made)
    return made


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    pids: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: pids.append(pid) if number == signal.SIGKILL else None)
    return pids


@pytest.fixture(autouse=True)
def _nothing_held(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(Undertaker, "letters", SimpleNamespace(queue="math", paused=False))
    monkeypatch.setattr(state, "should_stop", None)
    state.reset_state()
    yield
    state.reset_state()


def job(number: int, pid: int | None, *, accepted: bool = True) -> Any:
    """A task of the pool, in this process."""
    return SimpleNamespace(
        _job=number,
        _accepted=accepted,
        _worker_pid=pid if accepted else None,
        _write_to=SimpleNamespace(pid=pid) if pid else None,
        correlation_id=f"task-{number}",
        discard=lambda: None,
    )


def consumer(*jobs: Any, processes: int = 2, most: int = 0) -> Any:
    """A worker's consumer with these tasks in its pool."""
    pool: Any = Pool.__new__(Pool)
    pool._cache = {each._job: each for each in jobs}
    pool._pool = [SimpleNamespace(pid=HERE), SimpleNamespace(pid=HERE + 10)]
    pool._processes, pool.most = processes, most
    return SimpleNamespace(pool=SimpleNamespace(_pool=pool), task_buckets={"math.add": None})


def turns(clock: Clock, seen: Any, seconds: float, ready: int = 0, watch: Places | None = None, most: int = 0) -> bool:
    """Look every five seconds; whether the worker is to end."""
    watch = watch or Places()
    end = clock.now + seconds
    while clock.now <= end and state.should_stop is None:
        seen.pool._pool.most = most
        watch.look(seen, ready)
        clock.now += 5
    return bool(state.should_stop == 2)


def test_a_worker_that_runs_what_it_can_goes_on(clock: Clock, killed: list[int]) -> None:
    both = consumer(job(1, HERE), job(2, HERE + 10), job(3, None, accepted=False))
    assert not turns(clock, both, 10 * LOST, ready=1000), "a third waits for one of them"
    assert not turns(clock, consumer(), 10 * LOST, ready=0)
    assert not killed


def test_a_task_whose_process_is_gone_ends_the_worker(clock: Clock) -> None:
    dropped: list[int] = []
    lost = job(1, GONE)
    lost.discard = lambda: dropped.append(1)
    assert not turns(clock, consumer(lost, job(2, HERE)), LOST - 10)
    clock.now = 1000
    assert turns(clock, consumer(lost, job(2, HERE)), LOST + 10)
    assert dropped, "the end does not wait for it"


def test_a_process_that_takes_nothing_is_replaced(clock: Clock, killed: list[int]) -> None:
    given = consumer(job(1, HERE, accepted=False), job(2, HERE + 10))
    assert not turns(clock, given, DEAF + 5)
    assert killed == [HERE]


def test_a_process_that_is_busy_with_another_task_is_left_alone(clock: Clock, killed: list[int]) -> None:
    given = consumer(job(1, HERE, accepted=False), job(2, HERE), job(3, HERE + 10))
    assert not turns(clock, given, 10 * DEAF)
    assert not killed


@pytest.mark.parametrize("kind", ["job", "request"])
def test_what_waits_though_a_process_is_free_ends_the_worker(clock: Clock, kind: str) -> None:
    request = Request("task-5")
    jobs = [job(1, HERE)]
    if kind == "job":
        jobs.append(job(5, None, accepted=False))
    else:
        state.task_reserved(request)
    assert not turns(clock, consumer(*jobs), LOST - 10)
    clock.now = 1000
    assert turns(clock, consumer(*jobs), LOST + 10)


def test_each_task_that_waits_has_a_time_of_its_own(clock: Clock) -> None:
    watch = Places()
    for number in range(10):
        waiting = consumer(job(number, None, accepted=False))
        assert not turns(clock, waiting, LOST / 2, watch=watch)


def test_messages_that_nobody_fetches_end_the_worker(clock: Clock) -> None:
    assert not turns(clock, consumer(job(1, HERE)), UNUSED - 10, ready=5)
    clock.now = 1000
    assert turns(clock, consumer(job(1, HERE)), UNUSED + 10, ready=5)


def test_a_worker_that_now_and_then_holds_as_many_as_it_may_goes_on(clock: Clock) -> None:
    assert not turns(clock, consumer(), 10 * UNUSED, ready=5, most=2)


@pytest.mark.parametrize("why", ["paused", "rate", "standby"])
def test_who_may_hold_none_goes_on(clock: Clock, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    seen = consumer()
    if why == "rate":
        seen.task_buckets["math.add"] = SimpleNamespace(contents=deque([1, 2]))
    else:
        queue = "email" if why == "standby" else "math"
        monkeypatch.setattr(Undertaker, "letters", SimpleNamespace(queue=queue, paused=why == "paused"))
    assert not turns(clock, seen, 10 * UNUSED, ready=5)


@pytest.mark.parametrize(("answer", "ends"), [("refused the login", True), (None, False)])
def test_a_worker_that_the_broker_refuses_ends(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, answer: str | None, ends: bool
) -> None:
    watch, asked = Places(), []

    def locked_out(_consumer: object) -> str | None:
        asked.append(1)
        return answer

    monkeypatch.setattr(places, "waits", SimpleNamespace(refused=lambda: True))
    monkeypatch.setattr(watch, "locked_out", locked_out)
    assert turns(clock, consumer(), 20, watch=watch) is ends
    assert asked
