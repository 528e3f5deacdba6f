"""The exporter's own queue: workers' snapshots, over one long-lived AMQP connection."""

from __future__ import annotations

import logging
import random
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import kombu
from amqp.exceptions import AccessRefused
from prometheus_client.core import GaugeMetricFamily

from ops.snapshots import MalformedSnapshotError
from queues import celeryconfig
from queues.publish import connect
from queues.topology import METRICS_EXCHANGE
from queues.transport import deadline

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric as Family

    from ops.totals import Totals
    from queues.settings import BrokerSettings

logger = logging.getLogger("ops.exporter")

#: What the exporter's own queue may hold while the exporter is away; then the oldest go, and after a day the queue.
QUEUE_BYTES = 16 * 1024 * 1024
QUEUE_EXPIRES_MS = 24 * 3600 * 1000
_PREFETCH = 100
_LONGEST_PAUSE = 30.0


class Receiver:
    """Takes the workers' snapshots from the exporter's own queue, in a thread, for ever."""

    def __init__(self, broker: BrokerSettings, exporter_id: str, totals: Totals) -> None:
        self.queue = f"{METRICS_EXCHANGE}.{exporter_id}"
        #: Whether the queue is being consumed.
        self.consuming = False
        self._broker = broker
        self._totals = totals
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="snapshots", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether it consumes, or is about to connect again."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin to connect."""
        self._thread.start()

    def stop(self) -> None:
        """Leave the queue to gather what comes until the next start."""
        self._stopping.set()
        self._thread.join(5)

    def collect(self) -> Iterator[Family]:
        """Whether snapshots can come."""
        yield GaugeMetricFamily(
            "celery_exporter_consuming", "Whether the exporter consumes the workers' snapshots.", int(self.consuming)
        )

    def _run(self) -> None:
        pause = 1.0
        while not self._stopping.is_set():
            try:
                self._consume()
            except Exception as exc:  # noqa: BLE001 - the broker comes back, and so must we
                reason = f"{type(exc).__name__}: {exc}"
                if isinstance(exc, AccessRefused) and "exclusive" in reason:
                    reason = f"another exporter consumes {self.queue}: give each its own EXPORTER_ID"
            else:
                return
            pause = 1.0 if self.consuming else min(pause * 2, _LONGEST_PAUSE)
            self.consuming = False
            logger.warning("no snapshots from %s, next attempt in %.0f s: %s", self._broker.where, pause, reason)
            self._stopping.wait(pause * random.uniform(0.5, 1.0))

    def _consume(self) -> None:
        connection = self._connection()
        try:
            with deadline(celeryconfig.CONNECT_TIMEOUT):
                connect(connection)
                link = connection.connection
                self._subscribe(link.channel())
            self.consuming = True
            logger.info("consuming %s at %s", self.queue, self._broker.where)
            while not self._stopping.is_set():
                with suppress(TimeoutError):
                    link.drain_events(timeout=1.0)
                link.heartbeat_tick()
        finally:
            with suppress(OSError, *connection.connection_errors), deadline(2):
                connection.close()
        self.consuming = False

    def _connection(self) -> kombu.Connection:
        config = celeryconfig.broker(self._broker)
        return kombu.Connection(
            config["broker_url"],
            ssl=config.get("broker_use_ssl", False),
            login_method=config["broker_login_method"],
            heartbeat=config["broker_heartbeat"],
            connect_timeout=config["broker_connection_timeout"],
            transport_options={"client_properties": {"connection_name": f"exporter {self.queue}"}},
        )

    def _subscribe(self, channel: Any) -> None:
        """Declare the exporter's queue, the only thing it may configure, and consume it alone."""
        channel.queue_declare(
            self.queue,
            durable=True,
            exclusive=False,
            auto_delete=False,
            arguments={
                "x-queue-type": "classic",
                "x-expires": QUEUE_EXPIRES_MS,
                "x-max-length-bytes": QUEUE_BYTES,
                "x-overflow": "drop-head",
            },
        )
        channel.queue_bind(self.queue, METRICS_EXCHANGE)
        channel.basic_qos(0, _PREFETCH, a_global=False)
        channel.basic_consume(self.queue, callback=self._receive, exclusive=True)

    def _receive(self, message: Any) -> None:
        try:
            self._totals.apply(message.body)
        except MalformedSnapshotError as exc:
            logger.warning("a message in %s is no snapshot: %s", self.queue, exc)
        message.channel.basic_ack(message.delivery_tag)
