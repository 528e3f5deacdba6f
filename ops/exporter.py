"""The exporter: what RabbitMQ and the workers know, as Prometheus reads it. `python -m ops.exporter`.

One long-lived AMQP connection receives the workers' snapshots, one kept HTTPS connection asks the management API for
the depth of the queues. What is not known has no sample: never a zero.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import signal
import sys
import threading
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Self

from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily

from ops.depth import Depth
from ops.errors import OpsError
from ops.management import Management, ManagementSettings
from ops.receiver import Receiver
from ops.totals import Totals
from ops.web import Server, Site
from queues.environment import Reader, bracket
from queues.errors import ConfigurationError
from workers import logs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import TracebackType

    from prometheus_client.core import Metric as Family

logger = logging.getLogger("ops.exporter")

PORT = 9808


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
        self._respond = Site(
            make_wsgi_app(self.registry),
            healthy=lambda: self.receiver.alive,
            ready=lambda: self.receiver.consuming,
        )
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
