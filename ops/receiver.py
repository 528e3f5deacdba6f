"""The exporter's own queue: workers' snapshots, over one long-lived AMQP connection.

Snapshots are added up as they come; once a second the sums are written down, then shown, then the snapshots are
acknowledged. Whatever ends in between, they come again and add nothing twice.
"""

from __future__ import annotations

import logging
import random
import ssl
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import kombu
from amqp.exceptions import AccessRefused
from prometheus_client.core import GaugeMetricFamily

from ops.errors import OpsError
from ops.exposition import rendering
from ops.snapshots import MalformedSnapshotError
from queues import celeryconfig
from queues.errors import ConfigurationError
from queues.publish import connect
from queues.remedies import explain, is_hopeless
from queues.topology import METRICS_EXCHANGE
from queues.transport import deadline

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric as Family

    from ops.checkpoint import Checkpoint
    from ops.totals import Totals
    from queues.settings import BrokerSettings

logger = logging.getLogger("ops.exporter")

#: What the exporter's own queue may hold while the exporter is away; then the oldest go, and after a day the queue.
QUEUE_BYTES = 16 * 1024 * 1024
QUEUE_EXPIRES_MS = 24 * 3600 * 1000
#: Snapshots on their way at once, and how many are settled together at the latest.
_PREFETCH = 1000
_MOST_PENDING = 500
#: Seconds between two times that snapshots are settled.
SETTLE_INTERVAL = 1.0
_LONGEST_PAUSE = 30.0


class Receiver:
    """Takes the workers' snapshots from the exporter's own queue, in a thread, for ever."""

    def __init__(
        self, broker: BrokerSettings, exporter_id: str, totals: Totals, checkpoint: Checkpoint | None = None
    ) -> None:
        self.queue = f"{METRICS_EXCHANGE}.{exporter_id}"
        #: Whether the queue is being consumed.
        self.consuming = False
        #: Why snapshots are not counted; empty where they are.
        self.problem = "not connected to the broker yet"
        #: Until when the broker's certificate is valid, as ssl writes it.
        self.not_after: str | None = None
        self._broker = broker
        self._totals = totals
        self._checkpoint = checkpoint
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="snapshots", daemon=True)
        #: The last message that was applied and not settled, how many there are, and when they are to be.
        self._last: Any = None
        self._pending = 0
        self._settle_at = 0.0

    @property
    def alive(self) -> bool:
        """Whether it consumes, or is about to connect again; otherwise `problem` says what to mend."""
        return self._thread.is_alive()

    @property
    def ready(self) -> bool:
        """Whether snapshots are received and counted."""
        return self.consuming and not self.problem

    def start(self) -> None:
        """Begin to connect."""
        self._thread.start()

    def stop(self) -> None:
        """Leave the queue to gather what comes until the next start."""
        self._stopping.set()
        self._thread.join(5)

    def collect(self) -> Iterator[Family]:
        """Whether snapshots can come, and are kept.

        Raises:
            OpsError: they come and cannot be written down; what is known has been yielded.
        """
        yield GaugeMetricFamily(
            "celery_exporter_consuming", "Whether the exporter consumes the workers' snapshots.", int(self.consuming)
        )
        saved_at = self._checkpoint.saved_at if self._checkpoint else 0.0
        yield GaugeMetricFamily(
            "celery_exporter_last_checkpoint_timestamp_seconds",
            "When the sums were last written down; without a folder for them, never.",
            saved_at or None,
        )
        if self.consuming and self.problem:
            raise OpsError(self.problem)

    def _run(self) -> None:
        pause = 1.0
        while not self._stopping.is_set():
            self._totals.pause()
            try:
                self._consume()
            except ConfigurationError as exc:
                # Files of a password or certificate are read anew by the next process.
                self.problem = str(exc)
                return
            except Exception as exc:  # noqa: BLE001 - the broker comes back, and so must we
                self.problem = self._explained(exc)
            else:
                return
            finally:
                self._last, self._pending = None, 0
            pause = 1.0 if self.consuming else min(pause * 2, _LONGEST_PAUSE)
            self.consuming = False
            logger.warning("no snapshots from %s, next attempt in %.0f s: %s", self._broker.where, pause, self.problem)
            self._stopping.wait(pause * random.uniform(0.5, 1.0))

    def _explained(self, exc: Exception) -> str:
        if isinstance(exc, AccessRefused) and "exclusive" in str(exc):
            return f"another exporter consumes {self.queue}: give each its own EXPORTER_ID"
        return f"{type(exc).__name__}: {exc}"

    def _consume(self) -> None:
        connection = self._connection()
        try:
            with deadline(celeryconfig.CONNECT_TIMEOUT):
                try:
                    connect(connection)
                except Exception as exc:
                    kind = ConfigurationError if is_hopeless(exc) else ConnectionError
                    raise kind(explain(connection, exc)) from exc
                link = connection.connection
                self._note_certificate(link)
                self._subscribe(link.channel())
            # Only now: before the queue is ours alone, another exporter may still write the file.
            if self._checkpoint is not None:
                self._checkpoint.load(self._totals.restore)
            self._totals.resume()
            self.consuming, self.problem = True, ""
            logger.info("consuming %s at %s", self.queue, self._broker.where)
            while not self._stopping.is_set():
                with suppress(TimeoutError):
                    link.drain_events(timeout=self._patience())
                link.heartbeat_tick()
                if self._pending and (time.monotonic() >= self._settle_at or self._pending >= _MOST_PENDING):
                    self._settle()
            if self._pending:
                self._settle()
        finally:
            with suppress(OSError, *connection.connection_errors), deadline(2):
                connection.close()
        self.consuming = False

    def _patience(self) -> float:
        """Seconds to wait for a message."""
        return min(1.0, max(0.01, self._settle_at - time.monotonic())) if self._pending else 1.0

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

    def _note_certificate(self, link: Any) -> None:
        sock = link.transport.sock
        certificate = sock.getpeercert() if isinstance(sock, ssl.SSLSocket) else None
        self.not_after = str(certificate["notAfter"]) if certificate else None

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
        rendering.give_way()
        try:
            self._totals.apply(message.body)
        except MalformedSnapshotError as exc:
            logger.warning("a message in %s is no snapshot: %s", self.queue, exc)
        if not self._pending:
            self._settle_at = time.monotonic() + SETTLE_INTERVAL
        self._last, self._pending = message, self._pending + 1

    def _settle(self) -> None:
        """Write the sums down, show them, acknowledge what they hold; in this order."""
        if self._checkpoint is not None:
            try:
                self._checkpoint.save(self._totals.state())
            except OSError as exc:
                # Neither shown nor acknowledged: after a restart they would be gone, and the sums have gone back.
                self._settle_at = time.monotonic() + SETTLE_INTERVAL
                if not self.problem:
                    self.problem = f"{self._checkpoint.path} cannot be written ({exc.strerror}): free space there"
                    logger.error("%s; task metrics stand still until then", self.problem)  # noqa: TRY400
                return
        self.problem = ""
        self._totals.publish()
        self._last.channel.basic_ack(self._last.delivery_tag, multiple=True)
        self._last, self._pending = None, 0
