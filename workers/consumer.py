"""The worker's consumer: what it leaves out, and connections that do not stall it."""

from __future__ import annotations

import logging
from typing import Any

from celery.exceptions import WorkerTerminate
from celery.worker.consumer import Consumer as CeleryConsumer
from celery.worker.state import maybe_shutdown

from queues.publish import explain, is_hopeless

logger = logging.getLogger(__name__)


class Consumer(CeleryConsumer):
    """Celery's consumer without gossip, mingle and its delayed-delivery step.

    Gossip costs messages by the square of the workers, mingle a second at every start, and the delayed-delivery step
    declares what the broker owns here.
    """

    class Blueprint(CeleryConsumer.Blueprint):
        """The consumer's steps."""

        default_steps = (
            "celery.worker.consumer.connection:Connection",
            "celery.worker.consumer.events:Events",
            "celery.worker.consumer.heart:Heart",
            "celery.worker.consumer.control:Control",
            "celery.worker.consumer.tasks:Tasks",
            "celery.worker.consumer.consumer:Evloop",
            "workers.metrics:Reporter",
            "workers.heartbeat:Heartbeat",
        )

    def __init__(self, *args: Any, worker_options: dict[str, Any] | None = None, **kwargs: Any) -> None:
        options = {**(worker_options or {}), "without_mingle": True, "without_gossip": True}
        super().__init__(*args, worker_options=options, **kwargs)

    def ensure_connected(self, conn: Any) -> Any:
        """Connect, again and again; each failure is one line that says why, and what cannot heal ends the worker.

        A container's restart then reads its certificate and password files anew.
        """

        def on_error(exc: Exception, interval: float) -> None:
            logger.error("%s; trying again in %.1f s", explain(conn, exc), interval)

        try:
            return conn.ensure_connection(
                on_error, interval_start=0.5, interval_step=0.5, interval_max=3, callback=maybe_shutdown
            )
        except Exception as exc:
            if not is_hopeless(exc):
                raise
            logger.critical("%s; the worker ends", explain(conn, exc))
            raise WorkerTerminate(1) from exc

    def connection_for_write(self, url: str | None = None, heartbeat: float | None = None) -> Any:
        """The connection of worker events: unconfirmed, or an alarm would stop the consumer that could end it."""
        return self.ensure_connected(
            self.app.connection_for_write(url=url, heartbeat=heartbeat, transport_options={"confirm_publish": False})
        )
