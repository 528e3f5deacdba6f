"""What passes between a worker's main process and its children, and what is left of a task when it is over.

Only plain data goes from a child to its parent (`workers.report`), and the parent reads nothing else: a process that
writes anything else there is ended, and its task is one whose process died.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import pickle
import signal
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from billiard.common import terminate_handler_fired
from billiard.einfo import ExceptionInfo
from billiard.pool import READY
from celery import signals
from celery.app import trace as tracing
from celery.concurrency import asynpool
from celery.exceptions import WorkerShutdown
from celery.states import RETRY
from celery.worker import state

from queues.app import HIDDEN
from workers.report import Running, described, exit_status, is_tellable, report, unwrapped
from workers.startup import FAILED, ending
from workers.wakeup import owns_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

logger = logging.getLogger(__name__)

#: Signals whose handlers a task may change: with one of them ignored, the next task has no soft limit.
_SIGNALS = frozenset(
    {
        *(signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP),
        *(signal.SIGQUIT, signal.SIGALRM, signal.SIGCHLD, signal.SIGPIPE),
    }
)


class GarbledError(Exception):
    """A child wrote what is no message."""


class UntellableError(Exception):
    """A task raised what raises itself when it is told of."""


class NotSentError(Exception):
    """A task said that it is tried again, and sent nothing: it would never be."""


class Unpickler(pickle.Unpickler):
    """Reads numbers, texts and what holds them; nothing that is looked up by its name."""

    def find_class(self, module: str, name: str) -> NoReturn:
        """Refuse every class and function."""
        raise pickle.UnpicklingError(f"a process sent {module}.{name}, and not plain data")


def load(file: Any) -> Any:
    """One message of a child.

    Raises:
        GarbledError: it is none.
    """
    try:
        message = Unpickler(file).load()
        if message is not None:
            kind, content = message
            int(kind), len(content)
    except Exception as exc:
        raise GarbledError(f"{type(exc).__name__}: {exc}") from exc
    return message


def receive(reader: Any) -> Any:
    """The same, read at once: where a process has ended, or the worker ends."""
    try:
        return load(io.BytesIO(reader.recv_bytes()))
    except GarbledError as exc:
        raise EOFError from exc


class Worker(asynpool.Worker):
    """A child, which tells its parent plain data only."""

    def after_fork(self) -> None:
        """Set the child up; what raises ends it, and by its exit code the worker."""
        with ending("a process of the worker cannot be set up"):
            super().after_fork()

    def on_loop_start(self, pid: int) -> None:
        """The child is as every task should find it."""
        self.outq.put = plainly(self.outq.put)
        Signals.remember()
        super().on_loop_start(pid)

    def _do_exit(self, pid: int, exitcode: object, exc: BaseException | None = None) -> None:
        """End with a number, whatever a task has given `sys.exit`."""
        super()._do_exit(pid, None if exitcode is None else exit_status(exitcode), exc)


def plainly(put: Callable[[Any], None]) -> Callable[[Any], None]:
    """A pipe's `put` that makes plain data of an error."""

    def put_plain(message: tuple[int, Any]) -> None:
        kind, content = message
        if kind == READY:
            job, number, (ran, told), place = content
            if isinstance(told, ExceptionInfo):
                told = report(unwrapped(told), told.traceback)
            content = (job, number, (ran, told), place)
        put((kind, content))

    return put_plain


class ResultHandler(asynpool.ResultHandler):
    """Reads what children say, trusting none of them."""

    def _recv_message(self, add_reader: Any, fd: int, callback: Any) -> Iterator[None]:
        def heard(message: Any) -> None:
            try:
                callback(message)
            except Exception as exc:
                # Callbacks of ours raise nothing (`workers.guard`): it has the wrong parts.
                raise GarbledError(f"{type(exc).__name__}: {exc}") from exc

        try:
            yield from super()._recv_message(add_reader, fd, heard, load=load)
        except GarbledError as exc:
            self._hub.remove_reader(fd)
            process = self.fileno_to_outq[fd]
            logger.critical("process %d wrote what is no message, and is ended: %s", process.pid, exc)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)


class Pipes:
    """The part of a pool that has to do with its pipes, and with children that cannot be set up."""

    Worker = Worker
    ResultHandler = ResultHandler
    #: Children that were ready for work.
    _ready: ClassVar[set[int]] = set()

    def did_start_ok(self) -> bool:
        """Whether the first children are there; with the exit code that says so where they could not be set up."""
        if any(process.exitcode == FAILED for process in self._pool):  # type: ignore[attr-defined]
            raise WorkerShutdown(FAILED)
        return bool(super().did_start_ok())  # type: ignore[misc]

    def on_process_alive(self, pid: int) -> None:
        """A child is ready."""
        self._ready.add(pid)
        super().on_process_alive(pid)  # type: ignore[misc]

    def _create_process_handlers(self, hub: Any) -> None:
        super()._create_process_handlers(hub)  # type: ignore[misc]
        down = self.on_process_down

        def on_process_down(process: Any) -> None:
            if process.exitcode == FAILED and process.pid not in self._ready:
                state.should_stop = FAILED  # its set-up would fail again, and again
            self._ready.discard(process.pid)
            down(process)

        self.on_process_down: Callable[[Any], None] = on_process_down

    def create_process_queues(self) -> Any:
        """Pipes of which the parent reads plain data only."""
        queues: Any = super().create_process_queues()  # type: ignore[misc]
        reader = queues[1]._reader
        reader.recv = functools.partial(receive, reader)
        return queues


class Signals:
    """The handlers that a child has for signals; a task may change them, and set an alarm."""

    _handlers: dict[int, Any] = {}  # noqa: RUF012 - one process has one set

    @classmethod
    def remember(cls) -> None:
        """Note how they are before the first task."""
        cls._handlers = {number: signal.getsignal(number) for number in _SIGNALS}

    @classmethod
    def restore(cls) -> None:
        """Put them back: what is left of a task would end the next one, or keep its limits from it."""
        if not owns_process():
            return
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        for number, handler in cls._handlers.items():
            if signal.getsignal(number) is not handler and handler is not None:
                signal.signal(number, handler)


def traced(trace: Callable[..., Any]) -> Callable[..., Any]:
    """Celery's tracer of a task, whose answer is plain data."""

    def run(task_id: str, *args: Any, **kwargs: Any) -> Any:
        Running.begin()
        flaw: Exception | None = None
        try:
            answer = trace(task_id, *args, **kwargs)
        except BaseException as exc:
            if terminate_handler_fired() and not isinstance(exc, Exception):
                raise
            if Running.done == task_id or Running.has_failed(task_id):
                # A log handler or a hook of theirs, for one: what is recorded counts.
                with contextlib.suppress(Exception):
                    logger.error("task %s has ended; then came %s", task_id, described(exc))  # noqa: TRY400 - may be untellable
            elif is_tellable(exc):
                raise
            else:
                flaw = UntellableError(described(exc))
            answer = tracing.trace_ok_t(None, None, None, None)
        finally:
            Signals.restore()
        if answer.info is not None and answer.info.state == RETRY and answer.info.retval.sig is None:
            flaw = NotSentError("Retry was raised, and no next attempt was sent: call self.retry()")
        if flaw is not None:
            raise flaw  # here, and without what led to it
        if Running.failed and Running.has_failed(task_id):
            error = answer.info.retval if answer.info else Running.failed[1]
            return tracing.trace_ok_t(report(error, getattr(answer.retval, "traceback", "")), True, None, None)  # noqa: FBT003
        if answer.info is not None and Running.done != task_id:
            return answer._replace(retval=report(answer.info.retval, answer.retval.traceback))
        told = (tuple(map(str, Running.marks)), HIDDEN)
        return tracing.trace_ok_t(None, None, answer.runtime, told)

    return run


@signals.worker_process_init.connect(weak=False)
def prepare(**_: Any) -> None:
    """Stand between what Celery traces, by the tracers that it has just made, and what it tells."""
    from workers.app import app

    for task in app.tasks.values():
        task.__trace__ = traced(task.__trace__)
    # The repr of a result is shown nowhere, and one that raises would make a failure of a success.
    tracing.saferepr = lambda *_: HIDDEN
