"""What every case uses: a broker with its workers, looks into them, and rows of what should come and what came."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery.exceptions import TimeoutError as WaitedError

from queues.app import WarrenCelery, create_app
from queues.headers import REASON
from queues.settings import Settings
from tests.faults.worker import Worker
from tests.integration.helpers import awaited, consumers, messages, ready

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from celery.canvas import Signature
    from celery.result import AsyncResult

    from tests.faults.lab import Lab

#: Characters of a row's texts.
TEXT = 300
#: What issue holds a known fault that is not of the workers.
PRODUCERS = "open: producers"


@dataclass(frozen=True, slots=True)
class Row:
    """One look.

    Attributes:
        case: its case.
        what: is looked at.
        should: come.
        came: in its place.
        reason: why it may be otherwise: by design, or an open fault that is known; empty where it may not.
    """

    case: str
    what: str
    should: str
    came: str
    reason: str = ""

    @property
    def fits(self) -> bool:
        """Whether it came as it should."""
        return self.came == self.should

    @property
    def mark(self) -> str:
        """For the table."""
        return "✓" if self.fits else self.reason or "✗"


@dataclass(frozen=True, slots=True)
class Case:
    """One group of looks.

    Attributes:
        name: as the command line takes it.
        title: in one line.
        run: looks.
        queues: whose workers run meanwhile.
    """

    name: str
    title: str
    run: Callable[[Bench], None]
    queues: tuple[str, ...]


CASES: dict[str, Case] = {}


def case(name: str, title: str, *queues: str) -> Callable[[Callable[[Bench], None]], Callable[[Bench], None]]:
    """Register a case."""

    def note(run: Callable[[Bench], None]) -> Callable[[Bench], None]:
        CASES[name] = Case(name, title, run, queues)
        return run

    return note


class Bench:
    """The lab of one run."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.lab, self.folder = lab, folder
        self.rows: list[Row] = []
        self.name = ""
        self.workers: dict[str, Worker] = {}
        self.nodes: dict[str, str] = {}
        self.app = self.acting_as("producer")
        self.operator = self.acting_as("operator")

    def acting_as(self, role: str, **changes: str) -> WarrenCelery:
        """An app with a role's rights, that can ask workers."""
        made = create_app(Settings.from_env({**self.lab.environment(role), **changes}), name=f"cases-{role}")
        made.control_cls = "workers.remote:Control"
        made.events_cls = "workers.remote:Events"
        return made

    def expect(self, what: str, should: Any, came: Any, reason: str = "") -> None:
        """Add a row."""
        shown, found = (" ".join(str(value).split())[:TEXT] for value in (should, came))
        self.rows.append(Row(self.name, what, shown, found, reason))

    def start(self, queue: str, *options: str, **environment: str) -> Worker:
        """Start a worker of a queue; another that is there is stopped."""
        self.stop(queue)
        self.nodes[queue] = f"{queue}@{os.urandom(3).hex()}"
        command = [sys.executable, "-m", "celery", "-A", "workers.app", "worker", "-Q", queue, "-n", self.nodes[queue]]
        self.workers[queue] = Worker(
            [*command, "--loglevel", "INFO", *options],
            {**self.lab.environment(f"worker-{queue}"), **environment},
            self.folder / f"{self.name}-{queue}.log",
        )
        return self.workers[queue]

    def consuming(self, queue: str, patience: float = 60.0) -> bool:
        """Whether a worker consumes, awaited."""
        return bool(awaited(lambda: consumers(self.operator, queue), patience))

    def stop(self, *queues: str) -> None:
        """Stop workers: these, or all."""
        for queue in queues or (*self.workers,):
            if (worker := self.workers.pop(queue, None)) is not None:
                worker.stop(15)

    def log(self, queue: str) -> str:
        """What the worker of this case has printed."""
        return (self.folder / f"{self.name}-{queue}.log").read_text(errors="replace")

    def step(self, task: str, *args: Any, **kwargs: Any) -> Signature[Any]:
        """A signature under an id of its own."""
        made: Signature[Any] = self.app.signature(task, args=args, kwargs=kwargs, app=self.app)
        return made.set(task_id=str(uuid.uuid4()))

    def send(self, task: str, *args: Any, **options: Any) -> AsyncResult[Any]:
        """Publish a task."""
        kwargs = options.pop("kwargs", {})
        return self.app.send_task(task, args, kwargs, **options)

    def ended(self, result: AsyncResult[Any], patience: float = 20.0) -> str:
        """How a result ended for whoever knows its id alone."""
        try:
            return repr(self.app.AsyncResult(result.id).get(timeout=patience))
        except WaitedError:
            return f"waits ({self.app.AsyncResult(result.id).state})"
        except BaseException as exc:  # noqa: BLE001 - whatever a reader meets
            return f"{type(exc).__name__}: {exc}"

    def works(self, queue: str = "cases") -> str:
        """How a good task ends there."""
        return self.ended(self.send(f"{queue}.echo", "works"))

    def letter(self, task_id: str, queue: str = "cases") -> str:
        """The reason of a task's dead letter."""
        found = [
            str((message.headers or {}).get(REASON, "by the broker"))
            for message in messages(self.operator, f"{queue}.dead")
            if (message.headers or {}).get("id") == task_id
        ]
        return ", ".join(found) or "none"

    def ready(self, queue: str) -> int:
        """Messages that wait there."""
        return ready(self.operator, queue)

    def purge(self) -> None:
        """Nothing is left of another case."""
        with self.operator.connection_for_write() as connection, connection.channel() as channel:
            for queue in ("cases", "cases.dead", "classes", "classes.dead", "monitor", "math"):
                channel.queue_purge(queue)

    def run(
        self, *command: str, role: str, patience: float = 60.0, changes: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run Python with a role's settings."""
        environment = {**os.environ, **self.lab.environment(role), **(changes or {})}
        try:
            return subprocess.run(
                [sys.executable, *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=patience,
            )
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(command, -1, "", f"still running after {patience:.0f} s")

    def script(self, code: str, *, role: str = "producer", **changes: str) -> str:
        """What a program of a few lines prints last, or the last line of its error."""
        done = self.run("-c", code, role=role, changes=changes)
        lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
        return lines[-1] if lines else f"exit {done.returncode}"

    def celery(self, *words: str, role: str = "operator", patience: float = 30.0) -> subprocess.CompletedProcess[str]:
        """Run a command of Celery's."""
        return self.run("-m", "celery", "-A", "workers.app", *words, role=role, patience=patience)

    def close(self) -> None:
        """Stop everything."""
        self.stop()
        for app in (self.app, self.operator):
            app.close()
