"""What tasks raise: texts that are none, errors that pickle one way only, classes of one process, ends of all kinds."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import threading
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from celery import current_task
from celery.exceptions import WorkerShutdown, WorkerTerminate

from queues.errors import PermanentError, TransientError
from tests.faults.kind import ANY, Kind, group

if TYPE_CHECKING:
    from collections.abc import Callable


class Texts(Exception):
    """Its texts are what it is given; an exception is raised."""

    def __init__(self, text: Any, shown: Any = "") -> None:
        super().__init__()
        self.texts = text, shown

    def __str__(self) -> str:
        return self._give(0)

    def __repr__(self) -> str:
        return self._give(1)

    def _give(self, place: int) -> str:
        found = self.texts[place]
        if isinstance(found, Exception):
            raise found
        return found  # type: ignore[no-any-return]


class Reduced(Exception):
    """Its pickle is what it is given; an exception is raised."""

    def __init__(self, how: Any) -> None:
        super().__init__("reduced")
        self.how = how

    def __reduce__(self) -> Any:
        if isinstance(self.how, Exception):
            raise self.how
        return self.how


class Two(Exception):
    """As most people write one: it cannot be made again from its args."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Holds(Exception):
    """Holds what cannot be pickled."""

    def __init__(self, what: Any) -> None:
        super().__init__("held")
        self.what = what


class KeywordOnly(Exception):
    def __init__(self, *, detail: str) -> None:
        super().__init__()
        self.detail = detail


class KnowsItsTask(Exception):
    """Made anew where no task runs, it fails."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.of = current_task.request.id


class Answers(Exception):
    """Has every attribute, as mocks and proxies have."""

    def __getattr__(self, name: str) -> Any:
        return Answers(name)


class Compares(Exception):
    """Cannot be compared, hashed or asked whether it is true."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not to be compared")

    def __hash__(self) -> int:
        raise RuntimeError("not to be hashed")

    def __bool__(self) -> bool:
        raise RuntimeError("neither true nor false")


class Nameless(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise RuntimeError("no name")


class OfNoName(Exception, metaclass=Nameless):
    pass


class Lying(Exception):
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise RuntimeError("of no class")


class NoBase(PermanentError):
    """Does not call its base: it has no code."""

    def __init__(self, name: str) -> None:
        self.name = name


class NoBaseTransient(TransientError):
    def __init__(self, name: str) -> None:
        self.name = name


class NoSuchUser(PermanentError):
    """Calls it, with a signature of its own."""

    def __init__(self, user: str) -> None:
        super().__init__("no_such_user", f"user {user} does not exist: create it")


class Busy(TransientError):
    def __init__(self, host: str) -> None:
        super().__init__("busy", f"{host} is busy: it is tried again", 1)


def executed() -> BaseException:
    """Of a module that only this process has."""
    module = types.ModuleType("warren_generated")
    exec("class Generated(Exception): pass", module.__dict__)
    sys.modules[module.__name__] = module
    found: BaseException = module.__dict__["Generated"]("generated")
    return found


def nowhere() -> BaseException:
    """Of no module at all."""
    space: dict[str, Any] = {}
    exec("class Generated(Exception): __module__ = None", space)
    return space["Generated"]("of no module")  # type: ignore[no-any-return]


def of_a_path() -> BaseException:
    """Of a module in a folder that this process put on its path."""
    folder = Path(tempfile.mkdtemp(prefix="warren-faults-path-"))
    (folder / "warren_library.py").write_text("class LibraryError(Exception): pass\n")
    sys.path.insert(0, str(folder))
    import warren_library  # type: ignore[import-not-found]

    return warren_library.LibraryError("of a library")  # type: ignore[no-any-return]


def lazily() -> BaseException:
    """Of a module that only a process that runs a task can import."""
    from tests.faults import lazy

    return lazy.LazyError("lazily imported")


def local() -> BaseException:
    class Local(Exception):
        pass

    return Local("of a function")


def caused(cause: BaseException) -> BaseException:
    error = ValueError("outer")
    error.__cause__ = cause
    return error


def own_cause() -> BaseException:
    error, inner = ValueError("a"), ValueError("b")
    error.__cause__, inner.__cause__ = inner, error
    return error


def deep() -> NoReturn:
    deep()


def nested(depth: int) -> Any:
    found: Any = 0
    for _ in range(depth):
        found = [found]
    return found


def throws(make: Callable[[], BaseException]) -> Callable[[Any], Any]:
    def act(_task: Any) -> NoReturn:
        raise make()

    return act


def error(name: str, make: Callable[[], BaseException], reason: str = "exception", **more: Any) -> Kind:
    """A kind that raises."""
    return Kind(name, throws(make), reason=reason, **more)


def permanent(name: str, code: Any, text: Any, reason: str, **more: Any) -> Kind:
    return error(name, lambda: PermanentError(code, text), reason, **more)


def transient(name: str, *args: Any, **more: Any) -> Kind:
    """Tried once more."""
    return error(name, lambda: TransientError(*args), "retries-exhausted", runs=2, **more)


group(
    "errors",
    # Texts.
    permanent("text-none", "storage", None, "storage"),
    permanent("text-bytes", "storage", b"\xff\0", "storage"),
    permanent("text-exception", "storage", OSError(2, "No such file"), "storage", smoke=True),
    permanent("text-dict", "storage", {"a": 1}, "storage"),
    permanent("text-odd", "storage", Texts(RuntimeError("no text"), RuntimeError("no repr")), "storage"),
    transient("text-int", "status", 503),
    transient("text-transient", "storage", OSError(2, "No such file")),
    error("again-odd", lambda: TransientError("storage", "again", "soon"), ANY),  # type: ignore[arg-type]
    error("str-raises", lambda: Texts(RuntimeError("no text")), smoke=True),
    error("str-none", lambda: Texts(None)),
    error("str-bytes", lambda: Texts(b"x")),
    error("repr-raises", lambda: Texts("text", RuntimeError("no repr"))),
    error("both-raise", lambda: Texts(RuntimeError("no text"), RuntimeError("no repr"))),
    error("str-recursion", lambda: Texts(RecursionError())),
    error("str-exits", lambda: Texts(SystemExit(5))),
    error("text-20-mb", lambda: ValueError("x" * 20_000_000)),
    error("text-nul", lambda: ValueError("a\0b")),
    error("text-surrogate", lambda: ValueError("caf\udce9")),
    error("text-markup", lambda: ValueError("[bold]\x1b[31m%s%(x)s{}\n\r\u2028")),
    error("args-nested", lambda: ValueError(nested(5000))),
    # Codes.
    permanent("code-none", None, "text", ANY),
    permanent("code-int", 404, "text", ANY),
    permanent("code-object", object(), "text", ANY),
    permanent("code-long", "x" * 300_000, "text", ANY),
    permanent("code-surrogate", "caf\udce9", "text", ANY),
    error("no-base", lambda: NoBase("x"), ANY, smoke=True),
    error("no-base-transient", lambda: NoBaseTransient("x"), "retries-exhausted", runs=2),
    error("own-signature", lambda: NoSuchUser("bob"), "no_such_user"),
    error("own-transient", lambda: Busy("db"), "retries-exhausted", runs=2),
    # Pickles.
    error("reduce-raises", lambda: Reduced(RuntimeError("no pickle"))),
    error("reduce-junk", lambda: Reduced(5)),
    # These end the process that looks at them, also by its own traceback: the limit of deaths is told, or the error.
    error("reduce-exits", lambda: Reduced((os._exit, (7,))), ANY, runs=0),
    error("not-comparable", lambda: Compares("x"), ANY, runs=0),
    error("of-no-class", lambda: Lying("x"), ANY, runs=0),
    error("reduce-sleeps", lambda: Reduced((__import__("time").sleep, (3,)))),
    error("two-arguments", lambda: Two("bad gateway", 502)),
    error("keyword-only", lambda: KeywordOnly(detail="x")),
    error("holds-a-lock", lambda: Holds(threading.Lock())),
    error("holds-a-function", lambda: Holds(lambda: 0)),
    error("local", local),
    error("knows-its-task", lambda: KnowsItsTask("of this task"), smoke=True),
    error("executed", executed, smoke=True),
    error("of-no-module", nowhere),
    error("of-a-path", of_a_path),
    error("lazily-imported", lazily),
    error("cause-holds-a-lock", lambda: caused(Holds(threading.Lock()))),
    error("cause-executed", lambda: caused(executed())),
    error("its-own-cause", own_cause),
    # Objects.
    error("answers-everything", lambda: Answers("x")),
    error("of-no-name", lambda: OfNoName("x")),
    # Ends.
    error("group", lambda: ExceptionGroup("two", [ValueError("a"), TypeError("b")])),
    error("base-group", lambda: BaseExceptionGroup("two", [KeyboardInterrupt(), ValueError("b")])),
    error("base", lambda: BaseException("neither")),
    error("cancelled", asyncio.CancelledError),
    error("generator-exit", GeneratorExit),
    error("stop-iteration", lambda: StopIteration(5)),
    error("memory", lambda: MemoryError("no more"), "memory"),
    Kind("recursion", lambda _: deep()),
    Kind("wrong-call", lambda _: len(5)),  # type: ignore[arg-type]
    error("exit", lambda: SystemExit(3), "worker-lost", runs=3, smoke=True),
    error("exit-0", lambda: SystemExit(0), "worker-lost", runs=3),
    error("exit-text", lambda: SystemExit("text"), "worker-lost", runs=3),
    error("keyboard-interrupt", KeyboardInterrupt, "worker-lost", runs=3),
    error("worker-shutdown", lambda: WorkerShutdown(0), "worker-lost", runs=3),
    error("worker-terminate", lambda: WorkerTerminate(1), "worker-lost", runs=3),
    Kind("os-exit", lambda _: os._exit(0), reason="worker-lost", runs=3),
    Kind("os-exit-3", lambda _: os._exit(3), reason="worker-lost", runs=3),
)
