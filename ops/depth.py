"""The depth of the queues, and the broker's alarms, as metrics: what the management API knows."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from ops.definitions import DELAY_LEVELS
from ops.errors import OpsError
from queues.topology import QUEUES, UNDELIVERABLE, Topology

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from prometheus_client.core import Metric as Family

#: Seconds within which scrapes share one answer.
SHARED = 1.0
#: The management API's numbers are statistics that queues emit every five seconds.
STATISTICS_AGE = 5
_AGE = f"Up to {STATISTICS_AGE} s old."
#: States of a queue in which RabbitMQ's numbers are those of a leader.
_ALIVE = frozenset({None, "running", "idle", "flow"})

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Counts:
    """What the broker knows of one queue."""

    ready: int
    unacknowledged: int
    consumers: int
    #: On their way to where the queue dead-letters; a delay queue hands its messages on like that.
    leaving: int
    #: Since the queue's node started; None where the broker counts nothing.
    published: int | None = None
    acknowledged: int | None = None
    redelivered: int | None = None
    #: Seconds since the epoch: the stamp of the message that comes next. Quorum queues do not tell.
    head: int | None = None
    size: int | None = None

    @property
    def all(self) -> int:
        """Messages, whether they wait, are held, or cannot leave."""
        return self.ready + self.unacknowledged + self.leaving

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Counts | None:
        """The counts in a row of the management API; None where the queue has no leader or no statistics."""
        ready, unacknowledged, consumers = (
            whole(row.get(key)) for key in ("messages_ready", "messages_unacknowledged", "consumers")
        )
        if row.get("state") not in _ALIVE or ready is None or unacknowledged is None or consumers is None:
            return None
        stats = row.get("message_stats")
        # RabbitMQ writes an empty object as a list.
        found = stats if isinstance(stats, dict) else {}
        return cls(
            ready,
            unacknowledged,
            consumers,
            leaving=whole(row.get("messages_dlx")) or 0,
            published=whole(found.get("publish")),
            acknowledged=whole(found.get("ack")),
            redelivered=whole(found.get("redeliver")),
            head=whole(row.get("head_message_timestamp")),
            size=whole(row.get("message_bytes")),
        )


class Depth:
    """How much waits in the table's queues; two calls of the management API, which scrapes within a second share."""

    def __init__(
        self,
        queues: Callable[[], list[dict[str, Any]]],
        nodes: Callable[[], list[dict[str, Any]]] = list,
        *,
        due: Callable[[str], float | None] = lambda _queue: None,
        topology: Topology = QUEUES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Name the sources.

        Args:
            queues: rows of the management API.
            nodes: the same, of the cluster's nodes.
            due: when the youngest message of a queue that was started had been due, in seconds since the epoch.
            topology: the table.
            clock: seconds since the epoch.
        """
        self._queues = Shared(lambda: {row["name"]: row for row in queues()}, clock)
        self._nodes = Shared(nodes, clock)
        self._due = due
        self._topology = topology
        self._clock = clock
        #: When a queue was last seen empty.
        self._empty_at: dict[str, float] = {}

    def collect(self) -> Iterator[Family]:
        """The broker's numbers.

        Raises:
            OpsError: it did not answer; what is known has been yielded.
        """
        rows, problem = self._queues.read()
        found = {name: counts for name, row in (rows or {}).items() if (counts := Counts.of(row)) is not None}
        yield gauge("celery_broker_up", "Whether the management API answers.", int(problem is None))
        names = self._topology.names
        present = {name: found[name] for name in names if name in found}
        yield by_queue(
            "celery_queue_up",
            "Whether the broker knows the queue and its numbers; without them the queue has no other sample.",
            {name: int(name in found) for name in names},
        )
        for name, meaning, attribute in (
            ("celery_queue_messages_ready", "Messages that wait for a worker.", "ready"),
            (
                "celery_queue_messages_unacknowledged",
                "Messages that workers hold, running or about to.",
                "unacknowledged",
            ),
            (
                "celery_queue_messages_dead_lettering",
                "Messages that left the queue and are not among the dead letters yet.",
                "leaving",
            ),
            ("celery_queue_consumers", "Workers that consume the queue.", "consumers"),
        ):
            values = {queue: getattr(counts, attribute) for queue, counts in present.items()}
            yield by_queue(name, f"{meaning} {_AGE}", values)
        for name, meaning, attribute in (
            ("published", "Messages that came to the queue,", "published"),
            ("acknowledged", "Messages that left the queue for good,", "acknowledged"),
            ("redelivered", "Deliveries of a message that had been delivered before,", "redelivered"),
        ):
            family = CounterMetricFamily(
                f"celery_queue_messages_{name}_total", f"{meaning} since its node started. {_AGE}", labels=("queue",)
            )
            for queue, counts in present.items():
                if getattr(counts, attribute) is not None:
                    family.add_metric((queue,), getattr(counts, attribute))
            yield family
        yield by_queue(
            "celery_queue_oldest_message_timestamp_seconds",
            "No message that waits was published, or due, before this, those aside that came back: the broker's own "
            "knowledge, or the later of what workers started last and when the queue was last seen empty.",
            self._oldest(present),
        )
        dead = {queue: found[queue.dead_letter] for queue in self._topology if queue.dead_letter in found}
        yield by_queue(
            "celery_dead_letter_messages",
            f"Messages in the queue's dead-letter queue. {_AGE}",
            {queue.name: counts.all for queue, counts in dead.items()},
        )
        yield by_queue(
            "celery_dead_letter_bytes",
            f"Bytes in the queue's dead-letter queue; at its limit the oldest go. {_AGE}",
            {queue.name: counts.size for queue, counts in dead.items() if counts.size is not None},
        )
        yield from self._sums(found)
        if problem is not None:
            # A second question would only wait for another timeout.
            raise problem
        yield from self._alarms()

    def _oldest(self, present: Mapping[str, Counts]) -> dict[str, float]:
        now = self._clock()
        self._empty_at |= {queue: now - STATISTICS_AGE for queue, counts in present.items() if counts.ready == 0}
        known = {
            queue: counts.head or max(self._empty_at.get(queue, 0.0), self._due(queue) or 0.0)
            for queue, counts in present.items()
            if counts.ready
        }
        return {queue: when for queue, when in known.items() if when}

    def _sums(self, found: Mapping[str, Counts]) -> Iterator[Family]:
        undeliverable = found.get(UNDELIVERABLE)
        yield gauge(
            "celery_undeliverable_messages",
            f"Delayed messages whose queue no longer exists. {_AGE}",
            None if undeliverable is None else undeliverable.all,
        )
        delays = [found.get(f"celery_delayed_{level}") for level in range(DELAY_LEVELS)]
        known = [counts for counts in delays if counts is not None]
        complete = len(known) == len(delays)
        yield gauge(
            "celery_delayed_messages",
            f"Messages that wait for their ETA or their next attempt, of all queues. {_AGE}",
            sum(counts.all for counts in known) if complete else None,
        )
        yield gauge(
            "celery_delayed_blocked_messages",
            f"Those of them that no queue takes; more than a few hold up all other delays. {_AGE}",
            sum(counts.leaving for counts in known) if complete else None,
        )

    def _alarms(self) -> Iterator[Family]:
        """While there is one, publishers wait.

        Raises:
            OpsError: the broker did not say.
        """
        nodes, problem = self._nodes.read()
        family = GaugeMetricFamily(
            "celery_broker_alarm", f"Whether a node blocks publishers for want of it. {_AGE}", labels=("resource",)
        )
        for resource, key in (("memory", "mem_alarm"), ("disk", "disk_free_alarm")):
            said = [node[key] for node in nodes or () if isinstance(node.get(key), bool)]
            if said:
                family.add_metric((resource,), int(any(said)))
        yield family
        if problem is not None:
            raise problem


class Shared(Generic[Answer]):
    """An answer of the broker, which whoever asks within a second is given too."""

    def __init__(self, ask: Callable[[], Answer], clock: Callable[[], float]) -> None:
        self._ask, self._clock = ask, clock
        self._lock = threading.Lock()
        self._until = -1.0
        self._answer: tuple[Answer | None, OpsError | None] = (None, None)

    def read(self) -> tuple[Answer | None, OpsError | None]:
        """The answer, or why there is none."""
        with self._lock:
            now = self._clock()
            # A clock that was set back must not keep an answer for ever.
            if not self._until - SHARED <= now < self._until:
                try:
                    self._answer = self._ask(), None
                except OpsError as exc:
                    self._answer = None, exc
                self._until = self._clock() + SHARED
            return self._answer


def whole(value: object) -> int | None:
    """A whole number, or None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def gauge(name: str, meaning: str, value: float | None) -> GaugeMetricFamily:
    """A gauge without labels; without a sample for None."""
    return GaugeMetricFamily(name, meaning, value)


def by_queue(name: str, meaning: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    """A gauge with a sample for each queue."""
    family = GaugeMetricFamily(name, meaning, labels=("queue",))
    for queue, value in values.items():
        family.add_metric((queue,), value)
    return family
