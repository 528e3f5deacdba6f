"""The Celery app of the services: `celery -A workers.app worker -Q QUEUE`, and `celery -A workers.app beat`.

`-Q` decides everything: only that queue's module is imported (the math worker never loads Pillow), and node name,
concurrency, limits and recycling come from the table. Whatever of this cannot be done ends the process with the reason.
"""

from __future__ import annotations

import importlib
import socket
import sys
from typing import TYPE_CHECKING, Any

from celery import signals

from workers.startup import ending, stop, strictly

with ending("the table or the settings cannot be read"):
    from queues.app import create_app
    from queues.errors import ConfigurationError
    from queues.settings import Settings
    from queues.topology import QUEUES
    from workers import beat, command, limits, logs, memory, registry, remote, selfcheck
    from workers.settings import memory_is_traced, remote_control_is_full
    from workers.waits import waits

if TYPE_CHECKING:
    from queues.topology import QueueSpec

try:
    settings = Settings.from_env(worker=True)
    app = create_app(settings, tasks=registry.Registry())
except ConfigurationError as exc:
    stop(str(exc))

command.tell_errors()
app.waiting, app.keeping = waits.waiting, waits.keeping
app.conf.worker_pool = "workers.limits:TaskPool"
app.conf.worker_consumer = "workers.consumer:Consumer"
app.conf.beat_scheduler = "workers.beat:Scheduler"
app.control_cls = "workers.remote:Control"
app.events_cls = "workers.remote:Events"
app.log_cls = "workers.logs:Logging"

#: Options of `celery worker` that would beat the table, and where the table says it.
TABLE = {
    "concurrency": "concurrency",
    "autoscale": "concurrency",
    "prefetch_multiplier": "concurrency, which is the prefetch count too",
    "disable_prefetch": "concurrency, which is the prefetch count too",
    "time_limit": "its tasks' time_limit",
    "soft_time_limit": "its tasks' soft_time_limit",
    "max_tasks_per_child": "max_tasks_per_child",
    "max_memory_per_child": "max_memory_per_child",
    "include": "module",
    "exclude_queues": "the queue that -Q names",
    "pool_start_method": "nothing: processes are forked",
}


def consumed_queue(queues: list[str] | None) -> QueueSpec:
    """The one queue that `-Q` names; anything else ends the process."""
    known = ", ".join(QUEUES.names)
    if not queues or len(queues) != 1:
        stop(f"A worker consumes exactly one queue: start it with -Q and one of {known}.")
    if queues[0] not in QUEUES:
        stop(f"Queue {queues[0]!r} is not in the table: start the worker with -Q and one of {known}.")
    return QUEUES.queue(queues[0])


def check_options(options: dict[str, Any]) -> None:
    """Refuse what would beat the table, or cannot be had here."""
    for name, row in TABLE.items():
        if options.get(name) not in (None, False, [], app.conf.get(f"worker_{name}")):
            stop(f"Leave --{name.replace('_', '-')} out: the queue's row in queues/topology.py says it, by {row}.")
    if (options.get("pool") or options.get("pool_cls")) not in (None, limits.TaskPool):
        stop("Workers run with the prefork pool only: leave -P out. Others have no hard time limit, and solo stalls.")
    if options.get("beat"):
        stop("Leave -B out: beat is a service of its own, `celery -A workers.app beat`.")
    if options.get("purge"):
        stop("Leave --purge out: it deletes tasks that were confirmed. `celery -A workers.app purge` asks first.")


@signals.celeryd_init.connect(weak=False)
def configure(instance: Any, conf: Any, options: dict[str, Any], **_: Any) -> None:
    """Fit the worker to its queue before anything is set up."""
    if instance.app is not app:
        return
    with ending("the worker cannot be set up"):
        queue = consumed_queue(options.get("queues"))
        check_options(options)
        logs.bind(queue.name)
        if instance.hostname.startswith("celery@"):
            instance.hostname = f"{queue.name}@{socket.gethostname()}"
        app.log.setup_logging_subsystem(options.get("loglevel"), options.get("logfile"), hostname=instance.hostname)
        strictly(signals.celeryd_after_setup, signals.worker_init, signals.worker_process_init)
        # Its banner is for a person; whoever collects the lines of a service reads JSON.
        instance.quiet = instance.quiet or not sys.stdout.isatty()
        conf.worker_concurrency = queue.concurrency
        conf.worker_max_tasks_per_child = queue.max_tasks_per_child
        conf.worker_max_memory_per_child = queue.max_memory_per_child
        limits.Pool.longest = queue.longest
        load(queue)
        if memory_is_traced():
            memory.watch()
        if not remote_control_is_full():
            remote.restrict()
        selfcheck.worker(app, queue, instance.hostname)
        selfcheck.results(app)
        selfcheck.ledger(app, settings, queue)


def load(queue: QueueSpec) -> None:
    """Import the queue's tasks, and compare them with the table."""
    extra = f"install the extra, pip install '.[{queue.extra}]'"
    with ending(f"{queue.module} cannot be imported", extra):
        importlib.import_module(queue.module)
    for name, task in app.tasks.items():
        if name.startswith("celery."):  # chunks and maps, for one: as long as the queue's longest task
            task.soft_time_limit, task.time_limit = queue.soft_time_limit, queue.time_limit
    selfcheck.limits(app, queue)
    registered = {name for name in app.tasks if not name.startswith("celery.")}
    expected = {task.name for task in queue.tasks}
    if registered != expected:
        different = ", ".join(sorted(registered ^ expected))
        stop(f"{queue.module} and the table differ in {different}: mend the one or the other.")


@signals.beat_init.connect(weak=False)
def check_beat(sender: Any, **_: Any) -> None:
    """Beat would end with a traceback where a worker has a sentence."""
    if sender.app is not app:
        return
    with ending("beat cannot be set up"):
        selfcheck.beat(app)
        beat.end_between_turns(sender)
