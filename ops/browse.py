"""Reading a whole queue without taking anything from it.

A quorum queue cannot be looked into: a reader holds its messages until its channel closes. Seen on RabbitMQ 3.10: they
come back behind the ones that were not read, shuffled where basic.get fetched them, and in their order where one
consumer held them. So everything is read, by consumers of a limited prefetch (one burst of 512 MiB would raise the
broker's memory alarm), each on a channel of its own, and a channel is closed when the last one's messages are back.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import amqp.exceptions

from ops.errors import OpsError, UnreachableError
from queues.publish import connect
from queues.remedies import explain
from queues.transport import deadline

if TYPE_CHECKING:
    from collections.abc import Iterator

    import kombu

    from queues.app import WarrenCelery

#: Messages of the first consumer, and the bounds of the later ones, whose bodies should fill so many bytes.
FIRST_PREFETCH = 200
LOW_PREFETCH, HIGH_PREFETCH, PREFETCH_BYTES = 20, 5000, 16 * 1024 * 1024
#: Seconds to wait for another reader, for a message that the broker has counted, and for messages to be back.
OTHER_READER = 5.0
SILENCE = 10.0
RETURN = 5.0


@dataclass(slots=True)
class _Window:
    """One consumer on its own channel, and how many of its messages are not acknowledged."""

    channel: Any
    size: int
    tag: str = ""
    held: int = 0


class Browser:
    """Iterates over all messages of a queue, in their order; use `browse()`."""

    def __init__(self, connection: kombu.Connection, queue: str) -> None:
        self.queue = queue
        #: Messages that there were when the reading began, and that have arrived here.
        self.total = 0
        self.seen = 0
        self.acknowledged = 0
        self._connection = connection
        self._control = connection.channel()
        self._windows: dict[int, _Window] = {}
        self._current: _Window | None = None
        self._arrived: deque[Any] = deque()
        self._bytes = 0

    def begin(self) -> None:
        """Count the messages, once nobody else reads them.

        Raises:
            OpsError: somebody else goes on reading, the queue does not exist, or may not be read.
        """
        limit = time.monotonic() + OTHER_READER
        while self._declared().consumer_count:
            if time.monotonic() > limit:
                raise OpsError(f"{self.queue} is being read by another command: wait for it, or end it")
            time.sleep(0.1)
        self.total = self._declared().message_count

    def __iter__(self) -> Iterator[Any]:
        wanted = self.total
        while True:
            if self._arrived:
                yield self._arrived.popleft()
            elif self.seen < wanted:
                if not self._receive():
                    return
            else:
                # What came meanwhile is read too, so that everything goes back in one piece.
                more = self._declared().message_count
                if not more:
                    return
                wanted = self.seen + more

    def acknowledge(self, message: Any) -> None:
        """Take a message from the queue for good."""
        with self._talking():
            message.channel.basic_ack(message.delivery_tag)
        self._windows[message.channel.channel_id].held -= 1
        self.acknowledged += 1

    def finish(self) -> None:
        """Read what is left, and give everything back in its order."""
        for _ in self:
            pass
        self._cancel()
        back = self._declared().message_count
        for window in self._windows.values():
            back += window.held
            with self._talking():
                window.channel.close()
            limit = time.monotonic() + RETURN
            while self._declared().message_count < back and time.monotonic() < limit:
                time.sleep(0.003)

    def _declared(self) -> Any:
        """The queue's ready messages and consumers; what is held here is not ready."""
        with self._talking():
            return self._control.queue_declare(self.queue, passive=True)

    def _receive(self) -> bool:
        """Wait for a message; False where the broker has no more: they expired."""
        if self._current is None or self._current.held >= self._current.size:
            self._open()
        try:
            with self._talking():
                self._connection.drain_events(timeout=SILENCE)
        except UnreachableError as exc:
            if not isinstance(exc.__cause__, TimeoutError) or self._declared().message_count:
                raise
            return False
        return True

    def _open(self) -> None:
        self._cancel()
        size = FIRST_PREFETCH
        if self.seen:
            size = min(HIGH_PREFETCH, max(LOW_PREFETCH, PREFETCH_BYTES * self.seen // max(self._bytes, 1)))
        with self._talking():
            channel = self._connection.channel()
            channel.auto_decode = False
            window = self._current = self._windows[channel.channel_id] = _Window(channel, size)
            channel.basic_qos(0, size, a_global=False)
            window.tag = channel.basic_consume(self.queue, callback=functools.partial(self._arrive, window))

    def _cancel(self) -> None:
        """End the current consumer, whose messages stay held; the broker handles all acknowledgements first."""
        if self._current is not None:
            with self._talking():
                self._current.channel.basic_cancel(self._current.tag)
            self._current = None

    def _arrive(self, window: _Window, message: Any) -> None:
        window.held += 1
        self.seen += 1
        self._bytes += len(message.body)
        self._arrived.append(message)

    @contextlib.contextmanager
    def _talking(self) -> Iterator[None]:
        """The broker's errors as sentences."""
        try:
            yield
        except amqp.exceptions.NotFound as exc:
            raise OpsError(f"queue {self.queue} does not exist: run `warren check`") from exc
        except amqp.exceptions.AccessRefused as exc:
            raise OpsError(f"this broker user may not read {self.queue}: use the operator's") from exc
        except (*self._connection.connection_errors, *self._connection.channel_errors) as exc:
            raise UnreachableError(
                f"the broker went away while {self.queue} was read; nothing is lost: run the command again"
            ) from exc


@contextlib.contextmanager
def browse(app: WarrenCelery, queue: str) -> Iterator[Browser]:
    """Read a queue as whoever the app acts as; what is not acknowledged is back in the queue at the end.

    Raises:
        UnreachableError: no broker answers, or it went away.
        OpsError: the queue cannot be read.
    """
    # Without heartbeats: nothing is read while the user of a message works.
    with app.connection_for_read(heartbeat=0) as connection:
        try:
            with deadline(app.conf.publish_timeout):
                connect(connection)
        except Exception as exc:
            raise UnreachableError(explain(connection, exc)) from exc
        try:
            browser = Browser(connection, queue)
            browser.begin()
            yield browser
            browser.finish()
        except BaseException:
            # Without a farewell: the broker takes everything back by itself.
            connection.collect()
            raise
