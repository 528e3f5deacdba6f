"""Tasks that publish, wait, start programs, or do not heed their soft limit: each ends at its limits, once."""

from __future__ import annotations

import itertools
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded

from tests.faults.kind import Kind, group

#: Seconds of the task `faults.brief`, soft and hard.
SOFT, HARD = 3, 5
#: Where a task's program writes its pid: a folder of the case's own.
PIDS = "FAULTS_PIDS"


def publish(task: Any, pause: float = 0.0) -> None:
    """Send ticks that are too late when they arrive: beat's are dropped."""
    while True:
        task.app.send_task("faults.tick", expires=0.001, ignore_result=True)
        until = time.perf_counter() + pause
        while time.perf_counter() < until:
            pass


def publish_and_heed(task: Any) -> str:
    """The user's own clause runs."""
    try:
        publish(task)
    except SoftTimeLimitExceeded:
        return "heeded"
    return "never"


def publish_and_ignore(task: Any) -> None:
    """Not to be ended by its soft limit."""
    while True:
        try:
            publish(task)
        except SoftTimeLimitExceeded:
            continue


def wait(_task: Any) -> None:
    time.sleep(60)


def spin(_task: Any) -> int:
    """In C, where no signal is handled."""
    return sum(itertools.repeat(1, 10**11))


def heed(_task: Any) -> str:
    try:
        time.sleep(60)
    except SoftTimeLimitExceeded:
        return "heeded"
    return "never"


def ignore(_task: Any) -> None:
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        try:
            time.sleep(1)
        except SoftTimeLimitExceeded:
            continue


def program(_task: Any, *, session: bool = False) -> None:
    """A program that would go on for a minute after its task."""
    process = subprocess.Popen(["sleep", "60"], start_new_session=session)
    (Path(os.environ[PIDS]) / str(process.pid)).touch()
    ignore(_task)


def limited(name: str, act: Any, **more: Any) -> Kind:
    return Kind(name, act, **{"reason": "time-limit", "task": "faults.brief", **more})


HEEDED: dict[str, Any] = {"state": "SUCCESS", "reason": ""}

group(
    "limits",
    limited("runaway-publisher", publish),
    limited("slow-publisher", lambda task: publish(task, 0.005), smoke=True),
    limited("publisher-heeds", publish_and_heed, **HEEDED),
    limited("publisher-ignores", publish_and_ignore),
    limited("sleeps", wait),
    limited("computes", spin),
    limited("heeds", heed, **HEEDED),
    limited("ignores", ignore),
    limited("program", program),
    limited("program-of-its-own-session", lambda task: program(task, session=True)),
)
