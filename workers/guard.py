"""What keeps one message from stopping a worker or vanishing."""

from __future__ import annotations

import logging
from typing import Any

from billiard.einfo import ExceptionWithTraceback
from celery.exceptions import TimeLimitExceeded
from celery.worker.request import Request as CeleryRequest
from celery.worker.request import task_ready

from queues.topology import QUEUES
from workers.metrics import recorder
from workers.task import reports_error

logger = logging.getLogger(__name__)

#: Celery's own periodic task; ours stand in the table.
_CELERY_TICKS = frozenset({"celery.backend_cleanup"})


def is_tick(name: str) -> bool:
    """Whether beat sends the task: a missed tick is no loss, the next one comes."""
    if name in _CELERY_TICKS:
        return True
    try:
        return QUEUES.task(name)[1].every is not None
    except KeyError:
        return False


class Request(CeleryRequest):
    """One delivery in the worker's main process: measured, and rejected where Celery would acknowledge a failure."""

    _dead = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # Celery generates a subclass whose on_success never calls the base's; this is the one place to see runtimes.
        super().__init_subclass__(**kwargs)
        generated = cls.__dict__.get("on_success")
        if generated is None:
            return

        def on_success(self: Request, outcome: tuple[bool, Any, float], **options: Any) -> None:
            failed, value, runtime = outcome
            self.runtime = runtime
            if not failed:
                recorder.finished(self, "failed" if reports_error(str(value)) else "succeeded", runtime)
            generated(self, outcome, **options)

        cls.on_success = on_success

    runtime: float | None = None

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """A child has taken the task."""
        super().on_accepted(pid, time_accepted)
        recorder.started(self)
        attempt = self._request_dict.get("retries", 0) + 1
        logger.info("task started", extra={"data": {"id": self.id, "name": self.name, "attempt": attempt}})

    def acknowledge(self) -> None:
        """Acknowledge, or reject where the task failed for good: the broker dead-letters it."""
        if self._dead:
            self.reject(requeue=False)
        else:
            super().acknowledge()

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Celery acknowledges a task that was killed at its hard limit."""
        if not soft:
            self._dead = True
            recorder.timed_out(self, "hard")
        else:
            recorder.timed_out(self, "soft")
        super().on_timeout(soft, timeout)

    def on_retry(self, exc_info: Any) -> None:
        """The next attempt is in the broker."""
        recorder.finished(self, "retried", self.runtime)
        super().on_retry(exc_info)

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:
        """Celery lets a MemoryError of a task end the whole worker."""
        exc = exc_info.exception
        if isinstance(exc, ExceptionWithTraceback):
            exc = exc.exc
        recorder.failed(self, exc, self.runtime)
        if isinstance(exc, TimeLimitExceeded):
            self._dead = True
        if isinstance(exc, MemoryError):
            task_ready(self)
            self.reject(requeue=False)
            return
        super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        """An expired tick is dropped; any other expired task is dead-lettered."""
        recorder.revoked(self, reason)
        if expired and not is_tick(self._type):
            self._dead = True
        super()._announce_revoked(reason, terminated, signum, expired)
