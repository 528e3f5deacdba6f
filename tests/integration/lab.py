"""The workers' app with tasks of the tests' own in the math queue: `celery -A tests.integration.lab worker -Q math`.

Each task writes what becomes of it into the file JOURNAL, a line each.
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import billiard
from billiard.exceptions import SoftTimeLimitExceeded
from celery import signals

from queues.topology import QUEUES
from tests.integration.lab_table import LAB, WAYS

QUEUES._by_name.update(LAB._by_name)
QUEUES._by_task.update(LAB._by_task)

from workers import limits, places  # noqa: E402
from workers.app import app  # noqa: E402 - tasks take their limits when they are registered
from workers.task import register  # noqa: E402


@signals.worker_init.connect(weak=False)
def shorten(**_: Any) -> None:
    """Messages may be kept, and a process may be deaf, for a few seconds only, in place of minutes."""
    limits.Pool.longest = float(os.environ.get("LONGEST") or limits.Pool.longest)
    places.DEAF = float(os.environ.get("DEAF") or places.DEAF)
    places.LOST = float(os.environ.get("LOST") or places.LOST)


@signals.worker_ready.connect(weak=False)
def lose(sender: Any, **_: Any) -> None:
    """Lose places of the pool: they are taken, and nobody gives them back."""
    for _place in range(int(os.environ.get("LOSE") or 0)):
        sender.controller.semaphore.acquire(lambda: None)


def write(*words: object) -> None:
    """One line of the journal."""
    with Path(os.environ["JOURNAL"]).open("a") as journal:
        journal.write(" ".join(map(str, words)) + "\n")


@contextlib.contextmanager
def told(task: Any) -> Iterator[None]:
    """Say when a run begins, and how it ends."""
    write(task.request.id, "begun", os.getpid())
    try:
        yield
    except SoftTimeLimitExceeded:
        write(task.request.id, "soft")
        raise
    except BaseException as exc:
        write(task.request.id, type(exc).__name__)
        raise
    write(task.request.id, "done")


@register("math.fan_out", bind=True)
def fan_out(self: Any, pause: float) -> None:
    """Send without end, a moment apart."""
    with told(self):
        while True:
            app.send_task("image.inspect_image", ["none.jpg"], ignore_result=True, expires=1)
            time.sleep(pause)


def announce_(self: Any) -> int:
    with told(self):
        app.send_task("math.add", [20, 22], ignore_result=True)
    return 42


register("math.announce", bind=True)(announce_)
register("math.charge", bind=True)(announce_)


def fork(code: Callable[[], object]) -> None:
    """Run this in a fork of the process."""
    if os.fork() == 0:
        try:
            code()
        finally:
            os._exit(0)


def daemonize(code: Callable[[], object]) -> None:
    """Run this in a daemon, as daemons have been made since 1980."""

    def within() -> None:
        os.setsid()
        fork(code)

    fork(within)
    os.wait()


def sleep(mark: str) -> list[str]:
    """A program that does nothing, and can be found by its mark."""
    return [sys.executable, "-c", "import time; time.sleep(300)", mark]


def same(mark: str) -> None:
    """The same as a fork, which has the mark in a file that it holds open."""
    with (Path(os.environ["JOURNAL"]).parent / mark).open("w"):
        time.sleep(300)


def process(code: Callable[[str], object], mark: str) -> None:
    """Run this in a process of the standard library's, which Celery's own are not allowed unless they insist."""
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    multiprocessing.get_context("fork").Process(target=code, args=(mark,)).start()


#: How tasks start programs.
STARTS: dict[str, Callable[[str], object]] = {
    "popen": lambda mark: subprocess.Popen(sleep(mark)),
    "stubborn": lambda mark: subprocess.Popen(
        ["/bin/sh", "-c", f"trap '' TERM INT HUP; {' '.join(map(repr, sleep(mark)))}"]
    ),
    "grandchild": lambda mark: subprocess.Popen(
        f"({' '.join(map(repr, sleep(mark)))}) & ({' '.join(map(repr, sleep(mark)))}); wait", shell=True
    ),
    "left-by-shell": lambda mark: subprocess.run(
        f"{' '.join(map(repr, sleep(mark)))} >/dev/null 2>&1 &", shell=True, check=True
    ),
    "session": lambda mark: subprocess.Popen(sleep(mark), start_new_session=True),
    "bare-session": lambda mark: subprocess.Popen(sleep(mark), start_new_session=True, env={}),
    "daemon": lambda mark: daemonize(lambda: same(mark)),
    "executed-daemon": lambda mark: daemonize(lambda: os.execv(sys.executable, sleep(mark))),
    "fork": lambda mark: fork(lambda: same(mark)),
    "process": lambda mark: process(same, mark),
    "billiard": lambda mark: billiard.Process(target=same, args=(mark,)).start(),
}

assert set(STARTS) == set(WAYS)


@register("math.launch", bind=True)
def launch(self: Any, way: str, mark: str, then: str) -> None:
    """Start a program, and do this."""
    os.environ["MARK"] = mark
    with told(self):
        STARTS[way](mark)
        write(mark, "started")
        if then in ("soft", "revoked"):
            time.sleep(300)
        elif then == "hard":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
            time.sleep(300)
        elif then == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
