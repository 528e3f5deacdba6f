"""Changes of a running broker's topology: what would change, what would lose messages, and doing it.

Definitions are imported at every start of the broker. So the file is written first and the broker is given the same
document after it: whenever the broker restarts, it comes back as it was or as it was to be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import amqp.exceptions

from ops.check import IDENTITY, differing, key_of, label_of
from ops.errors import OpsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from ops.check import Difference
    from ops.definitionsfile import DefinitionsFile
    from ops.management import Management
    from queues.app import WarrenCelery

Document = dict[str, Any]

#: Fields of a policy that drop messages: the lower, the more.
DROPPING = ("message-ttl", "max-length", "max-length-bytes", "expires")
#: Fields of a policy without which a rejected message is lost.
KEEPING = ("dead-letter-exchange", "dead-letter-routing-key", "dead-letter-strategy")
#: Kinds of objects that are removed when the table drops them, in this order: what lets messages in comes first.
REMOVED = ("exchanges", "bindings", "queues", "policies", "users")
KEYS = {**IDENTITY, "users": ("name",)}


@dataclass(frozen=True, slots=True)
class Step:
    """One change; `action` is add, change, remove or refused."""

    action: str
    what: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Held:
    """What a queue holds: ready messages, and consumers, which may hold further ones."""

    messages: int = 0
    consumers: int = 0


def plan(wanted: Document, present: Document, before: Document, held: Callable[[str], Held]) -> list[Step]:
    """What has to be done so that the broker has what the table says, and what is refused.

    Args:
        wanted: the table's definitions.
        present: the broker's.
        before: those of the definitions file: what stands there, and no longer in the table, is ours to remove.
        held: what a queue holds now.
    """
    steps = [step(one, held) for one in differing(wanted, present)]
    known = {user["name"] for user in present.get("users", [])}
    steps += [Step("add", f"user {user['name']}") for user in wanted.get("users", []) if user["name"] not in known]
    for kind, item in dropped(wanted, present, before):
        what = label_of(kind, key_of(item, KEYS[kind]))
        found = held(item["name"]) if kind == "queues" else Held()
        if found.messages or found.consumers:
            reason = f"it holds {found.messages} messages and has {found.consumers} consumers: keep its row until its "
            steps.append(Step("refused", what, f"{reason}workers have emptied it, stop them, then apply again"))
        else:
            steps.append(Step("remove", what))
    return steps


def step(one: Difference, held: Callable[[str], Held]) -> Step:
    """One difference as a change, or as a refusal."""
    if one.field is None:
        return Step("add", one.label)
    if one.kind == "permissions":
        return Step("change", one.label, one.field)  # the patterns are too long to be read
    detail = f"{one.field} {shown(one.found.get(one.field))} -> {shown(one.wanted[one.field])}"
    if one.kind in ("queues", "exchanges"):
        return Step("refused", one.label, f"{detail}: it cannot be changed; give the row a new name, and move over")
    if one.kind == "policies" and one.field == "definition":
        found, wanted = one.found["definition"], one.wanted["definition"]
        detail = ", ".join(
            f"{name} {shown(found.get(name))} -> {shown(wanted.get(name))}"
            for name in sorted({*found, *wanted})
            if found.get(name) != wanted.get(name)
        )
        count = held(one.wanted["name"]).messages if one.wanted["apply-to"] == "queues" else 0
        if loses(found, wanted) and count:
            remedy = "empty it first (for dead letters: `warren dead-letters export`, then `drop`)"
            return Step("refused", one.label, f"{detail} would drop of {count} messages: {remedy}")
    return Step("change", one.label, detail)


def shown(value: object) -> str:
    """A value as the plan shows it."""
    return "-" if value is None else str(value)


def loses(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a queue's new policy drops messages, or lets rejected ones vanish, that the old one keeps."""
    lower = any(name in wanted and wanted[name] < found.get(name, float("inf")) for name in DROPPING)
    limited = any(name in wanted for name in ("max-length", "max-length-bytes"))
    overflow = limited and wanted.get("overflow") != found.get("overflow")
    return lower or overflow or any(found.get(name) not in (None, wanted.get(name)) for name in KEEPING)


def dropped(wanted: Document, present: Document, before: Document) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Objects that Warren made and the table no longer has, with their kind, in the order of removal."""
    for kind in REMOVED:
        identity = KEYS[kind]
        keep = {key_of(item, identity) for item in wanted.get(kind, [])}
        there = {key_of(item, identity) for item in present.get(kind, [])}
        for item in before.get(kind, []):
            if key_of(item, identity) in there - keep:
                yield kind, item


def counter(app: WarrenCelery) -> Callable[[str], Held]:
    """Asks queues themselves what they hold: the management API's numbers are seconds old."""

    def held(queue: str) -> Held:
        with app.connection_for_read() as connection:
            try:
                found = connection.channel().queue_declare(queue, passive=True)
            except amqp.exceptions.NotFound:
                return Held()
        return Held(found.message_count, found.consumer_count)

    return held


def carry_out(
    management: Management, app: WarrenCelery, file: DefinitionsFile, *, present: Document, before: Document
) -> None:
    """Write the file, give the broker the same document, and remove what the table no longer has.

    Args:
        management: the broker, as an administrator.
        app: the same over AMQP.
        file: what the broker imports at its start.
        present: the broker's definitions.
        before: the file's.

    Raises:
        OpsError: the broker refused, or a queue that was to be removed got messages meanwhile; then all is as before.
    """
    document = file.write(management.version(), management.vhost)
    management.import_definitions(document)
    going = list(dropped(document, present, before))
    for name in names(going, "exchanges"):
        management.delete("exchanges", management.vhost, name)
    held = counter(app)
    for name in names(going, "queues"):
        if held(name) != Held():
            file.replace(before)
            management.import_definitions(before)
            raise OpsError(f"queue {name} got messages or consumers meanwhile: all is as before; empty it, then again")
    unbind(app, [item for kind, item in going if kind == "bindings"])
    for kind, path in (("queues", (management.vhost,)), ("policies", (management.vhost,)), ("users", ())):
        for name in names(going, kind):
            management.delete(kind, *path, name)


def names(going: Iterable[tuple[str, Mapping[str, Any]]], wanted: str) -> list[str]:
    """The names of the objects of one kind."""
    return [item["name"] for kind, item in going if kind == wanted]


def unbind(app: WarrenCelery, bindings: Iterable[Mapping[str, Any]]) -> None:
    """Remove bindings; those of an exchange that is gone went with it."""
    with app.connection_for_write() as connection:
        for item in bindings:
            channel = connection.channel()
            remove = channel.queue_unbind if item["destination_type"] == "queue" else channel.exchange_unbind
            remove(item["destination"], item["source"], item["routing_key"])
            channel.close()
