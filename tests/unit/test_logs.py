"""Every line is JSON, says what happened, and holds no argument or result."""

from __future__ import annotations

import io
import json
import logging
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from billiard import util
from billiard.pool import MAXMEM_USED_FMT, ApplyResult
from celery.app import trace
from celery.exceptions import Ignore, Reject, Retry

from queues.errors import PermanentError
from workers import logs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECRET = "ada@example.com"


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What is logged; the loggers are as they were afterwards."""
    text = io.StringIO()
    monkeypatch.setattr(sys, "stderr", text)
    monkeypatch.setattr(logs, "_last", {})
    kept = [
        (logger, [*logger.handlers], logger.level)
        for logger in map(logging.getLogger, ("", "multiprocessing", "celery.worker.strategy", "celery.pool"))
    ]
    logs.configure("INFO")
    yield text
    for logger, handlers, level in kept:
        logger.handlers[:] = handlers
        logger.setLevel(level)


def lines(output: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.getvalue().splitlines()]


def context(**more: Any) -> dict[str, Any]:
    """What Celery hands to each of its formats."""
    return {"id": "1", "name": "math.add", "args": f"('{SECRET}',)", "kwargs": "{}", **more}


@pytest.mark.parametrize(
    ("format_name", "more", "message"),
    [
        ("LOG_RECEIVED", {}, "Task math.add[1] received"),
        ("LOG_SUCCESS", {"return_value": f"'{SECRET}'", "runtime": 1.0}, "task succeeded"),
        ("LOG_FAILURE", {"description": "raised expected", "exc": "ValueError('x')"}, "task raised expected: ValueErr"),
        ("LOG_INTERNAL_ERROR", {"description": "INTERNAL ERROR", "exc": "x"}, "task INTERNAL ERROR: x"),
        ("LOG_IGNORED", {"description": "ignored", "exc": "Ignore()"}, "task ignored: Ignore()"),
        ("LOG_REJECTED", {"description": "rejected", "exc": "Reject('why')"}, "task rejected: Reject('why')"),
        ("LOG_RETRY", {"exc": "Retry in 5s: ValueError: x"}, "task retried in 5s: ValueError: x"),
    ],
)
def test_every_format_of_celerys(output: io.StringIO, format_name: str, more: dict[str, Any], message: str) -> None:
    trace.info(getattr(trace, format_name), context(**more))
    (line,) = lines(output)
    assert line["message"].startswith(message)
    assert (line["task_id"], line["task"]) == ("1", "math.add")
    assert SECRET not in output.getvalue()


def test_all_formats_are_looked_at() -> None:
    known = {name for name in vars(trace) if name.startswith("LOG_")}
    seen = {mark.args[1][n][0] for mark in test_every_format_of_celerys.pytestmark for n in range(7)}
    assert known == seen


def test_an_unknown_format_shows_no_argument(output: io.StringIO) -> None:
    trace.info("%(name)s(*%(args)s, **%(kwargs)s) on %(hostname)s", context(hostname="here"))
    assert lines(output)[0]["message"] == "math.add(*<hidden>, **<hidden>) on here"


@pytest.mark.parametrize("reason", [Reject("why"), Ignore(), PermanentError("bad", "a text"), KeyError("x")])
def test_the_ends_of_a_task_as_celery_writes_them(output: io.StringIO, reason: Exception) -> None:
    task: Any = SimpleNamespace(name="math.add", throws=(PermanentError,))
    request = {"id": "1", "argsrepr": "<hidden>", "kwargsrepr": "<hidden>"}
    told: Any = SimpleNamespace(**request, hostname="here", shadow=None, get=request.get)
    try:
        raise reason
    except Exception:  # noqa: BLE001 - as Celery catches it
        trace.TraceInfo(trace.FAILURE, reason).handle_reject(task, told)
    (line,) = lines(output)
    assert line["message"].startswith("task ")
    assert type(reason).__name__.lower() in line["message"].lower()


def test_a_line_of_ours_may_hold_a_percent_sign(output: io.StringIO) -> None:
    logging.getLogger("workers.x").info("done: 100 %", extra={"data": {"id": "1", "name": "math.add"}})
    assert lines(output)[0]["message"] == "done: 100 %"


def test_billiards_lines_are_json_and_name_the_task(output: io.StringIO) -> None:
    class Callback:
        task_id, task_name = "7", "math.add"

        def on_failure(self, _exc: object) -> None:
            raise LookupError("a callback's")

    result = object.__new__(ApplyResult)
    result._callbacks_propagate = ()
    result.safe_apply_callback(Callback().on_failure, None)
    trace.info(trace.LOG_SUCCESS, context(return_value="3", runtime=1.0))
    util.warning(MAXMEM_USED_FMT.format(2, 1))
    util.get_logger().error("!!!WAIT FOR ACK TIMEOUT: job:%r fd:%r!!!", 1, 2)
    util.info("not for the log")
    called, _, large, late = lines(output)
    assert called["message"] == 'Pool callback raised exception: LookupError("a callback\'s")'
    assert (called["task_id"], called["task"], called["level"]) == ("7", "math.add", "error")
    assert "LookupError" in called["traceback"]
    assert (large["task_id"], large["logger"]) == ("1", "multiprocessing")
    assert "task_id" not in late


def test_a_log_file_takes_the_lines(output: io.StringIO, tmp_path: Path) -> None:
    logs.configure("INFO", str(tmp_path / "log"))
    logging.getLogger("workers.x").warning("one")
    util.get_logger().error("two")
    assert [json.loads(line)["message"] for line in (tmp_path / "log").read_text().splitlines()] == ["one", "two"]
    assert not output.getvalue()
    logging.getLogger().handlers[0].close()


def test_a_retry_without_a_reason(output: io.StringIO) -> None:
    for reason in (Retry(when=3), Retry("said so"), Retry(exc=ValueError("x"), when=3)):
        trace.info(trace.LOG_RETRY, context(exc=str(reason)))
    assert [line["message"] for line in lines(output)] == [
        "task retried in 3s",
        "task retried said so",
        "task retried in 3s: ValueError('x')",
    ]
