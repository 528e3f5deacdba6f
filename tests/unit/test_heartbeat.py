"""What a worker's heartbeat takes for alive, without a broker."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from workers import heartbeat
from workers.heartbeat import Heartbeat

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What `faulthandler` was told."""
    told: list[str] = []
    fake = SimpleNamespace(
        dump_traceback_later=lambda *_, **__: told.append("watch"),
        cancel_dump_traceback_later=lambda: told.append("cancel"),
    )
    monkeypatch.setattr(heartbeat, "faulthandler", fake)
    return told


@pytest.mark.parametrize(
    ("consuming", "selected", "alive", "ready"),
    [(True, True, True, 5), (False, True, False, 0), (False, False, True, 0)],
    ids=["consumes", "does not", "is paused"],
)
@pytest.mark.usefixtures("watched")
def test_a_worker_that_is_paused_on_purpose_is_healthy_and_leaves_what_waits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, consuming: bool, selected: bool, alive: bool, ready: int
) -> None:
    monkeypatch.setenv("HEARTBEAT_FILE", str(tmp_path / "alive"))
    consumer: Any = SimpleNamespace(
        steps=[],
        letters=SimpleNamespace(queue="math"),
        task_consumer=SimpleNamespace(consuming_from=lambda _queue: consuming),
        app=SimpleNamespace(amqp=SimpleNamespace(queues=SimpleNamespace(consume_from={"math": 1} if selected else {}))),
    )
    looked: list[int] = []
    step = Heartbeat(consumer)
    step.channel = SimpleNamespace(is_open=False)
    step.answered_at, step.ready = time.monotonic(), 5
    step.places = SimpleNamespace(look=lambda _consumer, waiting: looked.append(waiting))  # type: ignore[assignment]
    step.look(consumer)
    assert (tmp_path / "alive").exists() is alive
    assert looked == [ready], "messages that are not its own to take say nothing of its places"


def test_a_worker_in_a_thread_leaves_the_process_alone(watched: list[str]) -> None:
    step = Heartbeat(SimpleNamespace(steps=[]))

    def work() -> None:
        step.watch()
        step.stop(None)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not watched
    work()
    assert watched == ["watch", "cancel"]
