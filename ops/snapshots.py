"""One message of a worker, checked, and the metrics that its names stand for (see `workers.metrics`)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

VERSION = 1
_MAX_TEXT = 255
_MAX_NUMBER = 2**63

#: name, task, label
Key = tuple[str, str, str]
#: A count by itself, or a histogram: the sum, then a count for each bucket, the last of them unbounded.
Value = list[float]


@dataclass(frozen=True, slots=True)
class Metric:
    """One kind of series.

    Attributes:
        name: Prometheus' name.
        help: what it counts, or the seconds of what it observes.
        label: the label besides queue and task, or empty.
        histogram: whether it is one.
    """

    name: str
    help: str
    label: str = ""
    histogram: bool = False

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of its labels."""
        return ("queue", "task", self.label) if self.label else ("queue", "task")


#: By the name that snapshots use.
METRICS = {
    "started": Metric("celery_task_started_total", "Deliveries that a child process began."),
    "completions": Metric("celery_task_completions_total", "Tasks that ended for good, succeeded or failed."),
    "failures": Metric(
        "celery_task_failures_total",
        "Tasks that failed for good; exception `reported` is an error returned as a value.",
        "exception",
    ),
    "retries": Metric("celery_task_retries_total", "Attempts that published a next one."),
    "timeouts": Metric(
        "celery_task_timeouts_total",
        "Time limits reached; at a hard one the child is killed and the task fails.",
        "kind",
    ),
    "rejections": Metric(
        "celery_task_rejections_total",
        "Messages that could not be run, dead-lettered; reason `requeued` is a task's own wish, and comes again.",
        "reason",
    ),
    "letters_deleted": Metric(
        "celery_dead_letters_deleted_total",
        "Dead letters that their retention deleted: `maxlen` for want of room, `expired` after their time.",
        "reason",
    ),
    "revocations": Metric(
        "celery_task_revocations_total", "Tasks not run, or ended, because expired, revoked or terminated.", "reason"
    ),
    "worker_lost": Metric(
        "celery_task_worker_lost_total", "Child processes that died under a task; its message is delivered again."
    ),
    "redeliveries": Metric(
        "celery_task_redeliveries_total", "Starts of a message delivered before; their wait is not observed."
    ),
    "deduplicated": Metric(
        "celery_task_deduplicated_total", "Repeats of a task that runs once: answered from the ledger, or dropped."
    ),
    "in_doubt": Metric(
        "celery_task_in_doubt_total", "Tasks that run once, held or run again after an attempt that left no record."
    ),
    "waits": Metric(
        "celery_task_waits_total", "Starts that did nothing: another attempt ran, or what the task needs was away."
    ),
    "unstamped": Metric(
        "celery_task_unstamped_total", "Starts of a message that says not when it was published; wait is unknown."
    ),
    "clock_skew": Metric(
        "celery_task_clock_skew_total", "Durations between two hosts that came out negative and are observed as 0."
    ),
    "wait": Metric(
        "celery_task_queue_wait_seconds",
        "From publishing, or the ETA if it is later, to the start in a child process.",
        histogram=True,
    ),
    "lateness": Metric(
        "celery_task_eta_lateness_seconds",
        "From the ETA to the start in a child process, of tasks and retries that have one.",
        histogram=True,
    ),
    "runtime": Metric(
        "celery_task_runtime_seconds", "One attempt that succeeded, failed or is retried.", "outcome", histogram=True
    ),
    "end_to_end": Metric(
        "celery_task_end_to_end_seconds",
        "From the first publishing to the end for good, with all retries.",
        histogram=True,
    ),
}


class MalformedSnapshotError(ValueError):
    """A message is no snapshot of ours; nothing of it was counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A checked message."""

    incarnation: str
    worker: str
    queue: str
    seq: int
    started_at: float
    full: bool
    due: float
    bounds: tuple[float, ...]
    gauges: dict[str, int]
    series: dict[Key, Value]

    @classmethod
    def parse(cls, body: bytes | str) -> Snapshot:
        """Check a message; series of names that this version does not know are left out.

        Raises:
            MalformedSnapshotError: it says what is wrong.
        """
        try:
            data = json.loads(body)
            require(data["version"] == VERSION, f"version {data['version']!r}")
            bounds = tuple(number(bound) for bound in data["bounds"])
            require(all(low < high for low, high in pairwise(bounds)), "bounds do not rise")
            return cls(
                incarnation=text(data["incarnation"]),
                worker=text(data["worker"]),
                queue=text(data["queue"]),
                seq=count(data["seq"]),
                started_at=number(data["started_at"]),
                full=data["full"] is True,
                due=number(data.get("due", 0.0)),
                bounds=bounds,
                gauges={text(key): count(value) for key, value in data["gauges"].items()},
                series={
                    (name, text(task), text(label) if label else ""): numbers(METRICS[name], value, len(bounds))
                    for name, task, label, value in data["series"]
                    if name in METRICS
                },
            )
        except MalformedSnapshotError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
            raise MalformedSnapshotError(f"{type(exc).__name__}: {exc}") from exc


def require(condition: object, problem: str) -> None:
    """Refuse a message.

    Raises:
        MalformedSnapshotError: the condition does not hold.
    """
    if not condition:
        raise MalformedSnapshotError(problem)


def text(value: object) -> str:
    """A string that may be a label."""
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_TEXT:
        raise MalformedSnapshotError(f"{value!r:.50} is no name")
    return value


def number(value: object) -> float:
    """A number from zero up that can be added to."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _MAX_NUMBER:
        raise MalformedSnapshotError(f"{value!r:.50} is no number")
    return value


def count(value: object) -> int:
    """A whole number from zero up."""
    if not isinstance(value, int):
        raise MalformedSnapshotError(f"{value!r:.50} is no count")
    number(value)
    return value


def numbers(metric: Metric, value: Any, bounds: int) -> Value:
    """A count, or a histogram with so many bounds, as the metric wants it."""
    if not metric.histogram:
        return [count(value)]
    total, *counts = value
    if len(counts) != bounds + 1:
        raise MalformedSnapshotError(f"{len(counts)} buckets for {bounds} bounds")
    # One look at all of them: there are thousands a second.
    if {*map(type, counts)} != {int} or min(counts) < 0 or max(counts) >= _MAX_NUMBER:
        counts = [*map(count, counts)]
    return [number(total), *counts]
