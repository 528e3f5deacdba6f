"""The workers' app whose loop SIGUSR2 stops for good: `celery -A tests.integration.stalling worker`."""

import signal
import time
from typing import Any

from celery import signals

from workers import heartbeat
from workers.app import app  # noqa: F401 - for celery -A

heartbeat.STALL_LIMIT = 2 * heartbeat.INTERVAL


@signals.worker_ready.connect(weak=False)
def prepare(**_: Any) -> None:
    """Take the signal in the main process alone."""
    signal.signal(signal.SIGUSR2, stall)


def stall(_number: int, _frame: object) -> None:
    """Python runs this in the main thread: the loop does not turn meanwhile."""
    while True:
        time.sleep(3600)
