"""Publishing with three outcomes: confirmed (it returns), refused, or unknown (it raises).

Every publish of a producer, a retry, a chain or beat goes through `Producer`: mandatory, confirmed, within one
deadline, and never sent twice. Until the first byte of the message is written a lost connection is replaced; after that
the outcome is unknown, and sending again with the same task id is the caller's decision.
"""

from __future__ import annotations

import contextlib
import json
import math
import ssl
import struct
import time
from typing import TYPE_CHECKING, Any

import amqp.exceptions
import kombu
from celery._state import get_current_worker_task
from celery.app.task import X_DEATH_HEADERS
from kombu.exceptions import EncodeError
from kombu.exceptions import OperationalError as KombuOperationalError
from kombu.serialization import dumps

from queues.errors import (
    BrokerUnavailableError,
    ConfigurationError,
    ControlRefusedError,
    InvalidArgumentsError,
    PublishError,
    PublishRefusedError,
    PublishUnknownError,
    UnroutableError,
)
from queues.remedies import explain, is_hopeless
from queues.transport import deadline, remaining, stalled, weakness

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Header: seconds since the epoch at which this message was published.
PUBLISHED_AT = "x-published-at"
#: Header: the same of the task's first message, kept by retries.
FIRST_PUBLISHED_AT = "x-first-published-at"

#: Bytes of a serialized message; RabbitMQ 4 refuses more than 16 MiB by closing the channel.
MAX_MESSAGE_BYTES = 16 * 1024 * 1024 - 64 * 1024
#: Seconds that the broker's delay queues can hold a message: 28 levels of one bit each.
MAX_DELAY = 2**28 - 1


class Producer(kombu.Producer):
    """A kombu producer whose `publish` returns only when the broker has confirmed."""

    def __init__(self, *args: Any, timeout: float = 15.0, **kwargs: Any) -> None:
        #: Seconds for one publish, connecting included.
        self.timeout = timeout
        super().__init__(*args, **kwargs)

    def publish(self, body: Any, **options: Any) -> Any:
        """Publish one message.

        Raises:
            InvalidArgumentsError: JSON cannot carry the body.
            ControlRefusedError: it is a command to workers, and this user may not send one.
            PublishRefusedError: the broker did not take it, for certain.
            PublishUnknownError: it was sent, and no answer came in time.
        """
        headers = options.get("headers") or {}
        task_id = headers.get("id")
        # The broker's own expiration would turn every missed tick into a dead letter: workers look at the header.
        # A command that no worker is there to hear is no fault of the broker: whoever sent it gets no answer.
        command = any(getattr(entity, "type", None) == "fanout" for entity in options.get("declare") or ())
        options.update(retry=False, mandatory=not command, declare=[], expiration=None)
        options["headers"] = stamp(headers)
        options["timestamp"] = int(time.time())
        body, content_type, content_encoding = encoded(body, options)
        options = {name: value for name, value in options.items() if name not in ("serializer", "compression")}
        options.update(content_type=content_type, content_encoding=content_encoding)
        with deadline(self.timeout):
            try:
                connection = self._connected()
                return self._confirmed(connection, body, options)
            except PublishError as exc:
                exc.task_id = task_id
                raise

    def copy(self, body: bytes, **options: Any) -> Any:
        """Publish bytes with their headers and properties as they are, confirmed like any other message.

        Raises:
            PublishError: refused or unknown, as `publish`.
        """
        if len(body) > MAX_MESSAGE_BYTES:
            raise PublishRefusedError(f"a message of {len(body)} bytes is not copied: the limit is {MAX_MESSAGE_BYTES}")
        options.update(retry=False, mandatory=True, declare=[])
        with deadline(self.timeout):
            return self._confirmed(self._connected(), body, options)

    def _connected(self) -> kombu.Connection:
        """A live connection that is not blocked.

        Raises:
            BrokerUnavailableError: none within the deadline; nothing was sent.
        """
        connection = self.__connection__ or self.channel.connection.client
        try:
            if connection.connected:
                notice_closed(connection)
            if not connection.connected:
                connect(connection)
                self.revive(connection)
            while connection.connection.blocked:
                connection.drain_events(timeout=remaining(self.timeout))
            channel = self.channel
            if not channel.is_open:
                connection.collect()
                connect(connection)
                self.revive(connection)
        except (*connection.connection_errors, KombuOperationalError, amqp.exceptions.AMQPError) as exc:
            blocked = connection.connected and connection.connection.blocked
            connection.collect()
            where = f"{connection.hostname}:{connection.port}"
            reason = (
                f"the broker at {where} is blocked by a memory or disk alarm: free resources there"
                if blocked
                else explain(connection, exc)
            )
            error = BrokerUnavailableError(f"{reason}; nothing was sent")
            error.hopeless = not blocked and is_hopeless(exc)
            # The sentence says it all: what kombu and py-amqp went through would be ninety lines before it.
            raise error from None
        except BaseException:
            # A time limit of the task that publishes, in the middle of a frame.
            connection.collect()
            raise
        return connection

    def _confirmed(self, connection: kombu.Connection, body: Any, options: dict[str, Any]) -> Any:
        """Write the message and wait for the broker's answer."""
        returned: list[Exception] = []

        def on_return(exc: Exception, *_details: object) -> None:
            returned.append(exc)

        channel = self.channel
        channel.events["basic_return"].add(on_return)
        try:
            left = remaining(self.timeout)
            connection.connection.transport.sock.settimeout(left)
            options.update(timeout=left, confirm_timeout=left)
            result = super().publish(body, **options)
        except BaseException as exc:
            # Whatever is still on its way must not be taken for the answer to a later message.
            connection.collect()
            error = outcome(exc, options)
            if error is None:
                raise
            raise error from exc
        finally:
            with contextlib.suppress(AttributeError, KeyError):
                channel.events["basic_return"].discard(on_return)
        if returned:
            raise UnroutableError(f"no queue takes {target(options)}: run `warren check` to see what the broker lacks")
        return result


def encoded(body: Any, options: Mapping[str, Any]) -> tuple[bytes, str, str]:
    """A message's bytes, with their content type and encoding, before anything is connected.

    Raises:
        InvalidArgumentsError: JSON cannot carry the body.
        PublishRefusedError: it is too large.
    """
    if options.get("serializer") not in (None, "json") or options.get("compression"):
        raise InvalidArgumentsError("workers take plain JSON only: leave `serializer` and `compression` out")
    try:
        content_type, encoding, data = dumps(body, serializer="json")
        # A worker passes on what came: a retry or a chain's next step must not be lost.
        if get_current_worker_task() is None:
            refuse_constants(data)
    except (EncodeError, ValueError) as exc:
        raise InvalidArgumentsError(f"the arguments are not JSON ({exc}); nothing was published") from exc
    if len(data) > MAX_MESSAGE_BYTES:
        raise PublishRefusedError(
            f"the message has {len(data)} bytes, the limit is {MAX_MESSAGE_BYTES}: store the data and pass its key"
        )
    return data if isinstance(data, bytes) else data.encode(), content_type, encoding


def refuse_constants(data: str | bytes) -> None:
    """Refuse the numbers that Python's encoder writes and JSON does not have.

    Raises:
        ValueError: NaN or an infinity, which other readers than Python's choke on.
    """
    text = data if isinstance(data, str) else data.decode()
    if "NaN" not in text and "Infinity" not in text:
        return  # the usual case costs no second reading

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number in JSON")

    json.loads(text, parse_constant=refuse)


def stamp(headers: dict[str, Any]) -> dict[str, Any]:
    """Headers with the time of this publish and, kept where it exists, of the first; without those of past deaths.

    A delay is a death in the broker's eyes: a message that names one, sent through the same delay queue again, would be
    a cycle to it and stay there, and 32 of them would stop every delay.
    """
    now = time.time()
    kept = {name: value for name, value in headers.items() if name not in X_DEATH_HEADERS}
    return {FIRST_PUBLISHED_AT: now} | kept | {PUBLISHED_AT: now}


def whole_delay(seconds: float) -> int:
    """A delay as the broker's delay queues take it: whole seconds, at least one.

    Raises:
        InvalidArgumentsError: longer than the delay queues can hold.
    """
    if not seconds <= MAX_DELAY:
        raise InvalidArgumentsError(f"a delay of {seconds:.0f} s is beyond {MAX_DELAY} s; use a periodic task instead")
    return max(1, math.ceil(seconds))


def notice_closed(connection: kombu.Connection) -> None:
    """Read what the broker has sent meanwhile; a connection that it closed is dropped."""
    try:
        while True:
            connection.drain_events(timeout=0)
    except (TimeoutError, BlockingIOError, ssl.SSLWantReadError):
        return
    except (*connection.connection_errors, *connection.channel_errors):
        connection.collect()


def connect(connection: kombu.Connection) -> None:
    """Connect to one of the hosts, again and again until the deadline; what cannot heal raises at once.

    Raises:
        ConfigurationError: the connection is not one that Warren can rely on.
    """
    end = time.monotonic() + remaining(60)
    told: dict[str, Exception] = {}

    def give_up(exc: Exception, interval: float) -> None:
        # An attempt that the deadline cuts short says less than the one before it at the same host.
        host = f"{connection.hostname}:{connection.port}"
        if not isinstance(exc, TimeoutError) or host not in told:
            told[host] = exc
        if isinstance(exc, ssl.SSLCertVerificationError) or time.monotonic() + interval >= end:
            raise told[host]
        stalled()

    connection.ensure_connection(errback=give_up, interval_start=0.1, interval_step=0.2, interval_max=1)
    problem = weakness(connection)
    if problem is not None:
        connection.collect()
        raise ConfigurationError(problem)


def outcome(exc: BaseException, options: dict[str, Any]) -> PublishError | ControlRefusedError | None:
    """What an error after the first byte means for the message; None where it is not the broker's."""
    if isinstance(exc, amqp.exceptions.MessageNacked):
        return PublishRefusedError(
            f"the queue of {target(options)} is full or has no leader: drain it or raise its limit"
        )
    if isinstance(exc, amqp.exceptions.NotFound):
        return PublishRefusedError(f"{target(options)} does not exist: run `warren check` to see what the broker lacks")
    if isinstance(exc, amqp.exceptions.AccessRefused) and not options["mandatory"]:
        return ControlRefusedError()
    if isinstance(exc, amqp.exceptions.AccessRefused):
        return PublishRefusedError(f"this broker user may not publish to {target(options)}: use the producer's user")
    if isinstance(exc, amqp.exceptions.PreconditionFailed):
        return PublishRefusedError(
            f"the broker refused the message ({exc.reply_text}): store the data and pass its key"
        )
    if isinstance(
        exc, amqp.exceptions.FrameError | amqp.exceptions.FrameSyntaxError | struct.error | UnicodeEncodeError
    ):
        return PublishRefusedError(f"a header or option cannot be encoded ({exc}): use text, numbers and lists of them")
    if isinstance(exc, OSError | amqp.exceptions.AMQPError | KombuOperationalError):
        return PublishUnknownError(
            "no confirm came in time: the message may be queued; send again with the same task id"
        )
    return None


def target(options: dict[str, Any]) -> str:
    """Where a message goes, as a person reads it."""
    exchange = options.get("exchange")
    return f"{getattr(exchange, 'name', exchange)}/{options.get('routing_key')}"
