from __future__ import annotations

import statistics

import pytest

from queues.errors import PermanentError, TransientError
from queues.topology import TaskSpec
from workers.task import backoff, error_dict

SPEC = TaskSpec(name="mail.send", soft_time_limit=10, time_limit=20, retry_backoff=30, retry_backoff_max=1800)


@pytest.mark.parametrize(("retries", "longest"), [(0, 30), (1, 60), (3, 240), (6, 1800), (60, 1800)])
def test_the_wait_doubles_up_to_its_limit_with_jitter_in_the_upper_half(retries: int, longest: int) -> None:
    waits = [backoff(SPEC, retries, None) for _ in range(200)]
    assert longest / 2 <= min(waits)
    assert max(waits) <= longest
    assert statistics.pstdev(waits) > 0


def test_what_the_other_side_asked_for_is_waited_for() -> None:
    assert backoff(SPEC, 0, 300) == 300
    assert backoff(SPEC, 6, 1) >= 900
    assert backoff(SPEC, 0, "300") == 300, "a header's text"


@pytest.mark.parametrize("asked", ["Wed, 21 Oct 2026 07:28:00 GMT", float("inf"), float("nan"), -5, b"x", object()])
def test_what_is_no_number_of_seconds_is_no_error_of_its_own(asked: object) -> None:
    assert 15 <= backoff(SPEC, 0, asked) <= 30


def test_an_error_value_says_what_and_why() -> None:
    for exc in (PermanentError("code", "text"), TransientError("code", "text")):
        assert error_dict(exc, "error") == {"status": "error", "code": "code", "message": "text", "error": "text"}
