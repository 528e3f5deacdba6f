"""RabbitMQ's definitions, from the table: what the broker owns and applications only use.

Queue arguments hold what no policy can; everything that may change while running is one policy per queue. The broker
imports the definitions at every start.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from queues.topology import (
    BEAT_LOCK,
    BEAT_STATE,
    DEAD_LETTER_EXCHANGE,
    DELETED_DEAD_LETTERS,
    HOUSEKEEPING_QUEUE,
    METRICS_EXCHANGE,
    QUEUES,
    UNDELIVERABLE,
    UNREAD_DEAD_LETTERS,
    QueueSpec,
    Topology,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

#: kombu's native delayed delivery: one exchange and queue for each bit of the delay in seconds.
DELAY_LEVELS = 28
DELAY_ENTRY = f"celery_delayed_{DELAY_LEVELS - 1}"
DELAY_EXIT = "celery_delayed_delivery"

#: Rights that nobody has.
NOTHING = "^$"

#: A user's role in RabbitMQ's management, by role of ours.
OPERATOR = "operator"
PRODUCER = "producer"
BEAT = "beat"
EXPORTER = "exporter"
FLOWER = "flower"

#: The first RabbitMQ whose policies know a queue's consumer timeout; before, it is one setting of the node.
CONSUMER_TIMEOUT_POLICY = (3, 12)
#: The first RabbitMQ that limits the deliveries of every quorum queue; 3.10 refuses a policy that says "none", -1.
DEFAULT_DELIVERY_LIMIT = (4, 0)

#: Celery's exchanges for remote control, its answers and worker events, as Celery itself would declare them.
CONTROL, ANSWERS, EVENTS = "celery.pidbox", "reply.celery.pidbox", "celeryev"


def roles(topology: Topology = QUEUES) -> tuple[str, ...]:
    """Every broker user, each with its own password and client certificate."""
    return (OPERATOR, PRODUCER, BEAT, EXPORTER, FLOWER, *(queue.user for queue in topology))


def build(
    password_hashes: Mapping[str, str],
    *,
    rabbitmq: tuple[int, int] = (4, 3),
    vhost: str = "/",
    topology: Topology = QUEUES,
) -> dict[str, Any]:
    """The whole definitions document.

    Args:
        password_hashes: salted SHA-256 hash (RabbitMQ's form) by role; roles without one get no user.
        rabbitmq: the broker's major and minor version.
        vhost: the virtual host that holds everything.
        topology: the table.
    """
    return {
        "users": [user(role, password_hashes[role]) for role in roles(topology) if role in password_hashes],
        "permissions": [
            {"user": role, "vhost": vhost, **rights}
            for role, rights in permissions(topology).items()
            if role in password_hashes
        ],
        **objects(rabbitmq=rabbitmq, vhost=vhost, topology=topology),
    }


def user(role: str, password_hash: str) -> dict[str, Any]:
    """One user; only the operator administers, only operator and exporter read statistics."""
    tags = {OPERATOR: ["administrator"], EXPORTER: ["monitoring"]}.get(role, [])
    return {
        "name": role,
        "password_hash": password_hash,
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": tags,
        "limits": {},
    }


def permissions(topology: Topology = QUEUES) -> dict[str, dict[str, str]]:
    """What each role may configure, write and read, as RabbitMQ's anchored patterns."""
    exchanges = [queue.exchange for queue in topology]
    tasks = "|".join(re.escape(name) for name in (*exchanges, DELAY_ENTRY))
    found = {
        OPERATOR: {"configure": ".*", "write": ".*", "read": ".*"},
        PRODUCER: {"configure": NOTHING, "write": f"^({tasks})$", "read": NOTHING},
        BEAT: beat_permissions(topology),
        EXPORTER: {
            "configure": r"^metrics\.[a-z0-9-]+$",
            "write": r"^metrics\.[a-z0-9-]+$",
            "read": rf"^({METRICS_EXCHANGE}|metrics\.[a-z0-9-]+)$",
        },
        FLOWER: flower_permissions(),
    }
    for queue in topology:
        found[queue.user] = worker_permissions(queue, tasks, topology)
    return found


def flower_permissions() -> dict[str, str]:
    """Flower asks workers and hears what they tell: it sends no task, and reads none."""
    control, answers, events = (re.escape(name) for name in (CONTROL, ANSWERS, EVENTS))
    own = rf"[0-9a-f-]+\.{answers}|{events}\.[0-9a-f-]+"
    return {"configure": f"^({own})$", "write": f"^({control}|{own})$", "read": f"^({answers}|{events}|{own})$"}


def beat_permissions(topology: Topology) -> dict[str, str]:
    """Beat sends periodic tasks, now and not later, and owns its lock and its state."""
    periodic = [queue for queue in topology if any(task.every is not None for task in queue.tasks)]
    exchanges = {queue.exchange for queue in periodic} | {topology.queue(HOUSEKEEPING_QUEUE).exchange}
    write = "|".join(re.escape(name) for name in (*sorted(exchanges), BEAT_STATE))
    return {
        "configure": f"^{re.escape(BEAT_LOCK)}$",
        "write": f"^({write})$",
        "read": f"^{re.escape(BEAT_STATE)}$",
    }


def worker_permissions(queue: QueueSpec, tasks: str, topology: Topology) -> dict[str, str]:
    """A worker reads its own queue, publishes next steps anywhere, and owns its control queue alone."""
    own = rf"{queue.name}@[^/]+\.celery\.pidbox"
    shared = "|".join(re.escape(name) for name in (DEAD_LETTER_EXCHANGE, METRICS_EXCHANGE, EVENTS, ANSWERS))
    write = f"{tasks}|{shared}|{own}"
    read = f"{re.escape(queue.name)}|{re.escape(CONTROL)}|{own}"
    if queue.name == HOUSEKEEPING_QUEUE:
        # RabbitMQ 4.3 answers a passive declare only to a user with some right on the queue; this one can do least.
        write += "|" + "|".join(re.escape(name) for other in topology for name in (other.name, other.dead_letter))
        read += "|" + "|".join(re.escape(name) for name in (UNREAD_DEAD_LETTERS, DELETED_DEAD_LETTERS))
    return {"configure": f"^{own}$", "write": f"^({write})$", "read": f"^({read})$"}


def objects(*, rabbitmq: tuple[int, int], vhost: str = "/", topology: Topology = QUEUES) -> dict[str, Any]:
    """Everything but users: virtual host, exchanges, queues, bindings, policies."""
    dead = DEAD_LETTER_EXCHANGE
    exchanges = [
        exchange(dead, "direct"),
        exchange(UNDELIVERABLE, "fanout"),
        exchange(METRICS_EXCHANGE, "fanout"),
        exchange(BEAT_STATE, "fanout"),
        exchange(EVENTS, "topic"),
        exchange(CONTROL, "fanout", durable=False),
        exchange(ANSWERS, "direct", durable=False),
    ]
    queues = [quorum(name) for name in (UNDELIVERABLE, UNREAD_DEAD_LETTERS, DELETED_DEAD_LETTERS, BEAT_STATE)]
    bindings = [
        *(bind(name, name, "") for name in (UNDELIVERABLE, BEAT_STATE)),
        bind(dead, DELETED_DEAD_LETTERS, DELETED_DEAD_LETTERS),
    ]
    policies = [
        policy(DELAY_EXIT, "exchanges", {"alternate-exchange": UNDELIVERABLE}),
        policy(UNDELIVERABLE, "queues", retention(14 * 86400, 256 * 1024 * 1024, rabbitmq)),
        *(
            policy(name, "queues", retention(86400, 64 * 1024 * 1024, rabbitmq))
            for name in (UNREAD_DEAD_LETTERS, DELETED_DEAD_LETTERS)
        ),
        policy(BEAT_STATE, "queues", uncounted({"max-length": 1, "overflow": "drop-head"}, rabbitmq)),
    ]
    for queue in topology:
        arguments = {"x-single-active-consumer": True} if queue.single_active_consumer else {}
        exchanges.append(exchange(queue.exchange, "topic"))
        queues += [quorum(queue.name, arguments), quorum(queue.dead_letter)]
        bindings += [
            bind(queue.exchange, queue.name, queue.routing_key),
            bind(DELAY_EXIT, queue.name, f"#.{queue.routing_key}"),
            bind(dead, queue.dead_letter, queue.name),
            bind(dead, UNREAD_DEAD_LETTERS, queue.name),
        ]
        policies += [
            policy(queue.name, "queues", queue_policy(queue, rabbitmq)),
            policy(queue.dead_letter, "queues", dead_letter_policy(queue, rabbitmq)),
        ]
    for part, more in delays().items():
        {"exchanges": exchanges, "queues": queues, "bindings": bindings}[part].extend(more)
    return {
        "vhosts": [{"name": vhost}],
        "exchanges": [{"vhost": vhost, **item} for item in exchanges],
        "queues": [{"vhost": vhost, **item} for item in queues],
        "bindings": [{"vhost": vhost, **item} for item in bindings],
        "policies": [{"vhost": vhost, **item} for item in policies],
    }


def queue_policy(queue: QueueSpec, rabbitmq: tuple[int, int]) -> dict[str, Any]:
    """A work queue's policy; dead-lettering at least once requires reject-publish, and no length limit is set."""
    definition: dict[str, Any] = {
        "delivery-limit": queue.delivery_limit,
        "dead-letter-exchange": DEAD_LETTER_EXCHANGE,
        "dead-letter-routing-key": queue.name,
        "dead-letter-strategy": "at-least-once",
        "overflow": "reject-publish",
    }
    if rabbitmq >= CONSUMER_TIMEOUT_POLICY:
        definition["consumer-timeout"] = queue.consumer_timeout * 1000
    return definition


def dead_letter_policy(queue: QueueSpec, rabbitmq: tuple[int, int]) -> dict[str, Any]:
    """A dead-letter queue's policy: what it deletes is counted elsewhere."""
    kept = retention(queue.dead_letter_ttl, queue.dead_letter_bytes, rabbitmq)
    # An exchange of its own, under the queue's name, could be bound to others by whoever may read the queue.
    return {
        **kept,
        "dead-letter-exchange": DEAD_LETTER_EXCHANGE,
        "dead-letter-routing-key": DELETED_DEAD_LETTERS,
    }


def retention(seconds: int, size: int, rabbitmq: tuple[int, int]) -> dict[str, Any]:
    """How long, and how many bytes of, dead letters are kept; the oldest go first."""
    return uncounted({"message-ttl": seconds * 1000, "max-length-bytes": size, "overflow": "drop-head"}, rabbitmq)


def uncounted(definition: dict[str, Any], rabbitmq: tuple[int, int]) -> dict[str, Any]:
    """A policy of a queue whose messages may be looked at as often as one likes.

    Reading is a delivery, which RabbitMQ 4.0 to 4.2 count: at its default limit the 21st look would delete the message.
    """
    if rabbitmq >= DEFAULT_DELIVERY_LIMIT:
        definition["delivery-limit"] = -1
    return definition


def delays() -> dict[str, list[dict[str, Any]]]:
    """The delay topology of kombu with its exact arguments (kombu.transport.native_delayed_delivery)."""
    exchanges = [exchange(DELAY_EXIT, "topic")]
    queues, bindings = [], []
    for level in range(DELAY_LEVELS):
        name = f"celery_delayed_{level}"
        after = f"celery_delayed_{level - 1}" if level else DELAY_EXIT
        skip = "*." * (DELAY_LEVELS - 1 - level)
        exchanges.append(exchange(name, "topic"))
        queues.append(
            quorum(
                name,
                {
                    "x-overflow": "reject-publish",
                    "x-message-ttl": 2**level * 1000,
                    "x-dead-letter-exchange": after,
                    "x-dead-letter-strategy": "at-least-once",
                },
            )
        )
        bindings.append(bind(name, name, f"{skip}1.#"))
        bindings.append(bind(name, after, f"{skip}0.#", kind="exchange"))
    return {"exchanges": exchanges, "queues": queues, "bindings": bindings}


def exchange(name: str, kind: str, *, durable: bool = True) -> dict[str, Any]:
    """An exchange; one that is not durable is made anew by the import at every start of the broker."""
    return {"name": name, "type": kind, "durable": durable, "auto_delete": False, "internal": False, "arguments": {}}


def quorum(name: str, arguments: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A quorum queue."""
    return {
        "name": name,
        "durable": True,
        "auto_delete": False,
        "arguments": {"x-queue-type": "quorum", **(arguments or {})},
    }


def bind(source: str, destination: str, key: str, *, kind: str = "queue") -> dict[str, Any]:
    """A binding."""
    return {
        "source": source,
        "destination": destination,
        "destination_type": kind,
        "routing_key": key,
        "arguments": {},
    }


def policy(name: str, applies_to: str, definition: dict[str, Any]) -> dict[str, Any]:
    """A policy for exactly one object."""
    pattern = f"^{re.escape(name)}$"
    return {"name": name, "pattern": pattern, "apply-to": applies_to, "definition": definition, "priority": 1}
