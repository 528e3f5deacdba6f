"""The table: every queue and task of the deployment, described once.

Celery's queues, routes and limits, RabbitMQ's definitions, Compose, alerts and docs are derived from it or checked
against it. `python -m ops render` writes what is derived; a drift test names whatever was forgotten.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

#: A queue's name is also its routing key, a Compose suffix and a metric label.
_QUEUE_NAME = re.compile(r"[a-z][a-z0-9-]*")
_TASK_NAME = re.compile(r"[a-z][a-z0-9-]*\.[a-z][a-z0-9_]*")

#: Seconds that a hard time limit must stay below the broker's consumer timeout: a timeout that fires first takes the
#: message back while the task still runs, and the task runs twice.
CONSUMER_TIMEOUT_MARGIN = 120
#: Seconds between a task's hard time limit and the moment a stopping container is killed.
STOP_MARGIN = 15

#: Rejected messages of every queue go through this exchange to `<queue>.dead`.
DEAD_LETTER_EXCHANGE = "dead-letters"
#: A second copy of every dead letter: the monitor worker reads it, and records the failures that nobody else could.
UNREAD_DEAD_LETTERS = "dead-letters.unread"
#: What the retention of dead letters deletes passes through this queue, to be counted by the monitor worker; its name
#: is its key at the exchange of dead letters, and no work queue's name, which has no dot.
DELETED_DEAD_LETTERS = "dead-letters.deleted"
#: Delayed messages whose queue no longer exists end here instead of stopping every other delay.
UNDELIVERABLE = "undeliverable"
#: What workers measured is fanned out to every exporter through this exchange.
METRICS_EXCHANGE = "metrics"
#: Whoever has declared this exclusive queue is the one beat that sends; another waits.
BEAT_LOCK = "beat.lock"
#: Exchange and queue of the last message that beat has written: which tick of each periodic task was sent.
BEAT_STATE = "beat.state"
#: Periodic tasks and Celery's own tasks (chord_unlock, backend_cleanup, ...) run here.
HOUSEKEEPING_QUEUE = "monitor"


class TopologyError(ValueError):
    """The table contradicts itself; the message names the row and the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """One task.

    Attributes:
        name: stable name on the wire, `<queue>.<function>`.
        soft_time_limit: seconds until SoftTimeLimitExceeded is raised inside the task.
        time_limit: seconds until the child that runs the task is killed.
        size_limits: soft limits of smaller inputs, `(largest size, seconds)`, rising; the task tells what it counts.
        max_retries: how often a transient error is retried before the task fails.
        retry_backoff: seconds before the first retry; doubles with each one, with jitter.
        retry_backoff_max: longest wait in seconds between two retries.
        rate_limit: Celery's rate limit (`10/m`); global only in a queue with `single_active_consumer`.
        ignore_result: store no result.
        every: seconds between two runs sent by beat, or a five-field crontab string, or None.
        expires: seconds after which a tick that was not started is dropped; below `every`.
        once: run under the ledger: a message that comes twice runs once.
        once_key: the keyword argument in which a producer may give the ledger a key; else the task's id is the key.
        in_doubt: what becomes of a `once` task whose last attempt left no record: `hold` dead-letters it for a person
            to decide, `resend` runs it again. A producer may say otherwise by `on_uncertain`, where the task takes it.
    """

    name: str
    soft_time_limit: int
    time_limit: int
    size_limits: tuple[tuple[float, int], ...] = ()
    max_retries: int = 3
    retry_backoff: int = 5
    retry_backoff_max: int = 600
    rate_limit: str | None = None
    ignore_result: bool = False
    every: float | str | None = None
    expires: float | None = None
    once: bool = False
    once_key: str | None = None
    in_doubt: str = "hold"

    def __post_init__(self) -> None:
        if self.in_doubt not in ("hold", "resend"):
            raise TopologyError(f"task {self.name}: in_doubt is hold or resend, not {self.in_doubt!r}")
        if self.once_key is not None and not self.once:
            raise TopologyError(f"task {self.name}: once_key needs once=True; set it, or drop the key")
        if not _TASK_NAME.fullmatch(self.name):
            raise TopologyError(f"task {self.name!r}: a name is <queue>.<function> in lower case; rename it")
        if not 0 < self.soft_time_limit < self.time_limit:
            raise TopologyError(
                f"task {self.name}: soft_time_limit {self.soft_time_limit} must be positive and below "
                f"time_limit {self.time_limit}; lower the one or raise the other"
            )
        limits = [*(seconds for _, seconds in self.size_limits), self.soft_time_limit]
        if list(self.size_limits) != sorted(set(self.size_limits)) or limits != sorted(limits):
            raise TopologyError(f"task {self.name}: size_limits rise, in size and seconds, up to soft_time_limit")
        if self.retry_backoff < 1:
            raise TopologyError(f"task {self.name}: retry_backoff is at least 1 s, the broker's shortest delay")
        if self.every is not None and self.expires is None:
            raise TopologyError(f"task {self.name}: a periodic task needs `expires`, or a backlog runs stale ticks")
        if isinstance(self.every, int | float) and self.expires is not None and self.expires >= self.every:
            raise TopologyError(f"task {self.name}: expires {self.expires} must be below its period {self.every}")

    def soft_limit_of(self, size: float) -> int:
        """Seconds that an input of that size may take."""
        return next((seconds for largest, seconds in self.size_limits if size <= largest), self.soft_time_limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSpec:
    """One queue, the worker service that consumes it, and the tasks that run there.

    Attributes:
        name: queue, routing key, Compose suffix (`worker-<name>`) and metric label.
        module: Python module that registers the tasks; only this queue's worker imports it.
        tasks: what runs in the queue.
        concurrency: worker processes per service replica; also the channel's prefetch count.
        max_tasks_per_child: tasks after which a worker process is replaced.
        max_memory_per_child: KiB of resident memory after which a worker process is replaced.
        memory: Compose's memory limit of one replica.
        delivery_limit: deliveries after which the broker dead-letters a message on its own.
        child_death_limit: how often a task is run again after the process that ran it died.
        consumer_timeout: seconds that a delivery may stay unacknowledged.
        single_active_consumer: one replica works at a time, the others stand by.
        dead_letter_ttl: seconds that a dead letter is kept.
        dead_letter_bytes: bytes of dead letters kept; the oldest go first.
        backlog_seconds: alert when working off the queue would take longer.
        buckets: upper bounds in seconds of the wait and runtime histograms.
        extra: the pip extra that holds what only this worker needs.
    """

    name: str
    module: str
    tasks: tuple[TaskSpec, ...]
    concurrency: int = 2
    max_tasks_per_child: int = 1000
    max_memory_per_child: int = 256 * 1024
    memory: str = "512m"
    delivery_limit: int = 20
    child_death_limit: int = 2
    consumer_timeout: int = 1800
    single_active_consumer: bool = False
    dead_letter_ttl: int = 14 * 86400
    dead_letter_bytes: int = 512 * 1024 * 1024
    backlog_seconds: int = 300
    buckets: tuple[float, ...] = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
    extra: str = "worker"

    def __post_init__(self) -> None:
        if not _QUEUE_NAME.fullmatch(self.name):
            raise TopologyError(f"queue {self.name!r}: a name is [a-z][a-z0-9-]*; rename it")
        if not self.tasks:
            raise TopologyError(f"queue {self.name}: has no task; add one or drop the row")
        if self.concurrency < 1:
            raise TopologyError(f"queue {self.name}: concurrency is at least 1")
        if list(self.buckets) != sorted(set(self.buckets)):
            raise TopologyError(f"queue {self.name}: buckets must rise")
        for task in self.tasks:
            if not task.name.startswith(f"{self.name}."):
                raise TopologyError(f"task {task.name}: its name must begin with its queue's, {self.name}.")
            if task.time_limit > self.longest:
                raise TopologyError(
                    f"task {task.name}: time_limit {task.time_limit} s is within {CONSUMER_TIMEOUT_MARGIN} s of the "
                    f"queue's consumer_timeout {self.consumer_timeout} s; raise the timeout or lower the limit"
                )

    @property
    def longest(self) -> int:
        """Seconds that a worker may hold a message: the broker takes it back after its consumer timeout."""
        return self.consumer_timeout - CONSUMER_TIMEOUT_MARGIN

    @property
    def exchange(self) -> str:
        """The topic exchange that producers publish to."""
        return f"tasks.{self.name}"

    @property
    def routing_key(self) -> str:
        """The routing key of the queue's only binding."""
        return self.name

    @property
    def dead_letter(self) -> str:
        """The queue that holds this queue's dead letters."""
        return f"{self.name}.dead"

    @property
    def user(self) -> str:
        """The broker user, and Compose service, of this queue's workers."""
        return f"worker-{self.name}"

    @property
    def time_limit(self) -> int:
        """The longest hard time limit in the queue, in seconds."""
        return max(task.time_limit for task in self.tasks)

    @property
    def soft_time_limit(self) -> int:
        """The longest soft time limit in the queue, in seconds."""
        return max(task.soft_time_limit for task in self.tasks)

    @property
    def stop_grace_period(self) -> int:
        """Seconds that a stopping worker is given to finish what it runs."""
        return self.time_limit + STOP_MARGIN


@dataclass(frozen=True, slots=True)
class Topology:
    """All queues, checked against each other; iterate over it, or look one up by name."""

    queues: tuple[QueueSpec, ...]
    _by_name: dict[str, QueueSpec] = field(init=False, repr=False, compare=False)
    _by_task: dict[str, tuple[QueueSpec, TaskSpec]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        names = [queue.name for queue in self.queues]
        tasks = [task.name for queue in self.queues for task in queue.tasks]
        modules = [queue.module for queue in self.queues]
        for kind, values in (("queue", names), ("task", tasks), ("module", modules)):
            for value in sorted({value for value in values if values.count(value) > 1}):
                raise TopologyError(f"{kind} {value} stands twice in the table; rename one")
        check_routing_keys([queue.routing_key for queue in self.queues])
        object.__setattr__(self, "_by_name", {queue.name: queue for queue in self.queues})
        object.__setattr__(
            self, "_by_task", {task.name: (queue, task) for queue in self.queues for task in queue.tasks}
        )

    def __iter__(self) -> Iterator[QueueSpec]:
        return iter(self.queues)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    @property
    def names(self) -> tuple[str, ...]:
        """The queues' names, in the table's order."""
        return tuple(self._by_name)

    @property
    def task_names(self) -> tuple[str, ...]:
        """All tasks' names, in the table's order."""
        return tuple(self._by_task)

    def queue(self, name: str) -> QueueSpec:
        """The queue of that name.

        Raises:
            KeyError: no such queue.
        """
        return self._by_name[name]

    def task(self, name: str) -> tuple[QueueSpec, TaskSpec]:
        """The task of that name, with its queue.

        Raises:
            KeyError: no such task.
        """
        return self._by_task[name]


def check_routing_keys(keys: list[str]) -> None:
    """Refuse keys of which one is a dotted suffix of another.

    Delayed delivery binds `#.<key>` on a shared exchange, so a message for `high.math` would also reach `math`.

    Raises:
        TopologyError: two keys collide.
    """
    for key in keys:
        for other in keys:
            if key != other and other.endswith(f".{key}"):
                raise TopologyError(f"routing key {key} is a dotted suffix of {other}; rename one")


QUEUES = Topology(
    (
        QueueSpec(
            name="math",
            module="workers.math_tasks",
            concurrency=2,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
            tasks=(
                TaskSpec(name="math.add", soft_time_limit=10, time_limit=15),
                TaskSpec(name="math.multiply", soft_time_limit=10, time_limit=15),
                TaskSpec(name="math.xsum", soft_time_limit=20, time_limit=30),
                TaskSpec(name="math.long_task", soft_time_limit=600, time_limit=630),
                TaskSpec(name="math.reliable_task", soft_time_limit=30, time_limit=40, max_retries=3, retry_backoff=5),
            ),
        ),
        QueueSpec(
            name="image",
            module="workers.image_tasks",
            concurrency=2,
            max_tasks_per_child=500,
            max_memory_per_child=768 * 1024,
            memory="2g",
            extra="image",
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600),
            tasks=(
                TaskSpec(
                    name="image.process_image",
                    soft_time_limit=110,
                    time_limit=120,
                    # Megapixels decoded and encoded. The slowest honest work, AVIF, takes a third of a second for one.
                    size_limits=((10, 30), (50, 60)),
                ),
                TaskSpec(name="image.inspect_image", soft_time_limit=20, time_limit=30),
            ),
        ),
        QueueSpec(
            name="email",
            module="workers.email_tasks",
            # One process of one active replica sends at a time, so that the rate limit is the service's.
            concurrency=1,
            single_active_consumer=True,
            memory="256m",
            backlog_seconds=1800,
            buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600),
            tasks=(
                TaskSpec(
                    name="email.send_email",
                    soft_time_limit=420,
                    time_limit=450,
                    # Some eight hours, for a relay that is away over night.
                    max_retries=24,
                    retry_backoff=30,
                    retry_backoff_max=1800,
                    rate_limit="10/m",
                    once=True,
                    once_key="idempotency_key",
                    in_doubt="resend",
                ),
                TaskSpec(name="email.send_bulk", soft_time_limit=300, time_limit=330),
            ),
        ),
        QueueSpec(
            name="monitor",
            module="workers.monitor_tasks",
            extra="monitor",
            concurrency=1,
            memory="256m",
            tasks=(
                TaskSpec(
                    name="monitor.check_status",
                    soft_time_limit=20,
                    time_limit=25,
                    max_retries=0,
                    ignore_result=True,
                    every=30.0,
                    expires=25,
                ),
                TaskSpec(
                    name="monitor.generate_report",
                    soft_time_limit=120,
                    time_limit=150,
                    ignore_result=True,
                    every="0 0 * * *",
                    expires=3600,
                ),
            ),
        ),
    )
)
