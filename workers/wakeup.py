"""A signal wakes the worker's loop at once: Celery's would sleep on until its next timer."""

from __future__ import annotations

import signal
import socket
from typing import Any

from celery import bootsteps, signals
from celery.worker.consumer.tasks import Tasks


class WakeUp(bootsteps.StartStopStep):
    """Lets the loop watch the socket that Python writes each signal's number to."""

    requires = (Tasks,)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self.near, self.far = socket.socketpair()
        self.near.settimeout(0)
        self.far.settimeout(0)

    def start(self, consumer: Any) -> None:
        """Watch; again on every new connection, which clears the loop's watch list."""
        if consumer.hub is not None:
            consumer.hub.add_reader(self.near, self.drain)
            signal.set_wakeup_fd(self.far.fileno(), warn_on_full_buffer=False)

    def drain(self) -> None:
        """Forget the numbers: the signal handlers have run, being awake is all that was wanted."""
        self.near.recv(4096)

    def stop(self, consumer: Any) -> None:
        """Watch no longer."""
        signal.set_wakeup_fd(-1)
        if consumer.hub is not None:
            consumer.hub.remove_reader(self.near)


@signals.worker_process_init.connect(weak=False)
def forget(**_: Any) -> None:
    """A child's signals are no business of its parent's loop."""
    signal.set_wakeup_fd(-1)
