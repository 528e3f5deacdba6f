"""How right the numbers are: counts through trouble, waits task by task, zeros that are none."""

from __future__ import annotations

import contextlib
import signal
import statistics
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import amqp

from tests.benchmarks.lane import LABELS, Bench, percentile, wait_for
from tests.integration.exporters import Metrics, channel, flood

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass
class Increase:
    """What Prometheus makes of a counter: after a fall it counts on from zero."""

    total: float = 0.0
    last: float = 0.0
    resets: int = 0

    def see(self, value: float) -> None:
        """The next sample."""
        if value < self.last:
            self.resets += 1
            self.last = 0.0
        self.total += value - self.last
        self.last = value


def journal(path: Path) -> dict[str, float]:
    """When each task was started last, by its id."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {task_id: float(start) for task_id, start in lines}


def exact(bench: Bench) -> None:
    """Counts through three kill -9 of the exporter, a restart of the broker and one of the worker, under load."""
    truth = bench.stack.folder / "journal"
    truth.unlink(missing_ok=True)
    arguments = ("-E",) if bench.python else ()
    environment = {"BENCH_JOURNAL": str(truth)}
    bench.app.conf.task_send_sent_event = bool(bench.python)
    counts = {"ours": Increase(), "theirs": Increase()}
    stop = threading.Event()
    with bench.exporter("exact") as ours, bench.theirs() as theirs, contextlib.ExitStack() as workers:
        ours.start()
        wait_for(lambda: ours.ready, "our exporter is not ready")
        if theirs:
            theirs.start()

        def watch(name: str, scrape: Callable[[], Metrics | None], sample: str, /, **labels: str) -> None:
            while not stop.wait(0.5):
                with contextlib.suppress(OSError):
                    if (found := scrape()) and found.of(sample, **labels):
                        counts[name].see(found.sum(sample, **labels))

        watchers = [
            threading.Thread(target=watch, daemon=True, args=("ours", ours.metrics, "celery_task_completions_total"))
        ]
        if theirs:
            succeeded = ("theirs", theirs.metrics, "celery_task_succeeded_total")
            watchers.append(threading.Thread(target=watch, daemon=True, args=succeeded, kwargs={"name": "math.add"}))
        for watcher in watchers:
            watcher.start()

        def load(number: int) -> None:
            # Through the app, so that sent events are sent where they are on.
            for _ in range(number):
                bench.app.send_task("math.add", (1, 2), ignore_result=True)

        current = workers.enter_context(bench.worker(*arguments, name="exact-0", **environment))
        for kill in range(3):
            load(300)
            ours.end(signal.SIGKILL)
            if theirs:
                theirs.end(signal.SIGKILL)
            load(100)  # while they are away
            time.sleep(6)
            ours.start()
            if theirs:
                theirs.start()
            load(100)
            wait_for(lambda: ours.ready, "our exporter is not ready")
            bench.note(part="exact", kill=kill, **{name: count.total for name, count in counts.items()})
        # A new worker, and the old one ends.
        workers.enter_context(bench.worker(*arguments, name="exact-1", **environment))
        load(300)
        current.send_signal(signal.SIGTERM)
        load(300)
        wait_for(bench.empty, "the queue did not drain")
        bench.stack.broker.stop()
        bench.stack.broker.start()
        load(300)
        wait_for(bench.empty, "the queue did not drain")
        wait_for(lambda: ours.ready, "our exporter is not ready")
        time.sleep(8)
        stop.set()
        for watcher in watchers:
            watcher.join()
        ended = journal(truth)
        starts = len(truth.read_text().splitlines())
        found = ours.metrics()
        started = found.sum("celery_task_started_total", **LABELS)
        finished = found.sum("celery_task_completions_total", **LABELS)
        counted = counts["theirs"].total
    bench.app.conf.task_send_sent_event = False
    bench.note(
        part="exact", starts=starts, tasks=len(ended), ours_started=started, ours_finished=finished, theirs=counted
    )
    name = "count error through 3 kills, a broker restart, a rolling restart"
    bench.figure(name, f"{started - starts:+.0f} of {starts}", f"{counted - starts:+.0f} of {starts}")
    bench.figure("sums went back", *(f"{count.resets} times" for count in counts.values()))


def waits(bench: Bench) -> None:
    """The error of the wait, task by task: what the main process measured against the child's own clock."""
    for waiting, name in ((0, "wait error p99"), (100_000, "wait error p99, 100 000 waiting")):
        truth = bench.stack.folder / f"waits-{waiting}"
        for path in (truth, Path(f"{truth}.main")):
            path.unlink(missing_ok=True)
        with bench.exporter(f"waits-{waiting}") as ours:
            ours.start()
            wait_for(lambda: ours.ready, "our exporter is not ready")
            if waiting:
                flood(bench.app, "math.add", (1, 2), waiting)
            with bench.worker(name=f"waits-{waiting}", BENCH_JOURNAL=str(truth)):
                if not waiting:
                    for _ in range(600):
                        bench.app.send_task("math.add", (1, 2), ignore_result=True)
                        time.sleep(0.01)
                wait_for(lambda: truth.exists() and len(truth.read_text().splitlines()) >= 600, "no task ran")  # noqa: B023
                if waiting:
                    time.sleep(10)
                    bench.purge()
                wait_for(bench.empty, "the queue did not drain")
            time.sleep(3)
            found = ours.metrics()
        measured, true = journal(Path(f"{truth}.main")), journal(truth)
        errors = [abs(measured[task_id] - start) * 1000 for task_id, start in true.items() if task_id in measured]
        started = found.sum("celery_task_started_total", **LABELS)
        observed = found.sum("celery_task_queue_wait_seconds_count", **LABELS)
        figures = {"p50": statistics.median(errors), "p99": percentile(errors, 0.99), "max": max(errors)}
        bench.note(
            part="waits", waiting=waiting, tasks=len(true), started=started, observed=observed,
            **{key: round(value, 3) for key, value in figures.items()},
        )  # fmt: skip
        text = ", ".join(f"{key} {value:.2f} ms" for key, value in figures.items())
        theirs = "no such metric in 0.11.2"
        bench.figure(name, f"{text} ({len(errors)} tasks, {observed:.0f} waits of {started:.0f} starts)", theirs)


def zeros(bench: Bench) -> None:
    """Samples of 0 for a queue that holds 500 messages, through a restart of the broker, and of one that is deleted."""
    with channel(bench.app) as opened:
        for _ in range(500):
            opened.basic_publish(
                amqp.Message(b"[[],{},{}]", delivery_mode=2, content_type="application/json"),
                exchange="tasks.image",
                routing_key="image",
            )
        opened.close()
    wrong: dict[str, int] = {"ours": 0, "theirs": 0}
    looks: dict[str, int] = {"ours": 0, "theirs": 0}
    with bench.exporter("zeros") as ours, bench.theirs() as theirs:
        if theirs:
            theirs._command += ["--queues", "image,email"]
            theirs.start()
        ours.start()
        wait_for(lambda: ours.ready, "our exporter is not ready")
        wait_for(lambda: ours.metrics().sum("celery_queue_messages_ready", queue="image") == 500, "500 are not seen")
        stop, deleted = threading.Event(), threading.Event()

        def watch(name: str, scrape: Callable[[], Metrics | None], sample: str, label: str) -> None:
            while not stop.wait(0.25):
                found = None
                with contextlib.suppress(OSError):
                    found = scrape()
                if found is None:
                    continue
                looks[name] += 1
                if found.get(sample, **{label: "image"}) == 0:
                    wrong[name] += 1
                if deleted.is_set() and found.get(sample, **{label: "email"}) is not None:
                    wrong[name] += 1

        threads = [
            threading.Thread(
                target=watch, daemon=True, args=("ours", ours.metrics, "celery_queue_messages_ready", "queue")
            )
        ]
        if theirs:
            threads.append(
                threading.Thread(
                    target=watch, daemon=True, args=("theirs", theirs.metrics, "celery_queue_length", "queue_name")
                )
            )
        for thread in threads:
            thread.start()
        try:
            time.sleep(3)
            bench.stack.broker.stop()
            bench.stack.broker.start()
            time.sleep(15)
            with bench.app.connection_for_write() as connection, connection.channel() as deleting:
                deleting.queue_delete("email")
            time.sleep(7)  # the broker's statistics, and a scrape that has begun, are that old
            deleted.set()
            time.sleep(8)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    bench.note(part="zeros", wrong=wrong, looks=looks)
    bench.figure(
        "wrong zeros", f"{wrong['ours']} of {looks['ours']} scrapes", f"{wrong['theirs']} of {looks['theirs']}"
    )
    # The definitions bring the queue back.
    bench.stack.broker.stop()
    bench.stack.broker.start()
    with bench.app.connection_for_write() as connection, connection.channel() as opened:
        opened.queue_purge("image")
