"""What the tasks of both sides do; they differ in nothing but how they are registered."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.faults import journal, kinds

# As they were: a task may replace them.
from time import monotonic, sleep  # isort: skip

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds that a task waits for the other places' tasks.
MEETING = 8.0


def run(task: Any, seconds: float = 0.0) -> None:
    """Take some time."""
    journal.note(task.request, "start")
    if seconds:
        time.sleep(seconds)
    journal.note(task.request, "end")


def die(task: Any, how: str) -> None:
    """End the process that runs the task, or ask for more memory than there is."""
    journal.note(task.request, "start")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "exit":
        sys.exit(3)
    elif how == "memory":
        raise MemoryError
    elif how == "segfault":
        ctypes.string_at(0)
    raise ValueError(how)


def once(task: Any, seconds: float, begin: Callable[[], None]) -> None:
    """Take some time, say that the effect begins, and have it."""
    time.sleep(seconds)
    begin()
    journal.note(task.request, "start")
    journal.note(task.request, "end")


def swallow(task: Any, text: str) -> None:
    """Take an argument of any size."""
    run(task, 0 if text else 0.0)


def own(task: Any, name: str) -> Any:
    """What a user's own code does; it ends where that should succeed."""
    journal.note(task.request, "start")
    kind, request = kinds.find(name), task.request.id
    found = kind.act(task)
    if kind.state == "SUCCESS":
        journal.append(os.environ[journal.VARIABLE], id=request, event="end")
    return found


def meet(task: Any, folder: str, count: int) -> None:
    """Wait until so many of these run at once: each makes a folder, for which a process needs no file of its own."""
    journal.note(task.request, "start")
    marks = [Path(folder, str(number)) for number in range(count)]
    for mark in marks:
        with contextlib.suppress(FileExistsError):
            mark.mkdir()
            break
    limit = monotonic() + MEETING
    while not marks[-1].exists():
        if monotonic() > limit:
            Path(folder, "alone").mkdir()
            break
        sleep(0.02)
    journal.note(task.request, "end")


def echo(task: Any, value: Any = None) -> Any:
    """Give back what came."""
    run(task)
    return value


def at_import() -> None:
    """A user's module, as it is imported: the source comes from the environment."""
    exec(compile(os.environ.get("FAULTS_MODULE", ""), "a user's module", "exec"), {"__name__": "a user's module"})
