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
from pathlib import Path
from typing import TYPE_CHECKING, Self

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily

from ops import validity
from ops.checkpoint import Checkpoint
from ops.depth import Depth
from ops.errors import OpsError
from ops.management import Management, ManagementSettings
from ops.receiver import Receiver
from ops.totals import MAX_SERIES, Totals
from ops.web import Server, Site, WebSettings
from queues.environment import Reader, bracket
from queues.errors import ConfigurationError
from workers import logs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import TracebackType

    from prometheus_client.core import Metric as Family

logger = logging.getLogger("ops.exporter")

PORT = 9808
#: Seconds that a worker may be older than an exporter without a checkpoint, and is still counted from its beginning.
GRACE = 60.0
#: Seconds for which one thread keeps the interpreter from another.
SWITCH_INTERVAL = 0.001
#: Seconds between two looks whether it still can receive.
LOOK_INTERVAL = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ExporterSettings:
    """Where the exporter finds the broker, and where Prometheus finds the exporter.

    Attributes:
        management: the broker, over AMQP and over its management API.
        exporter_id: names the exporter's own queue and its checkpoint; two exporters need two.
        state: the folder of the checkpoint, or None: then sums begin anew at every start.
        max_series: samples of all tasks together; new series beyond are left out, and counted.
        web: where and how it serves.
    """

    management: ManagementSettings
    web: WebSettings
    exporter_id: str = "main"
    state: Path | None = None
    max_series: int = MAX_SERIES

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> ExporterSettings:
        """Read `BROKER_*`, `MANAGEMENT_URL` and `EXPORTER_*`.

        Raises:
            ConfigurationError: everything wrong at once, a line each.
        """
        reader = Reader(os.environ if environ is None else environ)
        management = ManagementSettings.read(reader)
        web = WebSettings.read(reader, PORT)
        exporter_id = reader.text("EXPORTER_ID", "main")
        if not re.fullmatch(r"[a-z0-9-]+", exporter_id):
            reader.problem(f"EXPORTER_ID={exporter_id!r} is no name: use small letters, digits and hyphens")
        state = reader.text("EXPORTER_STATE_DIR")
        max_series = reader.number("EXPORTER_MAX_SERIES", MAX_SERIES, low=1, high=10_000_000)
        reader.check()
        return cls(
            management=management,
            web=web,
            exporter_id=exporter_id,
            state=Path(state) if state else None,
            max_series=int(max_series),
        )


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

    def __init__(self, settings: ExporterSettings) -> None:
        """Bind the address.

        Raises:
            OSError: it is taken, or not this machine's.
            ConfigurationError: the certificate cannot be used.
        """
        broker = settings.management.broker
        checkpoint = usable_checkpoint(settings)
        self.totals = Totals(since=0.0 if checkpoint else time.time() - GRACE, max_series=settings.max_series)
        self.receiver = Receiver(broker, settings.exporter_id, self.totals, checkpoint)
        self._management = management = Management(settings.management)
        depth = Depth(management.queues, management.nodes, due=self.totals.due)

        def certificates() -> Iterator[Family]:
            ends = {"broker": self.receiver.not_after, "management": management.not_after}
            return validity.collect(broker.files, ends)

        self.registry = CollectorRegistry(support_collectors_without_names=True)
        self.registry.register(
            Scrape(
                {
                    "broker": depth.collect,
                    "snapshots": self.receiver.collect,
                    "tasks": self.totals.collect,
                    "certificates": certificates,
                }
            )
        )
        ProcessCollector(registry=self.registry)
        self._respond = Site(
            self.registry,
            settings.web,
            healthy=lambda: "" if self.receiver.alive else "the thread that receives snapshots has ended",
            ready=lambda: self.receiver.problem,
        )
        self._server = Server(settings.web, self._respond)
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
        return f"{self._server.url}/metrics"


def own_version() -> str:
    """The version of Warren, where it is installed."""
    try:
        return version("warren")
    except PackageNotFoundError:
        return "unknown"


def usable_checkpoint(settings: ExporterSettings) -> Checkpoint | None:
    """The checkpoint; None, and a line that says so, where there is no folder that can be written."""
    if settings.state is None:
        problem = "EXPORTER_STATE_DIR is not set"
    else:
        checkpoint = Checkpoint(settings.state, settings.exporter_id)
        try:
            checkpoint.try_out()
        except OSError as exc:
            problem = f"EXPORTER_STATE_DIR={str(settings.state)!r} cannot be written ({exc.strerror})"
        else:
            return checkpoint
    logger.warning(
        "%s: sums of task metrics begin at zero at every start of the exporter, ordinary counter resets; "
        "give a folder of its own to keep them",
        problem,
    )
    return None


def serve(settings: ExporterSettings) -> None:
    """Receive and serve until SIGTERM or Ctrl-C.

    Raises:
        OSError: the address is taken, or not this machine's.
        ConfigurationError: a certificate cannot be used, or the broker will never admit us.
    """
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    with Exporter(settings) as exporter:
        logger.info("serving %s", exporter.url)
        while not stopping.wait(LOOK_INTERVAL):
            if not exporter.receiver.alive:
                raise ConfigurationError(exporter.receiver.problem)


def main() -> int:
    """Run the exporter with the settings of the environment."""
    logs.configure("INFO")
    # A scrape waits for the interpreter at each read and write, while the other thread adds up.
    sys.setswitchinterval(SWITCH_INTERVAL)
    try:
        settings = ExporterSettings.from_env()
        serve(settings)
    except ConfigurationError as exc:
        print(exc, file=sys.stderr)
        return 2
    except OSError as exc:
        where = f"{bracket(settings.web.host)}:{settings.web.port}"
        print(f"EXPORTER_ADDRESS={where} cannot be used ({exc.strerror}): choose another", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
