"""`ops/definitions.py` against what kombu itself declares for native delayed delivery."""

from __future__ import annotations

from typing import Any

from kombu.transport.native_delayed_delivery import declare_native_delayed_delivery_exchanges_and_queues

from ops import definitions
from queues.topology import QUEUES


class RecordingChannel:
    """Notes what is declared and bound, in the form of RabbitMQ's definitions."""

    def __init__(self) -> None:
        self.exchanges: list[dict[str, Any]] = []
        self.queues: list[dict[str, Any]] = []
        self.bindings: list[dict[str, Any]] = []

    def channel(self) -> RecordingChannel:
        """It is its own connection."""
        return self

    def prepare_queue_arguments(self, arguments: dict[str, Any], **options: Any) -> dict[str, Any]:
        assert not any(options.values()), "kombu sets further queue arguments: add them to ops/definitions.py"
        return arguments

    def exchange_declare(
        self,
        *,
        exchange: str,
        type: str,
        durable: bool,
        auto_delete: bool,
        arguments: Any,
        **_: Any,
    ) -> None:
        self.exchanges.append(
            {
                "name": exchange,
                "type": type,
                "durable": durable,
                "auto_delete": auto_delete,
                "internal": False,
                "arguments": arguments or {},
            }
        )

    def queue_declare(
        self, *, queue: str, durable: bool, exclusive: bool, auto_delete: bool, arguments: Any, **_: Any
    ) -> tuple[str, int, int]:
        assert not exclusive
        self.queues.append({"name": queue, "durable": durable, "auto_delete": auto_delete, "arguments": arguments})
        return queue, 0, 0

    def queue_bind(self, *, queue: str, exchange: str, routing_key: str, arguments: Any, **_: Any) -> None:
        self.bindings.append(self._binding(exchange, queue, "queue", routing_key, arguments))

    def exchange_bind(self, *, destination: str, source: str, routing_key: str, arguments: Any, **_: Any) -> None:
        self.bindings.append(self._binding(source, destination, "exchange", routing_key, arguments))

    @staticmethod
    def _binding(source: str, destination: str, kind: str, key: str, arguments: Any) -> dict[str, Any]:
        return {
            "source": source,
            "destination": destination,
            "destination_type": kind,
            "routing_key": key,
            "arguments": arguments or {},
        }


def in_order(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(items, key=lambda item: sorted((key, str(value)) for key, value in item.items()))


def test_delays_are_kombus_own() -> None:
    """A queue that differs in one argument could not be declared by a Celery that is not ours."""
    channel = RecordingChannel()
    declare_native_delayed_delivery_exchanges_and_queues(channel, "quorum")
    ours = definitions.delays()
    remedy = "kombu's delay topology and ops/definitions.py differ in {}: mend delays() there"
    assert in_order(ours["exchanges"]) == in_order(channel.exchanges), remedy.format("exchanges")
    assert in_order(ours["queues"]) == in_order(channel.queues), remedy.format("queues")
    assert in_order(ours["bindings"]) == in_order(channel.bindings), remedy.format("bindings")


def test_delayed_messages_come_back_to_their_queue() -> None:
    """kombu gives a delayed message the key `<28 bits>.<routing key>`: the exit's bindings must match it."""
    document = definitions.objects(rabbitmq=(4, 3))
    exits = {
        item["destination"]: item["routing_key"]
        for item in document["bindings"]
        if item["source"] == definitions.DELAY_EXIT
    }
    assert exits == {queue.name: f"#.{queue.routing_key}" for queue in QUEUES}
