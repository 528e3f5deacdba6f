from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from queues.topology import QUEUES, QueueSpec, TaskSpec, Topology, TopologyError, check_routing_keys


def task(**changes: Any) -> TaskSpec:
    return TaskSpec(**{"name": "pdf.render", "soft_time_limit": 10, "time_limit": 20, **changes})


def queue(**changes: Any) -> QueueSpec:
    return QueueSpec(**{"name": "pdf", "module": "workers.pdf_tasks", "tasks": (task(),), **changes})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: task(name="render"), "a name is <queue>.<function>"),
        (lambda: task(soft_time_limit=20), "must be positive and below"),
        (lambda: task(soft_time_limit=0), "must be positive and below"),
        (lambda: task(every=30.0), "needs `expires`"),
        (lambda: task(every=30.0, expires=30), "must be below its period"),
        (lambda: task(retry_backoff=0), "at least 1 s"),
        (lambda: queue(name="PDF"), r"a name is \[a-z\]"),
        (lambda: queue(name="1pdf"), r"a name is \[a-z\]"),
        (lambda: queue(name="high.pdf"), r"a name is \[a-z\]"),
        (lambda: queue(tasks=()), "has no task"),
        (lambda: queue(name="doc"), "must begin with its queue's"),
        (lambda: queue(consumer_timeout=139), "is within 120 s"),
        (lambda: queue(concurrency=0), "at least 1"),
        (lambda: queue(buckets=(1.0, 0.5)), "must rise"),
        (lambda: Topology((queue(), queue(module="workers.other"))), "queue pdf stands twice"),
        (lambda: Topology((queue(tasks=(task(), task())),)), "task pdf.render stands twice"),
        (
            lambda: Topology((queue(), queue(name="doc", tasks=(task(name="doc.render"),)))),
            "module workers.pdf_tasks stands twice",
        ),
        (lambda: check_routing_keys(["math", "high.math"]), "dotted suffix"),
    ],
)
def test_a_row_that_contradicts_itself_is_refused(make: Any, message: str) -> None:
    with pytest.raises(TopologyError, match=message):
        make()


def test_a_limit_exactly_two_minutes_below_the_consumer_timeout_is_taken() -> None:
    assert queue(consumer_timeout=140).time_limit == 20


def test_keys_that_only_look_alike_are_taken() -> None:
    check_routing_keys(["math", "aftermath", "math-high"])


def test_rows_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        QUEUES.queue("math").name = "other"  # type: ignore[misc]


def test_the_table_holds_what_the_mission_names() -> None:
    assert QUEUES.names == ("math", "image", "email", "monitor")
    assert QUEUES.queue("email").single_active_consumer
    assert QUEUES.task("email.send_email")[1].rate_limit == "10/m"
    assert QUEUES.task("monitor.check_status")[1].every == 30.0
    assert QUEUES.task("monitor.generate_report")[1].every == "0 0 * * *"


def test_the_stop_grace_period_outlasts_every_task() -> None:
    for spec in QUEUES:
        assert all(spec.stop_grace_period > item.time_limit for item in spec.tasks)
    assert re.fullmatch(r"\d+[mg]", QUEUES.queue("image").memory)
