"""The sum of what all workers ever measured, from the snapshots that they publish (see `workers.metrics`).

A snapshot holds cumulative values of one process, an incarnation, so its growth since the incarnation's last one is
added to the totals. A repeated or older snapshot adds nothing, and a lost one is made up for by the next.
"""

from __future__ import annotations

import json
import threading
import time
import zlib
from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString

from queues.topology import QUEUES, Topology

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client.core import Metric as Family

VERSION = 1
#: Seconds of silence after which an incarnation is taken to have ended; an idle worker speaks every five minutes.
FINISHED_AFTER = 600.0
#: Seconds of silence after which it is forgotten; until then it may speak again, as after a long alarm of the broker.
FORGOTTEN_AFTER = 86400.0
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
    "revocations": Metric(
        "celery_task_revocations_total", "Tasks not run, or ended, because expired, revoked or terminated.", "reason"
    ),
    "worker_lost": Metric(
        "celery_task_worker_lost_total", "Child processes that died under a task; its message is delivered again."
    ),
    "redeliveries": Metric(
        "celery_task_redeliveries_total", "Starts of a message delivered before; their wait is not observed."
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
    require(len(counts) == bounds + 1, f"{len(counts)} buckets for {bounds} bounds")
    return [number(total), *map(count, counts)]


def growth(new: Value, old: Value | None) -> Value:
    """What came since the last snapshot.

    Raises:
        MalformedSnapshotError: less than before.
    """
    grown = new if old is None else [now - before for now, before in zip(new, old, strict=True)]
    require(min(grown) >= 0, "a value shrank")
    return grown


def positions(bounds: tuple[float, ...], own: tuple[float, ...]) -> list[int]:
    """Where the numbers of a histogram go in one with other bounds: never to a bucket below what was observed."""
    return [0, *(bisect_left(own, bound) + 1 for bound in bounds), len(own) + 1]


@dataclass(slots=True)
class Incarnation:
    """One worker process, as its last snapshot left it; `packed` holds the values of one that fell silent."""

    worker: str
    queue: str
    bounds: tuple[float, ...]
    seen: float
    seq: int = 0
    gauges: dict[str, int] = field(default_factory=dict)
    values: dict[Key, Value] = field(default_factory=dict)
    packed: bytes = b""

    def pack(self) -> None:
        """Keep the values small, and the gauges not at all."""
        if self.values:
            self.packed = zlib.compress(json.dumps(list(self.values.items())).encode())
        self.gauges, self.values = {}, {}

    def unpack(self) -> None:
        """Undo `pack`: it speaks again."""
        if self.packed:
            self.values = {(key[0], key[1], key[2]): value for key, value in json.loads(zlib.decompress(self.packed))}
            self.packed = b""


class Totals:
    """Adds up snapshots, and yields the sums as metrics; safe to share between threads."""

    def __init__(self, topology: Topology = QUEUES, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        #: The table's bounds win: workers may still run with those of an older one.
        self._bounds = {queue.name: queue.buckets for queue in topology}
        #: By name, then by queue, task and label.
        self._values: dict[str, dict[tuple[str, ...], Value]] = {name: {} for name in METRICS}
        self._incarnations: dict[str, Incarnation] = {}
        self._messages = {"": 0, "_repeated": 0, "_malformed": 0}

    def apply(self, body: bytes | str) -> None:
        """Add what a message brings.

        Raises:
            MalformedSnapshotError: nothing of it was added.
        """
        with self._lock:
            outcome = "_malformed"
            try:
                outcome = "" if self._apply(Snapshot.parse(body)) else "_repeated"
            finally:
                self._messages[outcome] += 1

    def _apply(self, snapshot: Snapshot) -> bool:
        now = self._clock()
        known = self._incarnations.get(snapshot.incarnation)
        if known is None:
            self._tidy(now)
            known = Incarnation(snapshot.worker, snapshot.queue, snapshot.bounds, seen=now)
        elif snapshot.seq <= known.seq:
            return False
        require((known.queue, known.bounds) == (snapshot.queue, snapshot.bounds), "the incarnation changed its queue")
        known.unpack()
        grown = {key: growth(value, known.values.get(key)) for key, value in snapshot.series.items()}
        for key, value in grown.items():
            self._add(key, value, known)
        known.values.update(snapshot.series)
        known.seq, known.seen, known.gauges = snapshot.seq, now, snapshot.gauges
        self._incarnations[snapshot.incarnation] = known
        return True

    def _add(self, key: Key, value: Value, source: Incarnation) -> None:
        name, task, label = key
        labels = (source.queue, task, label) if METRICS[name].label else (source.queue, task)
        if METRICS[name].histogram:
            bounds = self._bounds.setdefault(source.queue, source.bounds)
            total = self._values[name].setdefault(labels, [0.0] * (len(bounds) + 2))
            places = positions(source.bounds, bounds)
        else:
            total = self._values[name].setdefault(labels, [0])
            places = [0]
        for place, part in zip(places, value, strict=True):
            total[place] += part

    def _tidy(self, now: float) -> None:
        """Forget what is long over."""
        for key, incarnation in list(self._incarnations.items()):
            silence = now - incarnation.seen
            if silence > FORGOTTEN_AFTER:
                del self._incarnations[key]
            elif silence > FINISHED_AFTER:
                incarnation.pack()

    def collect(self) -> Iterator[Family]:
        """The sums, the workers that are alive, and how many snapshots came."""
        with self._lock:
            self._tidy(self._clock())
            families = [*self._tasks(), *self._workers(), *self._snapshots()]
        yield from families

    def _tasks(self) -> Iterator[Family]:
        edges = {queue: [*map(floatToGoString, bounds), "+Inf"] for queue, bounds in self._bounds.items()}
        for name, metric in METRICS.items():
            values = self._values[name]
            if metric.histogram:
                histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
                for labels, (total, *counts) in values.items():
                    histogram.add_metric(labels, [*zip(edges[labels[0]], accumulate(counts), strict=True)], total)
                yield histogram
            else:
                counter = CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
                for labels, (total,) in values.items():
                    counter.add_metric(labels, total)
                yield counter

    def _workers(self) -> Iterator[Family]:
        # A worker that was restarted has two incarnations for a while: the one that spoke last counts.
        alive = {
            (item.worker, item.queue): item.gauges
            for item in sorted(self._incarnations.values(), key=lambda item: item.seen)
            if item.gauges
        }
        for gauge, name, meaning in (
            ("concurrency", "celery_worker_concurrency", "Child processes of a worker."),
            ("busy", "celery_worker_busy_processes", "Child processes that run a task."),
        ):
            family = GaugeMetricFamily(name, meaning, labels=("worker", "queue"))
            for labels, gauges in alive.items():
                if gauge in gauges:
                    family.add_metric(labels, gauges[gauge])
            yield family

    def _snapshots(self) -> Iterator[Family]:
        for name, meaning in (
            ("", "Snapshots of workers that were counted."),
            ("_repeated", "Snapshots that had come before and were not counted again."),
            ("_malformed", "Messages that are no snapshot and were not counted."),
        ):
            yield CounterMetricFamily(f"celery_exporter_snapshots{name}_total", meaning, self._messages[name])
