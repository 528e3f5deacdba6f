from __future__ import annotations

from types import SimpleNamespace

import pytest
from billiard.einfo import ExceptionInfo
from celery.worker.request import Request as CeleryRequest

from queues.app import HIDDEN
from queues.errors import PermanentError, TransientError
from workers.deadletter import reason_of, text_of
from workers.guard import Request, Undertaker, bounded, is_tick
from workers.metrics import recorder


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


@pytest.mark.parametrize("told", [{}, {"argsrepr": "['ada@example.com']", "kwargsrepr": "{'cc': 'bob@example.com'}"}])
def test_arguments_are_shown_to_nobody_whatever_a_producer_says_of_them(told: dict[str, str]) -> None:
    message = SimpleNamespace(
        headers={"id": "1", "task": "email.send_email", **told},
        body=b"",
        payload=[["ada@example.com"], {}, {}],
        content_type="application/json",
        content_encoding="utf-8",
        properties={},
        delivery_info={},
    )
    task = SimpleNamespace(time_limit=20, soft_time_limit=10, ignore_result=False, request_stack=None)
    request = Request(message, task=task, app=SimpleNamespace(timezone=None), hostname="email@test")
    assert (request.argsrepr, request.kwargsrepr) == (HIDDEN, HIDDEN), "events and the worker's log show these"
    assert request.request_dict["argsrepr"] == request.request_dict["kwargsrepr"] == HIDDEN, "a child's log shows these"


class Delivery:
    """What a request needs of a message."""

    headers = None

    def __init__(self, connection: object) -> None:
        self.channel = SimpleNamespace(connection=connection)


@pytest.mark.parametrize("connected", [True, False])
def test_a_memory_error_of_a_task_is_a_dead_letter_and_does_not_reach_the_loop(
    monkeypatch: pytest.MonkeyPatch, connected: bool
) -> None:
    buried: list[tuple[str, str]] = []

    class Letters:
        def bury(self, _message: object, reason: str, text: str) -> bool:
            buried.append((reason, text))
            return True

    acknowledged: list[bool] = []
    request = object.__new__(Request)
    request.id, request.name, request.acknowledged, request._message = (
        "1",
        "math.add",
        False,
        Delivery(object() if connected else None),
    )
    request._request_dict = {"id": "1", "task": "math.add"}
    requeued: list[bool] = []
    monkeypatch.setattr(CeleryRequest, "reject", lambda self, requeue: requeued.append(requeue))
    monkeypatch.setattr(Undertaker, "letters", Letters())
    monkeypatch.setattr(recorder, "failed", lambda *_: None)
    monkeypatch.setattr(CeleryRequest, "acknowledge", lambda self: acknowledged.append(True))
    try:
        raise MemoryError("no room")
    except MemoryError:
        info = ExceptionInfo()
    request.on_failure(info, return_ok=True)
    if connected:
        assert (buried, acknowledged, requeued) == ([("memory", "MemoryError: no room")], [True], [])
    else:
        assert (buried, acknowledged, requeued) == ([], [], [True]), "the broker delivers it again"
