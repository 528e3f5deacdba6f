"""A worker in a thread of a test, as Celery's own fixtures start one: without the set-up that `celery worker` does."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from celery.apps.worker import Worker

from queues.errors import ConfigurationError
from workers import limits, selfcheck

if TYPE_CHECKING:
    from queues.app import WarrenCelery


def is_embedded(controller: Any) -> bool:
    """Whether a worker was not started by `celery worker`."""
    return not isinstance(controller, Worker)


def fit(app: WarrenCelery, hostname: str) -> str:
    """Fit such a worker to its queue, as `workers.app` does for others.

    Returns:
        A node name that the queue's broker user may have.

    Raises:
        ConfigurationError: it was not given one queue of the table.
    """
    from workers.app import settings

    names = [*app.amqp.queues.consume_from]
    if len(names) != 1:
        raise ConfigurationError(
            f"a worker consumes exactly one queue: give start_worker, or the fixture celery_worker_parameters, "
            f'queues=["{names[0]}"] or another one'
        )
    queue = app.topology.queue(names[0])
    importlib.import_module(queue.module)
    selfcheck.ledger(app, settings, queue)
    limits.Pool.longest = queue.longest
    for name, task in app.tasks.items():
        if name.startswith("celery."):
            task.soft_time_limit, task.time_limit = queue.soft_time_limit, queue.time_limit
    # There is no other worker for Celery's own tasks: its fixtures' ping, the unlocking of chords.
    app.housekeeping = queue.name
    return hostname if hostname.startswith(f"{queue.name}@") else f"{queue.name}@{hostname.replace('@', '.')}"
