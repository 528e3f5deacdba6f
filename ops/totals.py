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
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString

from ops.snapshots import METRICS, Key, Snapshot, Value, require
from queues.topology import QUEUES, Topology

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client.core import Metric as Family

#: Seconds of silence after which an incarnation is taken to have ended; an idle worker speaks every five minutes.
FINISHED_AFTER = 600.0
#: Seconds of silence after which it is forgotten; until then it may speak again, as after a long alarm of the broker.
FORGOTTEN_AFTER = 86400.0


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
