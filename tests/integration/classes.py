"""The workers' app with an application's tasks in place of the math queue's: `celery -A tests.integration.classes`.

Each class takes what Celery lets a class take: its base, its request, its way to acknowledge, its retries.
"""

import os
import signal
from typing import Any

import celery
from celery import shared_task, signals
from celery.worker.request import Request

from workers.app import app


class Quiet(Request):
    """A request of an application's own, which knows nothing of dead letters."""


class Add(celery.Task):
    """A task class as Celery's first releases had them, that is acknowledged as soon as it begins."""

    name = "math.add"
    Request = Quiet
    acks_late = False
    acks_on_timeout = False

    def run(self, x: float, y: float) -> float:
        return x + y


class Retrying(celery.Task):
    """A base with retries of its own."""

    autoretry_for = (LookupError,)
    max_retries = 1
    retry_backoff = 1
    retry_jitter = False
    acks_on_failure = True


class Multiply(Retrying):
    name = "math.multiply"

    def run(self, x: float, y: float) -> float:
        if self.request.retries == 0 or x < 0:
            raise LookupError(f"attempt {self.request.retries}")
        return x * y


class Fatal(celery.Task):
    """A base that would have Celery run again for ever what kills its process."""

    retry_on_worker_lost = True
    reject_on_worker_lost = False
    Request = "celery.worker.request:Request"


def xsum(values: list[float]) -> float:
    os.kill(os.getpid(), signal.SIGKILL)
    return sum(values)


def reliable_task(self: Any, data: Any) -> None:
    raise self.retry(countdown=1, max_retries=1)


@signals.worker_init.connect(weak=False)
def replace(**_: Any) -> None:
    """After the app has imported the queue's module, whose names these tasks take."""
    for name in ("math.add", "math.multiply", "math.xsum", "math.reliable_task"):
        app.tasks.unregister(name)
    app.register_task(Add())
    app.register_task(Multiply)
    app.task(name="math.xsum", base=Fatal)(xsum)
    shared_task(name="math.reliable_task", base=celery.Task, bind=True)(reliable_task)
    for name in ("math.add", "math.multiply", "math.xsum", "math.reliable_task"):
        print("registered", type(app.tasks[name]).__mro__[1].__name__, app.tasks[name].time_limit, flush=True)
