"""The Celery app that producers and workers share."""

from __future__ import annotations

import datetime
import functools
import logging
import time
from contextlib import nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.app.amqp import AMQP
from celery.app.utils import Settings as CelerySettings
from kombu.exceptions import LimitExceeded
from kombu.pools import ProducerPool
from kombu.utils.uuid import uuid

from queues import canvas, celeryconfig, publish
from queues.errors import (
    BrokerUnavailableError,
    InvalidArgumentsError,
    PublishUnknownError,
    UnknownQueueError,
    UnknownTaskError,
)
from queues.settings import Settings
from queues.topology import HOUSEKEEPING_QUEUE, QUEUES, Topology
from queues.transport import deadline, is_bounded, patience, remaining

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from celery.app.registry import TaskRegistry

logger = logging.getLogger(__name__)

#: What stands in message headers, events and logs instead of arguments, which may hold addresses and secrets.
HIDDEN = "<hidden>"

#: Share of the publish timeout within which the broker is dealt with: the rest is for telling the caller.
BROKER_SHARE = 0.97

#: Seconds from the beginning of one try of a task's publish to the next, at first and at most: a refused login is
#: answered at once. And seconds between two lines in the log about it.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0
QUIET = 5.0

#: AMQP's short string, and RabbitMQ's highest useful priority.
MAX_ID_BYTES = 255
MAX_PRIORITY = 255
#: Celery's tasks that call another one many times; they run where that one does.
MAPS = frozenset({"celery.map", "celery.starmap", "celery.chunks"})


def idle(_error: Exception | None = None) -> None:
    """Nobody needs to know that the broker is waited for."""


#: Whether Celery sends what comes after a task that has done its work.
follows: ContextVar[bool] = ContextVar("warren_follows", default=False)


class WarrenAMQP(AMQP):
    """Celery's AMQP helpers with the confirmed producer."""

    Producer = publish.Producer
    _producer_pool: Any = None

    @functools.cached_property
    def send_task_message(self) -> Any:
        """Celery's function that sends one message."""
        return canvas.collect(self._create_task_sender())

    def _retry_publish(self, publish: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Celery's way to send what comes after a task: its links, the next step of its chain, a chord's body."""
        token = follows.set(True)
        try:
            with self.app.following(*args, **options):
                return super()._retry_publish(publish, *args, **options)
        finally:
            follows.reset(token)

    @property
    def producer_pool(self) -> Any:
        """A pool of confirmed producers on the app's own connections."""
        if self._producer_pool is None:
            connections = self.app.pool
            make = functools.partial(publish.Producer, timeout=self.app.conf.publish_timeout)
            self._producer_pool = ProducerPool(connections, limit=connections.limit, Producer=make)
        return self._producer_pool


class OwnSettings(CelerySettings):
    """Celery's settings, from its configuration alone.

    Celery prefers `CELERY_BROKER_URL` and `CELERY_RESULT_BACKEND`, which may be another application's, and which its
    command line sets from `RESULT_BACKEND`, without the password.
    """

    @property
    def broker_read_url(self) -> Any:
        """Where messages are read."""
        return self.broker_url

    @property
    def broker_write_url(self) -> Any:
        """Where messages are written."""
        return self.broker_url

    @property
    def broker_url(self) -> Any:
        """Where the broker is."""
        return self.get("broker_url")

    @property
    def result_backend(self) -> Any:
        """Where results are."""
        return self.get("result_backend")


class WarrenCelery(Celery):
    """A Celery app that knows the table: what is not in it raises before anything is published."""

    amqp_cls = "queues.app:WarrenAMQP"
    control_cls = "queues.control:Control"
    topology: Topology = QUEUES
    #: The queue of Celery's own tasks.
    housekeeping: str = HOUSEKEEPING_QUEUE
    #: What a worker does around a publish of its tasks: it may take as long as an alarm. What it gives is called while
    #: the broker is waited for, with the error of each try that failed, and ends the wait by raising.
    waiting: Callable[[], AbstractContextManager[Callable[..., None]]] = staticmethod(lambda: nullcontext(idle))
    #: The same around a publish in the midst of a task's code that must not be lost.
    keeping: Callable[[], AbstractContextManager[None]] = staticmethod(nullcontext)
    #: What a worker does around the sending of what comes after a task; given what `apply_async` is.
    following: Callable[..., AbstractContextManager[None]] = staticmethod(lambda *_, **__: nullcontext())
    #: The broker does not say which queues there are (4.3, to users without a right on them).
    queues_are_hidden = False
    _pool: Any = None

    def _load_config(self) -> Any:
        conf = super()._load_config()
        # An attribute that is set in the usual way becomes a setting.
        object.__setattr__(conf, "__class__", OwnSettings)
        return conf

    @property
    def pool(self) -> Any:
        """This app's connections: kombu's shared pools tell apps apart by host and user, and mix up their TLS."""
        if self._pool is None:
            self._ensure_after_fork()
            self._pool = self.connection_for_write().Pool(limit=self.conf.broker_pool_limit)
        return self._pool

    def close(self) -> None:
        """Close the app's connections; an app that is kept needs no closing."""
        if self._pool is not None:
            self._pool.force_close_all()
        self.amqp._producer_pool = None
        super().close()

    def send_task(self, name: str, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Publish a task; see `celery.Celery.send_task`.

        Raises:
            UnknownTaskError: the table does not hold the task.
            UnknownQueueError: the task does not run in the queue asked for.
            InvalidArgumentsError: the delay is too long, or the arguments are not JSON.
            PublishError: refused or unknown, see `queues.publish`.
        """
        options["queue"] = self.destination(name, kwargs or {}, options)
        # A retry carries the exchange and key it was delivered by, which after a delay are not the queue's own.
        for key in ("exchange", "exchange_type", "routing_key"):
            options.pop(key, None)
        try:
            delay = self.delay(options.pop("countdown", None), options.pop("eta", None))
        except (TypeError, ValueError) as exc:
            raise InvalidArgumentsError(f"countdown is a number of seconds, eta a date and time ({exc})") from None
        check_options(options)
        if options.get("ignore_result") is None and name in self.topology.task_names:
            options["ignore_result"] = self.topology.task(name)[1].ignore_result
        options.setdefault("argsrepr", HIDDEN)
        options.setdefault("kwargsrepr", HIDDEN)
        options["task_id"] = options.get("task_id") or uuid()
        send = functools.partial(super().send_task, name, args, kwargs, countdown=delay, **options)
        whole = canvas.collecting.get()
        if whole is not None and whole.app is self:
            whole.queue = options["queue"]
            return send()
        return self.publish(name, options["task_id"], send)

    def publish(self, name: str, task_id: str, send: Callable[[], Any]) -> Any:
        """Send one message; within a task, and without a deadline of the caller's, until the broker has it.

        Raises:
            PublishError: refused or unknown, see `queues.publish`.
        """
        limit = self.conf.publish_timeout * BROKER_SHARE
        if self.current_worker_task is None or is_bounded():
            with deadline(limit):
                return send()
        # A retry or a chain's next step must not be lost: the task that sends it waits.
        with self.waiting() as waits:
            pause, said = FIRST_PAUSE, -QUIET
            while True:
                begun = time.monotonic()
                try:
                    with deadline(limit), patience(waits):
                        return send()
                except (BrokerUnavailableError, PublishUnknownError) as exc:
                    if begun >= said + QUIET:
                        logger.warning("%s[%s] is sent again: %s", name, task_id, exc)
                        said = time.monotonic()
                    waits(exc)
                time.sleep(max(0.0, begun + pause - time.monotonic()))
                pause = min(2 * pause, LONGEST_PAUSE)

    def destination(self, name: str, kwargs: Mapping[str, Any], options: Mapping[str, Any]) -> str:
        """The queue in which a task runs.

        Raises:
            UnknownTaskError: the table does not hold the task.
            UnknownQueueError: it does not run in the queue asked for.
        """
        # Within a group Celery forgets to name the task that a map or chunk is made of.
        inner = kwargs["task"]["task"] if name in MAPS and "task" in kwargs else options.get("route_name") or name
        if inner.startswith("celery."):
            return self.housekeeping
        try:
            home = self.topology.task(inner)[0].name
        except KeyError:
            raise UnknownTaskError(
                f"task {inner!r} is not in the table: use one of {', '.join(self.topology.task_names)}"
            ) from None
        asked = options.get("queue") or home
        asked = getattr(asked, "name", asked)
        if asked != home:
            known = "runs another queue's tasks" if asked in self.topology else "is not in the table"
            raise UnknownQueueError(f"queue {asked!r} {known}: task {inner} runs in {home!r}; leave the queue out")
        return home

    def delay(self, countdown: float | None, eta: datetime.datetime | str | None) -> int | None:
        """Whole seconds until a task is due, or None for now."""
        if eta is not None:
            when = datetime.datetime.fromisoformat(eta) if isinstance(eta, str) else eta
            if when.tzinfo is None:
                when = when.replace(tzinfo=self.timezone)
            countdown = (when - datetime.datetime.now(datetime.UTC)).total_seconds()
        return publish.whole_delay(countdown) if countdown is not None and countdown > 0 else None

    def _acquire_producer(self, timeout: float | None = None) -> Any:
        limit = self.conf.broker_pool_limit
        try:
            return self.amqp.producer_pool.acquire(block=True, timeout=timeout or remaining(self.conf.publish_timeout))
        except LimitExceeded as exc:
            raise BrokerUnavailableError(
                f"all {limit} pooled connections stayed busy: publish from fewer threads; nothing was sent"
            ) from exc


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse what AMQP or Celery could not carry, before anything is connected.

    Raises:
        InvalidArgumentsError: the option's name and what it takes.
    """
    task_id, priority, expires = (options.get(name) for name in ("task_id", "priority", "expires"))
    if task_id is not None and (not isinstance(task_id, str) or not 0 < len(task_id.encode()) <= MAX_ID_BYTES):
        raise InvalidArgumentsError(f"task_id is a text of 1 to {MAX_ID_BYTES} bytes; nothing was published")
    if priority is not None and (not isinstance(priority, int) or not 0 <= priority <= MAX_PRIORITY):
        raise InvalidArgumentsError(f"priority is a whole number from 0 to {MAX_PRIORITY}; nothing was published")
    try:
        if isinstance(expires, str):
            datetime.datetime.fromisoformat(expires)
        elif expires is not None and not isinstance(expires, int | float | datetime.datetime):
            raise TypeError(expires)
    except (TypeError, ValueError):
        raise InvalidArgumentsError("expires is a number of seconds, or a date and time in ISO form") from None


def create_app(
    settings: Settings, topology: Topology = QUEUES, *, name: str = "warren", tasks: TaskRegistry | None = None
) -> WarrenCelery:
    """An app for these settings; it connects on first use."""
    app = WarrenCelery(name, set_as_current=False, tasks=tasks)
    app.topology = topology
    app.conf.update(celeryconfig.build(settings, topology))
    app.conf.publish_timeout = settings.publish_timeout
    return app


@functools.cache
def default_app() -> WarrenCelery:
    """The app of this process, from its environment.

    Raises:
        ConfigurationError: what is missing or wrong, a line each.
    """
    return create_app(Settings.from_env())
