"""JSON log lines with task id, task, queue and attempt; never an argument or a result."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
import traceback
from typing import Any, TextIO

from celery import current_task, signals
from celery.app.log import Logging as CeleryLogging

#: Celery's success line holds the result, its error line the traceback: both are replaced by fields.
_TRACE_MESSAGES = {
    "return_value": "task succeeded",
    "attempt": "task started",
}
_bound: dict[str, str] = {}


def bind(queue: str) -> None:
    """Name the queue of this worker in every line."""
    _bound["queue"] = queue


class Handler(logging.StreamHandler[TextIO]):
    """Writes to a standard error of its own: a task may close or replace the process's."""

    def __init__(self) -> None:
        stream: TextIO = sys.stderr
        # A test's replacement has no file beneath it.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream = os.fdopen(os.dup(stream.fileno()), "w", encoding="utf-8", errors="backslashreplace")
        super().__init__(stream)

    def close(self) -> None:
        """Close the standard error of our own."""
        super().close()
        if self.stream is not sys.stderr:
            self.stream.close()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's
        """Nothing: what cannot be logged is no task's failure, and no reason to print somewhere else."""


class Logging(CeleryLogging):
    """Celery's set-up of the logs of this app, and of no other in the process."""

    def setup_logging_subsystem(self, loglevel: int | str | None = None, *_: Any, **__: Any) -> bool:
        """JSON lines on standard error instead of Celery's own format."""
        configure(loglevel or "INFO")
        signals.setup_logging.send(sender=None, loglevel=loglevel, logfile=None, format="", colorize=False)
        return True


def configure(level: int | str) -> None:
    """Send the root logger's lines to standard error."""
    handler = Handler()
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    for old in root.handlers:
        if isinstance(old, Handler):
            old.close()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # One line when a task starts (workers.guard) and one when it ends; Celery's own at receipt knows no attempt.
    logging.getLogger("celery.worker.strategy").setLevel(logging.WARNING)
    # At level debug it writes the bodies of messages.
    logging.getLogger("celery.pool").setLevel(logging.INFO)


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
        else:
            line["message"] = record.getMessage()
            request = request_of_task()
            if request is not None:
                line |= {"task_id": request.id, "task": current_task.name, "attempt": request.retries + 1}
            if record.exc_info:
                line["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(line, ensure_ascii=False, default=str)


def request_of_task() -> Any:
    """The request of the task that runs in this process, or None."""
    request = getattr(current_task, "request", None)
    return request if request is not None and request.id else None


def trace_message(data: dict[str, Any], record: logging.LogRecord) -> str:
    """What happened to a task, without Celery's argument and result values."""
    if "description" in data:
        return f"task {data['description']}: {data.get('exc', '')}"
    for key, message in _TRACE_MESSAGES.items():
        if key in data:
            return message
    return str(record.msg)
