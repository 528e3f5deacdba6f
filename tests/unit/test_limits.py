from __future__ import annotations

import os
import signal
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from celery.exceptions import Ignore, Reject, Retry

from queues.errors import BrokerUnavailableError
from workers import limits
from workers import waits as module
from workers.limits import GIVING_BACK, LOOK_AGAIN, Pool, TimeoutHandler, given_back, put_off
from workers.once import GivenBackError
from workers.waits import AFTER, IDLE, WITHIN, Waits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = os.getpid()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Waits]:
    made = Waits()
    monkeypatch.setattr(limits, "waits", made)
    before = signal.signal(signal.SIGUSR1, made.on_soft_limit)
    yield made
    signal.signal(signal.SIGUSR1, before)


def within(waits: Waits, code: Callable[[], Any]) -> Any:
    """Run this as a task's own code."""
    with waits.running():
        return waits.body(code)()


def job(accepted: float, **changes: Any) -> Any:
    """What the pool knows of a task that this process runs."""
    made = SimpleNamespace(
        _worker_pid=HERE, _time_accepted=accepted, _timeout=20, _soft_timeout=10, correlation_id="id"
    )
    made.__dict__.update(changes)
    return made


@pytest.fixture
def longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pool, "longest", 100.0)


def soft_limit() -> None:
    """The parent's signal, which this process has handled when this returns."""
    os.kill(HERE, signal.SIGUSR1)


def while_stalled(told: Callable[..., None], happens: Callable[[], object]) -> None:
    """This happens while the broker is waited for."""
    told()
    happens()


def refused() -> BrokerUnavailableError:
    error = BrokerUnavailableError("refused the login")
    error.hopeless = True
    return error


def test_a_confirm_that_comes_in_time_is_no_waiting(waits: Waits) -> None:
    accepted = time.monotonic()
    with waits.running():
        for _ in range(3):
            with waits.waiting():
                time.sleep(0.01)
                assert waits.of(HERE, accepted) == (0, False)
        assert waits.of(HERE, accepted) == (0, False)


def test_a_blocked_broker_counts_from_the_beginning_of_the_publish(waits: Waits) -> None:
    accepted = time.monotonic()
    with waits.running():
        with waits.waiting() as told:
            time.sleep(0.01)
            told()
            waited, waiting = waits.of(HERE, accepted)
            assert waited >= 0.01
            assert waiting
        first, waiting = waits.of(HERE, accepted)
        assert first >= waited
        assert not waiting
        with waits.waiting() as told:
            told()
        assert waits.of(HERE, accepted)[0] > first, "waits within one run add up"


def test_an_answer_that_does_not_come_counts_once_it_is_late(waits: Waits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROMPT", 0.02)
    accepted = time.monotonic()
    with waits.running():
        with waits.waiting():
            time.sleep(0.05)
            assert waits.of(HERE, accepted)[1]
        assert 0.02 < waits.of(HERE, accepted)[0] < 10


def test_a_publish_within_a_publish_counts_once(waits: Waits) -> None:
    accepted = time.monotonic()
    with waits.running():
        with waits.waiting() as told:
            with waits.waiting() as told_within:
                told_within()
            assert waits.of(HERE, accepted)[1], "the outer one goes on"
            told()
        waited, waiting = waits.of(HERE, accepted)
        assert not waiting
        assert 0 < waited < 10, "not what the machine has been up"


def test_what_the_run_before_waited_does_not_count(waits: Waits) -> None:
    with waits.running(), waits.waiting() as told:
        told()
    accepted = time.monotonic()
    assert waits.of(HERE, accepted) == (0, False)
    with waits.running():
        assert waits.of(HERE, accepted) == (0, False)


def test_a_child_writes_and_its_parent_reads(waits: Waits) -> None:
    accepted = time.monotonic()
    child = os.fork()
    if child == 0:
        with waits.running(), waits.waiting() as told:
            told(refused())
            time.sleep(0.01)
            os._exit(0 if waits.refused() else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert waits.of(child, accepted)[0] >= 0.01
    assert waits.of(HERE, accepted) == (0, False)
    assert waits.refused(), "the parent looks at it"


def test_a_fork_of_a_tasks_own_says_nothing_of_it(waits: Waits) -> None:
    accepted = time.monotonic()
    with waits.running():
        child = os.fork()
        if child == 0:
            with waits.waiting() as told:
                told(refused())
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert waits.of(HERE, accepted) == (0, False)
        assert not waits.refused()


def test_the_soft_limit_is_raised_in_a_tasks_own_code(waits: Waits) -> None:
    with pytest.raises(SoftTimeLimitExceeded):
        within(waits, soft_limit)
    assert waits.exceeded


def test_a_healthy_publish_is_let_end_before_the_soft_limit_is_raised(waits: Waits) -> None:
    seen = []

    def code() -> None:
        with waits.waiting():
            soft_limit()
            seen.append("confirmed")
        seen.append("not reached")

    with pytest.raises(SoftTimeLimitExceeded):
        within(waits, code)
    assert seen == ["confirmed"]


@pytest.mark.parametrize("first", ["limit", "alarm"])
def test_the_soft_limit_ends_a_publish_that_waits_and_the_tasks_own_handler_runs(waits: Waits, first: str) -> None:
    def code() -> str:
        try:
            with waits.waiting() as told:
                if first == "limit":
                    soft_limit()
                    told()
                else:
                    told()
                    soft_limit()
        except SoftTimeLimitExceeded:
            return "handled"
        return "not raised"

    assert within(waits, code) == "handled"


def test_after_the_code_has_ended_a_soft_limit_has_nothing_to_end(waits: Waits) -> None:
    with waits.running():
        waits.body(lambda: None)()
        assert waits.stage == AFTER
        with waits.waiting():
            soft_limit()
        soft_limit()
    assert waits.stage == IDLE
    soft_limit()
    assert not waits.exceeded


def test_what_is_sent_after_the_code_goes_back_when_it_has_waited_as_long_as_it_may(waits: Waits) -> None:
    with waits.running():
        waits.body(lambda: None)()
        with pytest.raises(Reject) as raised, waits.waiting() as told:
            while_stalled(told, soft_limit)
    assert raised.value.requeue


@pytest.mark.parametrize("undone", [True, False])
def test_a_message_that_goes_back_says_of_an_effect_what_is_known(waits: Waits, undone: bool) -> None:
    def code() -> None:
        with waits.keeping(undone=undone), waits.waiting() as told:
            told()
            soft_limit()

    with pytest.raises(Reject) as raised:
        within(waits, code)
    assert isinstance(raised.value, GivenBackError) is not undone


@pytest.mark.parametrize("end", [Retry(), Ignore()])
def test_a_retry_or_a_replacement_is_kept_and_ends_the_code(waits: Waits, end: Exception) -> None:
    def code() -> None:
        with waits.keeping(), waits.waiting():
            soft_limit()
            raise end

    with waits.running(), pytest.raises(type(end)):
        waits.body(code)()
    assert not waits.exceeded


@pytest.mark.parametrize("failed", [False, True])
def test_code_goes_on_after_a_retry_that_could_not_be_sent_or_was_not_to_end_it(waits: Waits, failed: bool) -> None:
    @waits.kept
    def retry() -> None:
        if failed:
            raise ValueError

    def code() -> None:
        try:
            retry()
        except ValueError:
            assert failed
        assert waits.stage == WITHIN
        soft_limit()

    with pytest.raises(SoftTimeLimitExceeded):
        within(waits, code)


def test_what_a_task_calls_directly_is_part_of_it(waits: Waits) -> None:
    def code() -> int:
        waits.body(lambda: None)()
        return waits.stage

    assert within(waits, code) == WITHIN


def test_a_refused_login_gives_the_message_back_after_a_while(waits: Waits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REFUSED_PATIENCE", 0.01)

    def code() -> None:
        with waits.waiting() as told:
            told(refused())
            time.sleep(0.02)
            told(BrokerUnavailableError("merely away"))
            assert not waits.refused()
            told(refused())
            assert waits.refused()
            time.sleep(0.02)
            with pytest.raises(Reject) as raised:
                told(refused())
            assert raised.value.requeue

    within(waits, code)
    assert not waits.refused()


@pytest.mark.usefixtures("longest")
def test_a_limit_is_put_off_by_what_was_waited_and_once(waits: Waits) -> None:
    made = job(time.monotonic())
    with waits.running():
        assert put_off(made) == 0
        with waits.waiting() as told:
            told()
            time.sleep(0.01)
        assert put_off(made) == pytest.approx(waits.of(HERE, 0)[0])
        assert put_off(made) == 0
        with waits.waiting() as told:
            told()
            assert put_off(made) == LOOK_AGAIN, "not in a busy loop"
    assert put_off(job(0, _worker_pid=None)) == 0, "a task that was not accepted yet"


def test_a_limit_is_not_put_off_beyond_what_the_broker_allows(waits: Waits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pool, "longest", 20.0)
    with waits.running(), waits.waiting() as told:
        told()
        time.sleep(0.01)
        assert put_off(job(0)) == 0


def test_a_task_that_waits_at_its_hard_limit_is_asked_once_for_its_message(waits: Waits) -> None:
    made = job(time.monotonic())
    with waits.running():
        waits.body(lambda: None)()
        assert given_back(made) == 0, "it does not wait"
        with pytest.raises(Reject), waits.waiting() as told:
            while_stalled(told, lambda: given_back(made))
        with waits.waiting() as told:
            told()
            assert given_back(made) == 0, "once"
    assert made.put_off == GIVING_BACK


@pytest.mark.usefixtures("longest")
@pytest.mark.parametrize("waiting", [False, True])
def test_limits_stand_still_while_the_worker_stops(waits: Waits, waiting: bool) -> None:
    ended: list[str] = []
    begun = time.monotonic()
    made = job(begun - 15)  # between its limits of 10 and 20 s
    handler = TimeoutHandler([], {1: made}, None, None)
    handler.on_soft_timeout = lambda _job: ended.append("soft")
    handler.on_hard_timeout = lambda _job: ended.append("hard")
    with waits.running(), waits.waiting() as told:
        waits._begun -= 70
        if waiting:
            told()
        look = handler.handle_timeouts()
        next(look)
        next(look)
        assert ended == ([] if waiting else ["soft"]), "once"
        made._time_accepted = begun - 85
        next(look)
        assert ended == ([] if waiting else ["soft", "hard"])
        made._time_accepted, made.was_asked = begun - 105, True
        next(look)
    assert ended[-1:] == ["hard"], "not for ever"
