"""Dead letters with their reason: a confirmed copy with headers, then the original is acknowledged.

AMQP cannot add a header to a reject. So a copy goes to the dead-letter exchange on a connection of its own, and only
when the broker has confirmed it is the original acknowledged. Where that takes longer than the worker's loop may wait,
the original is rejected instead, and the broker dead-letters it without a reason of ours.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from amqp.serialization import dumps
from kombu.transport.native_delayed_delivery import MAX_NUMBER_OF_BITS_TO_USE, calculate_routing_key, level_name

from queues.errors import PublishError, PublishRefusedError
from queues.headers import AT, ERROR, QUEUE, REASON, WORKER
from queues.publish import MAX_DELAY, Producer, stamp, whole_delay
from queues.topology import DEAD_LETTER_EXCHANGE, QUEUES

if TYPE_CHECKING:
    from queues.app import WarrenCelery

logger = logging.getLogger(__name__)

#: Seconds that the worker's loop waits for one confirm.
PATIENCE = 2.0
#: Seconds without copies after one that was not confirmed: a stalled broker must not stall every failure anew.
PAUSE = 30.0
#: Bytes of headers that fit into one frame, as they must, beside the other properties.
MAX_HEADERS = 126 * 1024
#: The exchange that delayed messages are published to.
DELAYS = level_name(MAX_NUMBER_OF_BITS_TO_USE - 1)
#: Characters of an error's text.
MAX_ERROR = 1000
#: Properties of the original that its copy keeps.
KEPT = (
    "content_type",
    "content_encoding",
    "correlation_id",
    "reply_to",
    "priority",
    "message_id",
    "timestamp",
    "type",
    "app_id",
)


class DeadLetters:
    """Publishes copies of a queue's dead letters; one for each worker, in its main process."""

    def __init__(self, app: WarrenCelery, queue: str, worker: str) -> None:
        self.app = app
        self.queue = queue
        self.worker = worker
        self._producer: Producer | None = None
        self._paused_until = 0.0

    def bury(self, message: Any, reason: str, error: str, **more: str) -> bool:
        """Put a copy into the dead-letter queue.

        Args:
            message: kombu's.
            reason: a short code.
            error: the error's text.
            more: further headers.

        Returns:
            Whether the broker has confirmed it: then acknowledge the original, otherwise reject it.
        """
        headers = {
            **(message.headers if isinstance(message.headers, dict) else {}),
            REASON: reason,
            ERROR: error[:MAX_ERROR],
            WORKER: self.worker,
            AT: time.time(),
            QUEUE: self.queue,
            **more,
        }
        return self.send(message, headers, exchange=DEAD_LETTER_EXCHANGE, routing_key=self.queue)

    def requeue(self, message: Any, headers: dict[str, Any]) -> bool:
        """Put a copy with other headers at the end of the queue; True where it is confirmed."""
        queue = QUEUES.queue(self.queue)
        return self.send(message, stamp(headers), exchange=queue.exchange, routing_key=queue.routing_key)

    def delay(self, message: Any, seconds: float) -> bool:
        """Put a copy where it waits without a worker; True where it is confirmed."""
        key = calculate_routing_key(whole_delay(min(seconds, MAX_DELAY)), QUEUES.queue(self.queue).routing_key)
        return self.send(message, stamp(message.headers), exchange=DELAYS, routing_key=key)

    @property
    def paused(self) -> bool:
        """Whether the broker does not confirm now; what is not copied is not to blame."""
        return time.monotonic() < self._paused_until

    def send(self, message: Any, headers: dict[str, Any], *, exchange: str, routing_key: str) -> bool:
        """Publish a copy, confirmed within the loop's patience."""
        if self.paused:
            return False
        properties = message.properties or {}
        kept = {name: properties[name] for name in KEPT if properties.get(name) is not None}
        kept["content_type"] = message.content_type or "application/octet-stream"
        kept["content_encoding"] = message.content_encoding or "binary"
        body = message.body if isinstance(message.body, bytes) else str(message.body).encode()
        try:
            if len(dumps("F", [headers])) > MAX_HEADERS:
                raise PublishRefusedError(f"its headers have more than {MAX_HEADERS} bytes")
            self._open().copy(
                body, headers=headers, exchange=exchange, routing_key=routing_key, delivery_mode=2, **kept
            )
        except PublishRefusedError as exc:
            # This message's own fault, or one that the broker tells at once: the next is tried as ever.
            logger.warning("a message is not copied: %s", exc)
            return False
        except PublishError as exc:
            self._paused_until = time.monotonic() + PAUSE
            logger.warning("no dead letter with a reason for %.0f s: %s", PAUSE, exc)
            return False
        except Exception:
            # A header or property that cannot be encoded again: the broker still has the original as it is.
            logger.exception("a message could not be copied")
            return False
        return True

    def close(self) -> None:
        """Drop the connection."""
        if self._producer is not None:
            self._producer.connection.collect()
            self._producer = None

    def _open(self) -> Producer:
        if self._producer is None:
            self._producer = Producer(self.app.connection_for_write(), timeout=PATIENCE)
        return self._producer
