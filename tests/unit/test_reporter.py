"""When a worker sends what it measured, and what it does where it cannot."""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from amqp import spec
from amqp.serialization import dumps

from queues.topology import METRICS_EXCHANGE
from tests.unit.test_metrics import ADD, MATH, FakeRequest
from workers import reporter
from workers.deletions import DELETIONS
from workers.metrics import REJECTIONS, Recorder
from workers.reporter import FULL_INTERVAL, REOPEN_INTERVAL, Channel, Reporter


class FakeChannel:
    """Stands for the broker."""

    made: list[FakeChannel]
    refuse = ""

    def __init__(self, connection: object) -> None:
        self.connection = connection
        self.sent: list[dict[str, Any]] = []
        self.refusal = ""
        self.made.append(self)

    def open(self) -> None:
        if self.refuse:
            raise OSError(self.refuse)

    def publish(self, body: bytes, *, persistent: bool) -> None:
        self.sent.append(json.loads(body) | {"persistent": persistent})


class FakeConsumer:
    """What the reporter uses of Celery's consumer."""

    hostname = "math@host"

    def __init__(self) -> None:
        self.link = SimpleNamespace(blocked=False)
        self.connection = SimpleNamespace(connected=True, connection=self.link)
        self.event_dispatcher = SimpleNamespace(connection=self.connection)
        self.letters = SimpleNamespace(queue="math")
        self.pool = SimpleNamespace(num_processes=2)
        self.timer = SimpleNamespace(call_repeatedly=self.call_repeatedly)
        self.calls: list[tuple[float, Any, tuple[Any, ...]]] = []

    def call_repeatedly(self, seconds: float, function: Any, args: tuple[Any, ...]) -> None:
        self.calls.append((seconds, function, args))


@dataclass
class Bench:
    """A reporter on fakes, with a clock that the test turns."""

    consumer: FakeConsumer
    reporter: Reporter
    recorder: Recorder
    now: float = 1000.0

    def tick(self) -> None:
        """A second passes."""
        self.now += 1
        self.reporter.report(self.consumer)

    @property
    def sent(self) -> list[dict[str, Any]]:
        return [message for channel in FakeChannel.made for message in channel.sent]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    consumer = FakeConsumer()
    made = Bench(consumer, Reporter(consumer), Recorder())
    monkeypatch.setattr(reporter, "recorder", made.recorder)
    monkeypatch.setattr(reporter, "Channel", FakeChannel)
    monkeypatch.setattr("workers.reporter.time.monotonic", lambda: made.now)
    monkeypatch.setattr(FakeChannel, "made", [], raising=False)
    made.reporter.start(consumer)
    return made


def test_the_queue_is_the_consumers(bench: Bench) -> None:
    assert bench.recorder.queue == "math"
    assert bench.consumer.calls == [(1.0, bench.reporter.report, (bench.consumer,))]


def test_everything_first_then_changes_then_silence(bench: Bench) -> None:
    bench.tick()
    bench.tick()
    bench.recorder.revoked(FakeRequest(), "expired")
    bench.tick()
    bench.tick()
    assert [(message["seq"], message["full"], len(message["series"])) for message in bench.sent] == [
        (1, True, len(MATH.tasks) * 23 + len(REJECTIONS) + len(DELETIONS)),
        (2, False, 1),
    ]
    assert bench.sent[0]["gauges"] == {"concurrency": 2, "busy": 0, "reserved": 0}


def test_everything_again_after_five_minutes(bench: Bench) -> None:
    bench.tick()
    bench.now += FULL_INTERVAL - 2
    bench.tick()
    assert len(bench.sent) == 1
    bench.tick()
    assert [message["full"] for message in bench.sent] == [True, True]


@pytest.mark.parametrize("trouble", ["blocked", "down"])
def test_nothing_is_written_while_the_connection_cannot_take_it(bench: Bench, trouble: str) -> None:
    bench.tick()
    bench.consumer.link.blocked = trouble == "blocked"
    bench.consumer.connection.connected = trouble != "down"
    bench.recorder.revoked(FakeRequest(), "expired")
    bench.recorder.started(FakeRequest())
    bench.tick()
    assert len(bench.sent) == 1
    # An alarm may last for hours, and workers go on: what waits to be added up must not grow.
    assert bench.recorder._begun == []
    bench.consumer.link.blocked, bench.consumer.connection.connected = False, True
    bench.tick()
    assert [item[:3] for item in bench.sent[1]["series"]] == [
        ["revocations", ADD, "expired"],
        ["started", ADD, ""],
        ["wait", ADD, ""],
    ]


def test_stopping_sends_what_is_left_and_the_end_everything(bench: Bench) -> None:
    bench.tick()
    bench.recorder.revoked(FakeRequest(), "expired")
    bench.reporter.stop(bench.consumer)
    bench.consumer.pool = SimpleNamespace()
    bench.reporter.shutdown(bench.consumer)
    assert [(message["full"], message["persistent"], message["gauges"]) for message in bench.sent[1:]] == [
        (False, False, {"concurrency": 2, "busy": 0, "reserved": 0}),
        (True, True, {}),
    ]


def test_a_new_connection_gets_everything_on_a_new_channel(bench: Bench) -> None:
    bench.tick()
    bench.recorder.revoked(FakeRequest(), "expired")
    bench.consumer.connection.connection = SimpleNamespace(blocked=False)
    bench.reporter.start(bench.consumer)
    bench.tick()
    assert [channel.sent[0]["full"] for channel in FakeChannel.made] == [True, True]
    assert FakeChannel.made[1].connection is bench.consumer.connection.connection
    assert ["revocations", ADD, "expired", 1] in bench.sent[1]["series"]
    assert bench.sent[1]["seq"] == 2


def test_errors_are_logged_once_and_end_with_their_cause(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(FakeChannel, "refuse", "no route")
    for _ in range(200):
        bench.tick()
    assert [record.message for record in caplog.records] == [
        "measurements cannot be sent, they are kept: OSError: no route"
    ]
    assert len(FakeChannel.made) == 4
    monkeypatch.setattr(FakeChannel, "refuse", "")
    bench.now += REOPEN_INTERVAL
    bench.tick()
    assert len(bench.sent) == 1


def test_a_closed_channel_is_opened_again_later(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.tick()
    FakeChannel.made[0].refusal = "404 NOT_FOUND"
    bench.recorder.revoked(FakeRequest(), "expired")
    bench.tick()
    assert len(bench.sent) == 1
    assert "404 NOT_FOUND" in caplog.text
    bench.now += REOPEN_INTERVAL
    bench.tick()
    # What had been written to the closed channel is lost: everything goes out again.
    assert bench.sent[1]["full"]
    assert ["revocations", ADD, "expired", 1] in bench.sent[1]["series"]


def test_a_worker_without_an_event_connection_goes_on(bench: Bench) -> None:
    bench.consumer.event_dispatcher = None  # type: ignore[assignment]
    bench.tick()
    assert bench.sent == []


class Wire:
    """An amqp connection, as far as a channel that is not opened needs it."""

    confirm_publish = False

    def __init__(self) -> None:
        self.channels: dict[int, Any] = {}
        self._used_channel_ids: list[int] = []
        self.frames: list[tuple[Any, ...]] = []

    def _get_free_channel_id(self) -> int:
        self._used_channel_ids.append(1)
        return 1

    def frame_writer(self, *frame: Any) -> None:
        self.frames.append(frame)


def test_messages_are_transient_and_go_to_the_fanout_exchange() -> None:
    wire = Wire()
    Channel(wire).publish(b"{}", persistent=False)
    Channel(wire).publish(b"last", persistent=True)
    ((_, channel, method, arguments, message), (*_, last)) = wire.frames
    assert (channel, method) == (1, spec.Basic.Publish)
    assert METRICS_EXCHANGE.encode() in arguments
    assert message.body == b"{}"
    assert [item.properties["delivery_mode"] for item in (message, last)] == [1, 2]


def test_a_channel_that_the_broker_closes_raises_nothing() -> None:
    wire = Wire()
    channel = Channel(wire)
    channel.dispatch_method(spec.Channel.Close, b"sig." + dumps("BsBB", (404, "NOT_FOUND", 60, 40)), None)
    assert channel.refusal == "404 NOT_FOUND"
    assert wire.channels == {}
    assert [frame[2] for frame in wire.frames] == [spec.Channel.CloseOk]


def test_a_pool_that_a_cold_stop_has_ended_is_no_error(bench: Bench) -> None:
    class Ended:
        @property
        def num_processes(self) -> int:
            raise AttributeError("'NoneType' object has no attribute '_processes'")

    bench.tick()
    bench.recorder.revoked(FakeRequest(), "expired")
    bench.consumer.pool = Ended()  # type: ignore[assignment]
    bench.reporter.stop(bench.consumer)
    assert [message["gauges"] for message in bench.sent][-1] == {}
    assert len(bench.sent) == 2
