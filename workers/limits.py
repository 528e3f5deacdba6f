"""Time limits that stand still while the broker does not take what a task publishes.

During an alarm a finished task waits with its chain's next step, and a retry with its next attempt. Neither is slow: a
limit that goes on would make a dead letter of a task that did nothing wrong.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import time
import weakref
from typing import TYPE_CHECKING, Any, ClassVar

from billiard import current_process
from billiard.exceptions import SoftTimeLimitExceeded
from celery._state import get_current_worker_task
from celery.concurrency import asynpool, prefork
from celery.exceptions import Reject
from kombu.asynchronous import get_event_loop

from workers.pipe import Pipes

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

#: Processes of one pool that can be told apart.
PLACES = 1024
#: Seconds that a limit is put off by at least: a task that waits is looked at again then.
LOOK_AGAIN = 1.0
_PID, _FIRST, _WAITED, _SINCE, _WIDTH = range(5)


class Waits:
    """How long each process of a pool has waited for the broker within the task that it runs.

    Shared by the pool's processes, which write a place each, and their parent, which reads.
    """

    def __init__(self) -> None:
        self._cells = memoryview(mmap.mmap(-1, PLACES * _WIDTH * 8)).cast("d")
        self._request: Any = lambda: None

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time within as one of waiting.

        Raises:
            Reject: a time limit has ended the wait all the same; the message goes back to the queue.
        """
        task = get_current_worker_task()
        start = _WIDTH * (getattr(current_process(), "index", 0) % PLACES)
        cells = self._cells[start : start + _WIDTH]
        now = time.monotonic()
        if task is not None and self._request() is not task.request:
            self._request = weakref.ref(task.request)
            cells[_SINCE] = cells[_WAITED] = 0.0
            cells[_FIRST], cells[_PID] = now, os.getpid()
        cells[_SINCE] = now
        try:
            yield
        except SoftTimeLimitExceeded as exc:
            raise Reject("the broker took nothing for as long as its message may be kept", requeue=True) from exc
        finally:
            # In this order: who reads in between sees too long a wait rather than none.
            cells[_WAITED] += time.monotonic() - cells[_SINCE]
            cells[_SINCE] = 0.0

    def of(self, pid: int, accepted: float) -> tuple[float, bool]:
        """Seconds that a process has waited in the task it runs, and whether it waits now.

        Args:
            pid: of the process.
            accepted: when it began the task, by the monotonic clock.
        """
        for start in range(0, PLACES * _WIDTH, _WIDTH):
            cells = self._cells[start : start + _WIDTH]
            if cells[_PID] == pid:
                if cells[_FIRST] < accepted:
                    break
                since = cells[_SINCE]
                return cells[_WAITED] + (time.monotonic() - since if since else 0.0), bool(since)
        return 0.0, False


waits = Waits()


class Pool(Pipes, asynpool.AsynPool):
    """Celery's pool of processes, whose limits leave out what a task waits for the broker."""

    #: Seconds that a message may be kept, less what it takes to give it back; set for the worker's queue.
    longest: ClassVar[float] = 0.0

    def _on_soft_timeout(self, job: int, soft: float, hard: float, hub: Any) -> None:
        more = self._more(job)
        if more:
            self._tref_for_id[job] = hub.call_later(more, self._on_soft_timeout, job, soft, hard, hub)
        else:
            super()._on_soft_timeout(job, soft, hard, hub)

    def _on_hard_timeout(self, job: int) -> None:
        more = self._more(job)
        if more:
            self._tref_for_id[job] = get_event_loop().call_later(more, self._on_hard_timeout, job)
        else:
            super()._on_hard_timeout(job)

    def _more(self, job: int) -> float:
        """Seconds by which a limit is put off; none where it has been put off by all that the task waited."""
        result = self._cache.get(job)
        if result is None or not result._worker_pid:
            return 0.0
        waited, waiting = waits.of(result._worker_pid, result._time_accepted)
        had: float = getattr(result, "put_off", 0.0)
        more = min(waited, self.longest - (result._timeout or 0.0)) - had
        if more <= 0:
            return 0.0
        if waiting:
            more = max(more, LOOK_AGAIN)
            if not had:
                logger.warning("task %s waits for the broker: its time limits stand still", result.correlation_id)
        result.put_off = had + more
        return more


class TaskPool(prefork.TaskPool):
    """Celery's prefork pool with these limits."""

    Pool = Pool
