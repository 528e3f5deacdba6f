"""The pains that users of other exporters report, one row each: ours and theirs on the same broker, good or not.

What needs no rival is in `tests/integration/test_torture.py`; counts through kills, waits, zeros, scrapes and memory
are parts of their own. The numbers are those of that test.
"""

from __future__ import annotations

import json
import os
import signal
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import amqp

from ops.management import Management
from queues.topology import QUEUES
from tests.benchmarks.lane import LABELS, Bench, resident, wait_for
from tests.integration.exporters import Metrics, OwnExporter, channel

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from tests.benchmarks.theirs import Theirs

#: Seconds in which what is counted shows.
SHOWN = 12.0
#: A queue that belongs to one connection alone.
PRIVATE = "torture.private"


@dataclass
class Lab:
    """Both exporters, and one math worker that sends events."""

    bench: Bench
    ours: OwnExporter
    theirs: Theirs | None
    worker: subprocess.Popen[bytes]

    def look(self) -> tuple[Metrics, Metrics]:
        """A scrape of each; theirs is empty where it fails."""
        found = self.theirs.metrics() if self.theirs else None
        return self.ours.metrics(), found or Metrics("")

    def shows(self, condition: Callable[[Metrics], bool], *, theirs: bool) -> bool:
        """Whether an exporter comes to show something."""
        limit = time.monotonic() + SHOWN
        while time.monotonic() < limit:
            with suppress(OSError):
                if condition(self.look()[theirs]):
                    return True
            time.sleep(0.2)
        return False

    def both(self, ours: Callable[[Metrics], bool], theirs: Callable[[Metrics], bool]) -> tuple[bool, bool]:
        """Whether each comes to show what it should."""
        return self.shows(ours, theirs=False), self.shows(theirs, theirs=True)

    def send(self, name: str, *args: Any, **options: Any) -> None:
        """Publish a task."""
        self.bench.app.send_task(name, args, ignore_result=True, **options)

    def emit(self, *events: dict[str, Any]) -> None:
        """Worker events in one message, as workers batch them."""
        common = {"timestamp": time.time(), "utcoffset": 0, "pid": 1, "clock": 1, "hostname": "math@forged"}
        body = json.dumps([common | event for event in events]).encode()
        message = amqp.Message(body, content_type="application/json", content_encoding="utf-8")
        with channel(self.bench.app) as opened:
            opened.basic_publish(message, exchange="celeryev", routing_key="task.multi")
            opened.close()

    def snapshots(self, *workers: str, seq: int = 1, bye: bool = False) -> None:
        """What workers of ours would send that have done nothing."""
        with channel(self.bench.app) as opened:
            for worker in workers:
                body = {
                    "version": 1, "incarnation": f"torture-{worker}", "worker": worker, "queue": "math", "seq": seq,
                    "started_at": time.time(), "sent_at": time.time(), "full": True, "due": 0.0,
                    "gauges": {} if bye else {"concurrency": 2}, "bounds": QUEUES.queue("math").buckets,
                    "series": [["started", "math.add", "", 0]],
                }  # fmt: skip
                opened.basic_publish(amqp.Message(json.dumps(body).encode()), exchange="metrics")
            opened.close()


def task_events(name: str, hostname: str = "math@forged", runtime: float | None = 0.1) -> tuple[dict[str, Any], ...]:
    """A task that is received and succeeds, as events; Celery sends no runtime where a process died after a success."""
    one: dict[str, Any] = {"uuid": str(uuid.uuid4()), "hostname": hostname}
    return (
        one | {"type": "task-received", "name": name, "args": "(1, 2)" * 80, "kwargs": "{}"},
        one | {"type": "task-succeeded", "runtime": runtime, "result": "3"},
    )


def p01(lab: Lab) -> tuple[bool, bool]:
    """Without sent events, the queue's name is right."""
    before = lab.ours.metrics().sum("celery_task_completions_total", **LABELS)
    for _ in range(5):
        lab.send("math.add", 1, 2)
    return lab.both(
        lambda found: found.sum("celery_task_completions_total", **LABELS) == before + 5,
        lambda found: found.sum("celery_task_succeeded_total", name="math.add", queue_name="math") > 0,
    )


def p02(lab: Lab) -> tuple[bool, bool]:
    """With sent events, a delayed task's queue is right."""
    lab.bench.app.conf.task_send_sent_event = True
    lab.send("math.multiply", 2, 3, countdown=1)
    lab.bench.app.conf.task_send_sent_event = False
    return lab.both(
        lambda found: found.sum("celery_task_completions_total", queue="math", task="math.multiply") == 1,
        lambda found: found.sum("celery_task_succeeded_total", name="math.multiply", queue_name="math") == 1,
    )


def p03(lab: Lab) -> tuple[bool, bool]:
    """There is a wait."""
    ours, theirs = lab.look()
    return ours.sum("celery_task_queue_wait_seconds_count", **LABELS) > 0, "wait" in theirs.text


def p07(lab: Lab) -> tuple[bool, bool]:
    """A message that does not fit takes nothing else with it."""
    lab.emit(*task_events("torture.first", runtime=None), *task_events("torture.second"))
    with channel(lab.bench.app) as opened:
        opened.basic_publish(amqp.Message(b"[" * 9999), exchange="metrics")
        opened.close()
    before = lab.ours.metrics().sum("celery_task_completions_total", **LABELS)
    lab.send("math.add", 1, 2)
    return lab.both(
        lambda found: found.sum("celery_task_completions_total", **LABELS) == before + 1,
        lambda found: found.sum("celery_task_succeeded_total", name="torture.second") == 1,
    )


def p08(lab: Lab) -> tuple[bool, bool]:
    """Of two workers on a host one ends: the other is up."""
    for kind, name in (("online", "math"), ("online", "image"), ("offline", "math")):
        lab.emit({"type": f"worker-{kind}", "hostname": f"{name}@box1"})
    lab.snapshots("math@box1", "other@box1")
    lab.snapshots("math@box1", seq=2, bye=True)
    time.sleep(2)
    gauge = "celery_worker_concurrency"
    return lab.both(
        lambda found: found.sum(gauge, worker="other@box1") == 2 and not found.of(gauge, worker="math@box1"),
        lambda found: found.sum("celery_worker_up", hostname="box1") == 1,
    )


def p09(lab: Lab) -> tuple[bool, bool]:
    """A hundred workers that come and go add no series of tasks."""
    before = [len(found.of("celery_task_")) for found in lab.look()]
    for pod in range(100):
        lab.emit(*task_events("math.add", f"math@pod-{pod}"))
    lab.snapshots(*(f"math@pod-{pod}" for pod in range(100)))
    wait_for(lambda: len(lab.ours.metrics().of("celery_worker_concurrency")) > 100, "the pods are not there")
    lab.snapshots(*(f"math@pod-{pod}" for pod in range(100)), seq=2, bye=True)
    after = [len(found.of("celery_task_")) for found in lab.look()]
    lab.bench.note(part="torture", pain="p09", series_before=before, series_after=after)
    return after[0] == before[0], after[1] == before[1]


def p10(lab: Lab) -> tuple[bool, bool]:
    """Ten thousand tasks that wait cost no memory."""
    processes = [exporter.process for exporter in (lab.ours, lab.theirs) if exporter and exporter.process]
    before = [resident(process.pid) for process in processes]
    for _ in range(500):
        lab.emit(*(task_events("math.add")[0] for _ in range(20)))
    time.sleep(10)
    grown = [resident(process.pid) - then for process, then in zip(processes, before, strict=True)]
    lab.bench.note(part="torture", pain="p10", grown_mb=grown)
    return grown[0] < 5, grown[-1] < 5


def p12(lab: Lab) -> tuple[bool, bool]:
    """Eight seconds in which the exporter hangs lose nothing."""
    name = "celery_task_succeeded_total"
    ours, theirs = lab.look()
    before = ours.sum("celery_task_completions_total", **LABELS), theirs.sum(name, name="math.add")
    processes = [exporter.process for exporter in (lab.ours, lab.theirs) if exporter and exporter.process]
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        for _ in range(50):
            lab.send("math.add", 1, 2)
        time.sleep(8)
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)
    return lab.both(
        lambda found: found.sum("celery_task_completions_total", **LABELS) == before[0] + 50,
        lambda found: found.sum(name, name="math.add") == before[1] + 50,
    )


def p14(lab: Lab) -> tuple[bool, bool]:
    """What workers hold is counted."""
    for _ in range(2):
        lab.send("math.long_task", 12)
    ours = lab.shows(lambda found: found.sum("celery_queue_messages_unacknowledged", queue="math") == 2, theirs=False)
    return ours, lab.look()[1].sum("celery_queue_length", queue_name="math") == 2


def p19(lab: Lab) -> tuple[bool, bool]:
    """Runtimes have buckets up to the queue's hard limit."""

    def highest(found: Metrics, prefix: str) -> float:
        edges = [float(dict(labels)["le"]) for name, labels in found.of(prefix) if name.endswith("_bucket")]
        return max((edge for edge in edges if edge != float("inf")), default=0.0)

    limit = QUEUES.queue("math").time_limit
    ours, theirs = lab.look()
    return highest(ours, "celery_task_runtime") >= limit, highest(theirs, "celery_task_runtime") >= limit


def p20(lab: Lab) -> tuple[bool, bool]:
    """A failure has a runtime."""
    lab.send("math.reliable_task", {"fail": True})
    task = "math.reliable_task"
    return lab.both(
        lambda found: found.sum("celery_task_runtime_seconds_count", task=task, outcome="failed") == 1,
        lambda found: found.sum("celery_task_runtime_count", name=task) == 1,
    )


def p24(lab: Lab) -> tuple[bool, bool]:
    """An expired task is told from a revoked one."""
    lab.send("math.add", 1, 2, expires=-5)
    return lab.both(
        lambda found: found.sum("celery_task_revocations_total", reason="expired", **LABELS) == 1,
        lambda found: "expired" in found.text,
    )


def p25(lab: Lab) -> tuple[bool, bool]:
    """A process that dies under a task is counted."""
    labels = {"queue": "math", "task": "math.long_task"}
    ours, theirs = lab.look()
    names = [f"celery_task_{kind}_total" for kind in ("failed", "rejected", "retried", "revoked")]

    def troubles(found: Metrics) -> float:
        return sum(found.sum(name, name="math.long_task") for name in names)

    begun, lost = ours.sum("celery_task_started_total", **labels), ours.sum("celery_task_worker_lost_total", **labels)
    lab.send("math.long_task", 5)
    wait_for(lambda: lab.ours.metrics().sum("celery_task_started_total", **labels) == begun + 1, "it did not start")
    for child in Path(f"/proc/{lab.worker.pid}/task/{lab.worker.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    return lab.both(
        lambda found: found.sum("celery_task_worker_lost_total", **labels) == lost + 1,
        lambda found: troubles(found) > troubles(theirs),
    )


def p29(lab: Lab) -> tuple[bool, bool]:
    """A hundred producers add no series."""
    before = [len(found.samples) for found in lab.look()]
    for pod in range(100):
        sent = {"type": "task-sent", "uuid": str(uuid.uuid4()), "name": "math.add", "queue": "math"}
        lab.emit(sent | {"hostname": f"gen{pod}@web-{pod}"})
    time.sleep(3)
    after = [len(found.samples) for found in lab.look()]
    lab.bench.note(part="torture", pain="p29", series_before=before, series_after=after)
    return after[0] <= before[0], after[1] <= before[1]


def p30(lab: Lab) -> tuple[bool, bool]:
    """Scrapes open no connection."""
    management = Management.from_env(lab.bench.stack.environment("operator"))

    def opened() -> int:
        time.sleep(7)  # the broker's statistics are that old
        return int(management.get("/api/overview")["churn_rates"]["connection_created"])

    try:
        counts = [opened()]
        for scrape in (lab.ours.metrics, lab.theirs.metrics if lab.theirs else lab.ours.metrics):
            for _ in range(5):
                scrape()
            counts.append(opened())
    finally:
        management.close()
    lab.bench.note(part="torture", pain="p30", connections=counts)
    return counts[1] == counts[0], counts[2] == counts[1]


def p15(lab: Lab) -> tuple[bool, bool]:
    """A queue that cannot be looked at takes nothing from the others."""
    with channel(lab.bench.app) as opened:
        opened.queue_declare(PRIVATE, exclusive=True)
        opened.queue_delete("email")
        return lab.both(
            lambda found: (
                found.get("celery_queue_up", queue="email") == 0
                and found.get("celery_queue_messages_ready", queue="email") is None
                and found.get("celery_queue_messages_ready", queue="math") is not None
            ),
            lambda found: found.get("celery_queue_length", queue_name="math") is not None,
        )


ROWS = (p01, p02, p03, p07, p08, p09, p10, p12, p14, p19, p20, p24, p25, p29, p30, p15)


def torture(bench: Bench) -> None:
    """Each row: whether ours does it right, and theirs."""
    words = {True: "yes", False: "no"}
    with bench.exporter("torture") as ours, bench.theirs() as theirs, bench.worker("-E", name="torture") as worker:
        ours.start()
        wait_for(lambda: ours.ready, "our exporter is not ready")
        if theirs:
            theirs._command += ["--queues", f"math,{PRIVATE}"]
            theirs.start()
        lab = Lab(bench, ours, theirs, worker)
        for row in ROWS:
            good = row(lab)
            bench.note(part="torture", pain=row.__name__, ours=good[0], theirs=good[1])
            name = f"{row.__name__.upper()} {(row.__doc__ or '').rstrip('.')}"
            bench.figure(name, words[good[0]], words[good[1]] if theirs else "-")
    # The definitions bring the deleted queue back.
    bench.stack.broker.stop()
    bench.stack.broker.start()
