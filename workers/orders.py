"""Orders of `REMOTE_CONTROL=full` that Celery would carry out to a worker's harm: each is done well, or refused.

What is refused is answered with a sentence that says what to do instead, and changes nothing.
"""

from __future__ import annotations

import functools
import logging
import math
from typing import TYPE_CHECKING, Any

from celery.utils.time import rate
from celery.worker import control

if TYPE_CHECKING:
    from collections.abc import Callable

    from queues.topology import QueueSpec

logger = logging.getLogger(__name__)

Answer = dict[str, str]

#: Share of a hard limit that the soft one is set to at most, so that the task can still clean up.
SOFT_SHARE = 0.9
#: Commands that do not work here by design, and what to do instead.
NOT_OFFERED = {
    "autoscale": "a pool has the concurrency of its row in queues/topology.py; run more replicas",
    "election": "workers run without gossip and elect nobody",
    "objgraph": "workers lack the library; start this one with TRACE_MEMORY=1",
    "pool_restart": "end the worker instead (SIGTERM): it finishes what it runs, and what starts it starts it anew",
}


def refuse(command: str, why: str) -> Answer:
    """The answer to an order that is not carried out."""
    text = f"{command} is refused: {why}"
    logger.warning("remote control command %s", text)
    return {"error": text}


def not_offered(command: str, _state: Any, /, **_arguments: Any) -> Answer:
    """The answer to a command that does not work here by design."""
    return refuse(command, NOT_OFFERED[command])


def row(state: Any) -> QueueSpec:
    """The worker's queue in the table."""
    found: QueueSpec = state.app.topology.queue(state.consumer.letters.queue)
    return found


def is_task(state: Any, name: Any) -> bool:
    """Whether this worker has a task of that name."""
    return isinstance(name, str) and name in state.app.tasks


def is_positive(value: Any) -> bool:
    """Whether a value is a number that a limit can be."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def time_limit(state: Any, task_name: Any = None, hard: Any = None, soft: Any = None, **_: Any) -> Answer:
    """Set a task's time limits until the worker ends; one that is left out is the table's."""
    queue = row(state)
    if not is_task(state, task_name):
        return refuse("time_limit", f"this worker has no task {task_name!r:.80}: name one of queue {queue.name}")
    for kind, value in (("soft", soft), ("hard", hard)):
        if value is not None and not is_positive(value):
            return refuse("time_limit", f"the {kind} limit {value!r:.80} is no positive number of seconds")
    spec = next((task for task in queue.tasks if task.name == task_name), None)
    table = spec or queue
    hard = table.time_limit if hard is None else hard
    if hard > queue.longest:
        return refuse(
            "time_limit",
            f"a hard limit of {hard:g} s is beyond the {queue.longest} s for which the broker leaves a message of "
            f"queue {queue.name} to a worker; raise its consumer_timeout in queues/topology.py",
        )
    if spec is not None and spec.once and hard > spec.time_limit:
        return refuse(
            "time_limit",
            f"{task_name} must not run twice, and the ledger holds its claim for its {spec.time_limit} s in "
            "queues/topology.py; raise them there",
        )
    if soft is not None and soft >= hard:
        return refuse("time_limit", f"a soft limit of {soft:g} s is not below the hard one of {hard:g} s")
    if soft is None:
        soft = min(table.soft_time_limit, hard * SOFT_SHARE)
    task = state.app.tasks[task_name]
    task.soft_time_limit, task.time_limit = soft, hard
    text = f"{task_name} has a soft limit of {soft:g} s and a hard limit of {hard:g} s until the worker ends"
    logger.info(text)
    return {"ok": text}


def rate_limit(state: Any, task_name: Any = None, rate_limit: Any = None, **_: Any) -> Answer:
    """Celery's, but for rates at which the broker would take the messages back that wait for their turn."""
    queue = row(state)
    if not is_task(state, task_name):
        return refuse("rate_limit", f"this worker has no task {task_name!r:.80}: name one of queue {queue.name}")
    try:
        if isinstance(rate_limit, bool) or not isinstance(rate_limit, int | float | str | None):
            raise TypeError(rate_limit)
        a_second = rate(rate_limit)
        if a_second and not is_positive(a_second):
            raise ValueError(rate_limit)
    except (TypeError, ValueError, KeyError, OverflowError):
        return refuse("rate_limit", f"{rate_limit!r:.80} is no rate: write one like 10/s, 5/m or 30/h, or 0 for none")
    held = state.consumer.controller.concurrency / a_second if a_second else 0.0
    if held + state.app.tasks[task_name].time_limit > queue.longest:
        return refuse(
            "rate_limit",
            f"at {rate_limit} a message would wait up to {held:.0f} s in the worker, and the broker takes it back "
            f"after {queue.longest} s; give a higher rate",
        )
    answer: Answer = control.rate_limit(state, task_name, rate_limit)
    return answer


def pool_grow(state: Any, n: Any = 1, **_: Any) -> Answer:
    """Add processes, up to what the pool began with: the broker delivers no more messages at a time."""
    now, most = state.consumer.pool.num_processes, state.consumer.controller.concurrency
    if not isinstance(n, int) or n < 1:
        return refuse("pool_grow", f"{n!r:.80} is no number of processes")
    if now + n > most:
        return refuse(
            "pool_grow",
            f"the pool has {now} processes, and the broker delivers {most} messages at a time; raise the concurrency "
            "in queues/topology.py, or run more replicas",
        )
    state.consumer.pool.grow(n)
    return {"ok": f"the pool will have {now + n} processes"}


def pool_shrink(state: Any, n: Any = 1, **_: Any) -> Answer:
    """End idle processes, and leave one: without any, what is delivered waits for nobody."""
    now = state.consumer.pool.num_processes
    if not isinstance(n, int) or n < 1:
        return refuse("pool_shrink", f"{n!r:.80} is no number of processes")
    if now - n < 1:
        return refuse("pool_shrink", f"the pool has {now} processes and keeps one; cancel_consumer pauses the worker")
    try:
        state.consumer.pool.shrink(n)
    except ValueError:
        left = state.consumer.pool.num_processes
        return refuse("pool_shrink", f"only idle processes are ended, and {left} are busy; ask again later")
    return {"ok": f"the pool will have {now - n} processes"}


def paused(consumer: Any) -> bool:
    """Whether a person has this worker not consume; a new connection leaves it so."""
    return consumer.letters.queue not in consumer.app.amqp.queues.consume_from


def how_to_go_on(consumer: Any) -> str:
    """What a worker says of itself while it is paused."""
    queue = consumer.letters.queue
    return f"paused on purpose: {queue} is not consumed until `add_consumer {queue}`, or a restart"


def cancel_consumer(state: Any, queue: Any = None, **_: Any) -> Answer:
    """Pause the worker: it finishes what it has, stays connected and answers."""
    own = state.consumer.letters.queue
    if queue != own:
        return refuse("cancel_consumer", f"this worker consumes {own} alone")
    if not paused(state.consumer):
        # At once, so that the next command, and the next connection, find it so.
        state.app.amqp.queues.deselect(own)
        state.consumer.call_soon(state.consumer.cancel_task_queue, own)
    text = how_to_go_on(state.consumer)
    logger.warning(text)
    return {"ok": text}


def add_consumer(state: Any, queue: Any = None, **_: Any) -> Answer:
    """Take up again what `cancel_consumer` paused; limits, rights and measuring are of one queue."""
    own = state.consumer.letters.queue
    if queue != own:
        return refuse(
            "add_consumer", f"a worker consumes one queue, this one {own}; start another with -Q {queue!s:.80}"
        )
    if paused(state.consumer):
        queues = state.app.amqp.queues
        queues.select_add(queues[own])
        state.consumer.call_soon(state.consumer.add_task_queue, own)
        logger.warning("%s is consumed again", own)
    return {"ok": f"consuming from {own}"}


#: Commands by name, in place of Celery's.
ORDERS: dict[str, Callable[..., Answer]] = {
    "add_consumer": add_consumer,
    "cancel_consumer": cancel_consumer,
    "pool_grow": pool_grow,
    "pool_shrink": pool_shrink,
    "rate_limit": rate_limit,
    "time_limit": time_limit,
    **{name: functools.partial(not_offered, name) for name in NOT_OFFERED},
}
