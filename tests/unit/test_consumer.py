"""What the consumer keeps when its connection ends or its worker does."""

from __future__ import annotations

import datetime
from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker import state
from celery.worker.consumer import Consumer as CeleryConsumer

from workers.consumer import Consumer
from workers.deadletter import PAUSE


@pytest.mark.parametrize(("should_stop", "kept"), [(0, [True, True, False]), (None, [True, False, False])])
def test_a_worker_that_ends_waits_for_what_a_process_has_taken(
    monkeypatch: pytest.MonkeyPatch, should_stop: int | None, kept: list[bool]
) -> None:
    """After a lost connection the broker has those messages again, and only what runs is finished."""
    begun, taken, waiting = ((True, object()), (False, object()), (False, None))
    jobs = [SimpleNamespace(_accepted=accepted, _write_to=process) for accepted, process in (begun, taken, waiting)]
    consumer = object.__new__(Consumer)
    consumer.pool = SimpleNamespace(_pool=SimpleNamespace(_cache=dict(enumerate(jobs))))
    monkeypatch.setattr(state, "should_stop", should_stop)
    monkeypatch.setattr(CeleryConsumer, "on_close", lambda self: None)
    consumer.on_close()
    assert [job._accepted for job in jobs] == kept


class Letters:
    """What a consumer does with messages that it does not run."""

    def __init__(self, *, confirmed: bool = True, paused: bool = False) -> None:
        self.confirmed, self.paused = confirmed, paused
        self.delayed: list[float] = []

    def delay(self, _message: object, seconds: float) -> bool:
        self.delayed.append(seconds)
        return self.confirmed


class Delivery:
    """One message, due at some time."""

    def __init__(self, eta: str | None) -> None:
        self.headers = {"eta": eta}
        self.channel = SimpleNamespace(connection=object())
        self.acknowledged = False

    def ack_log_error(self, *_args: object) -> None:
        self.acknowledged = True


@pytest.fixture
def consumer() -> Any:
    found: Any = object.__new__(Consumer)
    found.app = SimpleNamespace(timezone=datetime.UTC)
    found.connection_errors = ()
    found.letters = Letters()
    found.timer = SimpleNamespace(call_after=lambda seconds, call, args: found.calls.append((seconds, call, args)))
    found.calls = []
    return found


def test_seconds_until_a_message_is_due(consumer: Any) -> None:
    hour = datetime.timedelta(hours=1)
    later = datetime.datetime.now(datetime.UTC) + hour
    for eta in (later.isoformat(), later.replace(tzinfo=None).isoformat()):
        assert 3590 < consumer.early(Delivery(eta)) <= 3600
    assert consumer.early(Delivery((later - 2 * hour).isoformat())) < 0
    assert consumer.early(Delivery(None)) == consumer.early(Delivery("tomorrow")) == 0
    assert consumer.early(Delivery("9999-12-31T23:59:59-23:59")) > 1e11
    assert consumer.early(Delivery("0001-01-01T00:00:00+23:59")) < 0


def test_a_message_that_comes_early_waits_in_the_broker(consumer: Any) -> None:
    message = Delivery(None)
    assert consumer.put_off(message, 60.0, print) is None
    assert (consumer.letters.delayed, message.acknowledged) == ([60.0], True)


def test_a_message_that_comes_early_is_held_while_the_broker_stalls_and_then_sent_on(consumer: Any) -> None:
    consumer.letters = Letters(confirmed=False, paused=True)
    message = Delivery(None)
    taken: list[object] = []
    assert consumer.put_off(message, 60.0, taken.append) is None
    assert not message.acknowledged
    ((seconds, call, args),) = consumer.calls
    call(*args)
    assert (seconds, taken) == (PAUSE, [message])
    message.channel.connection = None
    call(*args)
    assert taken == [message], "the broker has it, and delivers it again"


def test_a_message_that_comes_early_and_cannot_be_copied_is_a_dead_letter(consumer: Any) -> None:
    consumer.letters = Letters(confirmed=False)
    message = Delivery(None)
    assert consumer.put_off(message, 60.0, print).reason == "malformed"
    assert not message.acknowledged


def test_a_task_that_was_registered_too_late_is_a_dead_letter(consumer: Any, caplog: pytest.LogCaptureFixture) -> None:
    """As Celery has it, the log would hold the message's body, and nobody its reason."""
    ended: list[tuple[str, str]] = []
    consumer.dead_letter = lambda _message, found: ended.append(found)
    consumer.on_unknown_task(None, SimpleNamespace(headers={"task": "math.late"}, body=b"ada@example.com"), KeyError())
    assert [found[0] for found in ended] == ["unknown-task"]
    assert "ada@example.com" not in caplog.text


def test_a_command_that_cannot_be_read_is_no_dead_letter(consumer: Any) -> None:
    ended: list[str] = []
    exchange = SimpleNamespace(name="celery.pidbox")
    consumer.app.control = SimpleNamespace(mailbox=SimpleNamespace(exchange=exchange))
    consumer.dead_letter = lambda _message, found: ended.append(found.reason)
    for name in ("celery.pidbox", "tasks.math"):
        consumer.on_decode_error(SimpleNamespace(delivery_info={"exchange": name}, headers={}), ValueError("x"))
    assert ended == ["undecodable"]
