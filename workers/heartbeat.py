"""The file that a health check looks at: touched by the worker's own loop, so a stalled loop lets it grow old."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from celery import bootsteps
from celery.worker.consumer.tasks import Tasks

#: Seconds between two touches; a health check allows a minute.
INTERVAL = 5.0


class Heartbeat(bootsteps.StartStopStep):
    """Touches `HEARTBEAT_FILE` while the consumer runs, and removes it when it stops."""

    requires = (Tasks,)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        name = os.environ.get("HEARTBEAT_FILE")
        self.path = Path(name) if name else None
        self.timer: Any = None

    def start(self, consumer: Any) -> None:
        """Touch now and every few seconds."""
        if self.path is None:
            return
        self.path.touch()
        self.timer = consumer.timer.call_repeatedly(INTERVAL, self.path.touch)

    def stop(self, _consumer: Any) -> None:
        """A worker that does not consume is not healthy."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.path is not None:
            self.path.unlink(missing_ok=True)
