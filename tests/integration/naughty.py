"""The workers' app whose `math.xsum(["KIND"])` does something wrong: `celery -A tests.integration.naughty worker`."""

from __future__ import annotations

import asyncio
import enum
import importlib.util
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from billiard import current_process
from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery import current_task, signals
from celery.exceptions import Retry, WorkerTerminate

from queues.errors import PermanentError, TransientError
from workers import arithmetic
from workers.app import app

NOTHING: Any = None


class Raising(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Textless(Exception):
    def __str__(self) -> Any:
        return NOTHING


class Leaving(Exception):
    def __str__(self) -> NoReturn:
        raise SystemExit(3)


class Hollow(PermanentError):
    def __init__(self) -> None:
        pass


class Own(PermanentError):
    def __init__(self, path: str, size: int) -> None:
        super().__init__("too_big", f"{path} has {size} bytes")


class OnlyHere(Exception):
    """Pickles where a task runs, and nowhere else."""

    def __init__(self, text: str) -> None:
        super().__init__(f"{text} {current_task.request.id[:0]}")


class Unreduced(Exception):
    def __reduce__(self) -> NoReturn:
        raise RuntimeError("no pickle")


class Explosive(Exception):
    """Ends whoever unpickles it."""

    def __reduce__(self) -> Any:
        return os._exit, (9,)


class Shy(dict[str, int]):
    def __repr__(self) -> NoReturn:
        raise RuntimeError("no repr")


class Loud(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise RuntimeError("no log")


def refuse(*_: object) -> NoReturn:
    raise RuntimeError("no answer")


class Placeless(type):
    __module__ = property(refuse)


class Lost(Exception, metaclass=Placeless):
    pass


class Mute(Exception):
    __getattribute__ = refuse


class Faceless(Exception):
    __class__ = property(refuse)


class Untraced(Exception):
    __traceback__ = property(refuse)


class Coded(PermanentError):
    code = property(lambda _: sys.exit(3))

    def __init__(self) -> None:
        pass


class Exits(enum.IntEnum):
    FULL = 28


def ghost() -> Exception:
    """An error of a module that the main process cannot import."""
    module = ModuleType("ghost")
    sys.modules["ghost"] = module
    exec("class Ghost(Exception): pass", module.__dict__)
    return module.Ghost("boo")  # type: ignore[no-any-return]


def plugin() -> Exception:
    """An error of a file that is loaded by its path."""
    path = Path("plugin_of_a_task.py")
    path.write_text("class Plugged(Exception):\n    pass\n")
    spec = importlib.util.spec_from_file_location("plugin_of_a_task", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["plugin_of_a_task"] = module
    spec.loader.exec_module(module)
    return module.Plugged("loaded")  # type: ignore[no-any-return]


ERRORS: dict[str, Any] = {
    "error-as-text": lambda: PermanentError("storage", ValueError("disk")),
    "no-text": lambda: PermanentError("storage", None),
    "bytes-as-text": lambda: PermanentError("storage", b"\xff"),
    "number-as-code": lambda: PermanentError(404, "gone"),  # type: ignore[arg-type]
    "no-code": lambda: PermanentError(None, "gone"),  # type: ignore[arg-type]
    "base-not-called": Hollow,
    "own-signature": lambda: Own("a.jpg", 7),
    "str-raises": Raising,
    "str-gives-no-text": Textless,
    "str-exits": Leaving,
    "half-a-character": lambda: ValueError("\ud800"),
    "huge-text": lambda: ValueError("x" * 20_000_000),
    "nul": lambda: ValueError("a\0b"),
    "pickles-one-way": lambda: OnlyHere("x"),
    "pickle-raises": lambda: Unreduced("x"),
    "pickle-ends-the-reader": lambda: Explosive("x"),
    "ghost-module": ghost,
    "plugin": plugin,
    "exec": lambda: type("Made", (Exception,), {"__module__": "nowhere"})("x"),
    "worker-lost": lambda: WorkerLostError("says who?"),
    "terminated": lambda: Terminated(15),
    "time-limit": lambda: TimeLimitExceeded(1),
    "group": lambda: ExceptionGroup("two", [ValueError("a"), Raising()]),
    "memory": lambda: MemoryError("mine"),
    "recursive": lambda: recurse(0),
    "used-up": lambda: TransientError("busy", Raising()),
    "generator-exit": GeneratorExit,
    "cancelled": lambda: asyncio.CancelledError("x"),
    "class-without-a-place": lambda: Lost("x"),
    "mute": lambda: Mute("x"),
    "faceless": lambda: Faceless("x"),
    "untraced": lambda: Untraced("x"),
    "code-exits": Coded,
    "nul-in-its-name": lambda: type("Made", (Exception,), {"__qualname__": "a\0b"})("x"),
    "retry-by-hand": lambda: Retry("later", when="soon"),
    "exits-with-an-enum": lambda: SystemExit(Exits.FULL),
    "terminate-the-worker": lambda: WorkerTerminate(9),
}


def recurse(depth: int) -> Exception:
    return recurse(depth + 1)


def run(kind: Any, *more: Any) -> Any:
    """Do what the kind says."""
    if kind in ERRORS:
        error: BaseException = ERRORS[kind]()
        raise error
    return RESULTS[kind](*more)


def close_output() -> str:
    sys.stdout.close()
    sys.stderr.close()
    os.close(1)
    os.close(2)
    return "closed"


def replace_output() -> str:
    sys.stdout = sys.stderr = None
    return "replaced"


def break_logging() -> str:
    logging.getLogger().addHandler(Loud())
    return "broken"


def leave_alarm() -> str:
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    return "left"


def fork_and_return() -> str:
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
    return f"{os.getpid() > 0}"


def call_in_a_fork() -> int:
    """Another task as a function, in a copy of the process that ends as it should."""
    pid = os.fork()
    if not pid:
        os._exit(app.tasks["math.add"](1, 2))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def write_garbage(text: str) -> str:
    """Write into the pipe that the parent listens at, and wait for what comes."""
    os.write(current_process()._target.outq._writer.fileno(), bytes.fromhex(text))
    time.sleep(60)
    return "nobody minded"


RESULTS: dict[str, Any] = {
    "repr-raises": lambda: Shy(a=1),
    "status-first": lambda: {"status": "failed", "rows": 3},
    "status-last": lambda: {"rows": 3, "status": "failed"},
    "an-error-as-result": lambda: ValueError("returned"),
    "kombu-mark": lambda: {"__type__": "x", "__value__": 1},
    "a-set": lambda: {1, 2},
    "an-object": object,
    "tuple-keys": lambda: {(1, 2): 3},
    "circle": lambda: (circle := [], circle.append(circle), circle)[2],  # type: ignore[var-annotated,func-returns-value]
    "close-output": close_output,
    "replace-output": replace_output,
    "break-logging": break_logging,
    "leave-alarm": leave_alarm,
    "break-the-clock": lambda: setattr(time, "monotonic", refuse) or "no time",  # type: ignore[func-returns-value]
    "wait": time.sleep,
    "exit-with-a-text": lambda: sys.exit("no more work"),
    "fork-and-return": fork_and_return,
    "call-in-a-fork": call_in_a_fork,
    "garbage": write_garbage,
    "marks": lambda: json.loads('"<recorded> "'),
}
_xsum = arithmetic.xsum


def xsum(values: list[Any]) -> Any:
    """The sum of numbers, or what a word asks for."""
    return run(*values) if values and isinstance(values[0], str) else _xsum(values)


vars(arithmetic)["xsum"] = xsum


@signals.task_success.connect(weak=False)
def hook(result: Any, **_: Any) -> None:
    """A receiver that ends the process would be the process's end; one that raises is Celery's to log."""
    if result == "broken":
        raise RuntimeError("a receiver's")
