"""Remote control from a producer, a command or Flower: what the broker refuses, or is away for, is a sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import amqp.exceptions
from celery.app.control import Control as CeleryControl

from queues.errors import BrokerUnavailableError, ControlRefusedError
from queues.publish import connect, notice_closed
from queues.remedies import explain
from queues.transport import deadline

if TYPE_CHECKING:
    import kombu


class Control(CeleryControl):
    """Celery's remote control; every question and every order goes through `broadcast`."""

    def broadcast(
        self, command: str, arguments: Any = None, destination: Any = None, connection: Any = None, **options: Any
    ) -> Any:
        """Send a command to the workers; see `celery.app.control.Control.broadcast`.

        Raises:
            ControlRefusedError: this broker user may not, or may not have a queue for the answers.
            BrokerUnavailableError: no broker within the publish timeout, where Celery would try for ever.
        """
        with self.app.connection_or_acquire(connection) as conn:
            if connection is None:
                reach(conn, self.app.conf.publish_timeout)
            try:
                return super().broadcast(command, arguments, destination, connection=conn, **options)
            except (amqp.exceptions.AccessRefused, amqp.exceptions.NotAllowed) as exc:
                if connection is None:
                    # The broker has closed the channel; the pool would hand it out again.
                    conn.collect()
                raise ControlRefusedError from exc


def reach(connection: kombu.Connection, seconds: float) -> None:
    """Have a connection that is open.

    Raises:
        BrokerUnavailableError: none within these seconds.
    """
    try:
        with deadline(seconds):
            if connection.connected:
                notice_closed(connection)
            if not connection.connected:
                connect(connection)
    except Exception as exc:  # noqa: BLE001 - whatever it is, the sentence says it
        connection.collect()
        raise BrokerUnavailableError(f"{explain(connection, exc)}; nothing was sent") from None
