"""Groups, chords and chains are looked at as a whole before the first of their messages is sent.

Celery publishes member by member while it walks through a canvas: one that cannot be sent leaves those before it, and a
chord's body that waits for ever. Here the walk only collects. What cannot be sent then raises, and nothing is: content
that is no JSON, unknown tasks, arguments that do not fit, and exchanges and queues that do not exist or are not this
user's. Where the broker refuses a message or is lost half-way, the error has the state of every task.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import amqp.exceptions
from amqp.serialization import dumps
from celery import canvas
from celery._state import get_current_worker_task
from celery.app.task import Context
from celery.states import FAILURE
from kombu.utils.functional import maybe_list

from queues.celeryconfig import NO_RESULTS
from queues.errors import InvalidArgumentsError, PublishError, PublishRefusedError, PublishUnknownError, UnroutableError
from queues.publish import encoded
from queues.topology import QUEUES
from queues.transport import deadline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from queues.app import WarrenCelery

logger = logging.getLogger(__name__)

#: What became of each task of a canvas: the broker has it, does not have it, may have it, or was not given it.
CONFIRMED, REFUSED, UNKNOWN, NOT_SENT = "confirmed", "refused", "unknown", "not sent"
#: Celery's task that waits for a chord's members where the result store cannot count them.
UNLOCK = "celery.chord_unlock"
#: A routing key that no queue is bound with.
NOWHERE = "no-such-queue"
#: Seconds that recording what was not sent may take.
PATIENCE = 10.0

#: The canvas that is being walked through.
collecting: ContextVar[Whole | None] = ContextVar("warren_canvas", default=None)


@dataclass(slots=True)
class Message:
    """One message that Celery has made, and what sends it."""

    name: str
    headers: dict[str, Any]
    body: tuple[Any, ...]
    exchange: str
    queue: str
    send: Callable[[Any], Any]

    @property
    def task_id(self) -> str:
        """The task's id."""
        return str(self.headers["id"])


class Whole:
    """The messages of one canvas."""

    def __init__(self, app: WarrenCelery) -> None:
        self.app = app
        self.messages: list[Message] = []
        #: The queue of the message that is being made.
        self.queue = ""
        #: Calls within messages that were looked at, by identity; the messages keep them alive.
        self.seen: set[int] = set()

    def add(self, send: Callable[..., Any], name: str, message: Any, options: dict[str, Any]) -> None:
        """Look at a message as the broker and a worker would.

        Raises:
            InvalidArgumentsError: JSON or AMQP cannot carry it, or the task does not take its arguments.
            PublishRefusedError: it is too large.
            UnknownTaskError: it calls a task that the table does not hold.
        """
        headers = {**message.headers, **(options.get("headers") or {})}
        encoded(message.body, options)
        try:
            dumps("F", [headers])
        except Exception as exc:
            raise InvalidArgumentsError(
                f"a header or option cannot be encoded ({exc}): use text, numbers and lists of them"
            ) from exc
        args, kwargs, embed = message.body
        if get_current_worker_task() is None:
            check(self.app, name, args, kwargs)
            # What was looked at is not looked at again: a chord's members have its body in common.
            for call in calls(embed, self.seen):
                check(self.app, call["task"], *((call["args"], call["kwargs"]) if call.get("immutable") else ()))
        target = options.get("exchange") or options["queue"].exchange
        sender = functools.partial(send, name=name, message=message, **options)
        self.messages.append(Message(name, headers, message.body, getattr(target, "name", target), self.queue, sender))

    def send(self) -> None:
        """Send all of it, the first message of each queue first: what the broker refuses it refuses at once.

        Raises:
            PublishError: refused or unknown; `states` says what became of each task.
        """
        if not self.messages:
            return
        first: dict[str, Message] = {}
        for message in self.messages:
            if message.name != UNLOCK:
                first.setdefault(message.queue, message)
        order = {id(message): place for place, message in enumerate(first.values())}
        self.messages.sort(key=lambda message: order.get(id(message), len(order)))
        states = {message.task_id: NOT_SENT for message in self.messages if message.name != UNLOCK}
        try:
            with self.app.producer_or_acquire() as producer:
                prove(self.app, producer, self.messages)
                for message in self.messages:
                    self.app.publish(message.name, message.task_id, functools.partial(message.send, producer))
                    if message.task_id in states:
                        states[message.task_id] = CONFIRMED
        except PublishError as exc:
            if exc.task_id in states:
                states[exc.task_id] = UNKNOWN if isinstance(exc, PublishUnknownError) else REFUSED
            exc.states = states
            if not {CONFIRMED, UNKNOWN}.isdisjoint(states.values()):
                self.give_up(exc)
            raise

    def give_up(self, exc: PublishError) -> None:
        """Record as failed what was not sent, and what waits for it: nobody else could."""
        left = [message for message in self.messages if exc.states.get(message.task_id, CONFIRMED) != CONFIRMED]
        logger.error("%d of %d tasks were not sent: %s", len(left), len(exc.states), exc)
        if self.app.conf.result_backend == NO_RESULTS:
            return
        until = time.monotonic() + PATIENCE
        try:
            backend = brief(self.app)
            waiting = {
                call.get("options", {}).get("task_id") for message in left for call in followers(message.body[2])
            }
            for task_id in waiting - {None}:
                backend.store_result(task_id, exc, FAILURE)
            for message in left:
                if time.monotonic() > until:
                    raise TimeoutError("the result store is slow")
                request = Context(message.headers, **message.body[2], delivery_info={})
                backend.mark_as_failure(
                    message.task_id,
                    exc,
                    request=request,
                    store_result=not request.ignore_result,
                    call_errbacks=False,  # the caller has the error
                )
        except Exception:
            logger.exception("not all tasks that were not sent could be recorded as failed")
        else:
            if hasattr(backend, "connparams"):
                backend.client.close()


def check(app: WarrenCelery, name: str, args: Any = None, kwargs: Any = None) -> None:
    """Look at one call; without arguments, at its task alone: those of a later step are not complete yet.

    Raises:
        UnknownTaskError: the table does not hold the task.
        InvalidArgumentsError: it does not take these arguments.
    """
    from queues.tasks import STUBS

    app.destination(name, kwargs or {}, {})
    if args is not None and app.topology is QUEUES and name in STUBS:
        STUBS[name].check(args, kwargs or {})


def calls(embed: dict[str, Any], seen: set[int] | None = None) -> Iterator[Any]:
    """Every call that a message's body holds, links of links and steps of steps included, but for those seen."""
    seen = set() if seen is None else seen
    left = [call for name in ("callbacks", "errbacks", "chain", "chord") for call in maybe_list(embed.get(name)) or ()]
    while left:
        call = left.pop()
        if not isinstance(call, dict) or "task" not in call:
            raise InvalidArgumentsError(f"{call!r:.80} is no signature: write tasks.NAME.s(...); nothing was published")
        if id(call) in seen:
            continue
        seen.add(id(call))
        yield call
        options, kwargs = call.get("options") or {}, call.get("kwargs") or {}
        found = [options.get(name) for name in ("link", "link_error", "chain", "chord")]
        if call["task"] in ("celery.chain", "celery.group", "celery.chord"):
            found += [kwargs.get(name) for name in ("tasks", "header", "body")]
        left += [call for some in found for call in maybe_list(some) or ()]


def followers(embed: dict[str, Any]) -> Iterator[Any]:
    """The calls that are waited for and would have come after a task: not its links."""
    return calls({name: embed.get(name) for name in ("chain", "chord")})


def prove(app: WarrenCelery, producer: Any, messages: list[Message]) -> None:
    """Ask the broker for what the first message will not show: other exchanges and queues.

    Raises:
        PublishRefusedError: one does not exist, or is not this user's.
    """
    exchanges = {message.exchange for message in messages} - {messages[0].exchange}
    for exchange in sorted(exchanges):
        probe = functools.partial(producer.copy, b"", exchange=exchange, routing_key=NOWHERE)
        with contextlib.suppress(UnroutableError):  # it is there, and takes what we send
            app.publish("a probe", exchange, probe)
    for queue in sorted({message.queue for message in messages} - {messages[0].queue}) if exchanges else ():
        if not app.queues_are_hidden:
            look_for(app, producer.connection, queue)


def look_for(app: WarrenCelery, connection: Any, queue: str) -> None:
    """Refuse a queue that does not exist; RabbitMQ 4.3 answers only who has a right on it, as producers have not.

    Raises:
        PublishRefusedError: it does not exist.
    """
    try:
        with deadline(app.conf.publish_timeout), connection.channel() as channel:
            channel.queue_declare(queue, passive=True)
    except amqp.exceptions.NotFound as exc:
        if "no queue" in exc.reply_text:  # otherwise it has no leader just now
            raise PublishRefusedError(
                f"queue {queue} does not exist: run `warren check` to see what is missing"
            ) from exc
    except amqp.exceptions.AccessRefused:
        app.queues_are_hidden = True
    except (*connection.connection_errors, *connection.channel_errors):
        connection.collect()  # the next message connects, and says what is wrong


def brief(app: WarrenCelery) -> Any:
    """A result store that is asked once: a caller who is told that the broker is lost has waited long enough."""
    backend = app._get_backend()
    backend.always_retry = False
    if hasattr(backend, "connparams"):
        backend.retry_policy = {**backend.retry_policy, "max_retries": 0}
        backend.connparams = {**backend.connparams, "socket_timeout": 2, "socket_connect_timeout": 2}
    return backend


def collect(send: Callable[..., Any]) -> Callable[..., Any]:
    """Celery's function that sends a message, which puts it to the canvas that is being walked through, if one is."""

    def collected(producer: Any, name: str, message: Any, **options: Any) -> Any:
        whole = collecting.get()
        if whole is None:
            return send(producer, name, message, **options)
        whole.add(send, name, message, options)
        return None

    return collected


def as_a_whole(apply_async: Callable[..., Any]) -> Callable[..., Any]:
    """A canvas' `apply_async`; of an app that is not Warren's, as it was."""

    @functools.wraps(apply_async)
    def sent(self: Any, *args: Any, **options: Any) -> Any:
        app = self.app
        outer = collecting.get()
        if not hasattr(app, "queues_are_hidden") or (outer is not None and outer.app is app):
            return apply_async(self, *args, **options)
        whole = Whole(app)
        token = collecting.set(whole)
        try:
            result = apply_async(self, *args, **options)
        finally:
            collecting.reset(token)
        whole.send()
        return result

    return sent


for _kind in (canvas.group, canvas._chain, canvas._chord):
    _kind.apply_async = as_a_whole(_kind.apply_async)
