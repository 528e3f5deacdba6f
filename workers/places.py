"""Places of the pool that never come back, and processes that can do nothing any more.

Each message that a worker holds has its place in the pool. Where one is lost, in whatever way, the worker does less and
less and looks well. What can be mended is: a process that takes no task is replaced. Otherwise the worker says what it
saw, finishes what it runs, and ends with exit code 2: its messages go back to the queue, and a new worker begins.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from typing import TYPE_CHECKING, Any

from celery.worker import state

from queues.publish import connect
from queues.remedies import explain, is_hopeless
from queues.topology import QUEUES
from queues.transport import deadline
from workers.deadletter import PATIENCE
from workers.guard import Undertaker
from workers.limits import Pool
from workers.waits import waits

if TYPE_CHECKING:
    from collections.abc import Iterable

logger = logging.getLogger(__name__)

#: Seconds after which a process that has not taken what it was given is replaced. One that is being replaced anyway
#: takes half of them.
DEAF = 60.0
#: Seconds for which a place must be lost, and with messages in the queue.
LOST, UNUSED = 120.0, 180.0
#: Seconds between two looks whether the broker still lets this worker in.
LOGIN = 30.0


class Places:
    """Looks at the pool of one worker, as often as its heartbeat does."""

    def __init__(self) -> None:
        #: Since when things are as they should not stay, by their kind and the monotonic clock.
        self._since: dict[str, dict[Any, float]] = {}
        self._login_at = float("-inf")

    def look(self, consumer: Any, ready: int) -> None:
        """Look once.

        Args:
            consumer: the worker's.
            ready: messages that wait in the queue, as far as it is consumed.
        """
        if state.should_stop not in (None, False) or state.should_terminate not in (None, False):
            return
        pool = consumer.pool._pool
        if not isinstance(pool, Pool):
            return  # a test's worker in a thread
        found = self.lost(pool) or self.unused(consumer, pool, ready)
        if found is None and waits.refused():
            found = self.locked_out(consumer)
        if found is not None:
            logger.critical("%s; the worker ends, and its messages go back to the queue", found)
            state.should_stop = 2

    def lost(self, pool: Any) -> str | None:
        """A task that nobody runs, and nobody will; processes that take none are ended on the way."""
        jobs = {job._job: job for job in [*pool._cache.values()]}
        processes = {process.pid for process in pool._pool}
        runs = {job._worker_pid for job in jobs.values() if job._accepted}
        gone = [number for number, job in jobs.items() if job._accepted and job._worker_pid not in processes]
        given = {number: job._write_to.pid for number, job in jobs.items() if not job._accepted and job._write_to}
        deaf = {(number, pid) for number, pid in given.items() if pid in processes - runs}
        ids = {job.correlation_id for job in jobs.values()}
        kept = {request.id for request in state.reserved_requests if request not in state.active_requests} - ids
        free = len(runs & processes) < pool._processes
        waiting = {number for number, job in jobs.items() if not job._accepted} | kept if free else set()
        for _, pid in self.after(DEAF, "deaf", deaf):
            logger.critical("process %d has not taken its task for %.0f s: it is replaced", pid, DEAF)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        lost = self.after(LOST, "gone", gone)
        for number in lost:
            # The end of the pool would wait for it.
            jobs[number].discard()
        if lost:
            return f"the process of task {jobs[lost[0]].correlation_id} has been gone for {LOST:.0f} s"
        if self.after(LOST, "waiting", waiting):
            return f"tasks have waited for {LOST:.0f} s, though not all {pool._processes} processes are busy"
        return None

    def unused(self, consumer: Any, pool: Any, ready: int) -> str | None:
        """Messages that wait in the queue, though this worker has not held as many as it may for a long time."""
        buckets = sum(len(bucket.contents) for bucket in consumer.task_buckets.values() if bucket)
        held = max(len(state.requests) + buckets, len(pool._cache), pool.most)
        pool.most = 0
        letters = Undertaker.letters
        # Another replica may be the one that works, or what waits for an `eta` is held here.
        excused = letters is None or letters.paused or QUEUES.queue(letters.queue).single_active_consumer
        unused = bool(ready) and held < pool._processes and not excused
        if self.after(UNUSED, "unused", ["unused"] if unused else []):
            return f"{ready} messages wait, and for {UNUSED:.0f} s only {held} of {pool._processes} places had one"
        return None

    def after(self, seconds: float, kind: str, found: Iterable[Any]) -> list[Any]:
        """Those that have been as they are for so long; what is not found any more is forgotten."""
        now, before = time.monotonic(), self._since.get(kind, {})
        since = self._since[kind] = {one: before.get(one, now) for one in found}
        return [one for one, at in since.items() if now - at > seconds]

    def locked_out(self, consumer: Any) -> str | None:
        """Whether the broker refuses this worker, as it refuses a process of it."""
        if time.monotonic() < self._login_at + LOGIN:
            return None
        self._login_at = time.monotonic()
        connection = consumer.app.connection_for_write()
        try:
            with deadline(PATIENCE):
                connect(connection)
        except Exception as exc:  # noqa: BLE001 - told apart here
            return explain(connection, exc) if is_hopeless(exc) else None
        finally:
            connection.collect()
        return None
