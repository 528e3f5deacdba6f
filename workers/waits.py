"""Time limits that stand still while the broker does not take what a task publishes.

What stands still is real waiting alone: the broker is blocked by an alarm, or cannot be reached, or has not answered
for a second. A confirm that comes in time counts as the task's own time: what publishes for ever ends at its limit.

What a limit ends depends on where it falls:

* In a task's own code the soft limit raises `SoftTimeLimitExceeded`, also out of a publish that waits. A publish that
  is about to be confirmed is let end first: its outcome would not be known.
* Once the code has ended, or retries or replaces itself, what Celery publishes must not be lost: a chain's next step, a
  link, a retry. The soft limit has nothing left to end then; where the broker is waited for as long as the message may
  be kept, the message goes back to its queue. That runs the task again, which is better than a step that nobody takes.
* The hard limit ends whatever is left.

A login that stays refused does not heal in a process that read its password at its start: the message goes back, in the
midst of the task's code, too, and the worker looks whether it must be started anew (`workers.places`).
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
from time import monotonic  # our own: a task may replace the module's
from typing import TYPE_CHECKING, Any

from billiard import current_process
from billiard.exceptions import SoftTimeLimitExceeded
from celery.exceptions import Reject, TaskPredicate

from workers import once
from workers.report import Running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Processes of one pool that can be told apart.
PLACES = 1024
#: Seconds after which a publish without an answer is one that waits.
PROMPT = 1.0
#: Seconds for which a refused login is tried again.
REFUSED_PATIENCE = 30.0
#: What a process writes: its pid, when its task began, what it has waited, from when on it waits, and whether its login
#: is refused.
_PID, _FIRST, _WAITED, _SINCE, _REFUSED, _WIDTH = range(6)
#: Where a process is: between two tasks, before a task's own code, within it, and after it.
IDLE, BEFORE, WITHIN, AFTER = range(4)


class Waits:
    """How long each process of a pool has waited for the broker within the task that it runs.

    Shared by the pool's processes, which write a place each, and their parent, which reads.
    """

    def __init__(self) -> None:
        self._cells = memoryview(mmap.mmap(-1, PLACES * _WIDTH * 8)).cast("d")
        self._scratch = memoryview(bytearray(_WIDTH * 8)).cast("d")
        self._pid = 0
        #: Where this process is in its task, and how many publishes it is in: one may set off another.
        self.stage = IDLE
        self._depth = 0
        self._begun = 0.0
        #: The soft limit has come: in the task's own code at all, and while a publish was about to end.
        self.exceeded = self._due = False
        #: What is being sent says that the task had no effect.
        self._undone = False
        self._refused_since: float | None = None

    @property
    def _own(self) -> memoryview[float]:
        if os.getpid() != self._pid:
            return self._scratch  # a task's fork is not the process that the limits are about
        start = _WIDTH * (getattr(current_process(), "index", 0) % PLACES)
        return self._cells[start : start + _WIDTH]

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """One run of a task, from its message to its answer."""
        self._pid = os.getpid()
        cells = self._own
        cells[_WAITED] = cells[_SINCE] = cells[_REFUSED] = 0.0
        cells[_FIRST], cells[_PID] = monotonic(), self._pid
        self._depth, self.exceeded, self._due, self._undone = 0, False, False, False
        self.stage = BEFORE
        try:
            yield
        finally:
            self.stage = IDLE

    def body(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A task's own code; what it calls directly is part of it."""

        @functools.wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            if self.stage != BEFORE:
                return function(*args, **kwargs)
            self.stage = WITHIN
            try:
                return function(*args, **kwargs)
            finally:
                Running.stay()
                self.ended()

        return bounded

    def ended(self) -> None:
        """The task's own code has ended."""
        if self.stage == WITHIN:
            self.stage = AFTER

    @contextlib.contextmanager
    def keeping(self, *, undone: bool = False) -> Iterator[None]:
        """The task's own code sends what must not be lost, its retry for one; it goes on where that cannot be sent.

        Args:
            undone: by sending this the task says that it had no effect.
        """
        stage, self._undone = self.stage, undone
        self.ended()
        try:
            yield
        except TaskPredicate:
            raise
        except BaseException:
            self.stage = stage
            raise
        else:
            self.stage = stage

    def kept(self, function: Callable[..., Any], *, undone: bool = False) -> Callable[..., Any]:
        """A function with all that it sends kept; see `keeping`."""

        @functools.wraps(function)
        def keeping(*args: Any, **kwargs: Any) -> Any:
            with self.keeping(undone=undone):
                return function(*args, **kwargs)

        return keeping

    def on_soft_limit(self, *_signal: object) -> None:
        """Raise the soft limit where it has something to end; now, or when the publish at hand has ended.

        Raises:
            SoftTimeLimitExceeded: in the midst of whatever this process does.
        """
        if self.stage == IDLE or (self.stage == AFTER and not self._stalled()):
            return
        self.exceeded = True
        if self._depth and not self._stalled():
            self._due = True
            return
        self._due = False
        raise SoftTimeLimitExceeded

    def _stalled(self) -> bool:
        return 0 < self._own[_SINCE] <= monotonic()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[Callable[..., None]]:
        """Count what a publish of the running task waits for the broker.

        Raises:
            Reject: the wait is over for good, and the message goes back to the queue.
            SoftTimeLimitExceeded: within the task's own code.
        """
        cells = self._own
        if not self._depth:
            self._begun, self._refused_since = monotonic(), None
            cells[_SINCE] = self._begun + PROMPT
        self._depth += 1
        try:
            yield self.tell
        except SoftTimeLimitExceeded as exc:
            if self.stage == WITHIN:
                raise
            raise self._given_back("the broker took nothing for as long as its message may be kept") from exc
        finally:
            self._depth -= 1
            if not self._depth:
                # In this order: who reads in between sees too long a wait rather than none.
                cells[_WAITED] += max(0.0, monotonic() - cells[_SINCE])
                cells[_SINCE] = cells[_REFUSED] = 0.0
                self._raise_due()

    def tell(self, error: Exception | None = None) -> None:
        """The publish at hand waits for the broker; `error` is that of a try that failed.

        Raises:
            Reject: its login has been refused for too long.
            SoftTimeLimitExceeded: it came before the wait.
        """
        cells = self._own
        cells[_SINCE] = min(cells[_SINCE], self._begun)
        self._raise_due()
        once.extend()
        if error is None:
            return
        if not getattr(error, "hopeless", False):
            self._refused_since, cells[_REFUSED] = None, 0.0
            return
        now = monotonic()
        self._refused_since, cells[_REFUSED] = self._refused_since or now, 1.0
        if now - self._refused_since > REFUSED_PATIENCE:
            raise self._given_back(str(error))

    def _given_back(self, why: str) -> Reject:
        kind = Reject if self._undone else once.GivenBackError
        return kind(f"the message goes back to its queue: {why}", requeue=True)

    def _raise_due(self) -> None:
        if self._due and self.stage == WITHIN:
            self._due = False
            raise SoftTimeLimitExceeded

    def refused(self) -> bool:
        """Whether a process is refused by the broker now."""
        return any(self._cells[_REFUSED::_WIDTH])

    def of(self, pid: int, accepted: float) -> tuple[float, bool]:
        """Seconds that a process has waited in the task it runs, and whether it waits now.

        Args:
            pid: of the process.
            accepted: when it began the task, by the monotonic clock.
        """
        for start in range(0, PLACES * _WIDTH, _WIDTH):
            cells = self._cells[start : start + _WIDTH]
            if cells[_PID] == pid:
                if cells[_FIRST] < accepted:
                    break
                since, now = cells[_SINCE], monotonic()
                waits = 0 < since <= now
                return cells[_WAITED] + (now - since if waits else 0.0), waits
        return 0.0, False


waits = Waits()
