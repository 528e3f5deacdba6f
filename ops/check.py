"""The broker against the table, seen by the operator; each difference is one sentence with its remedy."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ops import definitions
from ops.management import Management
from queues.topology import METRICS_EXCHANGE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    Row = Mapping[str, Any]

#: What makes an object what it is, by kind; other fields (statistics, defaults) do not matter.
IDENTITY = {
    "exchanges": ("name",),
    "queues": ("name",),
    "bindings": ("source", "destination", "destination_type", "routing_key"),
    "policies": ("name",),
    "permissions": ("user",),
}
COMPARED = {
    "exchanges": ("type", "durable", "auto_delete", "internal", "arguments"),
    "queues": ("durable", "auto_delete", "arguments"),
    "bindings": (),
    "policies": ("pattern", "apply-to", "definition", "priority"),
    "permissions": ("configure", "write", "read"),
}
#: What brokers leave out of their answer where it is so.
OMITTED = {"internal": False}
#: What a field is that a broker does not tell: 4.3 says of no exchange that it is not internal.
ABSENT = {"internal": False}
#: What cannot be changed: an object that differs in it is made anew.
REMEDY = {
    "queues": "an argument cannot be changed: make a new queue and move its messages",
    "exchanges": "delete it while its producers are stopped, and import the definitions again",
}
IMPORT = "import the definitions again, by `warren apply` or a restart of the broker"
#: Features that older brokers may have switched off: quorum queues, and dead-lettering at least once.
FLAGS = ("quorum_queue", "stream_queue")
#: Exchanges to which others bind queues of their own.
OPEN = (METRICS_EXCHANGE, definitions.CONTROL, definitions.ANSWERS, definitions.EVENTS)
#: What a policy may be applied to, by kind of object.
APPLIES_TO = {"queue": ("all", "queues", "quorum_queues"), "exchange": ("all", "exchanges")}
#: Objects that one sentence names.
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Difference:
    """An object that is missing (`field` is None), or one of its fields that is otherwise than wanted."""

    kind: str
    label: str
    field: str | None
    wanted: Row
    found: Row


def differences(environ: Mapping[str, str]) -> list[str]:
    """What the broker has otherwise than the table.

    Raises:
        OpsError: the management API does not answer.
    """
    with contextlib.closing(Management.from_env(environ)) as management:
        vhost = quote(management.vhost, safe="")
        hashes = dict.fromkeys(definitions.roles(), "")
        wanted = definitions.build(hashes, rabbitmq=management.version(), vhost=management.vhost)
        # The definitions lack what is bound to an exclusive queue.
        present = {**management.definitions(), "bindings": management.get(f"/api/bindings/{vhost}")}
        return [
            *compare(wanted, present),
            *leaderless(wanted, management.queues()),
            *detours(wanted, present),
            *overridden(wanted, present["policies"]),
            *restricted(wanted, management.get(f"/api/operator-policies/{vhost}")),
            *switched_off(management.get("/api/feature-flags")),
            *strangers(wanted, present),
        ]


def compare(wanted: Mapping[str, Any], present: Mapping[str, Any]) -> Iterator[str]:
    """What is missing or differs, as sentences."""
    for one in differing(wanted, present):
        if one.field is None:
            yield f"{one.label} is missing: {IMPORT}"
        else:
            found, table = one.found.get(one.field), one.wanted[one.field]
            yield f"{one.label}: {one.field} is {found!r}, the table says {table!r}; {REMEDY.get(one.kind, IMPORT)}"


def differing(wanted: Mapping[str, Any], present: Mapping[str, Any]) -> Iterator[Difference]:
    """What is missing or differs, one field after the other."""
    for kind, identity in IDENTITY.items():
        by_key = {key_of(item, identity): item for item in present.get(kind, [])}
        for item in wanted[kind]:
            key = key_of(item, identity)
            found = by_key.get(key)
            if found is None:
                yield Difference(kind, label_of(kind, key), None, item, {})
                continue
            for field in COMPARED[kind]:
                if found.get(field, ABSENT.get(field)) != item[field]:
                    yield Difference(kind, label_of(kind, key), field, item, found)


def label_of(kind: str, key: tuple[str, ...]) -> str:
    """An object as a person calls it."""
    return f"{kind[:-3] + 'y' if kind == 'policies' else kind[:-1]} {' -> '.join(part for part in key if part)}"


def leaderless(wanted: Mapping[str, Any], found: Sequence[Row]) -> Iterator[str]:
    """Queues that exist and cannot be used."""
    ours = {queue["name"] for queue in wanted["queues"]}
    for queue in found:
        if queue["name"] in ours and queue.get("state") not in (None, "running", "idle", "flow"):
            yield f"queue {queue['name']} is {queue['state']}: start the broker's other nodes"


def detours(wanted: Mapping[str, Any], present: Mapping[str, Any]) -> Iterator[str]:
    """Bindings beside the table's that copy messages elsewhere, or let them in."""
    identity = IDENTITY["bindings"]
    known = {key_of(item, identity) for item in wanted["bindings"]}
    exchanges = {item["name"] for item in wanted["exchanges"]}
    queues = {item["name"] for item in wanted["queues"]}
    for item in present["bindings"]:
        source, destination = item["source"], item["destination"]
        if not source or key_of(item, identity) in known:  # without a source: each queue's own name
            continue
        label = f"binding {source} -> {destination} ({item['routing_key']!r})"
        remedy = "the table does not have it: remove it through the management API (docs/deploy.md)"
        if source in exchanges and (source not in OPEN or destination in queues):
            yield f"{label} copies messages: {remedy}"
        elif destination in (queues if item["destination_type"] == "queue" else exchanges):
            yield f"{label} lets in what was not published to {destination}'s own exchange: {remedy}"


def overridden(wanted: Mapping[str, Any], policies: Sequence[Row]) -> Iterator[str]:
    """Policies that take the place of the table's: the broker applies one to each object, of the highest priority."""
    ours = {policy["name"]: policy for policy in wanted["policies"]}
    for policy in policies:
        if policy["name"] in ours:
            continue
        beaten = [
            label
            for label, name in objects(wanted, policy)
            # Of two equal ones, either may win.
            if name not in ours or policy["priority"] >= ours[name]["priority"]
        ]
        if beaten:
            yield (
                f"policy {policy['name']} (priority {policy['priority']}) takes the table's place for "
                f"{some(beaten)}: delete it, or give it a pattern that matches nothing of ours"
            )


def restricted(wanted: Mapping[str, Any], operator_policies: Sequence[Row]) -> Iterator[str]:
    """Operator policies that are stricter than the table."""
    ours = {policy["name"]: policy["definition"] for policy in wanted["policies"]}
    for policy in operator_policies:
        for key, value in policy["definition"].items():
            bound = [label for label, name in objects(wanted, policy) if stricter(value, ours.get(name, {}).get(key))]
            if bound:
                yield (
                    f"operator policy {policy['name']} sets {key} to {value!r} for {some(bound)}, which the table does "
                    "not: delete it, or give it a pattern that matches nothing of ours"
                )


def stricter(value: Any, ours: Any) -> bool:
    """Whether an operator policy's value changes what the table says; the lower of two numbers holds."""
    if isinstance(value, int) and isinstance(ours, int):
        return value < ours or ours < 0
    return bool(value != ours)


def objects(wanted: Mapping[str, Any], policy: Row) -> Iterator[tuple[str, str]]:
    """Our queues and exchanges that a policy's pattern matches: label and name."""
    try:
        pattern = re.compile(policy["pattern"])
    except re.error:  # Erlang's expressions know a little more than ours
        return
    for kind, applies_to in APPLIES_TO.items():
        if policy["apply-to"] in applies_to:
            for item in wanted[f"{kind}s"]:
                if pattern.search(item["name"]):
                    yield f"{kind} {item['name']}", item["name"]


def switched_off(flags: Sequence[Row]) -> Iterator[str]:
    """Feature flags that our queues need; a broker that no longer lists one has it for good."""
    for flag in flags:
        if flag["name"] in FLAGS and flag["state"] != "enabled":
            yield (
                f"feature flag {flag['name']} is {flag['state']}: run `rabbitmqctl enable_feature_flag {flag['name']}`"
            )


def strangers(wanted: Mapping[str, Any], present: Mapping[str, Any]) -> Iterator[str]:
    """Users that may change our queues and exchanges and are none of ours, and of ours those with other tags."""
    tags = {user["name"]: set(user["tags"]) for user in wanted["users"]}
    names = [item["name"] for kind in ("queues", "exchanges") for item in wanted[kind]]
    for rights in present["permissions"]:
        if rights["user"] in tags:
            continue
        try:
            pattern = re.compile(rights["configure"])
        except re.error:
            continue
        changed = [name for name in names if pattern.search(name)]
        if changed:
            yield (
                f"user {rights['user']} is not in the table and may delete {some(changed)}: "
                f"run `rabbitmqctl clear_permissions {rights['user']}`, or delete the user"
            )
    for user in present["users"]:
        # RabbitMQ before 3.9 writes them as one text.
        listed = user["tags"] if isinstance(user["tags"], list) else str(user["tags"]).split(",")
        found, name = {str(tag) for tag in listed if tag}, user["name"]
        if name in tags and found != tags[name]:
            command = " ".join(("rabbitmqctl set_user_tags", name, *sorted(tags[name])))
            yield f"user {name} has the tags {sorted(found)}, the table says {sorted(tags[name])}: run `{command}`"


def some(labels: Sequence[str]) -> str:
    """The first few of several."""
    more = len(labels) - SHOWN
    return ", ".join(labels[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def key_of(item: Row, identity: tuple[str, ...]) -> tuple[str, ...]:
    """What names an object."""
    return tuple(str(item.get(part, "")) for part in identity)
