from __future__ import annotations

import pytest

from queues.errors import PermanentError, TransientError
from workers.deadletter import reason_of, text_of
from workers.guard import bounded, is_tick


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (None, (100, 50)),
        ((None, None), (100, 50)),
        ((10, None), (10, 9)),
        ((10, 5), (10, 5)),
        ((10, 20), (10, 9)),
        ((1000, 900), (100, 50)),
        ((None, 20), (100, 20)),
    ],
)
def test_limits_are_never_above_the_tables_and_soft_is_below_hard(
    limits: object, expected: tuple[float, float]
) -> None:
    assert bounded(limits, 100, 50) == expected


@pytest.mark.parametrize(
    ("exc", "reason"),
    [
        (PermanentError("not_found", "x"), "not_found"),
        (TransientError("storage", "x"), "retries-exhausted"),
        (MemoryError(), "memory"),
        (ValueError("x"), "exception"),
    ],
)
def test_reasons_are_short_and_stable(exc: Exception, reason: str) -> None:
    assert reason_of(exc) == reason
    assert text_of(exc).startswith(type(exc).__name__)


def test_ticks_are_the_tables_periodic_tasks_and_celerys_own() -> None:
    assert is_tick("monitor.check_status")
    assert is_tick("celery.backend_cleanup")
    assert not is_tick("math.add")
    assert not is_tick("unknown")
