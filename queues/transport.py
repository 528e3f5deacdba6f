"""py-amqp under kombu, with every wait bounded and every broker's name checked.

As shipped, the TLS socket keeps the connect timeout after its handshake, a second failover host is verified under the
first one's name, and closing a stalled connection waits for the peer. Importing this module adds two URL schemes to
kombu, so that each host of a failover list is reached by the transports below.
"""

from __future__ import annotations

import contextlib
import time
from contextvars import ContextVar
from struct import pack
from typing import TYPE_CHECKING, Any

from kombu.transport import TRANSPORT_ALIASES, pyamqp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Seconds that one read or write of a connected socket may take where no deadline says otherwise.
IO_TIMEOUT = 30.0

#: Header: all properties of a message as they came, where they cannot be decoded.
UNDECODABLE = "x-undecodable-properties"
#: The frame type of a content header; its class, weight and body size; the flag of headers as the only property.
_CONTENT_HEADER, _FIXED, _HEADERS_ONLY = 2, 12, 0x2000

_deadline: ContextVar[float | None] = ContextVar("warren_deadline", default=None)


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Bound all broker traffic of the block; an outer deadline stays in force."""
    token = _deadline.set(min(time.monotonic() + seconds, _deadline.get() or float("inf")))
    try:
        yield
    finally:
        _deadline.reset(token)


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


class Connection(pyamqp.Connection):
    """An AMQP connection whose waits end with the deadline in force, and that knows whether it is blocked."""

    connect_timeout: float
    #: The broker's resource alarm holds back what this connection publishes.
    blocked = False

    def connect(self, callback: Callable[[], Any] | None = None) -> Any:
        """Connect, log in and open the virtual host."""
        self.connect_timeout = min(self.connect_timeout, remaining(self.connect_timeout))
        result = super().connect(callback)
        tolerate(self)
        self.transport.sock.settimeout(IO_TIMEOUT)
        return result

    def blocking_read(self, timeout: float | None = None) -> Any:
        """Read and handle one frame within the timeout and the deadline."""
        left = remaining(float("inf"))
        if timeout is None or timeout > left:
            timeout = left if left != float("inf") else timeout
        return super().blocking_read(timeout)

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
        return super()._on_unblocked()


class Transport(pyamqp.Transport):
    """Plaintext, for loopback only (`queues.settings` sees to that)."""

    Connection = Connection


class TlsTransport(pyamqp.SSLTransport):
    """TLS; each failover host is checked under the configured name, or its own."""

    Connection = Connection

    def establish_connection(self) -> Any:
        """Connect to the host whose turn it is."""
        options = dict(self.client.ssl)
        options["server_hostname"] = options.get("server_hostname") or self.client.hostname
        shared, self.client.ssl = self.client.ssl, options
        try:
            return super().establish_connection()
        finally:
            self.client.ssl = shared


_SCHEMES = {"amqps": ("warren-amqps", TlsTransport), "pyamqp": ("warren-amqp", Transport)}

for _alias, _class in _SCHEMES.values():
    TRANSPORT_ALIASES[_alias] = f"{__name__}:{_class.__name__}"


def rewrite(url: str) -> str:
    """The URL with this module's transports for kombu's: a failover host's scheme decides its transport class."""
    for scheme, (alias, _) in _SCHEMES.items():
        url = url.replace(f"{scheme}://", f"{alias}://")
    return url
