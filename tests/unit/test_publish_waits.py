"""What a task that publishes does while the broker cannot be used."""

from __future__ import annotations

import contextlib
import logging
import ssl
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import amqp.exceptions
import celery
import pytest
from billiard.exceptions import SoftTimeLimitExceeded

from queues import app as module
from queues import publish
from queues.app import FIRST_PAUSE, LONGEST_PAUSE, WarrenCelery, create_app
from queues.errors import BrokerUnavailableError, PublishUnknownError
from queues.settings import BrokerSettings, Settings
from queues.transport import patience, stalled

if TYPE_CHECKING:
    from collections.abc import Callable


class Clock:
    """Time that passes by sleeping, and by `each` whenever it is looked at."""

    def __init__(self, each: float) -> None:
        self.now, self.each = 1000.0, each
        self.slept: list[float] = []

    def monotonic(self) -> float:
        self.now += self.each
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def tasks_app(monkeypatch: pytest.MonkeyPatch) -> WarrenCelery:
    """An app within a task."""
    app = create_app(Settings(broker=BrokerSettings(hosts=(("127.0.0.1", 1),), tls=False), publish_timeout=1))
    monkeypatch.setattr(type(app), "current_worker_task", SimpleNamespace())
    return app


def sending(monkeypatch: pytest.MonkeyPatch, fails: list[Exception]) -> None:
    """Celery's own `send_task` fails like this, then succeeds."""

    def send_task(*_args: Any, **_options: Any) -> str:
        if fails:
            raise fails.pop(0)
        return "sent"

    monkeypatch.setattr(celery.Celery, "send_task", send_task)


def test_a_broker_that_refuses_at_once_is_tried_at_leisure_and_told_of_now_and_then(
    tasks_app: WarrenCelery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock, told = Clock(each=0.0), list[Exception]()
    monkeypatch.setattr(module, "time", clock)
    fails: list[Exception] = [BrokerUnavailableError("refused the login") for _ in range(20)]
    sending(monkeypatch, [*fails])
    monkeypatch.setattr(tasks_app, "waiting", lambda: contextlib.nullcontext(told.append))
    with caplog.at_level(logging.WARNING):
        assert tasks_app.send_task("math.add", [1, 2]) == "sent"
    assert clock.slept[:6] == [FIRST_PAUSE, 1, 2, 4, 8, LONGEST_PAUSE]
    assert clock.slept[-1] == LONGEST_PAUSE
    assert told == fails
    # The tries at 0, 7.5 and 15.5 s, and then each.
    assert len(caplog.records) == 20 - 3


def test_a_try_that_took_long_needs_no_pause(tasks_app: WarrenCelery, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(each=20.0)
    monkeypatch.setattr(module, "time", clock)
    sending(monkeypatch, [PublishUnknownError("no confirm"), BrokerUnavailableError("away")])
    tasks_app.send_task("math.add", [1, 2])
    assert clock.slept == [0, 0]


def test_what_the_wait_raises_ends_it(tasks_app: WarrenCelery, monkeypatch: pytest.MonkeyPatch) -> None:
    sending(monkeypatch, [BrokerUnavailableError("away")] * 3)

    def give_up(_error: Exception) -> None:
        raise ArithmeticError

    monkeypatch.setattr(tasks_app, "waiting", lambda: contextlib.nullcontext(give_up))
    with pytest.raises(ArithmeticError):
        tasks_app.send_task("math.add", [1, 2])


def test_only_the_patient_are_told_of_a_stalled_broker() -> None:
    told: list[int] = []
    stalled()
    with patience(lambda: told.append(1)):
        stalled()
        thread = threading.Thread(target=stalled)
        thread.start()
        thread.join()
    stalled()
    assert told == [1]


class Broken:
    """A connection that fails like this, as soon as it is used."""

    connected, connection_errors = False, (OSError,)
    hostname, port, ssl = "broker.test", 5671, {"x": 1}

    def __init__(self, fails: BaseException) -> None:
        self.fails, self.dropped = fails, 0

    def ensure_connection(self, **_options: Any) -> None:
        raise self.fails

    def collect(self) -> None:
        self.dropped += 1


@pytest.fixture
def connected() -> Callable[[Broken], Any]:
    def connected(connection: Broken) -> Any:
        producer = publish.Producer.__new__(publish.Producer)
        producer.__connection__, producer.timeout = connection, 1.0
        return producer._connected()

    return connected


def unverified() -> ssl.SSLCertVerificationError:
    """A certificate of another authority's."""
    error = ssl.SSLCertVerificationError("no")
    error.verify_code, error.verify_message = 19, "self-signed certificate in certificate chain"
    return error


@pytest.mark.parametrize(
    ("fails", "hopeless"),
    [
        (amqp.exceptions.AccessRefused("no"), True),
        (unverified(), True),
        (ssl.SSLEOFError("a broker that dies"), False),
        (ConnectionRefusedError("away"), False),
        (TimeoutError("silent"), False),
    ],
)
def test_it_is_known_whether_another_try_can_help(
    connected: Callable[[Broken], Any], fails: Exception, hopeless: bool
) -> None:
    with pytest.raises(BrokerUnavailableError) as raised:
        connected(Broken(fails))
    assert raised.value.hopeless is hopeless


def test_a_connection_that_a_time_limit_has_cut_off_is_dropped(connected: Callable[[Broken], Any]) -> None:
    connection = Broken(SoftTimeLimitExceeded())
    with pytest.raises(SoftTimeLimitExceeded):
        connected(connection)
    assert connection.dropped == 1
