"""Dead letters that their retention deleted: counted by queue and reason, whatever their headers hold."""

from __future__ import annotations

from typing import Any

import pytest

from ops.snapshots import Snapshot
from ops.totals import Totals
from queues.topology import QUEUES
from workers import deletions


def death(queue: str, reason: str) -> dict[str, Any]:
    return {"queue": queue, "reason": reason, "count": 1, "exchange": "", "routing-keys": []}


def test_the_death_in_the_dead_letter_queue_counts_and_no_earlier_one() -> None:
    headers = [
        {"x-death": [death("math.dead", "maxlen"), death("math", "rejected"), death("celery_delayed_3", "expired")]},
        {"x-death": [death("math", "rejected"), death("math.dead", "expired")]},
        {"x-death": [death("email.dead", "maxlen")]},
        {"x-death": [death("email.dead", "something new")]},
    ]
    found = deletions.count(headers, QUEUES)
    assert found == {"math": {"maxlen": 1, "expired": 1}, "email": {"maxlen": 1, "other": 1}}


@pytest.mark.parametrize(
    "headers",
    [
        None,
        {},
        {"x-death": "no list"},
        {"x-death": [None, 5, "x"]},
        {"x-death": [{"queue": ["math.dead"], "reason": "maxlen"}]},
        {"x-death": [death("strange.dead", "maxlen")]},
        {"x-death": [death("math", "maxlen")]},
    ],
)
def test_what_died_elsewhere_or_says_nothing_counts_nowhere(headers: Any) -> None:
    assert deletions.count([headers], QUEUES) == {}


def test_an_exporter_adds_what_a_message_says_and_knows_no_worker_of_it() -> None:
    totals = Totals()
    for counts in ({"maxlen": 3}, {"maxlen": 2, "expired": 1}):
        body = deletions.snapshot("monitor@retention", "math", counts)
        assert Snapshot.parse(body).full
        totals.apply(body)
    totals.publish()
    samples = {
        sample.labels["reason"]: sample.value
        for family in totals.collect()
        for sample in family.samples
        if sample.name == "celery_dead_letters_deleted_total"
    }
    assert samples == {"maxlen": 5, "expired": 1}
    assert not [
        sample
        for family in totals.collect()
        for sample in family.samples
        if sample.labels.get("worker") == "monitor@retention"
    ]
