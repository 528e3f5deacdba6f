"""What `warren apply` plans: changes that cost nothing, removals of what is empty, refusals of the rest."""

from __future__ import annotations

from typing import Any

import pytest

from ops.apply import Held, loses, plan
from ops.definitions import build, roles
from queues.topology import QUEUES, Topology

HASHES = dict.fromkeys(roles(), "hash")
TABLE = build(HASHES)


def steps(wanted: dict[str, Any], present: dict[str, Any], before: dict[str, Any], **held: Held) -> dict[str, str]:
    """Actions by what they are about."""
    return {step.what: step.action for step in plan(wanted, present, before, lambda queue: held.get(queue, Held()))}


def test_nothing_to_do() -> None:
    assert steps(TABLE, TABLE, TABLE) == {}


def test_an_empty_broker_gets_everything() -> None:
    found = steps(TABLE, {}, TABLE)
    assert set(found.values()) == {"add"}
    assert {"queue math", "policy math", "user producer", "permission producer", "exchange tasks.math"} <= set(found)


def test_a_row_that_is_gone_is_removed_where_it_is_empty() -> None:
    wanted = build(HASHES, topology=Topology(QUEUES.queues[1:]))
    name = QUEUES.queues[0].name
    found = steps(wanted, TABLE, TABLE)
    gone = {what for what, action in found.items() if action == "remove"}
    assert {f"queue {name}", f"queue {name}.dead", f"exchange tasks.{name}", f"policy {name}"} <= gone
    for held in (Held(messages=1), Held(consumers=1)):
        found = steps(wanted, TABLE, TABLE, **{name: held})
        assert found[f"queue {name}"] == "refused"


def test_what_others_made_stays() -> None:
    strange = {"name": "theirs", "durable": True, "auto_delete": False, "arguments": {}}
    assert steps(TABLE, {**TABLE, "queues": [*TABLE["queues"], strange]}, TABLE) == {}


@pytest.mark.parametrize(
    ("found", "wanted", "lost"),
    [
        ({}, {}, False),
        ({"delivery-limit": 20}, {"delivery-limit": 1}, False),
        ({"message-ttl": 2}, {"message-ttl": 1}, True),
        ({"message-ttl": 1}, {"message-ttl": 2}, False),
        ({}, {"max-length": 5}, True),
        ({"max-length-bytes": 5}, {}, False),
        ({"max-length": 5, "overflow": "reject-publish"}, {"max-length": 5, "overflow": "drop-head"}, True),
        ({"overflow": "reject-publish"}, {"overflow": "drop-head"}, False),
        ({"dead-letter-exchange": "dead-letters"}, {}, True),
        ({"dead-letter-strategy": "at-least-once"}, {"dead-letter-strategy": "at-most-once"}, True),
        ({}, {"dead-letter-exchange": "dead-letters"}, False),
    ],
)
def test_what_a_policy_loses(found: dict[str, Any], wanted: dict[str, Any], *, lost: bool) -> None:
    assert loses(found, wanted) is lost
