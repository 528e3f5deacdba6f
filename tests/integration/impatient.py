"""The workers' app with a task that is retried ten times, a second apart: `celery -A tests.integration.impatient`."""

from dataclasses import replace

from queues.topology import QUEUES

NAME, RETRIES = "math.reliable_task", 10

_queue, _task = QUEUES.task(NAME)
QUEUES._by_task[NAME] = (_queue, replace(_task, max_retries=RETRIES, retry_backoff=1, retry_backoff_max=1))

from workers.app import app  # noqa: E402, F401 - tasks take their limits when they are registered
