"""The pool of processes: time limits that leave out what a task waits for, and what a task started ends with it."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import time
import uuid
from typing import TYPE_CHECKING, Any, ClassVar

from billiard import current_process, pool
from billiard.pool import SIG_SOFT_TIMEOUT
from celery import current_app, signals
from celery.concurrency import asynpool, prefork
from kombu.asynchronous import get_event_loop

from workers import pipe, programs
from workers.waits import waits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

logger = logging.getLogger(__name__)

#: Seconds that a limit is put off by at least: a task that waits is looked at again then.
LOOK_AGAIN = 1.0
#: Seconds that a task which has waited as long as it may is given to give its message back.
GIVING_BACK = 5.0


class Worker(pipe.Worker):
    """A process of the pool."""

    def on_loop_start(self, pid: int) -> None:
        """Billiard's own handler would raise in between two tasks, and end the process."""
        signal.signal(SIG_SOFT_TIMEOUT, waits.on_soft_limit)
        super().on_loop_start(pid)


def put_off(job: Any) -> float:
    """Seconds by which a task's limits are put off; none where they have been put off by all that it waited."""
    if not job._worker_pid:
        return 0.0
    waited, waiting = waits.of(job._worker_pid, job._time_accepted)
    had: float = getattr(job, "put_off", 0.0)
    more = min(waited, Pool.longest - (job._timeout or 0.0)) - had
    if more <= 0:
        return 0.0
    if waiting:
        more = max(more, LOOK_AGAIN)
        if not had:
            logger.warning("task %s waits for the broker: its time limits stand still", job.correlation_id)
    job.put_off = had + more
    return more


def given_back(job: Any) -> float:
    """Seconds for a task that waits at its hard limit, and may not have waited at its soft one, to give up."""
    if getattr(job, "was_asked", False) or not waits.of(job._worker_pid or 0, job._time_accepted)[1]:
        return 0.0
    job.was_asked, job.put_off = True, getattr(job, "put_off", 0.0) + GIVING_BACK
    with contextlib.suppress(ProcessLookupError):
        os.kill(job._worker_pid, SIG_SOFT_TIMEOUT)
    return GIVING_BACK


class TimeoutHandler(pool.TimeoutHandler):
    """Looks at the limits of what still runs while the worker stops: they stand still then, too."""

    def handle_timeouts(self) -> Iterator[None]:
        """Look once for each turn; billiard's own knows nothing of limits that are put off."""
        while self._state == pool.RUN:
            for job in [*self.cache.values()]:
                if passed(job, job._timeout) and not (put_off(job) or given_back(job)):
                    self.on_hard_timeout(job)
                elif passed(job, job._soft_timeout) and not getattr(job, "was_told", False) and not put_off(job):
                    job.was_told = True
                    self.on_soft_timeout(job)
            yield


def passed(job: Any, limit: float | None) -> bool:
    """Whether a task has reached this limit, as far as it is put off."""
    end = (job._time_accepted or math.inf) + (limit or math.inf) + getattr(job, "put_off", 0.0)
    return time.monotonic() >= end


class Pool(pipe.Pipes, asynpool.AsynPool):
    """Celery's pool of processes, whose limits leave out what a task waits for the broker."""

    Worker = Worker
    TimeoutHandler = TimeoutHandler
    #: How many tasks the pool has had at once since somebody looked.
    most = 0
    #: Seconds that a message may be kept, less what it takes to give it back; set for the worker's queue.
    longest: ClassVar[float] = 0.0

    def _on_soft_timeout(self, job: int, soft: float, hard: float, hub: Any) -> None:
        result = self._cache.get(job)
        more = put_off(result) if result else 0.0
        if more:
            self._tref_for_id[job] = hub.call_later(more, self._on_soft_timeout, job, soft, hard, hub)
            return
        if result:
            result.was_told = True
        super()._on_soft_timeout(job, soft, hard, hub)

    def _on_hard_timeout(self, job: int) -> None:
        result = self._cache.get(job)
        more = (put_off(result) or given_back(result)) if result else 0.0
        if more:
            self._tref_for_id[job] = get_event_loop().call_later(more, self._on_hard_timeout, job)
            return
        if result:
            self._remember(result._worker_pid)
        super()._on_hard_timeout(job)

    def apply_async(self, *args: Any, **kwargs: Any) -> Any:
        """Give a task to a process."""
        result = super().apply_async(*args, **kwargs)
        self.most = max(self.most, len(self._cache))
        return result

    def terminate_job(self, pid: int, sig: int | None = None) -> None:
        """End a process and its task."""
        self._remember(pid)
        super().terminate_job(pid, sig)

    def _remember(self, pid: int) -> None:
        """What a process has started is best seen while it lives."""
        process, _ = self._process_by_pid(pid)
        if process is not None:
            process.programs = tuple(programs.started_by(pid, process.mark))

    def WorkerProcess(self, worker: Any) -> Any:  # noqa: N802 - billiard's name
        """A process of the pool, with the mark of what it will start."""
        process = super().WorkerProcess(worker)
        process.mark, process.programs = f"task-{uuid.uuid4().hex[:9]}", ()
        return process

    def _create_process_handlers(self, hub: Any) -> None:
        super()._create_process_handlers(hub)
        down = self.on_process_down

        def on_process_down(process: Any) -> None:
            programs.end_all_of(process.pid, process.mark, known=process.programs)
            down(process)

        self.on_process_down = on_process_down


class TaskPool(prefork.TaskPool):
    """Celery's prefork pool with these limits."""

    Pool = Pool

    def on_start(self) -> None:
        """Every task's code is bounded, of whatever class it is, before the processes look at it."""
        for task in self.app.tasks.values():
            task.run = waits.body(task.run)
            task.retry, task.replace = waits.kept(task.retry, undone=True), waits.kept(task.replace)
        programs.end_orphans()
        super().on_start()

    def on_stop(self) -> None:
        """Stop when all have finished what they run."""
        with self._ending():
            super().on_stop()

    def on_terminate(self) -> None:
        """Stop at once."""
        with self._ending():
            super().on_terminate()

    @contextlib.contextmanager
    def _ending(self) -> Iterator[None]:
        processes = [*self._pool._pool] if isinstance(self._pool, Pool) else []
        for process in processes:
            self._pool._remember(process.pid)
        try:
            yield
        finally:
            for process in processes:
                programs.end_all_of(process.pid, process.mark, known=process.programs)


@signals.worker_process_init.connect(weak=False)
def observe(**_: Any) -> None:
    """Put a bound around each run, on the tracers that Celery has just made."""
    mark = getattr(current_process(), "mark", None)
    if mark is None:
        return  # a test's worker in a thread, and the process is the test's
    programs.lead(mark)

    def observed(trace: Callable[..., Any]) -> Callable[..., Any]:
        def traced(*args: Any, **kwargs: Any) -> Any:
            begun, answer = programs.now(), None
            with waits.running():
                try:
                    answer = trace(*args, **kwargs)
                finally:
                    if waits.exceeded and (answer is None or answer.info is not None):
                        programs.end_all_of(os.getpid(), mark, since=begun, grace=programs.GRACE)
            return answer

        return traced

    for task in current_app.tasks.values():
        task.__trace__ = observed(task.__trace__)
