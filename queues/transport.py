"""py-amqp under kombu, with every wait bounded and every broker's name checked.

As shipped, the TLS socket keeps the connect timeout after its handshake, a second failover host is verified under the
first one's name, and closing a stalled connection waits for the peer. Importing this module adds two URL schemes to
kombu, so that each host of a failover list is reached by the transports below.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import ssl
import threading
import time
from contextvars import ContextVar
from struct import pack
from typing import TYPE_CHECKING, Any

from amqp.transport import SSLTransport, TCPTransport
from kombu.transport import TRANSPORT_ALIASES, pyamqp

from queues.environment import is_loopback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import kombu

#: Seconds that one read or write of a connected socket may take where no deadline says otherwise.
IO_TIMEOUT = 30.0
#: Seconds that closing a connection may take.
FAREWELL = 2.0

#: Seconds that even the last of many addresses is tried.
SHORTEST = 0.1
#: Bytes that are written at once: one TLS record.
RECORD = 16 * 1024

#: Header: all properties of a message as they came, where they cannot be decoded.
UNDECODABLE = "x-undecodable-properties"
#: The frame type of a content header; its class, weight and body size; the flag of headers as the only property.
_CONTENT_HEADER, _FIXED, _HEADERS_ONLY = 2, 12, 0x2000

_deadline: ContextVar[float | None] = ContextVar("warren_deadline", default=None)
#: When the block of `patience` in force began, by the monotonic clock, and whom it tells of a broker to wait for.
_patient: ContextVar[tuple[float, Callable[[], None]] | None] = ContextVar("warren_patient", default=None)


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Bound all broker traffic of the block; an outer deadline stays in force."""
    token = _deadline.set(min(time.monotonic() + seconds, _deadline.get() or float("inf")))
    try:
        yield
    finally:
        _deadline.reset(token)


@contextlib.contextmanager
def patience(told: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Wait out a broker's alarm, however long, for the answer to what was written: writing it again would double it.

    Args:
        told: called again and again while the broker is blocked or cannot be reached; what it raises ends the wait.
    """
    token = _patient.set((time.monotonic(), told))
    try:
        yield
    finally:
        _patient.reset(token)


def stalled() -> None:
    """Tell whoever is patient that it is the broker who is waited for."""
    patient = _patient.get()
    if patient is not None:
        patient[1]()


def remaining(default: float) -> float:
    """Seconds left until the deadline in force, or the default where there is none.

    Raises:
        TimeoutError: the deadline has passed.
    """
    limit = _deadline.get()
    if limit is None:
        return default
    left = limit - time.monotonic()
    if left <= 0:
        raise TimeoutError("the deadline has passed")
    return left


def is_bounded() -> bool:
    """Whether somebody has set a deadline."""
    return _deadline.get() is not None


def writing_time() -> float:
    """Seconds that a write may take; whoever has waited out an alarm has no deadline left, and may still answer.

    Raises:
        TimeoutError: the deadline has passed.
    """
    limit = _deadline.get()
    overdue = limit is not None and limit <= time.monotonic()
    return IO_TIMEOUT if overdue and _patient.get() is not None else remaining(IO_TIMEOUT)


def tolerate(connection: Any) -> None:
    """Let a message arrive whose properties py-amqp cannot decode: they are bytes in one header.

    As shipped, a text that is not UTF-8, a date after the year 9999 or deep nesting ends the whole connection.
    """
    handle: Callable[[Any], Any] = connection.on_inbound_frame

    def on_frame(frame: Any) -> Any:
        kind, channel, payload = frame
        try:
            return handle(frame)
        except Exception:
            if kind != _CONTENT_HEADER:
                raise
        raw, name = payload[_FIXED:], UNDECODABLE.encode()
        entry = pack(">B", len(name)) + name + b"x" + pack(">I", len(raw)) + raw
        return handle((kind, channel, payload[:_FIXED] + pack(">HI", _HEADERS_ONLY, len(entry)) + entry))

    connection.on_inbound_frame = on_frame


def addresses(host: str, port: int) -> list[Any]:
    """What a name resolves to, within the deadline in force: the system's resolver has none.

    Raises:
        OSError: it does not resolve, or not in time.
    """
    arguments = (host, port, socket.AF_UNSPEC, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    left = remaining(float("inf"))
    if left == float("inf"):
        return socket.getaddrinfo(*arguments)
    answer: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def resolve() -> None:
        try:
            answer.put(socket.getaddrinfo(*arguments))
        except OSError as exc:
            answer.put(exc)

    threading.Thread(target=resolve, daemon=True).start()
    try:
        found = answer.get(timeout=left)
    except queue.Empty:
        raise TimeoutError(f"{host} was not resolved in time") from None
    if isinstance(found, OSError):
        raise found
    return list(found)


class _Bounded:
    """A socket whose waits end with the deadline in force."""

    sock: Any

    def _connect(self, host: str, port: int, timeout: float) -> None:
        """Connect to one of a name's addresses: as shipped, each of them has the whole wait."""
        limit = time.monotonic() + timeout
        found = addresses(host, port)
        for place, (family, kind, protocol, _, address) in enumerate(found):
            sock = socket.socket(family, kind, protocol)
            sock.settimeout(max(SHORTEST, (limit - time.monotonic()) / (len(found) - place)))
            try:
                sock.connect(address)
            except OSError:
                sock.close()
                if place + 1 == len(found):
                    raise
            else:
                self.sock = sock
                return

    def write(self, data: Any) -> None:
        """Write to a peer that may take it slowly: as shipped, each part of a message has the whole wait."""
        view = memoryview(data)
        for start in range(0, len(view), RECORD):
            self.sock.settimeout(writing_time())
            super().write(view[start : start + RECORD])  # type: ignore[misc]


class _Tcp(_Bounded, TCPTransport):
    """A plaintext socket."""


class _Tls(_Bounded, SSLTransport):
    """A TLS socket."""


class Connection(pyamqp.Connection):
    """An AMQP connection whose waits end with the deadline in force, and that knows whether it is blocked."""

    connect_timeout: float
    #: The broker's resource alarm holds back what this connection publishes.
    blocked = False
    #: When an alarm ended, by the monotonic clock.
    freed_at = float("-inf")

    def connect(self, callback: Callable[[], Any] | None = None) -> Any:
        """Connect, log in and open the virtual host."""
        self.connect_timeout = min(self.connect_timeout, remaining(self.connect_timeout))
        result = super().connect(callback)
        tolerate(self)
        self.transport.sock.settimeout(IO_TIMEOUT)
        return result

    def Transport(self, host: str, connect_timeout: float, ssl: Any, *waits: float | None, **settings: Any) -> Any:  # noqa: N802
        """The socket of this connection; py-amqp's name, and its read and write timeouts by position."""
        kind = _Tls if ssl else _Tcp
        settings |= dict(zip(("read_timeout", "write_timeout"), waits, strict=True))
        return kind(host, connect_timeout, ssl=ssl, **settings)

    def blocking_read(self, timeout: float | None = None) -> Any:
        """Read and handle one frame within the timeout and the deadline; see `patience`."""
        while True:
            if self.blocked and _patient.get() is not None:
                stalled()
                with contextlib.suppress(TimeoutError):
                    return super().blocking_read(IO_TIMEOUT)
                continue
            left = IO_TIMEOUT if self._was_waited_for() else remaining(float("inf"))
            if timeout is None or timeout > left:
                timeout = left if left != float("inf") else timeout
            return super().blocking_read(timeout)

    def close(self, *args: Any, **kwargs: Any) -> Any:
        """Say goodbye, to a peer that answers soon."""
        with deadline(FAREWELL):
            return super().close(*args, **kwargs)

    def _was_waited_for(self) -> bool:
        """Whether this call has just waited out an alarm: its deadline has passed meanwhile."""
        patient = _patient.get()
        return patient is not None and patient[0] < self.freed_at and time.monotonic() < self.freed_at + IO_TIMEOUT

    def collect(self) -> None:
        """Drop the connection at once: a farewell to a stalled peer would wait for its answer."""
        if self._transport and self._transport.sock is not None:
            with contextlib.suppress(OSError):
                self._transport.sock.settimeout(0)
        super().collect()

    def _on_blocked(self) -> Any:
        self.blocked = True
        return super()._on_blocked()

    def _on_unblocked(self) -> Any:
        self.blocked = False
        self.freed_at = time.monotonic()
        return super()._on_unblocked()


@contextlib.contextmanager
def its_turn(client: Any) -> Iterator[None]:
    """Leave each failover host its share of the deadline: one that swallows what it is sent must not take it all."""
    whole = client.connect_timeout
    client.connect_timeout = min(whole, remaining(float("inf")) / max(1, len(client.alt)))
    try:
        yield
    finally:
        client.connect_timeout = whole


class Transport(pyamqp.Transport):
    """Plaintext, for loopback only (`queues.settings` sees to that)."""

    Connection = Connection

    def establish_connection(self) -> Any:
        """Connect to the host whose turn it is."""
        with its_turn(self.client):
            return super().establish_connection()


class TlsTransport(pyamqp.SSLTransport):
    """TLS; each failover host is checked under the configured name, or its own."""

    Connection = Connection

    def establish_connection(self) -> Any:
        """Connect to the host whose turn it is."""
        options = dict(self.client.ssl)
        options["server_hostname"] = options.get("server_hostname") or self.client.hostname
        shared, self.client.ssl = self.client.ssl, options
        try:
            with its_turn(self.client):
                return super().establish_connection()
        finally:
            self.client.ssl = shared


def weakness(connection: kombu.Connection) -> str | None:
    """What makes an open connection unsafe to work with, with the remedy; None where it is as `rewrite` makes it.

    Only a configuration changed behind our back does: kombu itself takes any driver, and any certificate.
    """
    remedy = "leave broker_url and broker_use_ssl as queues.celeryconfig builds them"
    driver = connection.transport.driver_name
    if driver != "py-amqp":
        # Settings let a plaintext producer choose it; its URL then names it, where a bare amqp:// is a surprise.
        chosen = connection.transport_cls == driver == "librabbitmq"
        return None if chosen else f"the broker is reached through {driver}, without bounds: {remedy}"
    sock = connection.connection.transport.sock
    host = connection.hostname or ""
    if not isinstance(sock, ssl.SSLSocket):
        return None if is_loopback(host) else f"there is no TLS to the broker at {host}: {remedy}"
    if sock.context.verify_mode is not ssl.CERT_REQUIRED or not sock.context.check_hostname:
        return f"the certificate of the broker at {host} is not checked for its name: {remedy}"
    return None


_SCHEMES = {"amqps": ("warren-amqps", TlsTransport), "pyamqp": ("warren-amqp", Transport)}

for _alias, _class in _SCHEMES.values():
    TRANSPORT_ALIASES[_alias] = f"{__name__}:{_class.__name__}"


def rewrite(url: str) -> str:
    """The URL with this module's transports for kombu's: a failover host's scheme decides its transport class."""
    for scheme, (alias, _) in _SCHEMES.items():
        url = url.replace(f"{scheme}://", f"{alias}://")
    return url
