"""What keeps one message from stopping a worker or vanishing.

Celery acknowledges a task that failed at its hard limit, lets a task's MemoryError end the worker, and requeues for
ever a task whose process dies. Here each of them ends as a recorded FAILURE and a dead letter with its reason.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import logging
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionInfo
from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery import signals
from celery.exceptions import Ignore, Retry, TaskRevokedError, WorkerShutdown, WorkerTerminate
from celery.states import REVOKED
from celery.worker import state
from celery.worker.request import Request as CeleryRequest
from celery.worker.request import task_ready
from kombu.utils.encoding import safe_repr

from queues.app import HIDDEN
from queues.errors import BrokerUnavailableError, InDoubtError, RecordedError
from queues.headers import CHILD_DEATHS, DEAD_PROCESS, DOUBT
from queues.topology import QUEUES
from queues.transport import deadline
from workers import ending
from workers.deadletter import PATIENCE, DeadLetters
from workers.metrics import recorder
from workers.once import process_name
from workers.report import DelayedError, Mark, SupersededError, described, reason_of, rebuilt, unwrapped
from workers.validation import Problem, is_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

logger = logging.getLogger(__name__)

#: Reasons of what the main process itself finds; a task that raises one of these has only raised it.
_ENDED: dict[type[BaseException], str] = {TimeLimitExceeded: "time-limit", WorkerLostError: "worker-lost"}
#: The reason of a dead letter over an error of the worker's own, or of a task's hook that runs in it.
INTERNAL = "internal-error"
#: Celery's own periodic task; ours stand in the table.
_CELERY_TICKS = frozenset({"celery.backend_cleanup"})


def is_tick(name: str) -> bool:
    """Whether beat sends the task: a missed tick is no loss, the next one comes."""
    if name in _CELERY_TICKS:
        return True
    try:
        return QUEUES.task(name)[1].every is not None
    except KeyError:
        return False


def bounded(limits: Any, hard_default: float, soft_default: float) -> tuple[float, float]:
    """A message's limits, never above the table's: the consumer timeout was chosen for those.

    A soft limit above the hard one would keep billiard from ever arming the hard one.
    """
    hard, soft = limits or (None, None)
    hard = min(hard or hard_default, hard_default)
    return hard, min(soft or soft_default, soft_default, hard * 0.9)


@contextlib.contextmanager
def telling(request: Request) -> Iterator[None]:
    """Bound what a failure sets off in the main process: errbacks and chords publish, and run code of their own."""
    try:
        with deadline(PATIENCE), ending.alarm(ending.PATIENCE):
            yield
    except BrokerUnavailableError as exc:
        ending.reopen(request.task.backend, request._context, exc)
    except Exception:
        logger.exception("whoever waits for task %s[%s] was not told of its failure", request.name, request.id)


def caught(callback: Callable[..., Any]) -> Callable[..., Any]:
    """A callback of the pool that has the message end whatever it raises, Celery's own way to end a worker excepted.

    billiard would write a line, and the message would keep its place for ever.
    """

    @functools.wraps(callback)
    def call(self: Request, *args: Any, **options: Any) -> Any:
        try:
            return callback(self, *args, **options)
        except (WorkerShutdown, WorkerTerminate, KeyboardInterrupt):
            raise
        except BaseException as exc:  # noqa: BLE001 - hooks of a task's own class run here, too
            self.fall(callback.__name__, exc, *args, **options)

    return call


class Undertaker:
    """Where this process's dead letters go; set when the consumer is made."""

    letters: DeadLetters | None = None


class Request(CeleryRequest):
    """One delivery in the worker's main process: measured, and dead-lettered where Celery would acknowledge."""

    time_limits: tuple[float | None, float | None]
    #: Reason and text of the failure that ends the task for good, and the run that it leaves in doubt.
    _dead: Problem | None = None
    _doubt = ""
    #: Whether its success is stored.
    _succeeded = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Another's producer writes the arguments here, or nothing: then Celery takes them from the body for its log.
        self._argsrepr = self._kwargsrepr = HIDDEN
        self._request_dict.update(argsrepr=HIDDEN, kwargsrepr=HIDDEN)
        self.time_limits = bounded(self.time_limits, self._task.time_limit, self._task.soft_time_limit)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # Celery generates a subclass whose methods never call the base's; this is the one place to see runtimes.
        super().__init_subclass__(**kwargs)
        generated, execute = cls.__dict__.get("on_success"), cls.__dict__.get("execute_using_pool")
        if generated is None or execute is None:
            return

        def execute_using_pool(self: Request, pool: Any, **options: Any) -> Any:
            try:
                return execute(self, pool, **options)
            except TaskRevokedError:
                raise
            except Exception as exc:
                logger.exception("task %s[%s] could not be given to a process", self.name, self.id)
                self._not_begun(pool, exc)
                # Celery takes this for a task that is over, and gives its place to the next.
                raise TaskRevokedError(self.id) from exc

        def on_success(self: Request, outcome: tuple[bool, Any, float | None], **options: Any) -> None:
            failed, told, self.runtime = outcome
            if failed:
                self.on_failure(told, return_ok=True)
                return
            self._succeeded = True
            marks, shown = told
            if Mark.RECORDED in marks:
                recorder.deduplicated(self)
            elif Mark.CARRIED not in marks:
                if Mark.DOUBTFUL in marks:
                    recorder.in_doubt(self)
                recorder.finished(self, "failed" if Mark.REPORTED in marks else "succeeded", self.runtime)
            generated(self, (failed, shown, self.runtime), **options)

        cls.on_success = caught(on_success)
        cls.execute_using_pool = execute_using_pool

    runtime: float | None = None

    @caught
    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """A child has taken the task."""
        super().on_accepted(pid, time_accepted)
        recorder.started(self)
        attempt = (self._request_dict.get("retries") or 0) + 1
        logger.info("task started", extra={"data": {"id": self.id, "name": self.name, "attempt": attempt}})

    def acknowledge(self) -> None:
        """Acknowledge, or dead-letter where the task failed for good."""
        if self._dead:
            self.reject(requeue=False)
        else:
            super().acknowledge()

    def reject(self, requeue: bool = False) -> None:
        """Requeue; or dead-letter, with a confirmed copy that says why, or by the broker where there is none."""
        if requeue or self.acknowledged:
            super().reject(requeue=requeue)
            return
        if self._is_gone():
            # The broker has it back already, or will when it notices: a dead letter would be one of a task that runs.
            logger.warning("task %s[%s] ended after its connection: the broker delivers it again", self.name, self.id)
            super().reject(requeue=True)
            return
        reason = self._dead or Problem("rejected", "the task rejected its message")
        doubt = {DOUBT: self._doubt} if self._doubt else {}
        if Undertaker.letters is not None and Undertaker.letters.bury(self._message, *reason, **doubt):
            super().acknowledge()
        else:
            super().reject(requeue=False)

    def maybe_expire(self) -> bool:
        """Whether it is too late; Celery would remember the id, and swallow a replay or resend of it as revoked."""
        if not self.expires:
            return False
        return bool(datetime.datetime.now(datetime.UTC if self.expires.tzinfo else None) > self.expires)

    @caught
    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Celery acknowledges a task that was killed at its hard limit, and tells twice whoever waits for it."""
        recorder.timed_out(self, "soft" if soft else "hard")
        if not soft:
            self._dead = Problem("time-limit", f"killed at its hard limit of {timeout} s")
            # `on_failure` has told them.
            self._context.update(chord=None, chain=None, errbacks=None)
        super().on_timeout(soft, timeout)

    def on_retry(self, exc_info: Any) -> None:
        """The next attempt is in the broker."""
        if isinstance(getattr(unwrapped(exc_info), "exc", None), RecordedError):
            recorder.deduplicated(self)
        else:
            recorder.finished(self, "retried", self.runtime)
        super().on_retry(exc_info)

    @caught
    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:
        """Decide what becomes of a task that raised, or whose process is gone.

        Args:
            exc_info: a child's report, or what the pool itself found.
            send_failed_event: tell those who watch events.
            return_ok: the child has recorded it.
        """
        if isinstance(exc_info, dict):
            exc_info = rebuilt(exc_info, returned=return_ok)
        exc = unwrapped(exc_info)
        if isinstance(exc, SupersededError | RecordedError):
            recorder.deduplicated(self)
        elif isinstance(exc, DelayedError):
            recorder.waited(self)
        else:
            recorder.failed(self, exc, self.runtime)
        if isinstance(exc, InDoubtError):
            recorder.in_doubt(self)
            self._doubt = exc.run
        if isinstance(exc, Terminated | Retry | Ignore):
            super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)
            return
        self._dead = Problem(_ENDED.get(type(exc)) or reason_of(exc), described(exc))
        if isinstance(exc, MemoryError):
            # Celery would raise here and end the worker.
            task_ready(self)
            if not return_ok:
                self._fail(exc)
            self.reject(requeue=False)
            self._send_failed(exc, exc_info.traceback)
        elif isinstance(exc, WorkerLostError | SystemExit | KeyboardInterrupt) and not self._was_cancelled():
            self._child_died(exc, exc_info)
        else:
            if not return_ok and type(exc) not in _ENDED:
                # Celery's own line names no task.
                named = {"id": self.id, "name": self.name}
                logger.error("its process did not record how it ended: %s", described(exc), extra={"data": named})
            with telling(self):
                super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)

    def fall(self, name: str, exc: BaseException, *args: Any, **options: Any) -> None:
        """End the message over what a callback has raised, and free its place."""
        logger.error("%s of task %s[%s] failed", name, self.name, self.id, exc_info=exc)
        recorder.rejected(INTERNAL)
        soft = args[0] if args else options.get("soft")
        if name == "on_accepted" or (name == "on_timeout" and soft) or self.acknowledged:
            return  # it runs on, and ends by another callback; or it has ended
        try:
            task_ready(self)
            if self._succeeded:
                self.acknowledge()
                return
            recorded = options.get("return_ok") or name == "on_timeout"
            self._dead = self._dead or Problem(INTERNAL, described(exc))
            if not recorded and not self._is_gone():
                self._fail(exc)
            self.reject(requeue=False)
            self._send_failed(exc)
        except Exception:
            logger.exception("task %s[%s] is left to the broker", self.name, self.id)
            self._message.reject_log_error(logger, Exception, requeue=False)

    def _not_begun(self, pool: Any, exc: Exception) -> None:
        """End a task that no process could be given."""
        for job in [*pool._pool._cache.values()]:
            if getattr(job._callback, "__self__", None) is self:
                job.discard()
        task_ready(self)
        self._dead = Problem("malformed", described(exc))
        recorder.rejected(self._dead.reason)
        self._fail(exc)
        self.reject(requeue=False)
        self._send_failed(exc, ExceptionInfo().traceback)

    def _fail(self, exc: BaseException) -> None:
        """Record a failure that no child could, and tell whoever waits for it."""
        self._context.ignore_result = not self.store_errors
        ending.end(self.task.backend, self._context, exc)

    def _send_failed(self, exc: BaseException, traceback: str = "") -> None:
        """Tell whoever watches events of an end that Celery's own code does not tell."""
        self.send_event("task-failed", exception=safe_repr(exc), traceback=traceback)

    def _is_gone(self) -> bool:
        """Whether the connection is lost that delivered the message: it belongs to the broker again."""
        channel = self._message.channel
        return bool(self._already_cancelled) or channel is None or channel.connection is None

    def _was_cancelled(self) -> bool:
        """Whether we ended the child ourselves, or its message is the broker's again."""
        return bool(self._is_gone() or self._already_revoked or state.should_terminate)

    def _child_died(self, exc: BaseException, exc_info: Any) -> None:
        """Run the task again behind the others, up to the queue's limit; then it is a dead letter."""
        task_ready(self)
        if self._success_was_stored():
            self._dead = None
            recorder.finished(self, "succeeded", None)
            self.acknowledge()
            self.send_event("task-succeeded", result=HIDDEN, runtime=None)
            return
        before = self._request_dict.get(CHILD_DEATHS)
        deaths = (before if is_count(before) else 0) + 1  # a producer may have put anything there
        letters = Undertaker.letters
        if letters is not None and deaths <= QUEUES.queue(letters.queue).child_death_limit:
            logger.warning("the process of task %s[%s] died (%s), death %d", self.name, self.id, exc, deaths)
            dead = {CHILD_DEATHS: deaths, DEAD_PROCESS: process_name(self.worker_pid, self.hostname)}
            if letters.requeue(self._message, {**self._message.headers, **dead}):
                super().acknowledge()
                # As of the broker's own requeue; else the task would have started for ever.
                self.send_event("task-rejected", requeue=True)
            else:
                super().reject(requeue=True)
            return
        lost = exc if isinstance(exc, WorkerLostError) else WorkerLostError(f"the process exited: {described(exc)}")
        recorder.given_up(self)
        self._dead = Problem("worker-lost", f"its process died {deaths} times, last: {lost}")
        if lost is not exc:
            try:
                raise lost
            except WorkerLostError:
                exc_info = ExceptionInfo()
        self._fail(lost)
        self.task.request_stack.push(self._context)  # whoever is told looks at `task.request`
        try:
            signals.task_failure.send(
                sender=self.task,
                task_id=self.id,
                exception=lost,
                args=self.args,
                kwargs=self.kwargs,
                traceback=exc_info.traceback,
                einfo=exc_info,
            )
        finally:
            self.task.request_stack.pop()
        self.reject(requeue=False)
        self._send_failed(lost, exc_info.traceback)

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        """An expired tick is dropped; any other expired task is dead-lettered."""
        recorder.revoked(self, reason)
        if expired and not is_tick(self._type):
            self._dead = Problem("expired", f"not started before {self.expires}")
            with telling(self):
                ending.follow(self.task.backend, self._context, TaskRevokedError(reason), state=REVOKED)
        super()._announce_revoked(reason, terminated, signum, expired)
