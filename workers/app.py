"""The Celery app of the services: `celery -A workers.app worker -Q QUEUE`, and `celery -A workers.app beat`.

`-Q` decides everything: only that queue's module is imported (the math worker never loads Pillow), and node name,
concurrency, limits and recycling come from the table.
"""

from __future__ import annotations

import importlib
import socket
import sys
from typing import Any

from celery import signals

from queues.app import create_app
from queues.errors import ConfigurationError
from queues.settings import Settings
from queues.topology import QUEUES, QueueSpec
from workers import beat, command, limits, logs, memory, registry, remote, selfcheck
from workers.settings import memory_is_traced, remote_control_is_full, stop

try:
    settings = Settings.from_env(worker=True)
    app = create_app(settings, tasks=registry.Registry())
except ConfigurationError as exc:
    stop(str(exc))

command.tell_errors()
app.waiting = limits.waits.waiting
app.conf.worker_pool = "workers.limits:TaskPool"
app.conf.worker_consumer = "workers.consumer:Consumer"
app.conf.beat_scheduler = "workers.beat:Scheduler"
app.control_cls = "workers.remote:Control"
app.events_cls = "workers.remote:Events"


def consumed_queue(queues: list[str] | None) -> QueueSpec:
    """The one queue that `-Q` names; anything else ends the process."""
    known = ", ".join(QUEUES.names)
    if not queues or len(queues) != 1:
        stop(f"A worker consumes exactly one queue: start it with -Q and one of {known}.")
    if queues[0] not in QUEUES:
        stop(f"Queue {queues[0]!r} is not in the table: start the worker with -Q and one of {known}.")
    return QUEUES.queue(queues[0])


@signals.celeryd_init.connect(weak=False)
def configure(instance: Any, conf: Any, options: dict[str, Any], **_: Any) -> None:
    """Fit the worker to its queue before anything is set up."""
    queue = consumed_queue(options.get("queues"))
    if instance.hostname.startswith("celery@"):
        instance.hostname = f"{queue.name}@{socket.gethostname()}"
    # Its banner is for a person; whoever collects the lines of a service reads JSON.
    instance.quiet = instance.quiet or not sys.stdout.isatty()
    if (options.get("pool") or options.get("pool_cls")) not in (None, limits.TaskPool):
        stop("Workers run with the prefork pool only: leave -P out. Others have no hard time limit, and solo stalls.")
    selfcheck.worker(app, queue, instance.hostname)
    selfcheck.results(app)
    selfcheck.ledger(app, settings, queue)
    conf.worker_concurrency = queue.concurrency
    conf.worker_max_tasks_per_child = queue.max_tasks_per_child
    conf.worker_max_memory_per_child = queue.max_memory_per_child
    limits.Pool.longest = queue.longest
    logs.bind(queue.name)
    try:
        importlib.import_module(queue.module)
    except ImportError as exc:
        stop(f"{queue.module} cannot be imported ({exc}): install the extra, pip install '.[{queue.extra}]'.")
    if memory_is_traced():
        memory.watch()
    if not remote_control_is_full():
        remote.restrict()
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
    selfcheck.beat(app)
    beat.end_between_turns(sender)


@signals.setup_logging.connect(weak=False)
def configure_logging(loglevel: int | str | None = None, logfile: str | None = None, **_: Any) -> None:
    """JSON lines on standard error, or in the file of `-f`, instead of Celery's own format."""
    try:
        logs.configure(loglevel or "INFO", logfile)
    except OSError as exc:
        stop(f"the log file {logfile} cannot be written ({exc.strerror}): name another, or leave -f out")
