"""The broker against the table, seen by the operator; each difference is one sentence with its remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ops import definitions
from ops.management import Management

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: What makes an object what it is, by kind; other fields (statistics, defaults) do not matter.
IDENTITY = {
    "exchanges": ("name",),
    "queues": ("name",),
    "bindings": ("source", "destination", "destination_type", "routing_key"),
    "policies": ("name",),
    "permissions": ("user",),
}
COMPARED = {
    "exchanges": ("type", "durable"),
    "queues": ("durable", "arguments"),
    "bindings": (),
    "policies": ("pattern", "apply-to", "definition"),
    "permissions": ("configure", "write", "read"),
}
#: Arguments that cannot be changed: a queue that differs in one is made anew.
REMEDY = {
    "queues": "an argument cannot be changed: make a new queue and move its messages",
    "exchanges": "delete and declare it anew while its producers are stopped",
}


def differences(environ: Mapping[str, str]) -> list[str]:
    """What the broker has otherwise than the table.

    Raises:
        OpsError: the management API does not answer.
    """
    management = Management.from_env(environ)
    present = management.definitions()
    version = management.version()
    hashes = dict.fromkeys(definitions.roles(), "")
    wanted = definitions.build(hashes, rabbitmq=version, vhost=management.vhost)
    return list(compare(wanted, present))


def compare(wanted: Mapping[str, Any], present: Mapping[str, Any]) -> Iterator[str]:
    """Sentences on what is missing or differs; what the broker has besides is its owner's business."""
    for kind, identity in IDENTITY.items():
        by_key = {key_of(item, identity): item for item in present.get(kind, [])}
        for item in wanted[kind]:
            key = key_of(item, identity)
            label = (
                f"{kind[:-3] + 'y' if kind == 'policies' else kind[:-1]} {' -> '.join(part for part in key if part)}"
            )
            found = by_key.get(key)
            if found is None:
                yield f"{label} is missing: import the definitions again, by a restart of the broker"
                continue
            for field in COMPARED[kind]:
                if found.get(field) != item[field]:
                    remedy = REMEDY.get(kind, "import the definitions again, by a restart of the broker")
                    yield f"{label}: {field} is {found.get(field)!r}, the table says {item[field]!r}; {remedy}"


def key_of(item: Mapping[str, Any], identity: tuple[str, ...]) -> tuple[str, ...]:
    """What names an object."""
    return tuple(str(item.get(part, "")) for part in identity)
