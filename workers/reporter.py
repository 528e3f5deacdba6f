"""How what a worker measured reaches the exporters, without a port or a thread.

Once a second, and when the worker stops, the series that changed are published with their cumulative value since the
process started, to the fanout exchange `metrics`: a lost or repeated message heals with the next. Everything is sent
once in five minutes, and first of all on every new connection. What a message is stands in `workers.metrics`.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Any

import amqp
from amqp import spec
from celery import bootsteps
from celery.worker import state
from celery.worker.consumer.events import Events
from celery.worker.consumer.tasks import Tasks

from queues.topology import METRICS_EXCHANGE, QUEUES
from workers.metrics import recorder

logger = logging.getLogger(__name__)

#: Seconds between two messages while something changes.
INTERVAL = 1.0
#: Seconds between two messages that carry every series, changed or not.
FULL_INTERVAL = 300.0
#: Seconds until a channel that the broker closed is opened again.
REOPEN_INTERVAL = 60.0


class Channel(amqp.Channel):
    """A channel of ours: what the broker holds against it does not reach the worker's loop."""

    #: Why the broker closed the channel.
    refusal = ""

    def publish(self, body: bytes, *, persistent: bool) -> None:
        """Publish unconfirmed, and read nothing: a lost connection must be noticed by the loop, which replaces it."""
        message = amqp.Message(
            body, content_type="application/json", content_encoding="utf-8", delivery_mode=2 if persistent else 1
        )
        self.send_method(spec.Basic.Publish, "Bssbb", (0, METRICS_EXCHANGE, "", False, False), message)

    def _on_close(self, reply_code: int, reply_text: str, *_method: int) -> None:
        # The base class raises this, which would restart the worker's consumer.
        self.send_method(spec.Channel.CloseOk)
        self.refusal = f"{reply_code} {reply_text}"
        self.collect()


class Reporter(bootsteps.StartStopStep):
    """Sends what `recorder` holds on the connection of worker events, which is unconfirmed."""

    requires = (Events, Tasks)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._channel: Channel | None = None
        self._full_at = self._open_at = 0.0
        self._complained = False

    def start(self, consumer: Any) -> None:
        """Begin anew on a new connection, where the recorder was; Celery ends the timer with the connection."""
        self._channel, self._full_at, self._open_at, self._complained = None, 0.0, 0.0, False
        recorder.bind(QUEUES.queue(consumer.letters.queue))
        consumer.timer.call_repeatedly(INTERVAL, self.report, (consumer,))

    def stop(self, consumer: Any) -> None:
        """Consuming ends; Celery keeps the timer going while the pool finishes its tasks."""
        self.report(consumer)

    def shutdown(self, consumer: Any) -> None:
        """The pool has ended and the connection is about to be closed: everything once more, and no gauges."""
        self.report(consumer, final=True)

    def report(self, consumer: Any, *, final: bool = False) -> None:
        """Send what changed, if anything did and the connection can take it."""
        try:
            recorder.settle()
            # None where the worker stops before it has found a broker.
            dispatcher = consumer.event_dispatcher
            connection = dispatcher and dispatcher.connection
            if not connection or not connection.connected or connection.connection.blocked:
                return
            now = time.monotonic()
            full = final or now >= self._full_at
            gauges = {} if final else load(consumer)
            message = recorder.snapshot(consumer.hostname, gauges, full=full)
            if message and (channel := self._ready(connection.connection, now)):
                # No next message heals the loss of the last, where the broker restarts.
                channel.publish(json.dumps(message, separators=(",", ":")).encode(), persistent=final)
                recorder.sent(message)
                self._full_at = now + FULL_INTERVAL if full else self._full_at
        except Exception as exc:  # noqa: BLE001 - measuring must never stop a worker
            self._complain(f"{type(exc).__name__}: {exc}")

    def _ready(self, connection: Any, now: float) -> Channel | None:
        """The channel; after a refusal a new one is opened a minute later."""
        if self._channel is not None and self._channel.refusal:
            self._complain(self._channel.refusal)
            self._channel, self._full_at = None, 0.0
        if self._channel is None and now >= self._open_at:
            self._open_at = now + REOPEN_INTERVAL
            channel = Channel(connection)
            channel.open()
            self._channel = channel
        return self._channel

    def _complain(self, reason: str) -> None:
        if not self._complained:
            self._complained = True
            logger.warning("measurements cannot be sent, they are kept: %s", reason)


def load(consumer: Any) -> dict[str, int]:
    """What the worker has to do now; `oldest` is when its longest running task began, in seconds since the epoch."""
    try:
        concurrency = consumer.pool.num_processes
    except AttributeError:
        return {}  # a cold stop has ended the pool already
    found = {
        "concurrency": concurrency,
        "busy": len(state.active_requests),
        "reserved": len(state.reserved_requests),
    }
    starts = [request.time_start for request in state.active_requests if request.time_start is not None]
    return {**found, "oldest": int(min(starts))} if starts else found
