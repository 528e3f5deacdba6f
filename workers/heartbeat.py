"""The file that a health check looks at: fresh while the worker really consumes, or is paused on purpose.

Touched by the worker's own loop, and only while its consumer is registered, or an order has paused it, and the broker
answers a question about the queue. A loop that stalls ends itself, its stacks in the log: nothing restarts a container
that is merely unhealthy.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

from amqp import spec
from celery import bootsteps
from celery.worker.consumer.tasks import Tasks
from vine import promise

from workers.orders import how_to_go_on, paused
from workers.places import Places
from workers.wakeup import owns_process

logger = logging.getLogger(__name__)

#: Seconds between two looks; a health check allows a minute.
INTERVAL = 5.0
#: Seconds within which the broker must have answered.
ANSWER_LIMIT = 10.0
#: Seconds without a turn of the loop after which the process ends.
STALL_LIMIT = 120.0


class Heartbeat(bootsteps.StartStopStep):
    """Touches `HEARTBEAT_FILE` while the consumer works, and removes it when it stops."""

    requires = (Tasks,)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        name = os.environ.get("HEARTBEAT_FILE")
        self.path = Path(name) if name else None
        self.timer: Any = None
        self.channel: Any = None
        self.asked_at = self.answered_at = 0.0
        #: Messages in the queue when the broker last answered.
        self.ready = 0
        self.places = Places()

    def start(self, consumer: Any) -> None:
        """Look as soon as the loop turns, and every few seconds."""
        if paused(consumer):
            logger.warning(how_to_go_on(consumer))
        self.channel = consumer.connection.channel()
        self.answered_at = time.monotonic()
        self.watch()
        # In the loop's first turn: the loop itself begins to consume, after all steps have started.
        consumer.hub.call_soon(self.look, consumer)
        self.timer = consumer.timer.call_repeatedly(INTERVAL, self.look, (consumer,))

    def watch(self) -> None:
        """Prove that the loop turns: end the process where this is not called again in time."""
        # The watching thread does not survive a fork, and cancelling it in a child would wait for it for ever.
        if owns_process():
            faulthandler.dump_traceback_later(STALL_LIMIT, exit=True, file=sys.stderr)

    def look(self, consumer: Any) -> None:
        """One turn: prove that the loop turns, touch the file where all is well, ask the broker anew."""
        self.watch()
        now = time.monotonic()
        queue = consumer.letters.queue
        works = consumer.task_consumer.consuming_from(queue) or paused(consumer)
        alive = works and now - self.answered_at < INTERVAL + ANSWER_LIMIT
        if alive and self.path is not None:
            self.path.touch()
        if self.asked_at <= self.answered_at and self.channel.is_open:
            self.asked_at = now
            self.ask(queue)
        self.places.look(consumer, self.ready if alive and not paused(consumer) else 0)

    def ask(self, queue: str) -> None:
        """Ask for the queue without waiting: the loop reads the answer when it comes."""
        self.channel._pending[spec.Queue.DeclareOk] = promise(self.on_answer)
        passive, rest = True, (False, False, False, False)
        self.channel.send_method(spec.Queue.Declare, "BsbbbbbF", (0, queue, passive, *rest, {}))

    def on_answer(self, _method: object, _queue: str, ready: int, *_answer: object) -> None:
        """The queue exists, and the broker talks to us."""
        self.answered_at, self.ready = time.monotonic(), ready

    def stop(self, _consumer: Any) -> None:
        """A worker that does not consume is not healthy."""
        if owns_process():
            faulthandler.cancel_dump_traceback_later()
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.path is not None:
            self.path.unlink(missing_ok=True)
