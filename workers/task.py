"""A function as a task of the table: one way to retry, one way to report an error as a value."""

from __future__ import annotations

import functools
import inspect
import random
from typing import TYPE_CHECKING, Any

from celery.utils.functional import head_from_fun

from queues.celeryconfig import task_options
from queues.errors import InDoubtError, PermanentError, PostponedError, TransientError, seconds_of
from queues.topology import QUEUES, TaskSpec, TopologyError
from workers import once
from workers.once import Outcome
from workers.registry import Header
from workers.report import Mark, Running
from workers.waits import waits

if TYPE_CHECKING:
    from collections.abc import Callable

    import celery


def register(
    name: str,
    *,
    bind: bool = False,
    begins: bool = False,
    duplicate: Callable[[Any], Any] | None = None,
    error_status: str = "error",
    base: type[celery.Task] | None = None,
) -> Callable[[Callable[..., Any]], Any]:
    """Register a function as the table's task of that name.

    `TransientError` is retried with backoff and, when retries are used up, raised; `PermanentError` is raised at once.
    What is raised is recorded as FAILURE and dead-lettered. With `raise_on_error=False` the caller gets the guide's
    error dict instead: `{"status", "code", "message", "error"}`. A task with `once` in the table runs under the ledger:
    by either of the two errors it says that it had no effect, while any other, `InDoubtError` too, leaves it in doubt.
    `PostponedError` has the message come again, as often as needed, without counting a retry.

    Args:
        name: the task's name in the table.
        bind: pass the Celery task as first argument.
        begins: a `once` task that calls `workers.once.begin` right before its effect; else it begins with the claim.
        duplicate: makes, of the recorded result, the answer to another message with the same `once_key`.
        error_status: the dict's status.
        base: a task class of one's own.
    """
    from workers.app import app

    spec = QUEUES.task(name)[1]

    def decorate(function: Callable[..., Any]) -> Any:
        @functools.wraps(function)
        def run(self: celery.Task, *args: Any, **kwargs: Any) -> Any:
            # A header of null is no count for Celery's retry either.
            self.request.retries = self.request.retries or 0

            def attempt() -> Outcome:
                try:
                    return Outcome(function(self, *args, **kwargs) if bind else function(*args, **kwargs))
                except (InDoubtError, PostponedError):
                    raise
                except TransientError as exc:
                    retries = self.request.retries
                    again = retries < spec.max_retries
                    return Outcome(error=exc, wait=backoff(spec, retries, exc.retry_after) if again else None)
                except PermanentError as exc:
                    return Outcome(error=exc)
                finally:
                    # A copy of the process may well call a task as a function.
                    if not self.request.called_directly:
                        Running.stay()
                        waits.ended()

            try:
                if spec.once:
                    outcome = once.run(self, spec, kwargs, attempt, begins=begins)
                else:
                    outcome = once.carried(self) or attempt()
            except PostponedError as exc:
                raise once.delayed(self, seconds_of(exc.retry_after) or once.ASK_AGAIN) from exc
            if outcome.error is None:
                other = outcome.by not in ("", self.request.id)
                return duplicate(outcome.value) if duplicate and other else outcome.value
            if outcome.wait is not None:
                self.request.headers = once.without_ledger(self.request.headers)
                raise self.retry(exc=outcome.error, countdown=outcome.wait) from outcome.error
            if kwargs.get("raise_on_error", True):
                raise outcome.error
            Running.mark(Mark.REPORTED)
            return error_dict(outcome.error, error_status)

        if spec.once_key:
            parameter = inspect.signature(function).parameters.get(spec.once_key)
            if parameter is None or parameter.kind is not parameter.KEYWORD_ONLY:
                raise TopologyError(f"task {name}: its once_key {spec.once_key} must be a keyword-only parameter")
        # What is expected is one line in the log, without a traceback.
        expected = (PermanentError, TransientError)
        options = task_options(spec)
        task = app.task(name=name, base=base, bind=True, shared=False, lazy=False, throws=expected, **options)(run)
        # Celery keeps the first. A module that is loaded again has the same functions.
        if place(task) != place(run):
            raise TopologyError(f"task {name} is registered twice: rename the one in {':'.join(place(run))}")
        # Celery looks at the wrapper, which takes everything: wrong arguments are to be seen before the task is run.
        header = head_from_fun(function, bound=bind)
        task.__header__ = Header.of(header, inspect.signature(header))
        return task

    return decorate


def place(function: Callable[..., Any]) -> tuple[str, ...]:
    """File and line of a function as it was written."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return (code.co_filename, str(code.co_firstlineno)) if code else ()


def backoff(spec: TaskSpec, retries: int, retry_after: object) -> int:
    """Seconds until the next attempt: doubling, with jitter in the upper half, never below what was asked for.

    Celery's own jitter draws from zero up, which burns the retries of a mail that was greylisted for minutes.
    """
    longest = float(min(spec.retry_backoff * 2 ** min(retries, 30), spec.retry_backoff_max))
    wait = longest * random.uniform(0.5, 1.0)
    return max(1, round(max(wait, seconds_of(retry_after))))


def error_dict(exc: PermanentError | TransientError, status: str) -> dict[str, str]:
    """The guide's error value."""
    return {"status": status, "code": exc.code, "message": exc.message, "error": exc.message}
