"""One rate for all processes: who may act next is agreed on in the ledger's store, and no two clocks are compared.

The store holds one value, which everybody who acts replaces by a new one. Whoever has seen the same value stand there
for the whole interval, by a clock of its own, may try to replace it; whoever comes too late sees another value, and
watches anew. So a worker that takes over, that was stopped for a while, or that lives on after its parent, never acts
sooner after another one than the rate allows. What repeats nothing and only answers costs nothing.
"""

from __future__ import annotations

import re
import time
import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from workers.ledger import Store

_RATE = re.compile(r"(\d{1,6}(?:\.\d{1,6})?)(?:/([smh]))?")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
#: Seconds from the permission to the deed without asking again; whoever comes after another process waits longer by it.
FRESH = 0.5
#: The longest interval, in seconds: a process waits for its turn, and that must fit into a task's time limit.
LONGEST = 60.0


def interval(rate: str) -> float:
    """Seconds between two deeds at a rate like `10/m`, `2/s` or `90/h`; 0 for `0`, no limit.

    Raises:
        ValueError: it is no rate, or slower than one a minute.
    """
    match = _RATE.fullmatch(rate.strip())
    count = float(match[1]) if match else -1.0
    if not match or (count and not match[2]):
        raise ValueError("write a number a second, minute or hour, like 10/m, or 0 for no limit")
    seconds = _SECONDS[match[2]] / count if count else 0.0
    if seconds > LONGEST:
        raise ValueError("at least one a minute is needed")
    return seconds


class Pace:
    """One process's view of the common rate.

    Args:
        store: where the value is.
        name: its key there.
        seconds: the interval.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        seconds: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store, self._name, self._seconds = store, f"rate:{name}", seconds
        self._clock, self._sleep = clock, sleep
        self._seen: str | None = None
        self._since = clock()
        #: Whether the value that stands there is ours.
        self._mine = False

    def look(self) -> None:
        """Look at the value; another one than before is watched from now on.

        Raises:
            LedgerUnavailableError: the store does not answer.
        """
        value = self._store.read(self._name)
        if value != self._seen:
            self._seen, self._since, self._mine = value, self._clock(), False

    def wait(self) -> None:
        """Wait until it is our turn, and take it.

        Raises:
            LedgerUnavailableError: the store does not answer.
        """
        while True:
            left = self.left()
            if left > 0:
                self._sleep(left)
            if self.take():
                return

    def left(self) -> float:
        """Look, and tell in how many seconds our turn may be taken if nobody else takes one; not above 0 for now.

        Raises:
            LedgerUnavailableError: the store does not answer.
        """
        self.look()
        return self._since + self._seconds + (0.0 if self._mine else FRESH) - self._clock()

    def take(self) -> bool:
        """Take the turn, unless somebody else has taken one since we looked.

        Raises:
            LedgerUnavailableError: the store does not answer.
        """
        value = str(uuid.uuid4())
        began = self._clock()
        if not self._store.swap(self._name, self._seen, value):
            self._mine = False
            return False
        # From before the write: how long that took counts as age, not as freshness.
        self._seen, self._since, self._mine = value, began, True
        return True

    def still(self) -> bool:
        """Whether the turn that we took is still ours, asked right before the deed.

        Raises:
            LedgerUnavailableError: the store does not answer.
        """
        return self._clock() - self._since < FRESH or self.take()

    def done(self) -> None:
        """The deed is over: the next turn is counted from now."""
        if self._mine:
            self._since = self._clock()
