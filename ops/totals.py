"""The sum of what all workers ever measured, from the snapshots that they publish (see `workers.metrics`).

A snapshot holds cumulative values of one process, an incarnation, so its growth since the incarnation's last one is
added to the totals. A repeated or older snapshot adds nothing, and a lost one is made up for by the next. What scrapes
are shown is the sum as it was at the last `publish`, when it had been written down: it never goes back.
"""

from __future__ import annotations

import base64
import json
import threading
import time
import zlib
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.utils import floatToGoString

from ops.exposition import KeptFamily, Series
from ops.snapshots import METRICS, Key, Snapshot, Value, require
from queues.topology import QUEUES, Topology

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client.core import Metric as Family

#: Seconds of silence after which an incarnation is taken to have ended; an idle worker speaks every five minutes.
FINISHED_AFTER = 600.0
#: Seconds of silence after which one that has said goodbye is forgotten, and one that has not: until then it may speak
#: again, as after a long alarm of the broker.
LEFT_AFTER = 3600.0
FORGOTTEN_AFTER = 86400.0
#: Incarnations that are remembered; beyond, those that are silent for longest are forgotten earlier.
MOST_INCARNATIONS = 5000
#: Samples of all tasks together, where nothing else is set.
MAX_SERIES = 100_000


def growth(new: Value, old: Value | None) -> Value:
    """What came since the last snapshot.

    Raises:
        MalformedSnapshotError: less than before.
    """
    grown = new if old is None else [now - before for now, before in zip(new, old, strict=True)]
    require(min(grown) >= 0, "a value shrank")
    return grown


def moved(value: Value, bounds: tuple[float, ...], own: tuple[float, ...]) -> Value:
    """A histogram with other bounds: nothing goes to a bucket below what was observed."""
    if bounds == own:
        return value
    result: Value = [0] * (len(own) + 2)
    places = [0, *(bisect_left(own, bound) + 1 for bound in bounds), len(own) + 1]
    for place, part in zip(places, value, strict=True):
        result[place] += part
    return result


def samples(value: Value) -> int:
    """How many samples Prometheus makes of a value: a histogram has its sum, its buckets and their count."""
    return len(value) + 1 if len(value) > 1 else 1


@dataclass(slots=True)
class Incarnation:
    """One worker process, as its last snapshot left it; `packed` holds the values of one that fell silent."""

    worker: str
    queue: str
    bounds: tuple[float, ...]
    #: On the totals' clock.
    seen: float
    seq: int = 0
    #: It began before the totals did, and what it had counted until then is not known yet.
    older: bool = False
    #: It has said goodbye.
    left: bool = False
    gauges: dict[str, int] = field(default_factory=dict)
    values: dict[Key, Value] = field(default_factory=dict)
    packed: bytes = b""
    #: Seconds since the epoch of its last snapshot.
    heard_at: float = 0.0

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
    """Adds up snapshots, and yields the sums as metrics.

    One thread calls `apply`, `publish`, `state`, `restore`, `pause` and `resume`; any may call `collect` and `due`.
    """

    def __init__(
        self,
        topology: Topology = QUEUES,
        clock: Callable[[], float] = time.monotonic,
        *,
        since: float = 0.0,
        max_series: int = MAX_SERIES,
    ) -> None:
        """Begin at nothing.

        Args:
            topology: its bounds win: workers may still run with those of an older one.
            clock: seconds.
            since: seconds since the epoch: of workers that began earlier, only what comes from now on is counted, so
                that a sum which begins anew does not leap to what had been counted before.
            max_series: samples of all tasks together.
        """
        self._clock, self._since, self._max_series = clock, since, max_series
        self._lock = threading.Lock()
        self._bounds = {queue.name: queue.buckets for queue in topology}
        self._edges: dict[str, tuple[str, ...]] = {}
        #: By name, then by queue, task and label.
        self._values: dict[str, dict[tuple[str, ...], Value]] = {name: {} for name in METRICS}
        self._dirty: set[tuple[str, tuple[str, ...]]] = set()
        self._shown: dict[str, dict[tuple[str, ...], Series]] = {name: {} for name in METRICS}
        self._incarnations: dict[str, Incarnation] = {}
        self._due: dict[str, float] = {}
        self._messages = {"": 0, "_repeated": 0, "_malformed": 0}
        self._samples = self._dropped = 0
        self._heard_at: float | None = None
        self._paused_at: float | None = None

    def pause(self) -> None:
        """Nothing can be heard from now on: nobody is taken to be silent."""
        with self._lock:
            if self._paused_at is None:
                self._paused_at = self._clock()

    def resume(self) -> None:
        """End a pause."""
        with self._lock:
            if self._paused_at is not None:
                gap = self._clock() - self._paused_at
                for incarnation in self._incarnations.values():
                    incarnation.seen += gap
                self._paused_at = None

    def due(self, queue: str) -> float | None:
        """Seconds since the epoch: when the youngest message of the queue that was started had been due."""
        return self._due.get(queue)

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
            known = Incarnation(
                snapshot.worker, snapshot.queue, snapshot.bounds, seen=now, older=snapshot.started_at < self._since
            )
        elif snapshot.seq <= known.seq:
            return False
        require((known.queue, known.bounds) == (snapshot.queue, snapshot.bounds), "the incarnation changed its queue")
        known.unpack()
        grown = {key: growth(value, known.values.get(key)) for key, value in snapshot.series.items()}
        for key, value in grown.items():
            news: Value = [0.0] * len(value) if known.older and key not in known.values else value
            if self._add(key, news, known):
                known.values[key] = snapshot.series[key]
        known.older = known.older and not snapshot.full
        known.seq, known.seen, known.gauges = snapshot.seq, now, snapshot.gauges
        known.left = snapshot.full and not snapshot.gauges
        known.heard_at = self._heard_at = time.time()
        self._due[snapshot.queue] = max(snapshot.due, self._due.get(snapshot.queue, 0.0))
        self._incarnations[snapshot.incarnation] = known
        return True

    def _add(self, key: Key, value: Value, source: Incarnation) -> bool:
        """Add growth to its series; False where that would be one too many."""
        name, task, label = key
        labels = (source.queue, task, label) if METRICS[name].label else (source.queue, task)
        if METRICS[name].histogram:
            value = moved(value, source.bounds, self._bounds.setdefault(source.queue, source.bounds))
        total = self._values[name].get(labels)
        if total is None:
            if self._samples + samples(value) > self._max_series:
                self._dropped += 1
                return False
            total = self._values[name][labels] = [0] * len(value)
            self._samples += samples(value)
        for place, part in enumerate(value):
            total[place] += part
        self._dirty.add((name, labels))
        return True

    def publish(self) -> None:
        """Show what was applied."""
        with self._lock:
            self._publish()

    def _publish(self) -> None:
        for name, labels in self._dirty:
            self._show(name, labels)
        self._dirty.clear()

    def _show(self, name: str, labels: tuple[str, ...]) -> None:
        metric = METRICS[name]
        edges = None
        if metric.histogram:
            queue = labels[0]
            if queue not in self._edges:
                self._edges[queue] = (*map(floatToGoString, self._bounds[queue]), "+Inf")
            edges = self._edges[queue]
        known, value = self._shown[name].get(labels), tuple(self._values[name][labels])
        self._shown[name][labels] = (
            Series(known.name, known.labels, value, edges, known.frame)
            if known
            else Series(
                metric.name.removesuffix("_total"), sorted(zip(metric.labels, labels, strict=True)), value, edges
            )
        )

    def state(self) -> dict[str, Any]:
        """Everything that must outlive the process, as JSON."""
        with self._lock:
            now = self._clock() if self._paused_at is None else self._paused_at
            return {
                "bounds": dict(self._bounds),
                "due": dict(self._due),
                "totals": [
                    (name, labels, value) for name, values in self._values.items() for labels, value in values.items()
                ],
                "incarnations": [
                    {
                        "id": key,
                        "worker": item.worker,
                        "queue": item.queue,
                        "bounds": item.bounds,
                        "silence": now - item.seen,
                        "heard_at": item.heard_at,
                        "seq": item.seq,
                        "older": item.older,
                        "left": item.left,
                        "gauges": item.gauges,
                        "values": [(*name, value) for name, value in item.values.items()],
                        "packed": base64.b64encode(item.packed).decode(),
                    }
                    for key, item in self._incarnations.items()
                ],
            }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken; what was applied since is forgotten, its messages come again.

        Raises:
            KeyError, TypeError, ValueError: it is none of ours; nothing was changed.
        """
        now = self._clock() if self._paused_at is None else self._paused_at
        bounds = {queue: tuple(found) for queue, found in state["bounds"].items()} | self._bounds
        values: dict[str, dict[tuple[str, ...], Value]] = {name: {} for name in METRICS}
        for name, labels, value in state["totals"]:
            if name not in METRICS:
                continue
            if METRICS[name].histogram:
                values[name][tuple(labels)] = moved(value, tuple(state["bounds"][labels[0]]), bounds[labels[0]])
            else:
                values[name][tuple(labels)] = value
        incarnations = {
            item["id"]: Incarnation(
                item["worker"],
                item["queue"],
                tuple(item["bounds"]),
                seen=now - item["silence"],
                seq=item["seq"],
                older=item["older"],
                left=item["left"],
                gauges=item["gauges"],
                values={(name, task, label): value for name, task, label, value in item["values"]},
                packed=base64.b64decode(item["packed"]),
                heard_at=item["heard_at"],
            )
            for item in state["incarnations"]
        }
        due = {str(queue): float(when) for queue, when in state["due"].items()}
        with self._lock:
            self._bounds, self._values, self._incarnations, self._due = bounds, values, incarnations, due
            self._shown = {name: {} for name in METRICS}
            self._dirty = {(name, labels) for name, found in values.items() for labels in found}
            self._samples = sum(samples(value) for found in values.values() for value in found.values())
            # At once: a scrape in between would see no sums.
            self._publish()

    def _tidy(self, now: float) -> None:
        """Forget what is long over."""
        if self._paused_at is not None:
            return
        silent = []
        for key, incarnation in list(self._incarnations.items()):
            silence = now - incarnation.seen
            if silence > (LEFT_AFTER if incarnation.left else FORGOTTEN_AFTER):
                del self._incarnations[key]
            elif silence > FINISHED_AFTER:
                incarnation.pack()
                silent.append((incarnation.seen, key))
        for _, key in sorted(silent)[: max(0, len(self._incarnations) - MOST_INCARNATIONS)]:
            del self._incarnations[key]

    def collect(self) -> Iterator[Family]:
        """The sums as they were published, the workers that are alive, and how many snapshots came."""
        with self._lock:
            self._tidy(self._clock())
            families = [*self._tasks(), *self._workers(), *self._snapshots()]
        yield from families

    def _tasks(self) -> Iterator[Family]:
        for name, metric in METRICS.items():
            kind = "histogram" if metric.histogram else "counter"
            yield KeptFamily(metric.name.removesuffix("_total"), metric.help, kind, [*self._shown[name].values()])

    def _workers(self) -> Iterator[Family]:
        # A worker that was restarted has two incarnations for a while: the one that spoke last counts. While nothing
        # can be heard, nothing is known of any.
        alive = {
            (item.worker, item.queue): item
            for item in sorted(self._incarnations.values(), key=lambda item: item.seen)
            if item.gauges and self._paused_at is None
        }
        for gauge, name, meaning in (
            ("concurrency", "celery_worker_concurrency", "Child processes of a worker."),
            ("busy", "celery_worker_busy_processes", "Child processes that run a task."),
            ("reserved", "celery_worker_reserved_tasks", "Tasks that a worker holds, running or about to."),
            ("oldest", "celery_worker_oldest_task_start_timestamp_seconds", "When its longest running task began."),
        ):
            family = GaugeMetricFamily(name, meaning, labels=("worker", "queue"))
            for labels, item in alive.items():
                if gauge in item.gauges:
                    family.add_metric(labels, item.gauges[gauge])
            yield family
        heard = GaugeMetricFamily(
            "celery_worker_last_snapshot_timestamp_seconds",
            "When a worker was last heard; an idle one speaks every five minutes.",
            labels=("worker", "queue"),
        )
        for labels, item in alive.items():
            heard.add_metric(labels, item.heard_at)
        yield heard

    def _snapshots(self) -> Iterator[Family]:
        for name, meaning in (
            ("", "Snapshots of workers that were counted."),
            ("_repeated", "Snapshots that had come before and were not counted again."),
            ("_malformed", "Messages that are no snapshot and were not counted."),
        ):
            yield CounterMetricFamily(f"celery_exporter_snapshots{name}_total", meaning, self._messages[name])
        yield GaugeMetricFamily(
            "celery_exporter_last_snapshot_timestamp_seconds", "When the last snapshot came.", self._heard_at
        )
        yield GaugeMetricFamily("celery_exporter_series", "Samples of all tasks together.", self._samples)
        yield CounterMetricFamily(
            "celery_exporter_series_dropped_total",
            f"Changes of new series that were left out, because there were {self._max_series} samples already.",
            self._dropped,
        )
