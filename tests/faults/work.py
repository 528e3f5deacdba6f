"""What the tasks of both sides do; they differ in nothing but how they are registered."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from tests.faults import journal

if TYPE_CHECKING:
    from collections.abc import Callable


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
