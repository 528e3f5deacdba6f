"""A worker that is told to end wakes at once, and so do its processes: Celery's would sleep on."""

from __future__ import annotations

import functools
import signal
import socket
import threading
from types import SimpleNamespace
from typing import Any

from billiard import pool
from billiard.common import terminate_handler_fired
from celery import bootsteps, signals
from celery.worker.consumer.tasks import Tasks


def owns_process() -> bool:
    """Whether the worker has a process of its own: in a thread, as tests run one, signals are somebody else's."""
    return threading.current_thread() is threading.main_thread()


class WakeUp(bootsteps.StartStopStep):
    """Lets the loop watch the socket that Python writes each signal's number to."""

    requires = (Tasks,)

    @functools.cached_property
    def ends(self) -> tuple[socket.socket, socket.socket]:
        """The end that is read, and the one that Python writes to."""
        pair = socket.socketpair()
        for end in pair:
            end.settimeout(0)
        return pair

    def start(self, consumer: Any) -> None:
        """Watch; again on every new connection, which clears the loop's watch list."""
        if consumer.hub is not None and owns_process():
            consumer.hub.add_reader(self.ends[0], self.drain)
            signal.set_wakeup_fd(self.ends[1].fileno(), warn_on_full_buffer=False)

    def drain(self) -> None:
        """Forget the numbers: the signal handlers have run, being awake is all that was wanted."""
        self.ends[0].recv(4096)

    def stop(self, consumer: Any) -> None:
        """Watch no longer."""
        if consumer.hub is not None and owns_process():
            signal.set_wakeup_fd(-1)
            consumer.hub.remove_reader(self.ends[0])


@signals.worker_process_init.connect(weak=False)
def forget(**_: Any) -> None:
    """A child's signals are no business of its parent's loop."""
    signal.set_wakeup_fd(-1)


@signals.worker_process_shutdown.connect(weak=False)
def leave(exitcode: int | None = None, **_: Any) -> None:
    """A child that was told to end does so now: billiard's sleeps for a second more.

    By then its parent has taken all its results. One that is replaced after its share of tasks has another exit code,
    and one that is ended by a signal is about to be killed: these keep the second.
    """
    if exitcode == pool.EX_OK and not terminate_handler_fired():
        pool.time = SimpleNamespace(**{**vars(pool.time), "sleep": lambda _seconds: None})
