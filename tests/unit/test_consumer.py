"""What the consumer keeps when its connection ends or its worker does."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from celery.worker import state
from celery.worker.consumer import Consumer as CeleryConsumer

from workers.consumer import Consumer


@pytest.mark.parametrize(("should_stop", "kept"), [(0, [True, True, False]), (None, [True, False, False])])
def test_a_worker_that_ends_waits_for_what_a_process_has_taken(
    monkeypatch: pytest.MonkeyPatch, should_stop: int | None, kept: list[bool]
) -> None:
    """After a lost connection the broker has those messages again, and only what runs is finished."""
    begun, taken, waiting = ((True, object()), (False, object()), (False, None))
    jobs = [SimpleNamespace(_accepted=accepted, _write_to=process) for accepted, process in (begun, taken, waiting)]
    consumer = object.__new__(Consumer)
    consumer.pool = SimpleNamespace(_pool=SimpleNamespace(_cache=dict(enumerate(jobs))))
    monkeypatch.setattr(state, "should_stop", should_stop)
    monkeypatch.setattr(CeleryConsumer, "on_close", lambda self: None)
    consumer.on_close()
    assert [job._accepted for job in jobs] == kept
