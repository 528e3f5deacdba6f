"""The two sides of every case: how each is started, how it publishes, and where its messages lie."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import amqp

from queues.app import create_app
from queues.errors import PublishError, PublishUnknownError
from queues.headers import REASON
from queues.settings import Settings
from queues.topology import UNDELIVERABLE, UNREAD_DEAD_LETTERS
from queues.transport import deadline
from tests.faults import control
from tests.faults.deployment import QUEUE

if TYPE_CHECKING:
    from celery import Celery

    from tests.faults.lab import Lab

#: Seconds that one look into the broker may take.
LOOK = 5.0


class Side:
    """Where a side's messages lie, and how they are looked at: over a connection of the suite's own.

    Attributes:
        name: `ours` or `stock`.
        queue: the work queue.
        route: exchange and routing key that lead there.
        dead: the queue of its dead letters, where it has one.
        places: everywhere else that a message may be.
    """

    name = ""
    queue = ""
    route = ("", "")
    dead: str | None = None
    places: tuple[str, ...] = ()

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.producer = self.make_producer()
        self.viewer = create_app(Settings.from_env(self.viewer_environment()), name=f"viewer-{self.name}")
        self._connection: Any = None

    def make_producer(self, port: int | None = None) -> Celery:
        """An app that publishes as this side's users do."""
        raise NotImplementedError

    def viewer_environment(self) -> dict[str, str]:
        """Settings of a user with all rights where this side's queues are."""
        raise NotImplementedError

    def command(self, name: str) -> list[str]:
        """A worker's command."""
        raise NotImplementedError

    def environment(self, port: int | None = None) -> dict[str, str]:
        """A worker's environment; another port is a wire's."""
        raise NotImplementedError

    def outcome(self, exc: BaseException) -> str:
        """What an error of a publish tells its caller: `refused`, or `unknown`."""
        raise NotImplementedError

    def counts(self, queue: str) -> tuple[int, int] | None:
        """Ready messages and consumers of a queue; None where it is not there, or the broker is away."""
        try:
            with deadline(LOOK), self._channel() as channel:
                answer = channel.queue_declare(queue, passive=True)
        except amqp.exceptions.NotFound:
            return None
        except Exception:  # noqa: BLE001 - a broker that a case has broken
            self.forget()
            return None
        return answer.message_count, answer.consumer_count

    def drain(self, queue: str) -> list[tuple[str, str]]:
        """Empty a queue; whose messages were there, and why they are dead letters."""
        found = []
        with contextlib.suppress(amqp.exceptions.NotFound), self._channel() as channel:
            while (message := channel.basic_get(queue, no_ack=True)) is not None:
                headers = message.headers or {}
                mark = headers.get("mark") or headers.get("id") or message.body[:32]
                found.append((str(mark), str(headers.get(REASON, ""))))
        return found

    def purge(self) -> None:
        """Nothing is left of another case."""
        for queue in (self.queue, *(name for name in (self.dead,) if name), *self.places):
            with contextlib.suppress(amqp.exceptions.NotFound), self._channel() as channel:
                channel.queue_purge(queue)

    def put(self, mark: str, body: bytes, headers: dict[str, Any] | None, **properties: Any) -> None:
        """Publish bytes as they are, confirmed and marked.

        Raises:
            Exception: the broker did not confirm.
        """
        options = {"content_type": "application/json", "content_encoding": "utf-8", **properties}
        message = amqp.Message(body, application_headers={**(headers or {}), "mark": mark}, delivery_mode=2, **options)
        with deadline(15), self._channel() as channel:
            channel.basic_publish_confirm(message, exchange=self.route[0], routing_key=self.route[1], mandatory=True)

    def forget(self) -> None:
        """Drop the suite's own connection."""
        if self._connection is not None:
            with contextlib.suppress(Exception):
                self._connection.collect()
            self._connection = None

    def close(self) -> None:
        """Drop all connections."""
        self.forget()
        with contextlib.suppress(Exception):
            self.viewer.close()
        with contextlib.suppress(Exception):
            self.producer.close()

    def _channel(self) -> Any:
        if self._connection is None or not self._connection.connected:
            self.forget()
            self._connection = self.viewer.connection_for_read()
            with deadline(LOOK):
                self._connection.connect()
        return self._connection.channel()


class Ours(Side):
    """Warren."""

    name = "ours"
    queue = QUEUE
    route = (f"tasks.{QUEUE}", QUEUE)
    dead = f"{QUEUE}.dead"
    places = (UNDELIVERABLE, UNREAD_DEAD_LETTERS, *(f"celery_delayed_{level}" for level in range(28)))

    def make_producer(self, port: int | None = None) -> Celery:
        """A producer, with a producer's rights."""
        environment = self.lab.environment("producer")
        if port:
            environment["BROKER_HOSTS"] = f"127.0.0.1:{port}"
        return create_app(Settings.from_env(environment), name="producer")

    def viewer_environment(self) -> dict[str, str]:
        """The operator's."""
        return self.lab.environment("operator")

    def command(self, name: str) -> list[str]:
        """The service as Compose starts it."""
        app = (sys.executable, "-m", "celery", "-A", "workers.app", "worker")
        return [*app, "-Q", QUEUE, "-n", f"{QUEUE}@{name}", "--loglevel", "INFO"]

    def environment(self, port: int | None = None) -> dict[str, str]:
        """The worker's own user."""
        environment = self.lab.environment(f"worker-{QUEUE}")
        if port:
            environment["BROKER_HOSTS"] = f"127.0.0.1:{port}"
        return environment

    def outcome(self, exc: BaseException) -> str:
        """Warren's errors say it."""
        if isinstance(exc, PublishUnknownError):
            return "unknown"
        if isinstance(exc, PublishError):
            return "refused"
        raise exc


class Stock(Side):
    """Stock Celery."""

    name = "stock"
    queue = control.QUEUE
    route = ("", control.QUEUE)
    places = ("doomed",)

    def make_producer(self, port: int | None = None) -> Celery:
        """The plain app."""
        return control.create_app(self.lab.control_environment(port))

    def viewer_environment(self) -> dict[str, str]:
        """The control's user, over Warren's transport: a look must end."""
        settings = self.lab.control_environment()
        return {
            "BROKER_HOSTS": f"127.0.0.1:{self.lab.broker.port}",
            "BROKER_USER": control.NAME,
            "BROKER_VHOST": control.NAME,
            "BROKER_PASSWORD": self.lab.control_password,
            "BROKER_CA": settings["STOCK_CA"],
            "BROKER_CERT": settings["STOCK_CERT"],
            "BROKER_KEY": settings["STOCK_KEY"],
            "BROKER_SERVER_NAME": "localhost",
        }

    def command(self, name: str) -> list[str]:
        """A worker as its documentation starts it, with as many processes as ours has."""
        app = (sys.executable, "-m", "celery", "-A", "tests.faults.control", "worker")
        return [*app, "--concurrency", "2", "-n", f"stock@{name}", "--loglevel", "INFO"]

    def environment(self, port: int | None = None) -> dict[str, str]:
        """The control's settings."""
        return self.lab.control_environment(port)

    def outcome(self, exc: BaseException) -> str:
        """An error of stock Celery's does not say whether the message is there."""
        return "unknown"


SIDES: dict[str, type[Side]] = {"ours": Ours, "stock": Stock}
