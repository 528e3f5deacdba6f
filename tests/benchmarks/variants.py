"""A worker with parts taken out, to see what each costs: `celery -A tests.benchmarks.variants worker -Q QUEUE`.

`BENCH_VARIANT` says which: `stock` has Celery's request and no look at messages, `unmetered` the guard without its
measuring, `warren` is what ships, `once` runs `math.add` under the ledger.
"""

from __future__ import annotations

import os
from typing import Any

from queues.topology import QUEUES

VARIANT = os.environ["BENCH_VARIANT"]

if VARIANT == "once":
    object.__setattr__(QUEUES.task("math.add")[1], "once", True)

from celery.worker.consumer import Consumer as CeleryConsumer  # noqa: E402 - the table comes first

from workers import consumer, metrics, registry  # noqa: E402
from workers.app import app  # noqa: E402

if VARIANT == "stock":
    registry.FIXED["Request"] = "celery.worker.request:Request"
    setattr(consumer.Consumer, "create_task_handler", CeleryConsumer.create_task_handler)  # noqa: B010 - on purpose
if VARIANT in ("stock", "unmetered"):

    def nothing(*_args: Any, **_options: Any) -> None:
        pass

    for name in ("started", "finished", "failed"):
        setattr(metrics.Recorder, name, nothing)

__all__ = ["app"]
