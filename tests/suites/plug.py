"""A pytest plugin for both sides: each test runs once, within its limit, and its outcome is written down.

`SUITE_OUTCOMES` is where; `SUITE_SHORT` names the tests that are expected to fail here, which wait for less long;
`SUITE_REQUEST=warren` puts Warren's request in the place of Celery's, for Celery's unit tests of requests.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import pytest

#: Seconds for a test, and for one that is expected to end otherwise than on stock Celery.
LIMIT, SHORT = 180, 20
_OUTCOMES = os.environ.get("SUITE_OUTCOMES", os.devnull)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Replace Celery's limits and reruns."""
    short = {*json.loads(os.environ.get("SUITE_SHORT", "[]"))}
    for item in items:
        item.own_markers = [mark for mark in item.own_markers if mark.name not in ("timeout", "flaky")]
        item.add_marker(pytest.mark.timeout(SHORT if item.nodeid in short else LIMIT))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write down what came of a test's set-up, call or tear-down."""
    outcome = "failed" if report.failed else "skipped" if report.skipped else "passed"
    if report.when != "call" and outcome == "passed":
        return
    text = ""
    if report.failed:
        text = next((line for line in report.longreprtext.splitlines() if line.startswith("E ")), "")
        text = text or report.longreprtext.strip().rpartition("\n")[2]
    with Path(_OUTCOMES).open("a", encoding="utf-8") as file:
        print(json.dumps([report.nodeid, outcome, text.removeprefix("E").strip()[:300]]), file=file)


def adapted(on_success: Any) -> Any:
    """What Warren's children tell is plain data; the tests give what Celery's would."""
    from billiard.einfo import ExceptionInfo

    from workers.report import report, unwrapped

    @functools.wraps(on_success)
    def call(self: Any, outcome: tuple[Any, Any, float], **options: Any) -> Any:
        failed, told, runtime = outcome
        if isinstance(told, ExceptionInfo):
            told = report(unwrapped(told), told.traceback)
        elif not failed:
            told = ((), told)
        return on_success(self, (failed, told, runtime), **options)

    return call


class Letters:
    """Dead letters of a worker whose broker takes no copies: it is told to reject, or to deliver again."""

    queue = "celery"

    def bury(self, *_: Any, **__: Any) -> bool:
        return False

    def requeue(self, *_: Any) -> bool:
        return False


def plug_in() -> None:
    """Warren's request in the place of Celery's."""
    import celery.worker.request as module

    from workers import guard

    patched: Any = guard
    bounded, before = patched.bounded, patched.Request.__init_subclass__.__func__

    def tolerant(limits: Any, hard: Any, soft: Any) -> Any:
        # The tests' tasks have no limits; in Warren every task has.
        return bounded(limits, hard, soft) if hard and soft else limits or (None, None)

    def init_subclass(cls: Any, /, **options: Any) -> None:
        before(cls, **options)
        if "on_success" in cls.__dict__:
            cls.on_success = adapted(cls.on_success)

    patched.bounded = tolerant
    patched.Undertaker.letters = Letters()
    patched.Request.__init_subclass__ = classmethod(init_subclass)
    module.Request = patched.Request


if os.environ.get("SUITE_REQUEST") == "warren":
    plug_in()
