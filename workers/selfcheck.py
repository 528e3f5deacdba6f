"""What a worker or beat checks before it starts: what cannot heal ends it with one sentence."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from typing import TYPE_CHECKING

import amqp.exceptions
from kombu.transport.native_delayed_delivery import MAX_LEVEL, level_name

from queues.publish import connect
from queues.remedies import explain, is_hopeless
from queues.topology import (
    BEAT_LOCK,
    BEAT_STATE,
    DEAD_LETTER_EXCHANGE,
    HOUSEKEEPING_QUEUE,
    METRICS_EXCHANGE,
)
from queues.transport import deadline
from workers import once, versions
from workers.ledger import LedgerUnavailableError
from workers.ledgerstore import open_store
from workers.resultstore import bound, cause_of, flaw
from workers.startup import TELL_AGAIN, stop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kombu import Connection

    from queues.app import WarrenCelery
    from queues.settings import Settings
    from queues.topology import QueueSpec

logger = logging.getLogger(__name__)

#: Seconds to try; a broker that is merely away is waited for by Celery itself.
PATIENCE = 5.0
#: Seconds until a store that is away is asked again.
ASK_AGAIN = 1.0


def broker(
    app: WarrenCelery, *, queues: Iterable[str] = (), exchanges: Iterable[str] = (), own: str | None = None
) -> None:
    """Log in once, and look for what this role uses; what cannot heal ends the process with exit code 2.

    A role can see neither an exchange's type nor a policy: `warren check` does, as the operator.
    """
    with app.connection_for_read() as connection:
        try:
            with deadline(PATIENCE):
                connect(connection)
                problem = missing(connection, queues, exchanges) or (refused(connection, own) if own else None)
        except Exception as exc:  # noqa: BLE001 - told apart below
            problem = explain(connection, exc) if is_hopeless(exc) else None
        else:
            # In an orderly way, or each start would be a warning in the broker's log.
            with deadline(PATIENCE), contextlib.suppress(Exception):
                connection.close()
        finally:
            connection.collect()
    if problem:
        stop(problem)


def missing(connection: Connection, queues: Iterable[str], exchanges: Iterable[str]) -> str | None:
    """The first queue or exchange that does not exist, or that this user may not even see."""
    remedy = "run `warren check`, and import the definitions by a restart of the broker"
    named = [*(("queue", name) for name in queues), *(("exchange", name) for name in exchanges)]
    for kind, name in named:
        channel = connection.channel()
        try:
            if kind == "queue":
                channel.queue_declare(name, passive=True)
            else:
                channel.exchange_declare(name, "topic", passive=True)
        except amqp.exceptions.NotFound as exc:
            if f"no {kind}" in exc.reply_text:  # otherwise it has no leader just now
                return f"{kind} {name} does not exist at {connection.hostname}:{connection.port}: {remedy}"
        except amqp.exceptions.AccessRefused:
            return f"user {connection.userid} has no right on {kind} {name}: {remedy}"
        else:
            channel.close()
    return None


def refused(connection: Connection, queue: str) -> str | None:
    """Why this user may not have an exclusive queue of that name: each role has its own."""
    channel = connection.channel()
    try:
        channel.queue_declare(queue, exclusive=True)
        channel.queue_delete(queue)
    except amqp.exceptions.AccessRefused:
        return (
            f"user {connection.userid} may not have the queue {queue}: "
            "set BROKER_USER to this role's own user, and name a worker QUEUE@NAME, or not at all"
        )
    except amqp.exceptions.ResourceLocked:
        return None  # another has it just now: waiting for it comes later
    return None


def worker(app: WarrenCelery, queue: QueueSpec, node: str) -> None:
    """What a worker needs: its queue, the exchanges that it publishes to or listens at, and a name it may have."""
    versions.check()
    control = app.control.mailbox
    broker(
        app,
        queues=[queue.name],
        own=control.get_queue(node).name,
        exchanges=[
            queue.exchange,
            level_name(MAX_LEVEL),
            DEAD_LETTER_EXCHANGE,
            METRICS_EXCHANGE,
            control.exchange.name,
            control.reply_exchange.name,
            app.conf.event_exchange,
        ],
    )


def beat(app: WarrenCelery) -> None:
    """What beat needs: the exchanges of what it sends, its state, and the right to its lock."""
    versions.check()
    periodic = {app.topology.queue(HOUSEKEEPING_QUEUE).exchange}
    periodic |= {queue.exchange for queue in app.topology if any(task.every is not None for task in queue.tasks)}
    broker(app, queues=[BEAT_STATE], exchanges=[*sorted(periodic), BEAT_STATE], own=BEAT_LOCK)


def limits(app: WarrenCelery, queue: QueueSpec) -> None:
    """Refuse what would run twice or never come back: limits beyond the table, an exchange that cannot delay."""
    for name, task in sorted(app.tasks.items()):
        if not task.time_limit or task.time_limit > queue.longest:
            stop(
                f"task {name} has the hard limit {task.time_limit}: the queue's consumer_timeout allows "
                f"{queue.longest} s; lower the one or raise the other in queues/topology.py"
            )
        if not task.soft_time_limit:
            stop(f"task {name} has no soft limit: give it a row in queues/topology.py")
    for found in app.amqp.queues.values():
        if found.exchange.type != "topic":
            stop(
                f"exchange {found.exchange.name} is {found.exchange.type}: delays and retries need a topic exchange; "
                "leave task_queues as queues.celeryconfig builds it"
            )


def results(app: WarrenCelery) -> None:
    """Wait until the result store answers; what cannot heal ends the process."""
    bounds = bound(app)
    awaited("the result store", bounds.answer, bounds.is_lost)
    bounds.leave_tables()


def ledger(app: WarrenCelery, settings: Settings, queue: QueueSpec) -> None:
    """Open the ledger where a task of the queue needs one; a result store that cannot hold it ends the process."""
    if not any(task.once for task in queue.tasks):
        return
    store = open_store(app, settings.results.kind, settings.results.ledger_days)
    if store is None:
        stop("tasks that must not run twice need a ledger: set RESULT_BACKEND to db+sqlite, db+postgresql or rediss")
    awaited("the ledger", store.prepare, lambda exc: isinstance(exc, LedgerUnavailableError))
    once.bind(store)


def awaited(what: str, ask: Callable[[], object], is_away: Callable[[Exception], bool]) -> None:
    """Ask until there is an answer: a worker that consumed without it would have nowhere to put a result.

    One line a minute says so. What cannot heal ends the process.

    Raises:
        Exception: what has nothing to do with a server that is away.
    """
    told = -math.inf
    while True:
        try:
            ask()
        except Exception as exc:
            problem = flaw(exc)
            if problem:
                stop(problem)
            if not is_away(exc):
                raise
            if time.monotonic() - told >= TELL_AGAIN:
                told = time.monotonic()
                logger.warning("%s does not answer (%s): waiting for it, nothing is consumed", what, cause_of(exc))
            time.sleep(ASK_AGAIN)
        else:
            if told > 0:
                logger.warning("%s answers", what)
            return
