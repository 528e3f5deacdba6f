"""A broker of our own with workers and exporters on it, and the figures that are seen there."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ops.management import Management
from ops.processes import clean_environment
from tests.benchmarks.theirs import Theirs
from tests.integration.exporters import OwnExporter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ops.local import Stack
    from queues.app import WarrenCelery

PATIENCE = 240.0
LABELS = {"queue": "math", "task": "math.add"}


@dataclass
class Bench:
    """A broker of our own, and workers and exporters on it."""

    stack: Stack
    app: WarrenCelery
    python: Path | None
    rounds: int
    #: What was seen, one dictionary a line of the results' file.
    seen: list[dict[str, Any]] = field(default_factory=list)
    #: Ours and theirs, by the name of the figure.
    figures: dict[str, tuple[str, str]] = field(default_factory=dict)

    def note(self, **values: Any) -> None:
        """Keep a raw figure."""
        self.seen.append(values)
        print(json.dumps(values), file=sys.stderr, flush=True)

    def figure(self, name: str, ours: str, theirs: str = "-") -> None:
        """A line of the table."""
        self.figures[name] = (ours, theirs)

    @contextlib.contextmanager
    def worker(self, *arguments: str, name: str = "bench", **environment: str) -> Iterator[subprocess.Popen[bytes]]:
        """The math worker, up and consuming."""
        beat = self.stack.folder / f"heartbeat-{name}"
        beat.unlink(missing_ok=True)
        everything = {
            **clean_environment(),
            **self.stack.environment("worker-math"),
            "HEARTBEAT_FILE": str(beat),
            **environment,
        }
        command = (sys.executable, "-m", "celery", "-A", "tests.benchmarks.metered", "worker", "-Q", "math")
        with (self.stack.folder / "log" / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                (*command, "--loglevel", "WARNING", "-n", f"math@{name}", *arguments),
                env=everything,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        try:
            wait_for(beat.exists, f"the worker did not start: see {log.name}")
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE)

    def exporter(self, exporter_id: str) -> OwnExporter:
        """An exporter of ours."""
        return OwnExporter(self.stack, self.stack.folder / "exporters", exporter_id)

    def theirs(self) -> contextlib.AbstractContextManager[Theirs | None]:
        """Theirs, where it could be installed."""
        return contextlib.nullcontext() if self.python is None else Theirs(self.python, self.stack)

    def empty(self) -> bool:
        """Whether nothing waits and nothing is held."""
        with self.app.connection_for_read() as connection, connection.channel() as opened:
            if opened.queue_declare("math", passive=True).message_count:
                return False
        management = Management.from_env(self.stack.environment("operator"))
        try:
            (row,) = [row for row in management.queues() if row["name"] == "math"]
            return row.get("messages") == 0
        finally:
            management.close()

    def purge(self) -> None:
        """Empty the queue."""
        with self.app.connection_for_write() as connection, connection.channel() as opened:
            opened.queue_purge("math")


def wait_for(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> None:
    """Look until a condition holds.

    Raises:
        TimeoutError: it never did.
    """
    limit = time.monotonic() + patience
    while not condition():
        if time.monotonic() > limit:
            raise TimeoutError(what)
        time.sleep(0.05)


def ready(bench: Bench) -> int:
    """How many messages wait."""
    with bench.app.connection_for_read() as connection, connection.channel() as opened:
        count: int = opened.queue_declare("math", passive=True).message_count
        return count


def percentile(values: list[float], share: float) -> float:
    """The value that this share of all does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def spread(values: list[float]) -> str:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:+.1f} ({low:+.1f} to {high:+.1f})"


def resident(pid: int) -> float:
    """Resident megabytes of a process."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
