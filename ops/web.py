"""The exporter's HTTP server and its pages: metrics, two probes, and a page that names them."""

from __future__ import annotations

import base64
import binascii
import hmac
import socket
import socketserver
import ssl
from contextlib import suppress
from dataclasses import dataclass
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, ClassVar
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from ops import exposition
from queues.environment import bracket, is_loopback
from queues.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from prometheus_client.registry import Collector

    from queues.environment import Reader, Secret

LANDING_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Warren exporter</title></head>
<body><h1>Warren exporter</h1>
<p>Celery on RabbitMQ: depth from the broker, waits and runtimes from the workers.</p>
<ul>
<li><a href="/metrics">/metrics</a> for Prometheus</li>
<li><a href="/-/healthy">/-/healthy</a>: the process works</li>
<li><a href="/-/ready">/-/ready</a>: it receives the workers' measurements</li>
</ul></body></html>
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSettings:
    """Where and how the exporter serves.

    Attributes:
        host: address to listen on.
        port: port to listen on.
        cert: PEM file for TLS, with `key`; without them it serves plain HTTP.
        key: PEM file.
        user: whoever scrapes must give this name and the password; None lets everybody.
        password: the password.
    """

    host: str
    port: int
    cert: Path | None = None
    key: Path | None = None
    user: str | None = None
    password: Secret | None = None

    @classmethod
    def read(cls, reader: Reader, port: int) -> WebSettings:
        """Read `EXPORTER_ADDRESS`, `EXPORTER_CERT`, `EXPORTER_KEY`, `EXPORTER_USER` and `EXPORTER_PASSWORD`."""
        addresses = reader.hosts("EXPORTER_ADDRESS", "127.0.0.1", port)
        if len(addresses) > 1:
            reader.problem("EXPORTER_ADDRESS holds several addresses: give one host:port")
        host, port = addresses[0] if addresses else ("127.0.0.1", port)
        cert, key = reader.pem("EXPORTER_CERT"), reader.pem("EXPORTER_KEY")
        if bool(cert) != bool(key):
            reader.problem("EXPORTER_CERT and EXPORTER_KEY belong together: set both, or neither")
        user, password = reader.text("EXPORTER_USER") or None, reader.secret("EXPORTER_PASSWORD")
        if bool(user) != bool(password):
            reader.problem("EXPORTER_USER and EXPORTER_PASSWORD_FILE belong together: set both, or neither")
        if user and not cert and not is_loopback(host):
            reader.problem("EXPORTER_USER without TLS sends the password in clear text: set EXPORTER_CERT and _KEY")
        return cls(host=host, port=port, cert=cert, key=key, user=user, password=password)


class Server(ThreadingMixIn, WSGIServer):
    """An HTTP or HTTPS server with a thread for each request, none of which outlives the process."""

    daemon_threads = True

    def __init__(self, settings: WebSettings, application: Callable[..., Iterable[bytes]]) -> None:
        """Bind the address.

        Raises:
            OSError: it is taken, or not this machine's.
            ConfigurationError: the certificate cannot be used.
        """
        self._files = (settings.cert, settings.key) if settings.cert and settings.key else None
        self._tls: ssl.SSLContext | None = None
        self._loaded: tuple[float, ...] = ()
        if self._files:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.minimum_version = ssl.TLSVersion.TLSv1_2
            try:
                self._load(self._tls)
            except OSError as exc:
                raise ConfigurationError(
                    f"EXPORTER_CERT or _KEY cannot be used ({exc.strerror}): give PEM files that belong together"
                ) from exc
        self.address_family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        super().__init__((settings.host, settings.port), Handler)
        self.set_app(application)

    @property
    def url(self) -> str:
        """Where it serves."""
        host, port = self.server_address[:2]
        return f"{'https' if self._tls else 'http'}://{bracket(str(host))}:{port}"

    def server_bind(self) -> None:
        """Bind, without asking DNS for the address's name as the base class does."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Handle a connection, in its own thread: a handshake that stalls holds nobody else."""
        request.settimeout(Handler.timeout)
        # A client that breaks off, or speaks no TLS, is not worth a traceback.
        with suppress(OSError):
            if self._tls is None:
                super().finish_request(request, client_address)
                return
            with suppress(OSError):  # half-renewed: the old pair serves until both are there
                self._load(self._tls)
            with self._tls.wrap_socket(request, server_side=True) as secured:
                super().finish_request(secured, client_address)

    def _load(self, context: ssl.SSLContext) -> None:
        """Take the pair from its files, where they are new."""
        if self._files:
            state = tuple(path.stat().st_mtime for path in self._files)
            if state != self._loaded:
                context.load_cert_chain(*self._files)
                self._loaded = state


class Handler(WSGIRequestHandler):
    """Handles one request; a client that says nothing does not hold its thread."""

    timeout = 30

    def log_message(self, format: str, *args: Any) -> None:
        """Log no request."""


class Site:
    """The WSGI application: what each path answers."""

    _HTML: ClassVar = "text/html; charset=utf-8"
    _TEXT: ClassVar = "text/plain; charset=utf-8"

    def __init__(
        self, metrics: Collector, settings: WebSettings, *, healthy: Callable[[], str], ready: Callable[[], str]
    ) -> None:
        """Name the sources.

        Args:
            metrics: what /metrics shows.
            settings: who may see it; the probes are everybody's.
            healthy: why the process does not work; empty where it does.
            ready: why no measurements come; empty where they do.
        """
        self._metrics = metrics
        self._settings = settings
        self._probes = {"/-/healthy": ("healthy", healthy), "/-/ready": ("ready", ready)}

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request."""
        path = environ["PATH_INFO"]
        status, headers, body = "200 OK", [("Content-Type", self._TEXT)], b""
        if path in self._probes:
            good, look = self._probes[path]
            problem = look()
            status, body = ("503 Service Unavailable", problem.encode()) if problem else (status, good.encode())
            body += b"\n"
        elif not self._is_known(environ.get("HTTP_AUTHORIZATION", "")):
            status, body = "401 Unauthorized", b"give the user and password of EXPORTER_USER and EXPORTER_PASSWORD\n"
            headers.append(("WWW-Authenticate", 'Basic realm="Warren exporter", charset="UTF-8"'))
        elif path == "/metrics":
            headers, body = exposition.answer(
                self._metrics, environ.get("HTTP_ACCEPT", ""), environ.get("HTTP_ACCEPT_ENCODING", "")
            )
        elif path == "/":
            headers, body = [("Content-Type", self._HTML)], LANDING_PAGE.encode()
        else:
            status, body = "404 Not Found", b"not found: look at /\n"
        start_response(status, headers)
        return [body]

    def _is_known(self, authorization: str) -> bool:
        """Whether the request gives the login, if one is asked for."""
        if self._settings.user is None or self._settings.password is None:
            return True
        kind, _, encoded = authorization.partition(" ")
        try:
            given = base64.b64decode(encoded, validate=True)
        except (ValueError, binascii.Error):
            return False
        wanted = f"{self._settings.user}:{self._settings.password.reveal()}".encode()
        return hmac.compare_digest(given, wanted) and kind.lower() == "basic"
