"""Remote control: what a worker may be asked, and that nobody orders it about unless `REMOTE_CONTROL=full` says so.

RabbitMQ cannot tell `inspect ping` from `control shutdown`: whoever may publish to `celery.pidbox` may send both. So a
worker registers the questions only. It declares neither that exchange nor any other, and answers without waiting.
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any

from celery.app.events import Events as CeleryEvents
from celery.events.dispatcher import EventDispatcher
from celery.worker.control import Panel
from kombu import Producer, pidbox

from queues.app import HIDDEN
from queues.control import Control as PublicControl
from workers.orders import ORDERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kombu import Exchange

logger = logging.getLogger(__name__)

#: The commands of a worker without `REMOTE_CONTROL=full`: they change nothing.
QUESTIONS = ("ping", "stats", "active", "scheduled", "reserved", "registered", "active_queues")
#: What `stats` tells of the broker: no path of a key, no other host's address.
BROKER_FIELDS = ("hostname", "port", "virtual_host", "userid", "transport", "heartbeat")


class Commands(dict[str, Any]):
    """All commands by name; one that does not exist answers with a sentence."""

    why = "does not exist: `celery -A workers.app control --list` tells those that do"

    def __missing__(self, name: str) -> Callable[..., dict[str, str]]:
        return functools.partial(refuse, name, self.why)


class Questions(Commands):
    """The questions alone."""

    why = "is off: set REMOTE_CONTROL=full for this worker to allow it"


def refuse(name: str, why: str, _state: Any, /, **_arguments: Any) -> dict[str, str]:
    """The answer to a command that is not registered."""
    text = f"remote control command {str(name)[:40]!r} {why}"
    logger.warning(text)
    return {"error": text}


def restrict() -> None:
    """Leave the questions alone registered, and no argument of a task or path of a key in an answer."""
    known = Panel.data
    kept = Questions({name: known[name] for name in QUESTIONS})
    for name in ("active", "scheduled", "reserved"):
        kept[name] = functools.partial(without_arguments, known[name])
    kept["stats"] = functools.partial(without_files, known["stats"])
    Panel.data = kept


def without_arguments(command: Callable[..., Iterable[dict[str, Any]]], state: Any, /, **options: Any) -> Any:
    """Tasks as a command lists them, their arguments hidden."""
    rows = list(command(state, **options))
    for row in rows:
        row.get("request", row).update(args=HIDDEN, kwargs=HIDDEN)
    return rows


def without_files(command: Callable[..., dict[str, Any]], state: Any, /, **options: Any) -> dict[str, Any]:
    """Statistics with no more of the broker than where it is."""
    found = command(state, **options)
    found["broker"] = {name: found.get("broker", {}).get(name) for name in BROKER_FIELDS}
    return found


class Node(pidbox.Node):
    """A worker's end of remote control."""

    handlers: dict[str, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A copy: Celery's are those of every app in this process.
        kind = Questions if isinstance(self.handlers, Questions) else Commands
        self.handlers = kind(self.handlers)
        self.handlers.update((name, order) for name, order in ORDERS.items() if name in self.handlers)

    def reply(self, data: Any, exchange: str, routing_key: str, ticket: str, **_options: Any) -> None:
        """Answer on the unconfirmed connection of worker events: an alarm must not hold the worker's loop.

        Nobody waits for an answer that cannot be sent, and one that nobody waits for is dropped by the broker.
        """
        connection = self.state.consumer.event_dispatcher.connection
        if exchange != self.mailbox.reply_exchange.name:
            logger.warning("no answer is sent to exchange %r: ask for it in %s", exchange, self.mailbox.reply_exchange)
        elif not connection.connected or connection.connection.blocked:
            logger.warning("no answer is sent while the broker takes no messages: free memory or disk there")
        else:
            headers = {"ticket": ticket, "clock": self.mailbox.clock.forward()}
            Producer(connection.default_channel, auto_declare=False).publish(
                data,
                exchange=exchange,
                routing_key=routing_key,
                headers=headers,
                serializer=self.mailbox.serializer,
                delivery_mode=1,
            )


class Mailbox(pidbox.Mailbox):
    """Exchanges that the broker owns, so that a worker needs no right to configure them."""

    node_cls = Node

    def _get_exchange(self, *args: Any) -> Exchange:
        return undeclared(super()._get_exchange(*args))

    def _get_reply_exchange(self, *args: Any) -> Exchange:
        return undeclared(super()._get_reply_exchange(*args))


class Control(PublicControl):
    """A worker's remote control."""

    Mailbox = Mailbox


class Dispatcher(EventDispatcher):
    """Sends worker events to an exchange that the broker owns."""

    exchange: Exchange

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.exchange = undeclared(self.exchange)


class Events(CeleryEvents):
    """A worker's events."""

    dispatcher_cls = Dispatcher


def undeclared(exchange: Exchange) -> Exchange:
    """The exchange, marked as declared by somebody else."""
    exchange.no_declare = True
    return exchange
