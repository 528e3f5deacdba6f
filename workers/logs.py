"""JSON log lines with task id, task, queue and attempt; never an argument or a result."""

from __future__ import annotations

import contextlib
import json
import logging
import logging.handlers
import os
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any, TextIO

from billiard.util import get_logger as billiards
from celery import current_task, signals
from celery.app.log import Logging as CeleryLogging
from celery.utils.nodenames import node_format

from workers.startup import stop

if TYPE_CHECKING:
    from types import TracebackType

#: What stands in Celery's lines in place of the values that it formats into them.
_HIDDEN = dict.fromkeys(("args", "kwargs", "return_value"), "<hidden>")
#: How billiard's line begins about a process that its last task has made too large.
_TOO_LARGE = "child process exiting after exceeding memory"
_bound: dict[str, str] = {}
#: The task that this process has run last.
_last: dict[str, Any] = {}


def bind(queue: str) -> None:
    """Name the queue of this worker in every line."""
    _bound["queue"] = queue


class Quiet(logging.Handler):
    """What cannot be logged is no task's failure, and no reason to print somewhere else."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's
        """Do nothing."""


class Handler(Quiet, logging.StreamHandler[TextIO]):
    """Writes to a standard error of its own: a task may close or replace the process's."""

    def __init__(self) -> None:
        self.own: TextIO | None = None
        # A test's replacement has no file beneath it.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self.own = os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding="utf-8", errors="backslashreplace")
        super().__init__(self.own or sys.stderr)

    def close(self) -> None:
        """Close the standard error of our own."""
        super().close()
        if self.own is not None:
            self.own.close()


class FileHandler(Quiet, logging.handlers.WatchedFileHandler):
    """Writes to a file, which may be rotated."""


class Logging(CeleryLogging):
    """Celery's set-up of the logs of this app, and of no other in the process."""

    def setup_logging_subsystem(
        self, loglevel: int | str | None = None, logfile: str | None = None, *_: Any, hostname: str = "", **__: Any
    ) -> bool:
        """JSON lines on standard error, or in the file of `-f`, instead of Celery's own format."""
        if logfile and hostname:
            logfile = node_format(logfile, hostname)
        try:
            configure(loglevel or "INFO", logfile)
        except OSError as exc:
            stop(f"the log file {logfile} cannot be written ({exc.strerror}): name another, or leave -f out")
        signals.setup_logging.send(sender=None, loglevel=loglevel, logfile=logfile, format="", colorize=False)
        return True


def configure(level: int | str, file: str | None = None) -> None:
    """Send the root logger's lines to standard error, or to a file.

    Raises:
        OSError: the file cannot be written.
    """
    handler = FileHandler(file, encoding="utf-8") if file else Handler()
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    for old in root.handlers:
        if isinstance(old, Quiet):
            old.close()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # One line when a task starts (workers.guard) and one when it ends; Celery's own at receipt knows no attempt.
    logging.getLogger("celery.worker.strategy").setLevel(logging.WARNING)
    # At level debug it writes the bodies of messages.
    logging.getLogger("celery.pool").setLevel(logging.INFO)
    # Its lines go to nobody else's handlers, and without one of its own they are raw text.
    billiards().handlers[:] = [handler]
    billiards().setLevel(logging.WARNING)


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Time, level and message, the task's names where there is one, the traceback where there is an error."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            **_bound,
        }
        data = getattr(record, "data", None)
        if isinstance(data, dict) and "id" in data:
            line |= {"message": trace_message(data, record), "task_id": data["id"], "task": data.get("name")}
            if "attempt" in data or request_of_task() is not None:
                line["attempt"] = data.get("attempt") or request_of_task().retries + 1
            if "runtime" in data:
                line["runtime"] = round(data["runtime"], 6)
            if data.get("traceback"):
                line["traceback"] = data["traceback"]
            if record.name == "celery.app.trace":
                _last.update(task_id=data["id"], task=data.get("name"))
        else:
            line["message"] = record.getMessage()
            line |= task_of(record, line["message"])
            if record.exc_info:
                line["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(line, ensure_ascii=False, default=str)


def request_of_task() -> Any:
    """The request of the task that runs in this process, or None."""
    request = getattr(current_task, "request", None)
    return request if request is not None and request.id else None


def task_of(record: logging.LogRecord, message: str) -> dict[str, Any]:
    """The task that a line is about, where it can be known."""
    request = request_of_task()
    if request is not None:
        return {"task_id": request.id, "task": current_task.name, "attempt": request.retries + 1}
    if record.name != billiards().name:
        return {}
    if message.startswith(_TOO_LARGE):
        return _last
    return called(record.exc_info[2]) if record.exc_info else {}


def called(frames: TracebackType | None) -> dict[str, Any]:
    """The task whose callback in the main process raised."""
    for frame, _ in traceback.walk_tb(frames):
        request: Any = frame.f_locals.get("self")
        if hasattr(request, "task_id") and hasattr(request, "task_name"):
            return {"task_id": request.task_id, "task": request.task_name}
    return {}


def trace_message(data: dict[str, Any], record: logging.LogRecord) -> str:
    """What happened to a task, without Celery's argument and result values."""
    if "description" in data:
        return f"task {data['description']}: {data.get('exc', '')}"
    if "return_value" in data:
        return "task succeeded"
    reason = str(data.get("exc", ""))
    if record.name == "celery.app.trace" and " retry: " in str(record.msg):
        return f"task retried {reason.removeprefix('Retry ')}"
    return str(record.msg) % {**data, **_HIDDEN} if record.args else str(record.msg)
