"""What a person or a service manager asks of a running command: stop, or stop at once."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

#: Seconds in which a second Ctrl-C is the first one's echo: `make` and `uv run` pass on what the terminal sent to all.
ECHO = 0.3


class Signals:
    """What was asked of this process: True once it is to stop."""

    def __init__(self) -> None:
        self._first: float | None = None
        self._hurry = False
        self._raise = False
        # The kernel tells the end of a terminal to its session's leader alone, and `make` as the leader tells nobody.
        self._terminals = select.poll()
        for number in (0, 1, 2):
            if os.isatty(number):
                self._terminals.register(number, 0)

    def __call__(self) -> bool:
        """Whether to stop: a signal came, or the terminal is gone."""
        return self._first is not None or bool(self._terminals.poll(0))

    def hurry(self) -> bool:
        """Whether Ctrl-C was pressed again."""
        return self._hurry

    @contextlib.contextmanager
    def raised(self) -> Iterator[None]:
        """A block in which the first signal ends whatever is waited for.

        Raises:
            KeyboardInterrupt: it came.
        """
        self._raise = True
        try:
            yield
        finally:
            self._raise = False

    def note(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal.

        Raises:
            KeyboardInterrupt: the first one came in a `raised` block.
        """
        now = time.monotonic()
        if self._first is None:
            self._first = now
            if self._raise:
                raise KeyboardInterrupt
        # Only Ctrl-C: a terminal that is closed may be told by the kernel and again by its shell.
        elif number == signal.SIGINT and now - self._first > ECHO:
            self._hurry = True


@contextlib.contextmanager
def until_signalled() -> Iterator[Signals]:
    """Turn Ctrl-C, SIGTERM and a closed terminal into a flag for the block."""
    signals = Signals()
    names = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {name: signal.signal(name, signals.note) for name in names}
    try:
        yield signals
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
