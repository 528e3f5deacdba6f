"""The math queue's tasks."""

from __future__ import annotations

import time
from typing import Any

from queues.errors import PermanentError, TransientError
from workers import arithmetic
from workers.task import register

#: Seconds between two progress reports; each costs a write to the result store.
PROGRESS_INTERVAL = 0.5
#: Seconds of a step, and the longest task that fits the time limit.
STEP = 1.0
LONGEST = 590


@register("math.add")
def add(x: float, y: float) -> float:
    """The sum of two numbers."""
    return arithmetic.add(x, y)


@register("math.multiply")
def multiply(x: float, y: float) -> float:
    """The product of two numbers."""
    return arithmetic.multiply(x, y)


@register("math.xsum")
def xsum(values: list[float]) -> float:
    """The sum of a list."""
    return arithmetic.xsum(values)


@register("math.long_task", bind=True)
def long_task(self: Any, seconds: int) -> dict[str, Any]:
    """One step a second; progress is the state of the result until it is done."""
    if isinstance(seconds, bool) or not isinstance(seconds, int) or not 0 < seconds <= LONGEST:
        raise PermanentError("bad_argument", f"seconds must be a whole number from 1 to {LONGEST}")
    reported = float("-inf")
    for step in range(1, seconds + 1):
        time.sleep(STEP)
        if time.monotonic() - reported >= PROGRESS_INTERVAL or step == seconds:
            reported = time.monotonic()
            meta = {"current": step, "total": seconds, "percent": round(100 * step / seconds)}
            self.update_state(state="PROGRESS", meta=meta)
    return {"status": "success", "total": seconds}


@register("math.reliable_task", bind=True, error_status="failed")
def reliable_task(self: Any, data: Any, *, raise_on_error: bool = True) -> dict[str, Any]:
    """Succeeds on the attempt that the data asks for; what can never succeed fails at once.

    `data` is any JSON: `{"fail_times": n}` fails n times as a passing fault would, `{"fail": true}` for good.
    """
    attempt = self.request.retries + 1
    if isinstance(data, dict):
        if data.get("fail"):
            raise PermanentError("asked_to_fail", "the data asked for a failure: send other data")
        times = data.get("fail_times", 0)
        if isinstance(times, bool) or not isinstance(times, int):
            raise PermanentError("bad_argument", "fail_times must be a whole number: how often to fail")
        if attempt <= times:
            raise TransientError("asked_to_retry", f"attempt {attempt} was asked to fail: it is retried")
    return {"status": "success", "attempts": attempt}
