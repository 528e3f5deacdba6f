"""Flower as a broker user that asks the workers and hears them, and no more: `celery -A ops.flower flower`.

It declares queues of its own alone, sends no task, asks only what workers answer, and switches task events on only with
`FLOWER_ENABLE_EVENTS=1` and workers that allow it (`REMOTE_CONTROL=full`).
"""

from __future__ import annotations

from typing import Any

import flower.events
import flower.inspector
from celery.events import EventReceiver

from queues.app import WarrenCelery, create_app
from queues.errors import ConfigurationError
from queues.settings import Settings
from workers import selfcheck
from workers.remote import QUESTIONS, undeclared
from workers.settings import remote_control_is_full
from workers.startup import stop


class Receiver(EventReceiver):
    """Receives workers' events from an exchange that the broker owns."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.queue.exchange = undeclared(self.queue.exchange)

    def wakeup_workers(self, channel: Any = None) -> None:
        """Workers say within seconds that they are there; an order to do so at once would be refused."""


def asked(methods: tuple[str, ...]) -> tuple[str, ...]:
    """Of Flower's questions those that workers answer: each other one would be a warning in their logs."""
    return methods if remote_control_is_full() else tuple(name for name in methods if name in QUESTIONS)


def prepared() -> WarrenCelery:
    """The app that Flower works with; what is wrong with its settings or login ends the process with a sentence."""
    try:
        app = create_app(Settings.from_env(), name="warren-flower")
    except ConfigurationError as exc:
        stop(str(exc))
    app.control_cls = "workers.remote:Control"
    selfcheck.broker(app)
    return app


flower.events.EventReceiver = Receiver
flower.inspector.Inspector.inspect_methods = asked(flower.inspector.Inspector.inspect_methods)
app = prepared()
