"""The programs that a task starts end with it, and at the latest with the process that ran it.

Each process of the pool leads a session of its own, and carries a mark: in its name, which what it forks inherits, and
in its environment, which what it executes inherits. By one of the three everything is found that a shell, a library or
a daemon has put behind itself, whoever its parent is by then. A program that drops all three, and its parent, is not
found. Linux only: elsewhere the hard time limit ends the session's group, and no more is known.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

logger = logging.getLogger(__name__)

PROC = Path("/proc")
#: The environment variable that holds the mark, and behind it the worker's main process: its pid and when it began.
VARIABLE = "WARREN_STARTED_BY"
#: Seconds that programs are given to end by themselves, where somebody can wait for it.
GRACE = 1.0
#: How often those are looked for that were begun meanwhile.
ROUNDS = 10
_PR_SET_NAME = 15


class Program(NamedTuple):
    """A process as the kernel tells it; `begun` counts clock ticks since the machine was started."""

    pid: int
    name: str
    parent: int
    session: int
    begun: int


def look(pid: int) -> Program | None:
    """A process that runs; None where there is none, or only its exit code is left."""
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    # The name may hold anything, brackets too.
    name, _, rest = text.partition("(")[2].rpartition(")")
    try:
        state, parent, _group, session, *more = rest.split()
        return None if state in "ZX" else Program(pid, name, int(parent), int(session), int(more[15]))
    except (ValueError, IndexError):
        return None


def running() -> Iterator[Program]:
    """All that run."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(PROC):
            found = look(int(entry.name)) if entry.name.isdigit() else None
            if found is not None:
                yield found


def mark_in_environment(pid: int) -> str:
    """What a process was given in its environment when it was executed."""
    try:
        environment = (PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return ""
    start = f"{VARIABLE}=".encode()
    found = next((entry for entry in environment.split(b"\0") if entry.startswith(start)), b"")
    return found[len(start) :].decode(errors="replace")


def now() -> int:
    """The time as `Program.begun` counts it."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK")) if sys.platform == "linux" else 0


def lead(mark: str) -> None:
    """Make this process the one whose programs can be told from all others'."""
    with contextlib.suppress(PermissionError):
        os.setsid()  # it leads one already
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_NAME, mark.encode(), 0, 0, 0)
    main = look(os.getppid())
    os.environ[VARIABLE] = f"{mark} {os.getppid()} {main.begun if main else 0}"


def started_by(pid: int, mark: str, since: int = 0) -> list[Program]:
    """What a process of the pool has started, itself left out; it need not exist any more.

    Args:
        pid: of the process.
        mark: of the process.
        since: leave out what was started before.
    """
    everything = {program.pid: program for program in running() if program.pid != pid}
    family = {pid} | {
        program.pid
        for program in everything.values()
        if program.session == pid or program.name == mark or mark_in_environment(program.pid).partition(" ")[0] == mark
    }
    # What left the session and dropped the environment may still be a child of one of them.
    while more := {program.pid for program in everything.values() if program.parent in family} - family:
        family |= more
    return [everything[one] for one in family - {pid} if everything[one].begun >= since]


def end(find: Callable[[], list[Program]], grace: float = 0.0) -> int:
    """End what is found, again and again until nothing is.

    Args:
        find: looks for it.
        grace: seconds that it is given to end by itself.

    Returns:
        How many there were.
    """
    try:
        first = found = find()
        if found and grace:
            send(found, signal.SIGTERM)
            limit = time.monotonic() + grace
            while (found := find()) and time.monotonic() < limit:
                time.sleep(0.02)
        for _ in range(ROUNDS):
            if not found:
                break
            send(found, signal.SIGKILL)
            found = find()
    except Exception:
        # Whatever the system does not let us see must not stop a worker.
        logger.exception("programs that a task has left could not be ended")
        return 0
    return len(first)


def send(programs: list[Program], number: int) -> None:
    """Send a signal to all."""
    for program in programs:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(program.pid, number)


def end_all_of(pid: int, mark: str, *, known: tuple[Program, ...] = (), since: int = 0, grace: float = 0.0) -> None:
    """End what a process of the pool has started; see `started_by`.

    Args:
        pid: of the process.
        mark: of the process.
        known: what was seen of it while it lived.
        since: leave out what was started before.
        grace: see `end`.
    """

    def find() -> list[Program]:
        still = [program for program in known if (same := look(program.pid)) and same.begun == program.begun]
        return list({*still, *started_by(pid, mark, since)})

    count = end(find, grace)
    if count:
        logger.warning("ended %d programs that process %d had started", count, pid)


def end_orphans() -> None:
    """End what the tasks of workers have left that are no more: nobody was there to do it when they were killed."""

    def find() -> list[Program]:
        found = []
        for program in running():
            main = mark_in_environment(program.pid).split()[1:]
            if len(main) == 2 and all(text.isdigit() for text in main):
                worker = look(int(main[0]))
                if (worker is None or worker.begun != int(main[1])) and namespace(program.pid) == ours:
                    found.append(program)
        return found

    ours = namespace(os.getpid())
    count = end(find)
    if count:
        logger.warning("ended %d programs that a worker had left when it was killed", count)


def namespace(pid: int) -> str:
    """Where a process's pids are counted: a container's are not ours."""
    try:
        return str((PROC / str(pid) / "ns" / "pid").readlink())
    except OSError:
        return ""
