"""The exporter: what RabbitMQ and the workers know, as Prometheus reads it. `python -m ops.exporter`.

One long-lived AMQP connection receives the workers' snapshots, one kept HTTPS connection asks the management API for
the depth of the queues. What is not known has no sample: never a zero.
"""

from __future__ import annotations

import logging
import os
import platform
import random
import re
import signal
import socket
import socketserver
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import kombu
from amqp.exceptions import AccessRefused
from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily

from ops.errors import OpsError
from ops.management import Depth, Management, ManagementSettings
from ops.snapshots import MalformedSnapshotError, Totals
from queues import celeryconfig
from queues.errors import ConfigurationError
from queues.publish import connect
from queues.settings import Reader, bracket
from queues.topology import METRICS_EXCHANGE
from queues.transport import deadline
from workers import logs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import TracebackType

    from prometheus_client.core import Metric as Family

    from queues.settings import BrokerSettings

logger = logging.getLogger("ops.exporter")

PORT = 9808
#: What the exporter's own queue may hold while the exporter is away; then the oldest go, and after a day the queue.
QUEUE_BYTES = 16 * 1024 * 1024
QUEUE_EXPIRES_MS = 24 * 3600 * 1000
_PREFETCH = 100
_LONGEST_PAUSE = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ExporterSettings:
    """Where the exporter finds the broker, and where Prometheus finds the exporter.

    Attributes:
        management: the broker, over AMQP and over its management API.
        exporter_id: names the exporter's own queue; two exporters need two.
        host: address to listen on.
        port: port to listen on.
    """

    management: ManagementSettings
    exporter_id: str = "main"
    host: str = "127.0.0.1"
    port: int = PORT

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> ExporterSettings:
        """Read `BROKER_*`, `MANAGEMENT_URL`, `EXPORTER_ID` and `EXPORTER_ADDRESS`.

        Raises:
            ConfigurationError: everything wrong at once, a line each.
        """
        reader = Reader(os.environ if environ is None else environ)
        management = ManagementSettings.read(reader)
        addresses = reader.hosts("EXPORTER_ADDRESS", "127.0.0.1", PORT)
        if len(addresses) > 1:
            reader.problem("EXPORTER_ADDRESS holds several addresses: give one host:port")
        exporter_id = reader.text("EXPORTER_ID", "main")
        if not re.fullmatch(r"[a-z0-9-]+", exporter_id):
            reader.problem(f"EXPORTER_ID={exporter_id!r} is no name: use small letters, digits and hyphens")
        reader.check()
        host, port = addresses[0]
        return cls(management=management, exporter_id=exporter_id, host=host, port=port)


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


class Scrape:
    """All collectors, each timed, none able to take another's numbers away."""

    def __init__(self, collectors: Mapping[str, Callable[[], Iterable[Family]]]) -> None:
        self._collectors = collectors
        self._problems: dict[str, str] = {}

    def collect(self) -> Iterator[Family]:
        """Everything that is known now."""
        duration = GaugeMetricFamily(
            "celery_exporter_scrape_duration_seconds", "How long a collector took.", labels=("collector",)
        )
        success = GaugeMetricFamily(
            "celery_exporter_collector_success",
            "Whether a collector knew everything it asks for.",
            labels=("collector",),
        )
        for name, collect in self._collectors.items():
            started = time.perf_counter()
            problem = ""
            families: list[Family] = []
            try:
                families.extend(collect())
            except Exception as exc:  # noqa: BLE001 - the other collectors' numbers are right all the same
                problem = str(exc) if isinstance(exc, OpsError) else f"{type(exc).__name__}: {exc}"
            yield from families
            duration.add_metric((name,), time.perf_counter() - started)
            success.add_metric((name,), int(not problem))
            if problem and problem != self._problems.get(name):
                logger.warning("collector %s: %s", name, problem)
            self._problems[name] = problem
        yield duration
        yield success
        yield InfoMetricFamily(
            "celery_exporter_build",
            "Versions of the exporter.",
            {"version": own_version(), "python_version": platform.python_version()},
        )


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


class Exporter:
    """Receives and serves; use it as a context manager."""

    def __init__(self, settings: ExporterSettings, *, host: str, port: int, exporter_id: str) -> None:
        """Bind the address.

        Raises:
            OSError: it is taken, or not this machine's.
        """
        self.totals = Totals()
        self.receiver = Receiver(settings.management.broker, exporter_id, self.totals)
        self._management = Management(settings.management)
        depth = Depth(self._management.queues)
        self.registry = CollectorRegistry(support_collectors_without_names=True)
        self.registry.register(
            Scrape({"broker": depth.collect, "snapshots": self.receiver.collect, "tasks": self.totals.collect})
        )
        ProcessCollector(registry=self.registry)
        self._metrics: Callable[..., list[bytes]] = make_wsgi_app(self.registry)
        self._server = Server(host, port, self._respond)
        self._thread = threading.Thread(target=self._server.serve_forever, name="http", daemon=True)

    def __enter__(self) -> Self:
        self.receiver.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self.receiver.stop()
        self._management.close()

    @property
    def url(self) -> str:
        """Where Prometheus finds the metrics."""
        host, port = self._server.server_address[:2]
        return f"http://{bracket(str(host))}:{port}/metrics"

    def _respond(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            return self._metrics(environ, start_response)
        if path == "/-/healthy":
            status, body = check(
                good=self.receiver.alive, yes="healthy", no="the thread that receives snapshots has ended"
            )
        elif path == "/-/ready":
            status, body = check(good=self.receiver.consuming, yes="ready", no="not connected to the broker yet")
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


def own_version() -> str:
    """The version of Warren, where it is installed."""
    try:
        return version("warren")
    except PackageNotFoundError:
        return "unknown"


def serve(settings: ExporterSettings, *, host: str, port: int, exporter_id: str) -> None:
    """Receive and serve until SIGTERM or Ctrl-C.

    Raises:
        OSError: the address is taken, or not this machine's.
    """
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    with Exporter(settings, host=host, port=port, exporter_id=exporter_id) as exporter:
        logger.info("serving %s", exporter.url)
        stopping.wait()


def main() -> int:
    """Run the exporter with the settings of the environment."""
    logs.configure("INFO")
    try:
        settings = ExporterSettings.from_env()
        serve(settings, host=settings.host, port=settings.port, exporter_id=settings.exporter_id)
    except ConfigurationError as exc:
        print(exc, file=sys.stderr)
        return 2
    except OSError as exc:
        where = f"{bracket(settings.host)}:{settings.port}"
        print(f"EXPORTER_ADDRESS={where} cannot be used ({exc.strerror}): choose another", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
