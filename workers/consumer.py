"""The worker's consumer: what it leaves out, and connections that do not stall it."""

from __future__ import annotations

import datetime
import logging
import math
import time
from typing import TYPE_CHECKING, Any

from amqp.exceptions import ResourceLocked
from celery.exceptions import WorkerTerminate
from celery.utils.time import maybe_iso8601, maybe_make_aware
from celery.worker import state
from celery.worker.consumer import Consumer as CeleryConsumer
from celery.worker.state import maybe_shutdown
from kombu import compression

from queues.errors import PermanentError
from queues.remedies import explain, is_hopeless
from workers import ending
from workers.deadletter import PAUSE, DeadLetters
from workers.embedded import fit, is_embedded
from workers.guard import Undertaker
from workers.metrics import recorder
from workers.pipe import traced
from workers.report import described
from workers.startup import TELL_AGAIN
from workers.validation import Problem, problem

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

#: Heartbeats after which a name that is still taken belongs to another worker: the broker ends a silent connection
#: after two.
LOCK_PATIENCE = 3
#: Seconds before it is due that a message may be held here; one that comes earlier waits in the broker.
EARLY = 5.0


class Consumer(CeleryConsumer):
    """Celery's consumer without gossip, mingle and its delayed-delivery step.

    Gossip costs messages by the square of the workers, mingle a second at every start, and the delayed-delivery step
    declares what the broker owns here.
    """

    connection_errors: tuple[type[Exception], ...]

    class Blueprint(CeleryConsumer.Blueprint):
        """The consumer's steps."""

        default_steps = (
            "celery.worker.consumer.connection:Connection",
            "celery.worker.consumer.events:Events",
            "celery.worker.consumer.heart:Heart",
            "celery.worker.consumer.control:Control",
            "celery.worker.consumer.tasks:Tasks",
            "celery.worker.consumer.consumer:Evloop",
            "workers.reporter:Reporter",
            "workers.heartbeat:Heartbeat",
            "workers.wakeup:WakeUp",
        )

    def __init__(self, *args: Any, worker_options: dict[str, Any] | None = None, **kwargs: Any) -> None:
        # Gossip is no step of ours. Said to be wanted, it leaves the connection of worker events in place where
        # heartbeats are not, as in Celery's fixtures: answers and measurements go through it.
        options = {**(worker_options or {}), "without_mingle": True, "without_gossip": False}
        if is_embedded(kwargs["controller"]):
            kwargs["hostname"] = fit(kwargs["app"], kwargs["hostname"])
        super().__init__(*args, worker_options=options, **kwargs)
        # After a drop that only we have noticed, the broker's end of the old connection still holds our control queue.
        self.connection_errors = (*self.connection_errors, ResourceLocked)
        self.locked_since: float | None = None
        queue = next(iter(self.app.amqp.queues.consume_from))
        self.letters = Undertaker.letters = DeadLetters(self.app, queue, self.hostname)
        # kombu decompresses in this process, without a limit, whatever has a header that asks for it.
        compression._decoders.clear()

    def on_ready(self) -> None:
        """Celery calls this when the loop starts: the node's name is ours."""
        self.locked_since = None
        super().on_ready()

    def on_close(self) -> None:
        """Forget what cannot be acknowledged any more; what a process has taken is finished by a worker that ends.

        Celery forgets that, too, where it has not heard yet that the process has begun: the task ends, nobody
        acknowledges it, and its process waits for 30 s to be heard.
        """
        if state.should_stop is not None and state.should_stop is not False:
            for job in self.pool._pool._cache.values():
                job._accepted = job._accepted or job._write_to is not None
        super().on_close()

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Reconnect; where our node name is taken, wait until the broker has given up the old connection."""
        # The connection of worker events is as dead, and Celery would say goodbye to it.
        if self.event_dispatcher is not None and self.event_dispatcher.connection is not None:
            self.event_dispatcher.connection.collect()
        if not isinstance(exc, ResourceLocked):
            super().on_connection_error_after_connected(exc)
            return
        now = time.monotonic()
        self.locked_since = self.locked_since or now
        patience = LOCK_PATIENCE * self.app.conf.broker_heartbeat
        if now - self.locked_since > patience:
            logger.critical("another worker is called %s: give this one a name, -n QUEUE@NAME", self.hostname)
            raise self.ended() from exc
        logger.warning("the name %s is still taken at the broker: trying again for %d s", self.hostname, patience)
        self.connection.collect()
        time.sleep(1)

    def update_strategies(self) -> None:
        """Make what takes a task's messages; a task that runs in this very process answers as one in a child."""
        super().update_strategies()
        if is_embedded(self.controller):
            for task in self.app.tasks.values():
                task.__trace__ = traced(task.__trace__)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        """Celery's handler of a delivery, behind a look at the message."""
        handle = super().create_task_handler(*args, **kwargs)
        broker_errors = (*self.connection_errors, *self.channel_errors)

        def on_task_received(message: Any) -> None:
            try:
                found = problem(message, self.app.tasks)
                wait = 0.0 if found else self.early(message)
                if wait > EARLY:
                    found = self.put_off(message, wait, on_task_received)
                elif found is None:
                    handle(message)
            except broker_errors:
                raise
            except Exception as exc:
                logger.exception("a message that Celery could not take")
                found = Problem("malformed", described(exc))
            if found is not None:
                self.dead_letter(message, found)

        return on_task_received

    def early(self, message: Any) -> float:
        """Seconds until a message is due."""
        eta = message.headers.get("eta")
        if eta is None:
            return 0.0
        try:
            due = maybe_make_aware(maybe_iso8601(eta), self.app.timezone)
        except ValueError:
            return 0.0  # Celery refuses it
        return float((due - datetime.datetime.now(datetime.UTC)).total_seconds())

    def put_off(self, message: Any, wait: float, again: Callable[[Any], None]) -> Problem | None:
        """Let a message wait in the broker: Celery would hold it, and with it the place of a task that could run.

        Returns:
            Why it cannot.
        """
        if self.letters.delay(message, wait):
            message.ack_log_error(logger, self.connection_errors)
        elif self.letters.paused:
            self.timer.call_after(PAUSE, self.look_again, (message, again))
        else:
            return Problem("malformed", f"it is due in {wait:.0f} s and cannot be delayed: its headers are too large")
        return None

    def look_again(self, message: Any, again: Callable[[Any], None]) -> None:
        """Take a message that was held, unless its connection is lost: then the broker has it."""
        if message.channel is not None and message.channel.connection is not None:
            again(message)

    def dead_letter(self, message: Any, found: Problem) -> None:
        """End a message that cannot be run: FAILURE where it has an id, a dead letter with the reason."""
        logger.error("message dead-lettered as %s: %s", found.reason, found.text)
        recorder.rejected(found.reason)
        self.record_failure(message, found)
        if self.letters.bury(message, *found):
            message.ack_log_error(logger, self.connection_errors)
        else:
            message.reject_log_error(logger, self.connection_errors, requeue=False)

    def record_failure(self, message: Any, found: Problem) -> None:
        """Tell whoever waits for the task."""
        request = ending.context(message)
        if request is not None:
            ending.end(self.app.backend, request, PermanentError(found.reason, found.text))

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Celery would acknowledge, and so delete, what it cannot decode."""
        if message.delivery_info.get("exchange") == self.app.control.mailbox.exchange.name:
            logger.warning("a remote control command that cannot be decoded is left out: %s", type(exc).__name__)
            return
        reason = "compressed" if "compression" in (message.headers or {}) else "undecodable"
        self.dead_letter(message, Problem(reason, described(exc)))

    def on_unknown_task(self, _body: Any, message: Any, _exc: Exception) -> None:
        """A task that was registered when the worker had begun; Celery would log the message with its arguments."""
        text = (
            f"task {message.headers['task']!r:.80} was registered too late: do so where the queue's module is imported"
        )
        self.dead_letter(message, Problem("unknown-task", text))

    def on_invalid_task(self, _body: Any, message: Any, exc: Exception) -> None:
        """An eta, expiry or the like that Celery refuses."""
        self.dead_letter(message, Problem("malformed", described(exc)))

    def ensure_connected(self, conn: Any) -> Any:
        """Connect, again and again; one line a minute says why not, and what cannot heal ends the worker.

        A container's restart then reads its certificate and password files anew.
        """
        told: dict[str, float] = {}

        def on_error(exc: Exception, _interval: float) -> None:
            text, now = explain(conn, exc), time.monotonic()
            if now - told.get(text, -math.inf) >= TELL_AGAIN:
                told[text] = now
                logger.error("%s; trying again until it can be reached", text)

        try:
            return conn.ensure_connection(
                on_error, interval_start=0.5, interval_step=0.5, interval_max=3, callback=maybe_shutdown
            )
        except Exception as exc:
            if not is_hopeless(exc):
                raise
            logger.critical("%s; the worker ends", explain(conn, exc))
            raise self.ended() from exc

    def ended(self) -> WorkerTerminate:
        """The end of this worker, with an exit code that says so: Celery would leave with 0."""
        self.controller.exitcode = 2
        return WorkerTerminate(2)

    def connection_for_write(self, url: str | None = None, heartbeat: float | None = None) -> Any:
        """The connection of worker events: unconfirmed, or an alarm would stop the consumer that could end it."""
        return self.ensure_connected(
            self.app.connection_for_write(url=url, heartbeat=heartbeat, transport_options={"confirm_publish": False})
        )
