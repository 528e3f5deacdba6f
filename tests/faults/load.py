"""Publishers under load, each publish with its outcome in a log."""

from __future__ import annotations

import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

from tests.faults import journal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from celery import Celery

    from tests.faults.side import Side


class Producer:
    """Publishes for one side, and writes down each outcome before and after."""

    def __init__(self, side: Side, log: Path, app: Celery | None = None) -> None:
        self.side, self.log = side, log
        self.app = app or side.producer

    def send(self, task: str, args: tuple[Any, ...] = (), task_id: str | None = None, **options: Any) -> str:
        """Publish one task; gives its outcome."""
        task_id = task_id or str(uuid.uuid4())
        return self.record(task_id, lambda: self.app.send_task(task, list(args), task_id=task_id, **options), task)

    def put(self, body: bytes, headers: dict[str, Any] | None = None, **properties: Any) -> str:
        """Publish bytes as they are; gives the mark under which they are counted."""
        own = (headers or {}).get("id")
        mark = own if isinstance(own, str) and len(own) == len(str(uuid.UUID(int=0))) else str(uuid.uuid4())
        self.record(mark, lambda: self.side.put(mark, body, headers, **properties))
        return mark

    def record(self, mark: str, publish: Callable[[], Any], task: str = "") -> str:
        """Call, and log what came of it."""
        journal.append(self.log, id=mark, outcome="sending", task=task)
        try:
            publish()
        except Exception as exc:  # noqa: BLE001 - the side tells what it means
            outcome = self.side.outcome(exc)
            journal.append(self.log, id=mark, outcome=outcome, error=f"{type(exc).__name__}: {exc}"[:300])
        else:
            outcome = "confirmed"
            journal.append(self.log, id=mark, outcome=outcome)
        return outcome


class Load:
    """Some threads that publish at a rate until they have published enough or are told to stop."""

    def __init__(
        self, producer: Producer, count: int, rate: float, task: str, args: tuple[Any, ...], threads: int = 3
    ) -> None:
        self._producer, self._count, self._rate = producer, count, rate
        self._task, self._args = task, args
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._next = 0
        self._begun = time.monotonic()
        self._threads = [threading.Thread(target=self._publish, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    @property
    def running(self) -> bool:
        """Whether any publisher is still at work."""
        return any(thread.is_alive() for thread in self._threads)

    def join(self, patience: float) -> bool:
        """Wait for the publishers; False where one hangs: what it sends is unknown."""
        limit = time.monotonic() + patience
        for thread in self._threads:
            thread.join(max(0.0, limit - time.monotonic()))
        return not self.running

    def stop(self) -> None:
        """Publish no more."""
        self._stop.set()

    def _publish(self) -> None:
        while True:
            with self._lock:
                number = self._next
                self._next += 1
            if number >= self._count or self._stop.wait(max(0.0, self._begun + number / self._rate - time.monotonic())):
                return
            self._producer.send(self._task, self._args)
