"""The workers' app with messages that may be kept for a few seconds only: `celery -A tests.integration.brief`."""

from typing import Any

from celery import signals

from workers import limits
from workers.app import app  # noqa: F401

#: Seconds, in place of what the queue's consumer timeout leaves.
LONGEST = 8.0


@signals.worker_init.connect(weak=False)
def shorten(**_: Any) -> None:
    """After the app has set it for the queue."""
    limits.Pool.longest = LONGEST
