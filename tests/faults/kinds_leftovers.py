"""What tasks leave behind in their process: the tasks behind them did nothing wrong."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import gc
import io
import locale
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from celery import Celery

from tests.faults.journal import VARIABLE
from tests.faults.kind import ANY, Kind, group

if TYPE_CHECKING:
    from collections.abc import Callable

#: What a process keeps for good.
KEPT: list[Any] = []
#: Seconds after which what was left behind ends on its own.
LINGERS = 60


class Broken(io.StringIO):
    """A stream of which every use fails."""

    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")

    flush = close = fileno = isatty = write  # type: ignore[assignment]


def refuse(*_args: Any, **_options: Any) -> NoReturn:
    raise RuntimeError("replaced by a task")


def put(target: Any, **values: Any) -> Callable[[Any], None]:
    """Replace attributes of a module."""

    def act(_task: Any) -> None:
        for name, value in values.items():
            setattr(target, name, value)

    return act


def handle(*numbers: signal.Signals, by: Any = signal.SIG_IGN) -> Callable[[Any], None]:
    """Leave handlers of signals behind."""

    def act(_task: Any) -> None:
        for number in numbers:
            signal.signal(number, by)

    return act


def close_streams(_task: Any) -> None:
    sys.stdout.close()
    sys.stderr.close()


def close_files(_task: Any) -> None:
    """Also those over which the process hears and answers."""
    os.closerange(3, 1000)


def close_standard_files(_task: Any) -> None:
    for number in range(3):
        os.close(number)


def use_up_files(_task: Any, *, keep: bool = False) -> None:
    """Open files until there are no more."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
    found = KEPT if keep else []
    try:
        while True:
            found.append(Path(os.devnull).open())  # noqa: SIM115 - kept
    except OSError:
        pass


def fork(_task: Any) -> str:
    """The child returns into the worker's own code, as it does where a library forks and fails."""
    return "child" if os.fork() == 0 else "parent"


def fork_and_leave(_task: Any) -> None:
    """The child outlives its task."""
    if os.fork() == 0:
        time.sleep(LINGERS)
        os._exit(0)


def fork_and_raise(_task: Any) -> None:
    """The child fails within the task's own code."""
    if os.fork() == 0:
        raise ValueError("in the child")


def threads(_task: Any) -> None:
    for daemon in (True, False):
        for _ in range(20):
            threading.Thread(target=time.sleep, args=(LINGERS,), daemon=daemon).start()


def programs(_task: Any) -> None:
    KEPT.extend(subprocess.Popen(["sleep", str(LINGERS)]) for _ in range(5))


def alarm(_task: Any) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, 0.3)


def interrupt_later(_task: Any) -> None:
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.3)


def block_signals(_task: Any) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))


def go_to_a_folder_that_is_gone(_task: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)


def leave_session(_task: Any) -> None:
    with contextlib.suppress(PermissionError):  # it leads one
        os.setsid()


def clear_environment(_task: Any) -> None:
    """All but what the suite itself reads."""
    journal = os.environ[VARIABLE]
    os.environ.clear()
    os.environ[VARIABLE] = journal


def change_zone(_task: Any) -> None:
    os.environ["TZ"] = "Pacific/Kiritimati"
    time.tzset()


def change_locale(_task: Any) -> None:
    for name in ("C", "C.UTF-8", "POSIX"):
        locale.setlocale(locale.LC_ALL, name)


def grow(_task: Any) -> None:
    """More than a process may keep."""
    KEPT.append(bytearray(320 * 2**20))


def silence_logs(_task: Any) -> None:
    logging.disable(logging.CRITICAL)
    logging.getLogger().handlers.clear()
    logging.shutdown()


class Refusing(logging.Handler):
    """A handler of the user's own that fails."""

    def emit(self, record: logging.LogRecord) -> None:
        raise RuntimeError("no line can be written")


def break_logs(_task: Any) -> None:
    logging.getLogger().addHandler(Refusing())


def own_app(_task: Any) -> None:
    """An app of the user's own becomes the current one."""
    KEPT.append(Celery("another", broker="memory://", set_as_current=True))
    KEPT[-1].set_default()


def own_loop(_task: Any) -> None:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    KEPT.append(loop.create_task(asyncio.sleep(LINGERS), name="left behind"))
    loop.run_until_complete(asyncio.sleep(0))


def change_request(task: Any) -> None:
    task.request.id, task.request.retries, task.request.chord = None, "x", 5


def at_exit(_task: Any) -> None:
    atexit.register(refuse)
    sys.excepthook = threading.excepthook = refuse


def kept(name: str, act: Callable[[Any], Any], **more: Any) -> Kind:
    """A kind that succeeds, and leaves its process changed."""
    return Kind(name, act, **{"state": "SUCCESS", "reason": "", "alone": True, **more})


def still(*_args: Any) -> float:
    return 0.0


group(
    "leftovers",
    kept("stdout-closed", lambda _: sys.stdout.close()),
    kept("streams-closed", close_streams, smoke=True),
    kept("streams-none", put(sys, stdout=None, stderr=None)),
    kept("streams-replaced", put(sys, stdout=io.StringIO(), stderr=io.StringIO())),
    kept("streams-broken", put(sys, stdout=Broken(), stderr=Broken())),
    kept("streams-no-streams", put(sys, stdout=5, stderr=object())),
    kept("standard-files-closed", close_standard_files),
    Kind("all-files-closed", close_files, state=ANY, reason=ANY, patience=120, alone=True),
    kept("files-used-up", use_up_files),
    kept("files-kept", lambda task: use_up_files(task, keep=True)),
    kept("sigterm-ignored", handle(signal.SIGTERM)),
    kept("sigterm-default", handle(signal.SIGTERM, by=signal.SIG_DFL)),
    kept("signals-ignored", handle(signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)),
    kept("signals-raise", handle(signal.SIGUSR1, signal.SIGTERM, signal.SIGCHLD, signal.SIGALRM, by=refuse)),
    kept("signals-blocked", block_signals),
    kept("alarm", alarm, deaths=1, smoke=True),
    kept("interrupt", interrupt_later, deaths=1),
    kept("threads", threads),
    kept("programs", programs),
    kept("fork-lingers", fork_and_leave),
    kept("fork-returns", fork, smoke=True),
    kept("fork-raises", fork_and_raise),
    kept("time-still", put(time, time=still, monotonic=still, perf_counter=still), smoke=True),
    kept("time-sleeps-not", put(time, sleep=still)),
    kept("socket-replaced", put(socket, socket=refuse, create_connection=refuse, getaddrinfo=refuse)),
    kept("socket-timeout", lambda _: socket.setdefaulttimeout(0.001)),
    kept("path-emptied", lambda _: sys.path.clear()),
    kept("path-none", put(sys, path=None)),
    kept("modules-dropped", lambda _: bool(sys.modules.pop("json"))),
    kept("locale", change_locale),
    kept("zone", change_zone),
    kept("folder-gone", go_to_a_folder_that_is_gone),
    kept("umask", lambda _: os.umask(0o777)),
    kept("environment-cleared", clear_environment),
    kept("warnings-raise", lambda _: warnings.simplefilter("error")),
    kept("recursion-limit", lambda _: sys.setrecursionlimit(150)),
    kept("no-collector", lambda _: gc.disable()),
    kept("grows", grow),
    kept("logs-silent", silence_logs),
    kept("logs-broken", break_logs),
    kept("own-app", own_app),
    kept("own-loop", own_loop),
    kept("request-changed", change_request),
    kept("at-exit", at_exit),
    kept("new-session", leave_session),
    kept("temporary-folder", put(tempfile, tempdir="/nowhere")),
)
