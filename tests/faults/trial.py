"""One side in one case: its workers, its load, and the account at the end."""

from __future__ import annotations

import contextlib
import math
import os
import random
import signal
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from queues.errors import InDoubtError
from tests.faults.journal import ONCE, VARIABLE, Runs, Sent
from tests.faults.journal import close as close_log
from tests.faults.load import Load, Producer
from tests.faults.worker import Worker
from tests.integration.helpers import awaited

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.faults.lab import Lab
    from tests.faults.side import Side

#: The reason of a dead letter of a `once` task of which nobody knows whether it had its effect.
IN_DOUBT = InDoubtError().code
#: Seconds within which a publish ends.
PUBLISH_BOUND = 15.0
#: Seconds that a worker may take to start on a busy machine.
START = 90.0


@dataclass
class Line:
    """One line of the table. Figures that a case does not have are None."""

    case: str
    side: str
    sent: int | None = None
    confirmed: int | None = None
    refused: int | None = None
    unknown: int | None = None
    executed: int | None = None
    lost: int | None = None
    duplicated: int | None = None
    dead: int | None = None
    #: Tasks that did nothing wrong and were dead-lettered.
    innocent: int | None = None
    #: Ends of a worker that a message caused.
    restarts: int | None = None
    #: Seconds from healing until the next task ended, the longest of all; infinite where none did.
    recovered: float | None = None
    seconds: float = 0.0
    note: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    #: What missed its figure.
    failures: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable; an infinite wait is written as -1."""
        found = asdict(self)
        if self.recovered is not None and math.isinf(self.recovered):
            found["recovered"] = -1
        return found


class Trial:
    """Runs one side of a case; `account()` ends it."""

    def __init__(self, case: str, side: Side, lab: Lab, folder: Path, *, short: bool = False) -> None:
        folder.mkdir(parents=True)
        self.side, self.lab, self.folder, self.short = side, lab, folder, short
        self.line = Line(case, side.name)
        self.workers: list[Worker] = []
        self.journal, self.log = folder / "journal", folder / "sent"
        self.producer = Producer(side, self.log)
        self.loads: list[Load] = []
        #: Ids whose dead letter is right.
        self.guilty: set[str] = set()
        #: Ids whose end their caller was told of: stock Celery has no dead letters.
        self.told: set[str] = set()
        #: Ids that a worker had kept for good when it was stopped.
        self.kept: set[str] = set()
        #: Duplicates that the fault explains.
        self.allowed = 0
        self._healed: list[float] = []
        self._begun = time.monotonic()

    @property
    def ours(self) -> bool:
        """Whether this is Warren."""
        return self.side.name == "ours"

    def times(self, full: int, short: int) -> int:
        """How often something is done, by the suite or by its smoke."""
        return short if self.short else full

    def start(self, count: int = 1, *, port: int | None = None, environment: dict[str, str] | None = None) -> None:
        """Start workers, and wait until all consume."""
        for _ in range(count):
            name = f"w{len(self.workers)}-{os.urandom(3).hex()}"
            settings = {**self.side.environment(port), VARIABLE: str(self.journal), **(environment or {})}
            log = self.folder / f"worker-{len(self.workers)}.log"
            self.workers.append(Worker(self.side.command(name), settings, log))
        self.await_consumers(len(self.workers))

    def await_consumers(self, count: int, patience: float = START) -> None:
        """Wait until so many consume.

        Raises:
            AssertionError: they do not.
        """

        def ready() -> bool:
            found = self.side.counts(self.side.queue)
            return found is not None and found[1] >= count

        assert awaited(ready, patience), f"no {count} consumers of {self.side.queue}; see {self.folder}"

    def load(
        self,
        count: int,
        rate: float = 100.0,
        *,
        task: str = "faults.run",
        args: tuple[Any, ...] = (0.005,),
        threads: int = 3,
    ) -> Load:
        """Publish in the background."""
        self.loads.append(Load(self.producer, count, rate, task, args, threads))
        return self.loads[-1]

    def load_once(self, count: int, rate: float = 20.0, seconds: float = 0.05) -> Load:
        """The same with tasks that ask not to be run twice."""
        return self.load(count, rate, task=ONCE, args=(seconds,), threads=1)

    def send(self, task: str = "faults.run", args: tuple[Any, ...] = (0.0,), **options: Any) -> str:
        """Publish one task; gives its outcome."""
        return self.producer.send(task, args, **options)

    def runs(self) -> Runs:
        """What the tasks have done so far."""
        return Runs.of(self.journal)

    def started(self, task_id: str) -> int:
        """How often a task has begun so far."""
        return sum(count for (name, _), count in self.runs().started.items() if name == task_id)

    def sent(self) -> Sent:
        """What was published so far."""
        return Sent.of(self.log)

    def finished(self) -> int:
        """How many ids have ended so far."""
        return len(self.runs().finished)

    def await_finished(self, count: int, patience: float = 60.0) -> bool:
        """Wait until so many ids have ended."""
        return bool(awaited(lambda: self.finished() >= count, patience))

    def await_next(self, after: float, patience: float = 30.0) -> bool:
        """Wait until a task ends after a moment."""
        return awaited(lambda: self.runs().next_end(after) is not None, patience)

    def healed(self) -> float:
        """The fault is over now."""
        self._healed.append(time.time())
        return self._healed[-1]

    def kill_child(self) -> bool:
        """SIGKILL to a process that runs tasks."""
        children = self.workers[0].children()
        if not children:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(random.choice(children), signal.SIGKILL)
        return True

    def settle(self, patience: float = 60.0, quiet: float = 8.0) -> None:
        """Wait until every confirmed task has ended or is a dead letter, or nothing moves any more."""
        for load in self.loads:
            load.join(patience)
        limit = time.monotonic() + patience
        seen: Any = None
        since = time.monotonic()
        while time.monotonic() < limit:
            runs, sent = self.runs(), Sent.of(self.log)
            waiting = sent.of_kind("confirmed") - set(runs.finished)
            ready = self.side.counts(self.side.queue)
            parked = sum((self.side.counts(name) or (0, 0))[0] for name in self.parking())
            if len(waiting) <= parked and ready is not None and not ready[0] and not self._running(runs, sent):
                return
            now = (len(runs.started), len(runs.ends), ready, parked)
            if now != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > quiet and not self._delayed():
                return
            time.sleep(0.2)

    def _delayed(self) -> bool:
        """Whether the broker still holds a message back."""
        return self.ours and any(name.startswith("celery_delayed") for name in self.lab.held())

    def parking(self) -> tuple[str, ...]:
        """Where messages may rest for good."""
        from queues.topology import UNDELIVERABLE

        return (self.side.dead, UNDELIVERABLE) if self.side.dead else ()

    def _running(self, runs: Runs, sent: Sent) -> bool:
        """Whether a task has begun that is neither ended nor guilty."""
        return bool(
            {task_id for task_id, _ in runs.started} - set(runs.finished) - self.guilty - sent.of_kind("refused")
        )

    def require(self, condition: Any, failure: str) -> None:
        """A figure of this case."""
        if not condition:
            self.line.failures.append(failure)

    def stop(self, patience: float = 20.0) -> list[tuple[int, float]]:
        """Stop the workers; exit code and seconds of each."""
        stopped, self.workers = self.workers, []
        found = [worker.stop(patience) for worker in stopped]
        exits = [code for worker in stopped for code in worker.exits]
        self.line.restarts = (self.line.restarts or 0) + len(exits)
        self.line.figures["exits"] = [*self.line.figures.get("exits", []), *exits]
        return found

    def account(self) -> Line:
        """Stop everything, look where every message is, and fill in the line."""
        line = self.line
        for load in self.loads:
            load.stop()
            load.join(1)
        self.stop()
        queued = {mark for mark, _ in self.side.drain(self.side.queue)} | self.kept
        letters = self.side.drain(self.side.dead) if self.side.dead else []
        dead = {mark for mark, _ in letters}
        elsewhere = {mark for place in self.side.places for mark, _ in self._look(place)}
        runs, sent = self.runs(), Sent.of(self.log)
        confirmed, finished = sent.of_kind("confirmed"), set(runs.finished)
        missing = confirmed - finished - queued - dead - elsewhere - self.told
        doubtful = {mark for mark, reason in letters if reason == IN_DOUBT} & sent.once
        line.sent, line.confirmed = len(sent.all), len(confirmed)
        line.refused, line.unknown = len(sent.of_kind("refused")), len(sent.of_kind("unknown"))
        line.executed, line.lost = len(finished), len(missing)
        line.duplicated = runs.duplicated(self.guilty)
        line.dead, line.innocent = len(dead), len(dead - self.guilty - doubtful)
        if self._healed:
            line.recovered = max(runs.next_end(moment) or math.inf for moment in self._healed)
        if self.ours and missing:
            line.figures["held"] = self.lab.held()
            line.figures["missing"] = sorted(missing)
        line.seconds = round(time.monotonic() - self._begun, 1)
        line.figures |= {
            "longest_publish": round(sent.longest, 2),
            "unknown_executed": len(sent.of_kind("unknown") & finished),
            "queued": len(queued),
            "dead_copies": len(letters),
            "reasons": dict(Counter(reason for _, reason in letters)),
            "once_sent": len(sent.once),
            "once_doubled": runs.doubled(sent.once),
            "once_in_doubt": len(doubtful),
            "allowed_duplicates": self.allowed,
        }
        if sent.once:
            doubled = f"once: {len(sent.once)} sent, {runs.doubled(sent.once)} doubled, {len(doubtful)} in doubt"
            line.note = "; ".join(part for part in (line.note, doubled) if part)
        if self.ours:
            self.require(not runs.doubled(sent.once), f"{runs.doubled(sent.once)} `once` tasks doubled")
            self.require(not line.lost, f"{line.lost} lost")
            self.require(not line.innocent, f"{line.innocent} innocent dead letters")
            self.require(not line.restarts or line.figures.get("exempt_restarts"), f"{line.restarts} restarts")
            self.require(line.duplicated <= self.allowed, f"{line.duplicated} duplicated, {self.allowed} explained")
            self.require(not queued, f"{len(queued)} left in the queue")
            # Other tests run beside the smoke.
            bound = PUBLISH_BOUND + (10 if self.short else 0)
            self.require(sent.longest <= bound, f"a publish took {sent.longest:.2f} s")
        return line

    def _look(self, place: str) -> list[tuple[str, str]]:
        """Drain a place that has messages: most have none, and a look is cheap."""
        if place.endswith("unread") or not (self.side.counts(place) or (0, 0))[0]:
            return []
        return self.side.drain(place)

    def close(self) -> None:
        """Whatever is left ends."""
        for load in self.loads:
            load.stop()
        for worker in self.workers:
            worker.stop(1)
        close_log(self.log)


def together(trials: list[Trial], action: Callable[[Trial], Any]) -> None:
    """Do something for each side at the same time.

    Raises:
        Exception: what one of them raised.
    """
    errors: list[Exception] = []

    def call(trial: Trial) -> None:
        try:
            action(trial)
        except Exception as exc:  # noqa: BLE001 - raised below
            errors.append(exc)

    threads = [threading.Thread(target=call, args=(trial,), daemon=True) for trial in trials]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
