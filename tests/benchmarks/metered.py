"""The math worker with measuring or without, and a journal of what it ran: `celery -A tests.benchmarks.metered ...`.

With `BENCH_JOURNAL` each child appends a line a task, `id start`, by its own clock, and the main process `id start` as
it has measured it, to `<file>.main`: a truth for counts and for waits.

With `BENCH_BLOCKS` the worker, started with -E, changes after each block of tasks between no measuring, ours, and
events, and appends a line a block: its name, and the processor seconds of the main process, of all processes, and of
the measuring alone. Within one process, what the machine is doing besides falls on all three alike.
"""

from __future__ import annotations

import os
import time
from itertools import cycle
from pathlib import Path
from typing import Any

from queues.topology import QUEUES

MATH = QUEUES.queue("math")
# A child that is replaced would take its processor time along, counted in whole ticks.
object.__setattr__(MATH, "max_tasks_per_child", 1_000_000)

from celery import signals  # noqa: E402 - the table comes first

from workers import metrics, reporter  # noqa: E402
from workers.app import app  # noqa: E402

JOURNAL, BLOCKS = os.environ.get("BENCH_JOURNAL"), os.environ.get("BENCH_BLOCKS")
#: Tasks of a block; the first are not counted, they still hold some of the block before.
BLOCK, LEAD_IN = 250, 25
#: Each follows each other as often.
ORDER = ("unmetered", "ours", "events", "unmetered", "events", "ours")

measured = {name: getattr(metrics.Recorder, name) for name in ("started", "finished", "failed")}
report = reporter.Reporter.report


class Lines:
    """A file to which each process appends whole lines."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, *words: object) -> None:
        """One line."""
        os.write(self._descriptor, (" ".join(map(str, words)) + "\n").encode())


def cpu(pid: int) -> tuple[float, float]:
    """Processor seconds of a worker's main process alone, and with its children, to the nanosecond."""
    pids = [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    spent = [
        sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{one}/task").glob("*/schedstat")) for one in pids
    ]
    return spent[0] / 1e9, sum(spent) / 1e9


if JOURNAL:
    children, main = Lines(JOURNAL), Lines(f"{JOURNAL}.main")

    @signals.task_prerun.connect(weak=False)
    def begin(task_id: str, **_: Any) -> None:
        """The child is about to run the task."""
        children.write(task_id, time.time())

    def started(self: metrics.Recorder, request: Any) -> None:
        """The main process has measured the start."""
        main.write(request.id, request.time_start)
        measured["started"](self, request)

    setattr(metrics.Recorder, "started", started)  # noqa: B010 - on purpose


class Blocks:
    """Which variant runs now."""

    def __init__(self, path: str) -> None:
        self._lines = Lines(path)
        self._order = cycle(ORDER)
        self._tasks = 0
        self._before = (0.0, 0.0, 0.0)
        #: Processor seconds spent in the recorder's methods and in sending.
        self.measuring = 0.0
        self.variant = next(self._order)

    def task(self, dispatcher: Any) -> None:
        """One more task has started."""
        self._tasks += 1
        if self._tasks == LEAD_IN:
            self._before = (*cpu(os.getpid()), self.measuring)
        elif self._tasks == BLOCK:
            spent = [now - then for now, then in zip((*cpu(os.getpid()), self.measuring), self._before, strict=True)]
            self._lines.write(self.variant, *spent)
            self._tasks, self.variant = 0, next(self._order)
            dispatcher.enabled = self.variant == "events"


if BLOCKS:
    blocks = Blocks(BLOCKS)

    def only_ours(name: str) -> Any:
        """A recorder's method that works in our blocks; that of a start also counts tasks."""

        def call(self: metrics.Recorder, request: Any, *arguments: Any) -> None:
            if name == "started":
                blocks.task(request.eventer)
            if blocks.variant == "ours":
                begun = time.thread_time()
                measured[name](self, request, *arguments)
                blocks.measuring += time.thread_time() - begun

        return call

    def report_ours(self: reporter.Reporter, consumer: Any, *, final: bool = False) -> None:
        """Snapshots are sent in our blocks."""
        if blocks.variant == "ours" or final:
            begun = time.thread_time()
            report(self, consumer, final=final)
            blocks.measuring += time.thread_time() - begun

    for method in measured:
        setattr(metrics.Recorder, method, only_ours(method))
    setattr(reporter.Reporter, "report", report_ours)  # noqa: B010 - on purpose

__all__ = ["app"]
