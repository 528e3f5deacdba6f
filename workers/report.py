"""How a task ended, as the process that ran it tells the worker's main process: plain data of our own.

A main process that unpickles what a task raised runs code of the task and imports what only the child has; it ends over
either. So a child says in words what it saw, looked at where the task's own classes are, and the main process makes
errors of its own from that. What a child says:

* of a result: `(marks, text)`, see `Mark`;
* of an error: the table that `report` makes.
"""

from __future__ import annotations

import enum
import functools
import logging
import operator
import os
from typing import TYPE_CHECKING, Any, TypeVar

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from billiard.exceptions import SoftTimeLimitExceeded
from celery.exceptions import Ignore, MaxRetriesExceededError, Reject, Retry

from queues.errors import InDoubtError, PermanentError, RecordedError, TransientError, code_of, name_of, text_of

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

Plain = TypeVar("Plain", bool, int)
#: Characters of a traceback.
MAX_TRACEBACK = 64 * 1024
#: Reasons of dead letters by the kind of error; what only the main process can see of a task is `workers.guard`'s.
_REASONS: dict[type[BaseException], str] = {
    TransientError: "retries-exhausted",
    MaxRetriesExceededError: "retries-exhausted",
    MemoryError: "memory",
    Reject: "rejected",
    SoftTimeLimitExceeded: "time-limit",
}


class DelayedError(Ignore):
    """The message comes again later; this delivery has done nothing."""


class SupersededError(Ignore):
    """A later attempt has begun, or the task was replaced: this delivery is a straggler."""


class Mark(enum.StrEnum):
    """What a result is, besides a success."""

    #: It was recorded earlier, and the task was not run.
    RECORDED = "recorded"
    #: It was carried by its message until it could be stored, and counted then.
    CARRIED = "carried"
    #: An earlier attempt may have been done as well.
    DOUBTFUL = "in-doubt"
    #: An error returned as a value, because the caller asked for that.
    REPORTED = "reported"


class Running:
    """What this process knows of the task that it runs.

    Attributes:
        marks: of its result.
        done: its id, once its success is stored and what it calls was called: whatever comes after is no failure.
        failed: its id and error, once that is recorded: whatever comes after is no other failure.
    """

    marks: frozenset[Mark] = frozenset()
    done: str | None = None
    failed: tuple[str, BaseException] | None = None
    _pid = 0

    @classmethod
    def begin(cls) -> None:
        """Another task is run."""
        cls.marks, cls.done, cls.failed, cls._pid = frozenset(), None, None, os.getpid()

    @classmethod
    def has_failed(cls, task_id: str) -> bool:
        """Whether its failure is recorded; a task may record another's."""
        return cls.done != task_id and cls.failed is not None and cls.failed[0] == task_id

    @classmethod
    def stay(cls) -> None:
        """End a copy of this process that the task has forked, and that came back from its code: one ends the task."""
        if os.getpid() != cls._pid != 0:
            try:
                logger.error("a process that the task has forked came back from its code: let it end by os._exit()")
            finally:
                os._exit(1)

    @classmethod
    def mark(cls, mark: Mark) -> None:
        """Note what the result is."""
        cls.marks |= {mark}


class TaskError(Exception):
    """An error of a task as the main process knows it; its class has the name of the task's own.

    Attributes:
        reason: of the dead letter.
        names: of its class and those that it is derived from, the nearest first.
    """

    reason = "exception"
    names: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self})"


def reason_of(exc: BaseException) -> str:
    """The reason header for an error: a permanent error's own code, else the kind of failure."""
    # Not by `isinstance`, to which an object's own `__class__` may answer anything.
    cls = type(exc)
    if issubclass(cls, TaskError):
        return text_of(_attribute(exc, "reason"))
    if issubclass(cls, PermanentError):
        return code_of(_attribute(exc, "code"), "failed")
    return next((reason for base, reason in _REASONS.items() if issubclass(cls, base)), "exception")


def described(exc: BaseException) -> str:
    """An error's class and text."""
    return f"{name_of(type(exc))}: {_text(exc)}"


def is_tellable(exc: BaseException) -> bool:
    """Whether Celery and billiard can tell of an error: they ask it for its class and traceback, and format them."""
    try:
        isinstance(exc, SystemExit)
        ExceptionInfo((type(exc), exc, exc.__traceback__))
    except BaseException:  # noqa: BLE001 - the code is anybody's
        return False
    return True


def report(exc: BaseException, traceback: object = "") -> dict[str, Any]:
    """What a child tells of an error.

    Returns:
        `kind`: what Celery's request looks for; `module`, `name`, `names`: of its class; `text`, `reason`,
        `traceback`; `requeue`: of a Reject; `status`: of a SystemExit; `run`: of a doubt; `cause`: of a Retry.
    """
    cls = type(exc)
    found: dict[str, Any] = {
        "kind": _kind(cls),
        "module": name_of(cls, "__module__"),
        "name": name_of(cls, "__qualname__"),
        "names": tuple(map(name_of, vars(type)["__mro__"].__get__(cls))),
        "text": _text(exc),
        "reason": reason_of(exc),
        "traceback": text_of(traceback, MAX_TRACEBACK),
    }
    match found["kind"]:
        case "reject":
            found["requeue"] = _made(bool, _attribute(exc, "requeue"), otherwise=False)
        case "exit":
            found["status"] = exit_status(_attribute(exc, "code"))
        case "in-doubt":
            run = _attribute(exc, "run")
            found["run"] = "" if run is None else text_of(run)
        case "retry":
            cause = _attribute(exc, "exc")
            found["cause"] = report(cause) if isinstance(cause, BaseException) else None
    return found


def exit_status(code: object) -> int:
    """What a process ends with whose task gives this to `sys.exit`: members of an enum, texts, numbers of any size."""
    return 0 if code is None else _made(lambda number: int(operator.index(number)) & 0xFF, code, otherwise=1)


def rebuilt(told: dict[str, Any], *, returned: bool) -> ExceptionInfo:
    """What Celery's request takes for an error, made from a report.

    Args:
        told: a report.
        returned: the task was run to its end. What it raised then is no end of its process, whatever it is called.
    """
    info = ExceptionInfo.__new__(ExceptionInfo)
    exc = _error(told, returned=returned)
    info.type, info.tb, info.internal = type(exc), None, False
    info.exception, info.traceback = exc, told["traceback"]
    return info


def unwrapped(exc_info: Any) -> BaseException:
    """The exception within what a pool reports."""
    exc: BaseException = exc_info.exception
    return exc.exc if isinstance(exc, ExceptionWithTraceback) else exc


def _kind(cls: type[BaseException]) -> str:
    return next((kind for kind, classes in _KINDS.items() if issubclass(cls, classes)), "raised")


#: The more special first.
_KINDS: dict[str, tuple[type[BaseException], ...]] = {
    "retry": (Retry,),
    "reject": (Reject,),
    "superseded": (SupersededError,),
    "delayed": (DelayedError,),
    "ignore": (Ignore,),
    "memory": (MemoryError,),
    "exit": (SystemExit, KeyboardInterrupt),
    "in-doubt": (InDoubtError,),
    "recorded": (RecordedError,),
}


def _error(told: dict[str, Any], *, returned: bool) -> BaseException:
    text = told["text"]
    error: BaseException
    match told["kind"]:
        case "retry":
            error = retry = Retry(text)
            # Given to the class, Celery would try to pickle it.
            retry.exc = _error(told["cause"], returned=True) if told["cause"] else None
        case "reject":
            error = Reject(text, requeue=told["requeue"])
        case "superseded":
            error = SupersededError(text)
        case "delayed":
            error = DelayedError(text)
        case "ignore":
            error = Ignore(text)
        case "memory":
            error = MemoryError(text)
        case "exit" if not returned:
            interrupted = "KeyboardInterrupt" in told["names"]
            error = KeyboardInterrupt(text) if interrupted else SystemExit(told["status"])
        case "in-doubt":
            error = InDoubtError(told["run"])
        case "recorded":
            error = RecordedError(told["reason"], text)
        case _:
            error = _class(told["module"], told["name"])(text)
            error.reason, error.names = told["reason"], told["names"]
    return error


@functools.lru_cache(maxsize=256)
def _class(module: str, name: str) -> type[TaskError]:
    """A class of ours that is called like the task's own: logs, events and stored results name it."""
    short = name.rpartition(".")[2]
    return type(short, (TaskError,), {"__module__": module, "__qualname__": name, "__doc__": TaskError.__doc__})


def _text(exc: BaseException) -> str:
    return text_of(_attribute(exc, "reason") if issubclass(type(exc), Reject) else exc)


def _attribute(exc: BaseException, name: str) -> object:
    """An attribute of somebody's error, or None."""
    try:
        return getattr(exc, name, None)
    except BaseException:  # noqa: BLE001 - a property of theirs
        return None


def _made(make: Callable[[Any], Plain], value: object, *, otherwise: Plain) -> Plain:
    """Plain data of somebody's value."""
    try:
        return make(value)
    except BaseException:  # noqa: BLE001 - the same
        return otherwise
