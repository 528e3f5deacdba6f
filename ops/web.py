"""The exporter's HTTP server and its pages: metrics, two probes, and a page that names them."""

from __future__ import annotations

import socket
import socketserver
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

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


class Server(ThreadingMixIn, WSGIServer):
    """An HTTP server with a thread for each request, none of which outlives the process."""

    daemon_threads = True

    def __init__(self, host: str, port: int, application: Callable[..., Iterable[bytes]]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), Handler)
        self.set_app(application)

    def server_bind(self) -> None:
        """Bind, without asking DNS for the address's name as the base class does."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class Handler(WSGIRequestHandler):
    """Handles one request; a client that says nothing does not hold its thread."""

    timeout = 30

    def log_message(self, format: str, *args: Any) -> None:
        """Log no request."""


class Site:
    """The WSGI application: what each path answers."""

    def __init__(
        self, metrics: Callable[..., Iterable[bytes]], *, healthy: Callable[[], bool], ready: Callable[[], bool]
    ) -> None:
        """Name the sources.

        Args:
            metrics: the WSGI application of /metrics.
            healthy: whether the process works.
            ready: whether measurements can come.
        """
        self._metrics = metrics
        self._healthy = healthy
        self._ready = ready

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request."""
        path = environ["PATH_INFO"]
        if path == "/metrics":
            return self._metrics(environ, start_response)
        if path == "/-/healthy":
            status, body = check(good=self._healthy(), yes="healthy", no="the thread that receives snapshots has ended")
        elif path == "/-/ready":
            status, body = check(good=self._ready(), yes="ready", no="not connected to the broker yet")
        elif path == "/":
            status, body = "200 OK", LANDING_PAGE
        else:
            status, body = "404 Not Found", "not found: look at /\n"
        kind = "text/html" if body is LANDING_PAGE else "text/plain"
        start_response(status, [("Content-Type", f"{kind}; charset=utf-8")])
        return [body.encode()]


def check(*, good: bool, yes: str, no: str) -> tuple[str, str]:
    """A probe's status and text."""
    return ("200 OK", f"{yes}\n") if good else ("503 Service Unavailable", f"{no}\n")
