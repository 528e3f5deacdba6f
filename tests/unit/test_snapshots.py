"""The sum of all workers' snapshots: exact whatever is lost, repeated, late or nonsense."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.core import CollectorRegistry

from ops import snapshots
from ops.snapshots import METRICS, MalformedSnapshotError
from ops.totals import FINISHED_AFTER, FORGOTTEN_AFTER, Totals
from queues.topology import QUEUES, QueueSpec, TaskSpec, Topology
from workers import metrics
from workers.metrics import Recorder

BOUNDS = (1, 2, 4)
SMALL = Topology(
    (
        QueueSpec(
            name="math",
            module="workers.math_tasks",
            buckets=BOUNDS,
            tasks=(TaskSpec(name="math.add", soft_time_limit=10, time_limit=15),),
        ),
    )
)


class Clock:
    """Time that the test turns."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def totals(clock: Clock) -> Totals:
    return Totals(SMALL, clock=clock)


def snapshot(seq: object, *series: tuple[Any, ...], incarnation: str = "one", **changes: Any) -> str:
    return json.dumps(
        {
            "version": 1,
            "incarnation": incarnation,
            "worker": "math@host",
            "queue": "math",
            "seq": seq,
            "started_at": 1.0,
            "sent_at": 2.0,
            "full": False,
            "gauges": {"concurrency": 2, "busy": 1},
            "bounds": BOUNDS,
            "series": series,
        }
        | changes
    )


def started(value: int) -> tuple[str, str, str, int]:
    return ("started", "math.add", "", value)


def samples(totals: Totals) -> dict[str, float]:
    """Every sample as Prometheus would write it."""
    registry = CollectorRegistry()
    registry.register(totals)
    lines = generate_latest(registry).decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def total(totals: Totals, queue: str = "math") -> float | None:
    return samples(totals).get(f'celery_task_started_total{{queue="{queue}",task="math.add"}}')


def test_values_are_cumulative(totals: Totals) -> None:
    for seq, value in enumerate((0, 3, 3, 10), 1):
        totals.apply(snapshot(seq, started(value)))
        assert total(totals) == value


def test_a_series_that_a_snapshot_leaves_out_keeps_its_value(totals: Totals) -> None:
    totals.apply(snapshot(1, started(3)))
    totals.apply(snapshot(2, ("retries", "math.add", "", 1)))
    totals.apply(snapshot(3, started(4)))
    assert total(totals) == 4


def test_repeated_and_older_snapshots_add_nothing(totals: Totals) -> None:
    for seq, value in ((1, 3), (2, 5), (2, 5), (1, 3), (3, 6), (2, 5)):
        totals.apply(snapshot(seq, started(value)))
    assert total(totals) == 6
    assert samples(totals)["celery_exporter_snapshots_total"] == 3
    assert samples(totals)["celery_exporter_snapshots_repeated_total"] == 3


def test_a_lost_snapshot_is_made_up_for_by_the_next(totals: Totals) -> None:
    totals.apply(snapshot(1, started(3)))
    totals.apply(snapshot(9, started(20)))
    assert total(totals) == 20


def test_incarnations_add_up(totals: Totals) -> None:
    totals.apply(snapshot(1, started(3)))
    totals.apply(snapshot(7, started(100), incarnation="two", worker="math@other"))
    totals.apply(snapshot(2, started(4)))
    assert total(totals) == 104


def test_a_restarted_worker_begins_at_zero_and_the_total_goes_on(totals: Totals) -> None:
    totals.apply(snapshot(50, started(300)))
    totals.apply(snapshot(1, started(0), incarnation="two"))
    assert total(totals) == 300
    totals.apply(snapshot(2, started(1), incarnation="two"))
    assert total(totals) == 301


def test_two_exporters_that_saw_different_snapshots_agree_at_the_end(totals: Totals) -> None:
    other = Totals(SMALL)
    messages = [
        snapshot(seq, started(seq * 2), ("wait", "math.add", "", [seq * 0.1, seq, 0, 0, 0])) for seq in range(1, 9)
    ]
    for message in messages:
        totals.apply(message)
    for message in messages[4:5] + messages[7:]:
        other.apply(message)
    assert samples(totals) == pytest.approx(samples(other) | {"celery_exporter_snapshots_total": 8})


def test_histograms(totals: Totals) -> None:
    totals.apply(snapshot(1, ("runtime", "math.add", "succeeded", [0.0, 0, 0, 0, 0])))
    totals.apply(snapshot(2, ("runtime", "math.add", "succeeded", [9.5, 2, 0, 1, 1])))
    totals.apply(snapshot(1, ("runtime", "math.add", "succeeded", [1.5, 0, 1, 0, 0]), incarnation="two"))
    labels = 'outcome="succeeded",queue="math",task="math.add"'
    found = {name: value for name, value in samples(totals).items() if name.startswith("celery_task_runtime")}
    buckets = {
        f'celery_task_runtime_seconds_bucket{{le="{le}",{labels}}}': value
        for le, value in (("1.0", 2), ("2.0", 3), ("4.0", 4), ("+Inf", 5))
    }
    assert found == buckets | {
        f"celery_task_runtime_seconds_count{{{labels}}}": 5,
        f"celery_task_runtime_seconds_sum{{{labels}}}": 11,
    }


def test_a_worker_with_an_older_tables_bounds(totals: Totals) -> None:
    # What lay between 0.5 and 1.5 may be above 1: it must not be told as faster than it was.
    totals.apply(snapshot(1, ("wait", "math.add", "", [30.0, 1, 2, 4, 8]), bounds=[0.5, 1.5, 8]))
    found = samples(totals)
    labels = 'queue="math",task="math.add"'
    counts = [
        found[f'celery_task_queue_wait_seconds_bucket{{le="{le}",{labels}}}'] for le in ("1.0", "2.0", "4.0", "+Inf")
    ]
    assert counts == [1, 3, 3, 15]
    assert found[f"celery_task_queue_wait_seconds_sum{{{labels}}}"] == 30


def test_a_queue_that_the_table_does_not_hold_has_its_own_bounds(totals: Totals) -> None:
    totals.apply(snapshot(1, ("wait", "new.task", "", [1.0, 1, 0]), queue="new", bounds=[7]))
    assert samples(totals)['celery_task_queue_wait_seconds_bucket{le="7.0",queue="new",task="new.task"}'] == 1


def test_labels_of_each_kind(totals: Totals) -> None:
    totals.apply(
        snapshot(
            1,
            ("failures", "math.add", "ValueError", 2),
            ("timeouts", "math.add", "hard", 1),
            ("revocations", "math.add", "expired", 4),
        )
    )
    found = samples(totals)
    assert found['celery_task_failures_total{exception="ValueError",queue="math",task="math.add"}'] == 2
    assert found['celery_task_timeouts_total{kind="hard",queue="math",task="math.add"}'] == 1
    assert found['celery_task_revocations_total{queue="math",reason="expired",task="math.add"}'] == 4


def test_nothing_is_said_of_tasks_that_nobody_reported(totals: Totals) -> None:
    assert not [name for name in samples(totals) if name.startswith("celery_task")]


def test_a_silent_incarnation_stays_in_the_total_and_may_come_back(totals: Totals, clock: Clock) -> None:
    totals.apply(snapshot(1, started(3), ("wait", "math.add", "", [0.5, 1, 0, 0, 0])))
    clock.now = FINISHED_AFTER + 1
    assert total(totals) == 3
    clock.now = 2 * FINISHED_AFTER
    assert total(totals) == 3
    # The broker had been blocked.
    totals.apply(snapshot(2, started(5), ("wait", "math.add", "", [0.75, 2, 0, 0, 0])))
    assert total(totals) == 5
    assert samples(totals)['celery_task_queue_wait_seconds_sum{queue="math",task="math.add"}'] == 0.75
    totals.apply(snapshot(1, started(3)))
    assert total(totals) == 5


def test_an_incarnation_is_forgotten_and_its_total_is_not(totals: Totals, clock: Clock) -> None:
    totals.apply(snapshot(1, started(3)))
    clock.now = FORGOTTEN_AFTER + 1
    totals.apply(snapshot(1, started(1), incarnation="two"))
    assert list(totals._incarnations) == ["two"]
    assert total(totals) == 4


def test_a_silent_incarnation_is_kept_small(totals: Totals, clock: Clock) -> None:
    totals.apply(snapshot(1, started(3)))
    clock.now = FINISHED_AFTER + 1
    samples(totals)
    (incarnation,) = totals._incarnations.values()
    assert incarnation.values == {}
    assert 0 < len(incarnation.packed) < 100


def test_gauges_live_as_long_as_their_worker(totals: Totals, clock: Clock) -> None:
    busy = 'celery_worker_busy_processes{queue="math",worker="math@host"}'
    totals.apply(snapshot(1))
    assert samples(totals)[busy] == 1
    assert samples(totals)['celery_worker_concurrency{queue="math",worker="math@host"}'] == 2
    clock.now = 1
    totals.apply(snapshot(1, incarnation="two", gauges={"concurrency": 2, "busy": 0}))
    assert samples(totals)[busy] == 0
    clock.now = FINISHED_AFTER + 2
    assert busy not in samples(totals)


def test_a_worker_that_stops_takes_its_gauges_along(totals: Totals) -> None:
    totals.apply(snapshot(1))
    totals.apply(snapshot(2, gauges={}))
    assert not [name for name in samples(totals) if name.startswith("celery_worker_")]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"null",
        b"[]",
        b"{}",
        "[" * 100_000,
        snapshot(1, version=2),
        snapshot("1"),
        snapshot(-1),
        snapshot(True),
        snapshot(1, queue=""),
        snapshot(1, queue=None),
        snapshot(1, worker="x" * 300),
        snapshot(1, bounds=[1, 1]),
        snapshot(1, bounds=[math.nan]),
        snapshot(1, gauges=None),
        snapshot(1, gauges={"busy": -1}),
        snapshot(1, series=None),
        snapshot(1, started(1), ("started", "math.add", "")),
        snapshot(1, ("started", "math.add", "", -1)),
        snapshot(1, ("started", "math.add", "", 1.5)),
        snapshot(1, ("started", "math.add", "", 2**63)),
        snapshot(1, ("started", "math.add", "", [1])),
        snapshot(1, ("started", 7, "", 1)),
        snapshot(1, ("wait", "math.add", "", 1)),
        snapshot(1, ("wait", "math.add", "", [])),
        snapshot(1, ("wait", "math.add", "", [1.0, 1, 0, 0])),
        snapshot(1, ("wait", "math.add", "", [math.inf, 1, 0, 0, 0])),
        snapshot(1, ("wait", "math.add", "", [1.0, 1, 0, 0, -1])),
        snapshot(1, ("wait", "math.add", "", [1.0, 1, 0, 0, 0.5])),
    ],
)
def test_what_is_no_snapshot_is_counted_and_changes_nothing(totals: Totals, body: bytes | str) -> None:
    totals.apply(snapshot(1, started(3), incarnation="good"))
    before = samples(totals)
    with pytest.raises(MalformedSnapshotError):
        totals.apply(body)
    assert samples(totals) == before | {"celery_exporter_snapshots_malformed_total": 1}


@pytest.mark.parametrize(
    "body",
    [
        snapshot(2, ("retries", "math.add", "", 9), started(2)),
        snapshot(2, ("wait", "math.add", "", [1.0, 2, 0, 0, 0])),
        snapshot(2, started(4), queue="image"),
        snapshot(2, started(4), bounds=[1, 2, 3]),
    ],
)
def test_a_snapshot_that_contradicts_the_last_one_is_refused_whole(totals: Totals, body: str) -> None:
    totals.apply(snapshot(1, started(3), ("wait", "math.add", "", [1.0, 3, 0, 0, 0])))
    before = samples(totals)
    with pytest.raises(MalformedSnapshotError):
        totals.apply(body)
    assert samples(totals) == before | {"celery_exporter_snapshots_malformed_total": 1}


def test_a_newer_workers_series_are_left_out(totals: Totals) -> None:
    totals.apply(snapshot(1, ("invented", "math.add", "", "anything"), started(1)))
    assert total(totals) == 1


def test_the_worker_sends_what_is_known_here() -> None:
    recorder = Recorder()
    recorder.bind(QUEUES.queue("math"))
    message = recorder.snapshot("math@host", {"concurrency": 2, "busy": 0}, full=True)
    assert message is not None
    assert {name for name, *_ in message["series"]} == set(METRICS)
    totals = Totals()
    totals.apply(json.dumps(message))
    found = samples(totals)
    assert found['celery_task_completions_total{queue="math",task="math.add"}'] == 0
    assert found['celery_task_runtime_seconds_count{outcome="failed",queue="math",task="math.xsum"}'] == 0


def test_an_idle_worker_speaks_well_before_it_is_taken_for_dead() -> None:
    assert metrics.FULL_INTERVAL * 1.5 < FINISHED_AFTER


def test_metrics_are_named_as_prometheus_wants() -> None:
    for metric in METRICS.values():
        assert metric.name.endswith("_seconds" if metric.histogram else "_total")
        assert metric.help.endswith(".")
    assert snapshots.VERSION == 1
