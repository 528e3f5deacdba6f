"""How Celery's `chord_unlock` waits for a chord's members, where the result store cannot count them.

As shipped it looks every second for ever: a few hundred chords that wait keep the monitor's process busy, and one whose
member never comes is looked at until the queue is purged. Here it looks less and less often, and ends.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from celery.result import GroupResult, result_from_tuple

from queues.errors import PermanentError
from queues.headers import CHORD
from queues.publish import FIRST_PUBLISHED_AT
from queues.settings import LEDGER_DAYS

if TYPE_CHECKING:
    from collections.abc import Iterator

    import celery

#: A chord is looked at after another eighth of its age: what it is told late is in proportion.
SHARE, LONGEST = 8, 300.0
#: Members are counted from this share of `RESULT_EXPIRES` on: young chords are not slowed down by it.
COUNTED_FROM = 1 / 4


def next_look(task: celery.Task) -> int:
    """Seconds until the running `chord_unlock` looks again; its headers then say how far the members were.

    Raises:
        PermanentError: the members' results have expired, or never came; Celery fails the body with that.
    """
    headers, now = dict(task.request.headers or {}), time.time()
    since = headers.get(FIRST_PUBLISHED_AT)
    age = max(0.0, now - since) if isinstance(since, int | float) else 0.0
    expires = float(task.app.conf.result_expires)
    if age > expires * COUNTED_FROM:
        done = sum(member.ready() for member in members(task, task.request.kwargs.get("result") or ()))
        before, at = progress(headers.get(CHORD))
        if done < before or (done == before and done > 0 and now - at > expires):
            raise lapsed(f"{done} of its members have a result, and none has come for {expires:.0f} s")
        if age > LEDGER_DAYS * 86400:
            raise lapsed(f"it has waited for {LEDGER_DAYS} days")
        if done != before:
            headers[CHORD] = f"{done} {now:.0f}"
            task.request.headers = headers
    return max(1, round(min(age / SHARE, LONGEST)))


def lapsed(why: str) -> PermanentError:
    """The error of a chord that cannot be completed any more."""
    return PermanentError("chord-lapsed", f"{why}: a member was never sent, or its result has expired (RESULT_EXPIRES)")


def members(task: celery.Task, results: Any) -> Iterator[Any]:
    """The results that a chord waits for, those of groups within it one by one."""
    for found in results:
        result = result_from_tuple(found, app=task.app) if isinstance(found, list | tuple) else found
        if isinstance(result, GroupResult):
            yield from members(task, result.results)
        else:
            yield result


def progress(header: Any) -> tuple[int, float]:
    """How many members had a result at an earlier look, and since when; anybody may have written the header."""
    try:
        done, at = str(header).split()
        return int(done), float(at)
    except ValueError:
        return 0, 0.0
