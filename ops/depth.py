"""The depth of the queues as metrics, as the management API knows it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prometheus_client.core import GaugeMetricFamily

from ops.definitions import DELAY_LEVELS
from ops.errors import OpsError
from queues.topology import QUEUES, UNDELIVERABLE, Topology

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from prometheus_client.core import Metric as Family

#: Seconds within which scrapes share one answer.
SHARED = 1.0
#: The management API's numbers are statistics that queues emit every five seconds.
_AGE = "Up to 5 s old."
#: States of a queue in which RabbitMQ's numbers are those of a leader.
_ALIVE = frozenset({None, "running", "idle", "flow"})


@dataclass(frozen=True, slots=True)
class Counts:
    """What the broker knows of one queue."""

    ready: int
    unacknowledged: int
    consumers: int

    @property
    def all(self) -> int:
        """Messages, whether they wait or are held."""
        return self.ready + self.unacknowledged

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Counts | None:
        """The counts in a row of the management API; None where the queue has no leader or no statistics."""
        numbers = [row.get(key) for key in ("messages_ready", "messages_unacknowledged", "consumers")]
        if row.get("state") not in _ALIVE or not all(isinstance(number, int) for number in numbers):
            return None
        return cls(*numbers)  # type: ignore[arg-type]


class Depth:
    """How much waits in the table's queues, from one call of the management API that scrapes within a second share."""

    def __init__(
        self,
        ask: Callable[[], list[dict[str, Any]]],
        topology: Topology = QUEUES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._topology = topology
        self._clock = clock
        self._lock = threading.Lock()
        self._until = -1.0
        self._answer: dict[str, Counts] | OpsError = {}

    def collect(self) -> Iterator[Family]:
        """The broker's numbers.

        Raises:
            OpsError: it did not answer; what is known has been yielded.
        """
        answer = self._read()
        down = isinstance(answer, OpsError)
        found = {} if isinstance(answer, OpsError) else answer
        yield gauge("celery_broker_up", "Whether the management API answers.", int(not down))
        queues = self._topology.names
        present = {name: found[name] for name in queues if name in found}
        yield by_queue(
            "celery_queue_up",
            "Whether the broker knows the queue and its numbers; without them the queue has no other sample.",
            {name: int(name in found) for name in queues},
        )
        yield by_queue(
            "celery_queue_messages_ready",
            f"Messages that wait for a worker. {_AGE}",
            {name: counts.ready for name, counts in present.items()},
        )
        yield by_queue(
            "celery_queue_messages_unacknowledged",
            f"Messages that workers hold, running or about to. {_AGE}",
            {name: counts.unacknowledged for name, counts in present.items()},
        )
        yield by_queue(
            "celery_queue_consumers",
            f"Workers that consume the queue. {_AGE}",
            {name: counts.consumers for name, counts in present.items()},
        )
        yield by_queue(
            "celery_dead_letter_messages",
            f"Messages in the queue's dead-letter queue. {_AGE}",
            {queue.name: found[queue.dead_letter].all for queue in self._topology if queue.dead_letter in found},
        )
        for name, meaning, members in (
            ("celery_undeliverable_messages", "Delayed messages whose queue no longer exists.", [UNDELIVERABLE]),
            (
                "celery_delayed_messages",
                "Messages that wait for their ETA or their next attempt, of all queues.",
                [f"celery_delayed_{level}" for level in range(DELAY_LEVELS)],
            ),
        ):
            known = [found[member].all for member in members if member in found]
            yield gauge(name, f"{meaning} {_AGE}", sum(known) if len(known) == len(members) else None)
        if isinstance(answer, OpsError):
            raise answer

    def _read(self) -> dict[str, Counts] | OpsError:
        with self._lock:
            if self._clock() >= self._until:
                try:
                    rows = self._ask()
                    self._answer = {row["name"]: counts for row in rows if (counts := Counts.of(row)) is not None}
                except OpsError as exc:
                    self._answer = exc
                self._until = self._clock() + SHARED
            return self._answer


def gauge(name: str, meaning: str, value: float | None) -> GaugeMetricFamily:
    """A gauge without labels; without a sample for None."""
    return GaugeMetricFamily(name, meaning, value)


def by_queue(name: str, meaning: str, values: Mapping[str, int]) -> GaugeMetricFamily:
    """A gauge with a sample for each queue."""
    family = GaugeMetricFamily(name, meaning, labels=("queue",))
    for queue, value in values.items():
        family.add_metric((queue,), value)
    return family
