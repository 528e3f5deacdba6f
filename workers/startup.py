"""Set-up that fails ends the process: with the reason, exit code 2, and every message where it was.

Celery logs what a signal's receiver raises and goes on, so that a worker whose tasks could not be imported would
dead-letter what it was sent.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from celery.utils import dispatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

#: The exit code of a process that cannot be set up; a restart does not help.
FAILED = 2
#: Seconds until a line says once more what is waited for.
TELL_AGAIN = 60.0
#: Places in the code that are named.
SHOWN = 3
#: Files that say nothing of whose mistake it is: what imports and calls, and ours that has it done.
_BETWEEN = ("<frozen", importlib.__file__, dispatch.signal.__file__, __file__, str(Path(__file__).with_name("app.py")))


class Told(SystemExit):
    """The process ends, and the reason has been said."""


def stop(message: str) -> NoReturn:
    """End the process with a message for a person; no traceback for a mistake."""
    print(message, file=sys.stderr, flush=True)
    raise Told(FAILED)


@contextlib.contextmanager
def ending(what: str, remedy: str = "") -> Iterator[None]:
    """Whatever is raised within ends the process with one sentence.

    Args:
        what: what cannot be done, as `the worker cannot be set up`.
        remedy: what to do where something cannot be imported.
    """
    try:
        yield
    except (KeyboardInterrupt, Told):
        raise
    except BaseException as exc:  # noqa: BLE001 - whatever it is, it ends the process
        stop(sentence(what, exc, remedy))


def sentence(what: str, exc: BaseException, remedy: str = "") -> str:
    """What failed, why, and where."""
    from queues.errors import name_of, text_of  # what is imported may be what fails

    where = (
        f"{exc.filename}:{exc.lineno}" if isinstance(exc, SyntaxError) and exc.filename else places(exc.__traceback__)
    )
    text = " ".join(text_of(exc.msg if isinstance(exc, SyntaxError) else exc).split())
    advice = f"; {remedy}" if remedy and isinstance(exc, ImportError) else ""
    return f"{what}: {name_of(type(exc))}: {text}{advice}" + (f" (at {where})" if where else "")


def places(trace: TracebackType | None) -> str:
    """The innermost places of a traceback, the one that raised first."""
    frames = [frame for frame in traceback.extract_tb(trace) if not frame.filename.startswith(_BETWEEN)]
    return ", called from ".join(f"{frame.filename}:{frame.lineno}" for frame in reversed(frames[-SHOWN:]))


def strictly(*signals: Any) -> None:
    """What any receiver of these signals raises, ours or a team's, ends the process instead of a line in the log."""
    for signal in signals:
        signal.send = _strict(signal.send, signal.name)


def _strict(send: Callable[..., Any], name: str) -> Callable[..., Any]:
    def send_strictly(sender: Any, **named: Any) -> Any:
        with ending(f"what is called at {name} failed"):
            responses = send(sender, **named)
        for receiver, response in responses:
            if isinstance(response, Exception):
                called = getattr(receiver, "__qualname__", type(receiver).__name__)
                stop(sentence(f"{called}, called at {name}, failed", response))
        return responses

    return send_strictly
