"""Stock Celery as most deploy it with care: late acknowledgement, prefetch 1, TLS; everything else is its default.

`celery -A tests.faults.control worker` is the control's worker; the settings come from the environment.
"""

from __future__ import annotations

import os
import ssl
from typing import Any

from celery import Celery

from queues.errors import TransientError
from tests.faults import journal, kinds_limits, work

#: The control's virtual host and user.
NAME = "stock"
#: Celery's default queue.
QUEUE = "celery"


def create_app(environ: Any) -> Celery:
    """A plain app on the broker at `STOCK_URL`."""
    app = Celery("stock", broker=environ["STOCK_URL"], backend=environ.get("STOCK_RESULTS"), set_as_current=False)
    app.conf.update(
        task_acks_late=True,
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True,
        broker_use_ssl=environ["STOCK_URL"].startswith("amqps://") and tls(environ),
        worker_max_memory_per_child=256 * 1024,
    )

    @app.task(name="faults.run", bind=True)
    def run(self: Any, seconds: float = 0.0) -> None:
        work.run(self, seconds)

    @app.task(name="faults.die", bind=True)
    def die(self: Any, how: str) -> None:
        work.die(self, how)

    @app.task(name="faults.swallow", bind=True)
    def swallow(self: Any, text: str) -> None:
        work.swallow(self, text)

    @app.task(name="faults.again", bind=True, max_retries=12)
    def again(self: Any, times: int) -> None:
        journal.note(self.request, "start")
        if self.request.retries < times:
            raise self.retry(countdown=1)
        journal.note(self.request, "end")

    @app.task(name="faults.once", bind=True)
    def once(self: Any, seconds: float = 0.0) -> None:
        work.once(self, seconds, lambda: None)

    @app.task(name="faults.tick", bind=True)
    def tick(self: Any) -> None:
        work.run(self)

    @app.task(name="faults.own", bind=True, max_retries=1)
    def own(self: Any, kind: str) -> Any:
        return attempt(self, kind)

    @app.task(name="faults.brief", bind=True, soft_time_limit=kinds_limits.SOFT, time_limit=kinds_limits.HARD)
    def brief(self: Any, kind: str) -> Any:
        return attempt(self, kind)

    @app.task(name="faults.meet", bind=True)
    def meet(self: Any, folder: str, count: int) -> None:
        work.meet(self, folder, count)

    @app.task(name="faults.echo", bind=True)
    def echo(self: Any, value: Any = None) -> Any:
        return work.echo(self, value)

    # A producer without the code cannot look at the arguments.
    @app.task(name="faults.pair", bind=True, shared=False, typing=False)
    def pair(self: Any, one: Any, two: Any) -> Any:
        return work.echo(self, [one, two])

    if every := environ.get("STOCK_TICK"):
        app.conf.beat_schedule = {"tick": {"task": "faults.tick", "schedule": float(every)}}
    return app


def attempt(task: Any, kind: str) -> Any:
    """Tried again where the error says so, as its documentation has it."""
    try:
        return work.own(task, kind)
    except TransientError as exc:
        raise task.retry(exc=exc, countdown=1) from exc


def tls(environ: Any) -> dict[str, Any]:
    """TLS as Celery's documentation has it."""
    files = {"ca_certs": "STOCK_CA", "certfile": "STOCK_CERT", "keyfile": "STOCK_KEY"}
    found: dict[str, Any] = {option: environ[name] for option, name in files.items() if name in environ}
    return {**found, "cert_reqs": ssl.CERT_REQUIRED}


if "STOCK_URL" in os.environ:
    work.at_import()
    app = create_app(os.environ)
