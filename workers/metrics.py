"""What a worker measures.

The main process counts and times every delivery (`recorder`, called by `workers.guard`); children measure nothing.
`workers.reporter` sends what it holds to the exporters. A message is JSON:

    {"version": 1, "incarnation": "<uuid of the process>", "worker": "math@host", "queue": "math", "seq": 7,
     "started_at": 1760000000.1, "sent_at": 1760000007.2, "full": false,
     "due": 1760000006.9,                               when the youngest message started so far had been due
     "gauges": {"concurrency": 2, "busy": 1},           empty when the worker stops
     "bounds": [0.001, 0.0025, ...],                    upper bounds of the histograms, in seconds
     "series": [["started", "math.add", "", 12],        name, task, label, count
                ["runtime", "math.add", "succeeded",    name, task, label,
                 [0.34, 0, 9, 3, ..., 0]]]}             [sum, count per bound ..., count above the last bound]

What each name counts stands in `ops.snapshots.METRICS`, with the metric that exporters make of it.
"""

from __future__ import annotations

import builtins
import time
import uuid
from bisect import bisect_left
from typing import TYPE_CHECKING, Any

from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery.exceptions import Ignore, Reject, Retry

from queues import errors
from queues.publish import FIRST_PUBLISHED_AT, PUBLISHED_AT
from workers.deletions import DELETIONS, OTHER
from workers.report import TaskError

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from celery.worker.request import Request

    from queues.topology import QueueSpec

#: Label values outside these become `OTHER`: no message can make a series of its own.
REASONS = ("expired", "revoked", "terminated")
REJECTIONS = (
    *("compressed", "content-type", "malformed", "too-large", "undecodable", "unknown-task", "wrong-arguments"),
    "internal-error",
)
#: Classes of errors of a team's own that one worker counts by their names.
MAX_OWN = 50
EXCEPTIONS = frozenset(
    item.__name__
    for module in (builtins, errors)
    for item in vars(module).values()
    if isinstance(item, type) and issubclass(item, Exception) and item is not Exception
) | {"MaxRetriesExceededError", "Reject", "SoftTimeLimitExceeded", "TimeLimitExceeded", "WorkerLostError"}
#: Those that a team derives its own from.
_OURS = frozenset({"PermanentError", "TransientError", "UncertainError", "PostponedError"})
#: Those that every task has from the start; `reported` is an error returned as a value.
COMMON_EXCEPTIONS = (
    *("PermanentError", "TransientError", "reported"),
    *("SoftTimeLimitExceeded", "TimeLimitExceeded", "WorkerLostError"),
)

#: Series that every task of the queue has from the start: name and label.
_COUNTERS = (
    *((name, "") for name in ("started", "completions", "retries", "worker_lost", "redeliveries", "unstamped")),
    *(("revocations", reason) for reason in REASONS),
    *(("clock_skew", ""), ("timeouts", "soft"), ("timeouts", "hard")),
    *(("failures", exception) for exception in (*COMMON_EXCEPTIONS, OTHER)),
)
_HISTOGRAMS = (("wait", ""), ("runtime", "succeeded"), ("runtime", "failed"), ("end_to_end", ""))
_HISTOGRAM_NAMES = frozenset({"wait", "lateness", "runtime", "end_to_end"})
#: What a task that succeeds counts and observes.
_USUAL = (("started", ""), ("wait", ""), ("completions", ""), ("runtime", "succeeded"), ("end_to_end", ""))
_STARTED, _WAIT, _COMPLETIONS, _RUNTIME, _END_TO_END = range(len(_USUAL))
#: Those of a task that runs once.
_ONCE_COUNTERS = (("deduplicated", ""), ("in_doubt", ""), ("waits", ""))

#: A union would be built anew at each look.
_NUMBERS = (float, int)

Key = tuple[str, str, str]


class Series:
    """A count, or a histogram: the sum, then a count for each bucket."""

    __slots__ = ("changed", "key", "value")

    def __init__(self, key: Key, value: Any) -> None:
        self.key = key
        self.value = value
        #: Since the last message.
        self.changed = False


class Recorder:
    """Counters and histograms of one process, by name, task and label; for the main thread of a prefork worker."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.incarnation = str(uuid.uuid4())
        self.queue = ""
        self._clock, self._started_at = clock, clock()
        self._bounds: tuple[float, ...] = ()
        self._series: dict[Key, Series] = {}
        #: What every run of a task touches, in the order of `_USUAL`: looked up once a call.
        self._usual: dict[str, tuple[Series, ...]] = {}
        self._changed: list[Series] = []
        #: Starts and successes that `settle` will add up. Between two tasks so much else runs that each line of ours
        #: comes from main memory: adding up at once takes a tenth of the time that it takes task by task.
        self._begun: list[tuple[str, float, object, datetime | None, object]] = []
        self._succeeded: list[tuple[str, float, float, object]] = []
        self._gauges: dict[str, int] = {}
        #: Names of classes of a team's own errors.
        self._own: set[str] = set()
        self._seq = 0
        #: When the youngest message that was started had been due.
        self._due = 0.0

    def bind(self, queue: QueueSpec) -> None:
        """Measure for this queue, all series of its tasks at zero: a rate needs the value before the first."""
        if queue.name == self.queue:
            return
        self.queue, self._bounds = queue.name, queue.buckets
        for task in queue.tasks:
            counters = (*_COUNTERS, *_ONCE_COUNTERS) if task.once else _COUNTERS
            for name, label in (*counters, *_HISTOGRAMS):
                self._of((name, task.name, label))
        for reason in REJECTIONS:
            self._of(("rejections", OTHER, reason))
        for reason in DELETIONS:
            self._of(("letters_deleted", OTHER, reason))

    def started(self, request: Request) -> None:
        """A child began the task."""
        headers, redelivered = request.request_dict, request.delivery_info.get("redelivered")
        self._begun.append((request.type, request.time_start, headers.get(PUBLISHED_AT), request.eta, redelivered))

    def finished(self, request: Request, outcome: str, runtime: float | None) -> None:
        """An attempt ended: `succeeded`, `failed` (it returned an error value) or `retried`."""
        start = request.time_start
        if outcome == "succeeded" and start is not None and runtime is not None:
            self._succeeded.append(
                (request.type, start + runtime, runtime, request.request_dict.get(FIRST_PUBLISHED_AT))
            )
            return
        if outcome == "failed":
            self._count(("failures", request.type, "reported"))
        self._ended(request, outcome, runtime)

    def failed(self, request: Request, exc: BaseException, runtime: float | None) -> None:
        """An attempt raised, or lost its child; what is no failure is reported, or counted, elsewhere."""
        if isinstance(exc, Retry | Terminated | TimeLimitExceeded):
            return
        if isinstance(exc, Reject) and exc.requeue:
            self._count(("rejections", request.type, "requeued"))
        elif isinstance(exc, Ignore):
            self._ended(request, "succeeded", runtime)
        elif isinstance(exc, WorkerLostError | SystemExit | KeyboardInterrupt):
            # A child that was told to end is not lost; its message comes again, or was revoked.
            if not (request._already_cancelled or request._already_revoked):
                self._count(("worker_lost", request.type, ""))
        else:
            self._count(("failures", request.type, self._exception_name(exc)))
            self._ended(request, "failed", runtime)

    def given_up(self, request: Request) -> None:
        """The task's child died once too often; `failed` has counted that death."""
        self._count(("failures", request.type, "WorkerLostError"))
        self._ended(request, "failed", None)

    def timed_out(self, request: Request, kind: str) -> None:
        """A `soft` limit was raised in the task, or at the `hard` one its child is killed."""
        self._count(("timeouts", request.type, kind))
        if kind == "hard":
            self._count(("failures", request.type, "TimeLimitExceeded"))
            self._ended(request, "failed", None)

    def revoked(self, request: Request, reason: str) -> None:
        """The task is not run, or was ended: `expired`, `revoked` or `terminated`."""
        self._count(("revocations", request.type, reason if reason in REASONS else OTHER))

    def deduplicated(self, request: Request) -> None:
        """A repeat was recognised: it was answered from the ledger, or dropped."""
        self._count(("deduplicated", request.type, ""))

    def in_doubt(self, request: Request) -> None:
        """An earlier attempt left no record, and this one was held."""
        self._count(("in_doubt", request.type, ""))

    def waited(self, request: Request) -> None:
        """A start that did nothing: another attempt runs, or what it needs is away; its message comes again."""
        self._count(("waits", request.type, ""))

    def rejected(self, reason: str) -> None:
        """A message that could not be run: it names no task that could be trusted."""
        self._count(("rejections", OTHER, reason if reason in REJECTIONS else OTHER))

    def settle(self) -> None:
        """Add up the starts and successes since the last time."""
        begun, self._begun = self._begun, []
        for task, start, published, eta, redelivered in begun:
            usual = self._usual.get(task) or self._usual_of(task)
            self._add(usual[_STARTED])
            due = stamp(published)
            if due is None:
                self._count(("unstamped", task, ""))
            if redelivered:
                self._count(("redeliveries", task, ""))
                continue
            if eta is not None:
                self._elapsed(self._of(("lateness", task, "")), start - eta.timestamp())
                due = due and max(due, eta.timestamp())
            if due is not None:
                self._elapsed(usual[_WAIT], start - due)
                self._due = max(self._due, min(due, start))
        succeeded, self._succeeded = self._succeeded, []
        for task, end, runtime, published in succeeded:
            usual = self._usual.get(task) or self._usual_of(task)
            self._elapsed(usual[_RUNTIME], runtime)
            self._completed(usual, end, published)

    def snapshot(self, worker: str, gauges: dict[str, int], *, full: bool) -> dict[str, Any] | None:
        """The next message, or None where nothing changed; `sent` must follow once it is written."""
        self.settle()
        series = [*self._series.values()] if full else self._changed
        if not full and not series and gauges == self._gauges:
            return None
        self._seq += 1
        return {
            "version": 1,
            "incarnation": self.incarnation,
            "worker": worker,
            "queue": self.queue,
            "seq": self._seq,
            "started_at": self._started_at,
            "sent_at": self._clock(),
            "full": full,
            "due": self._due,
            "gauges": gauges,
            "bounds": self._bounds,
            "series": [(*item.key, item.value) for item in series],
        }

    def sent(self, message: dict[str, Any]) -> None:
        """The message is on its way: only what changes from now on goes into the next."""
        for series in self._changed:
            series.changed = False
        self._changed.clear()
        self._gauges = message["gauges"]

    def _exception_name(self, exc: BaseException) -> str:
        """The label of an error; one derived from an error of ours has its own name, up to `MAX_OWN` of them."""
        found = exception_name(exc)
        if found in _OURS and (own := names_of(exc)[0]) != found:
            if len(self._own) < MAX_OWN:
                self._own.add(own)
            return own if own in self._own else found
        return found

    def _ended(self, request: Request, outcome: str, runtime: float | None) -> None:
        task, start = request.type, request.time_start
        # Celery gives the child's own time for a success only; of other ends the main process hears a little later.
        end = self._clock() if start is None or runtime is None else start + runtime
        if start is not None:
            self._elapsed(self._of(("runtime", task, outcome)), max(0.0, end - start) if runtime is None else runtime)
        if outcome == "retried":
            self._count(("retries", task, ""))
        else:
            usual = self._usual.get(task) or self._usual_of(task)
            self._completed(usual, end, request.request_dict.get(FIRST_PUBLISHED_AT))

    def _completed(self, usual: tuple[Series, ...], end: float, published: object) -> None:
        self._add(usual[_COMPLETIONS])
        first = stamp(published)
        if first is not None:
            self._elapsed(usual[_END_TO_END], end - first)

    def _usual_of(self, task: str) -> tuple[Series, ...]:
        found = self._usual[task] = tuple(self._of((name, task, label)) for name, label in _USUAL)
        return found

    def _of(self, key: Key) -> Series:
        """The series of a key, at zero where it is new."""
        series = self._series.get(key)
        if series is None:
            value = [0.0] + [0] * (len(self._bounds) + 1) if key[0] in _HISTOGRAM_NAMES else 0
            series = self._series[key] = Series(key, value)
        return series

    def _elapsed(self, series: Series, seconds: float) -> None:
        if seconds < 0:
            self._count(("clock_skew", series.key[1], ""))
            seconds = 0.0
        value = series.value
        value[0] += seconds
        value[bisect_left(self._bounds, seconds) + 1] += 1
        if not series.changed:
            series.changed = True
            self._changed.append(series)

    def _count(self, key: Key) -> None:
        self._add(self._of(key))

    def _add(self, series: Series) -> None:
        series.value += 1
        if not series.changed:
            series.changed = True
            self._changed.append(series)


def stamp(value: object) -> float | None:
    """Seconds since the epoch as a header has them, or None where a producer wrote none or nonsense."""
    return value if isinstance(value, _NUMBERS) and 0 < value < 1e11 else None


def names_of(exc: BaseException) -> tuple[str, ...]:
    """The names of an error's class and of those that it is derived from; a child's are those that it reported."""
    return exc.names if isinstance(exc, TaskError) else tuple(cls.__name__ for cls in type(exc).__mro__)


def exception_name(exc: BaseException) -> str:
    """The nearest class in the list."""
    return next((name for name in names_of(exc) if name in EXCEPTIONS), OTHER)


recorder = Recorder()
