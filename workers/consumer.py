"""The worker's consumer: what it leaves out, and connections that do not stall it."""

from __future__ import annotations

from typing import Any

from celery.worker.consumer import Consumer as CeleryConsumer


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

    def connection_for_write(self, url: str | None = None, heartbeat: float | None = None) -> Any:
        """The connection of worker events: unconfirmed, or an alarm would stop the consumer that could end it."""
        return self.ensure_connected(
            self.app.connection_for_write(url=url, heartbeat=heartbeat, transport_options={"confirm_publish": False})
        )
