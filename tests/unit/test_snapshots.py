"""The sum of all workers' snapshots: exact whatever is lost, repeated, late or nonsense."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.core import CollectorRegistry

from ops import snapshots
from ops.snapshots import METRICS, MalformedSnapshotError
from ops.totals import FINISHED_AFTER, FORGOTTEN_AFTER, LEFT_AFTER, Totals
from queues.topology import QUEUES, QueueSpec, TaskSpec, Topology
from workers import reporter
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
            "due": 0.0,
            "gauges": {"concurrency": 2, "busy": 1},
            "bounds": BOUNDS,
            "series": series,
        }
        | changes
    )


def started(value: int) -> tuple[str, str, str, int]:
    return ("started", "math.add", "", value)


def samples(totals: Totals) -> dict[str, float]:
    """Every sample as Prometheus would write it, but for times."""
    totals.publish()
    return shown(totals)


def shown(totals: Totals) -> dict[str, float]:
    """The same, as it was published."""
    registry = CollectorRegistry()
    registry.register(totals)
    lines = generate_latest(registry).decode().splitlines()
    found = {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}
    return {name: value for name, value in found.items() if "_timestamp_" not in name}


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


def test_what_is_shown_is_what_was_published(totals: Totals) -> None:
    totals.apply(snapshot(1, started(3)))
    assert not [name for name in shown(totals) if name.startswith("celery_task")]
    totals.publish()
    totals.apply(snapshot(2, started(5)))
    assert shown(totals)['celery_task_started_total{queue="math",task="math.add"}'] == 3
    assert total(totals) == 5


def reloaded(totals: Totals, topology: Topology = SMALL, clock: Any = None) -> Totals:
    """Another process's totals, from what this one has written down."""
    made = Totals(topology, clock=clock or Clock())
    made.restore(json.loads(json.dumps(totals.state())))
    return made


def test_a_restarted_exporter_shows_and_counts_on(totals: Totals) -> None:
    totals.apply(snapshot(1, started(3), ("wait", "math.add", "", [0.5, 1, 0, 0, 0]), due=77.0))
    totals.apply(snapshot(2, started(5)))
    before = samples(totals) | {"celery_exporter_snapshots_total": 0}
    after = reloaded(totals)
    assert shown(after) == before
    assert after.due("math") == 77.0
    # What was not acknowledged comes again.
    after.apply(snapshot(2, started(5)))
    after.apply(snapshot(3, started(6)))
    assert total(after) == 6
    assert samples(after)["celery_exporter_snapshots_repeated_total"] == 1


def test_a_checkpoint_of_a_silent_worker(totals: Totals, clock: Clock) -> None:
    totals.apply(snapshot(1, started(3)))
    clock.now = FINISHED_AFTER + 1
    samples(totals)
    after = reloaded(totals)
    after.apply(snapshot(2, started(5)))
    assert total(after) == 5


def test_time_in_which_nothing_can_be_heard_makes_nobody_forgotten(totals: Totals, clock: Clock) -> None:
    totals.apply(snapshot(1, started(3)))
    totals.pause()
    clock.now = 2 * FORGOTTEN_AFTER
    assert not [name for name in samples(totals) if name.startswith("celery_worker")]
    totals.pause()
    totals.resume()
    assert total(totals) == 3
    totals.apply(snapshot(2, started(5)))
    assert total(totals) == 5


def test_days_without_an_exporter_make_nobody_forgotten(totals: Totals, clock: Clock) -> None:
    totals.apply(snapshot(1, started(3)))
    clock.now = 60
    later = Clock()
    later.now = 5 * FORGOTTEN_AFTER
    after = reloaded(totals, clock=later)
    samples(after)
    after.apply(snapshot(2, started(5)))
    assert total(after) == 5


def test_a_table_with_other_bounds_at_the_next_start(totals: Totals) -> None:
    totals.apply(snapshot(1, ("wait", "math.add", "", [9.0, 1, 2, 4, 8])))
    finer = Topology((replace(SMALL.queue("math"), buckets=(0.5, 1, 3)),))
    after = reloaded(totals, finer)
    labels = 'queue="math",task="math.add"'
    found = shown(after)
    counts = [found[f'celery_task_queue_wait_seconds_bucket{{le="{le}",{labels}}}'] for le in ("0.5", "1.0", "3.0")]
    assert counts == [0, 1, 3]
    assert found[f"celery_task_queue_wait_seconds_count{{{labels}}}"] == 15
    after.apply(snapshot(2, ("wait", "math.add", "", [9.5, 2, 2, 4, 8])))
    assert samples(after)[f'celery_task_queue_wait_seconds_bucket{{le="1.0",{labels}}}'] == 2


def test_metrics_of_another_version_are_left_out(totals: Totals) -> None:
    totals.apply(snapshot(1, started(3)))
    state = json.loads(json.dumps(totals.state()))
    state["totals"].append(["invented", ["math", "math.add"], [7]])
    after = Totals(SMALL)
    after.restore(state)
    assert total(after) == 3


@pytest.mark.parametrize("state", [{}, None, {"bounds": {}, "due": {}, "totals": [["started"]], "incarnations": []}])
def test_a_state_that_is_none_changes_nothing(totals: Totals, state: Any) -> None:
    totals.apply(snapshot(1, started(3)))
    with pytest.raises((KeyError, TypeError, ValueError)):
        totals.restore(state)
    assert total(totals) == 3


def test_without_a_checkpoint_older_workers_are_counted_from_now_on() -> None:
    # A sum that leapt from zero to what they had counted would be a rate that never was.
    totals = Totals(SMALL, since=100.0)
    totals.apply(snapshot(50, started(1000), started_at=10.0))
    assert total(totals) == 0
    totals.apply(snapshot(51, started(1003), ("retries", "math.add", "", 70), started_at=10.0))
    assert total(totals) == 3
    retries = 'celery_task_retries_total{queue="math",task="math.add"}'
    assert samples(totals)[retries] == 0
    totals.apply(snapshot(52, started(1003), ("retries", "math.add", "", 71), started_at=10.0, full=True))
    totals.apply(snapshot(53, ("completions", "math.add", "", 2), started_at=10.0))
    assert samples(totals)[retries] == 1
    assert samples(totals)['celery_task_completions_total{queue="math",task="math.add"}'] == 2
    totals.apply(snapshot(1, started(5), started_at=101.0, incarnation="young"))
    assert total(totals) == 8


def test_series_beyond_the_limit_are_left_out_and_counted() -> None:
    totals = Totals(SMALL, max_series=8)
    wait = ("wait", "math.add", "", [1.0, 1, 0, 0, 0])
    totals.apply(snapshot(1, wait, started(1), ("retries", "math.add", "", 1), ("started", "invented", "", 9)))
    found = samples(totals)
    assert found["celery_exporter_series"] == len([name for name in found if name.startswith("celery_task")]) == 8
    assert found["celery_exporter_series_dropped_total"] == 1
    totals.apply(snapshot(2, started(2), ("started", "invented", "", 10)))
    assert total(totals) == 2
    assert samples(totals)["celery_exporter_series_dropped_total"] == 2


def test_who_said_goodbye_is_forgotten_first(totals: Totals, clock: Clock) -> None:
    totals.apply(snapshot(1, started(3), incarnation="killed"))
    totals.apply(snapshot(1, started(4), incarnation="left", gauges={}, full=True))
    clock.now = LEFT_AFTER + 1
    assert total(totals) == 7
    assert list(totals._incarnations) == ["killed"]


def test_a_crash_loop_does_not_fill_the_memory(totals: Totals, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ops.totals.MOST_INCARNATIONS", 3)
    for number in range(9):
        clock.now = number * 300.0
        totals.apply(snapshot(1, started(1), incarnation=f"{number}"))
    assert list(totals._incarnations) == ["5", "6", "7", "8"]
    assert total(totals) == 9


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
    assert {name for name, *_ in message["series"]} == set(METRICS) - {"lateness", "deduplicated", "in_doubt", "waits"}
    totals = Totals()
    totals.apply(json.dumps(message))
    found = samples(totals)
    assert found['celery_task_completions_total{queue="math",task="math.add"}'] == 0
    assert found['celery_task_runtime_seconds_count{outcome="failed",queue="math",task="math.xsum"}'] == 0


def test_an_idle_worker_speaks_well_before_it_is_taken_for_dead() -> None:
    assert reporter.FULL_INTERVAL * 1.5 < FINISHED_AFTER


def test_metrics_are_named_as_prometheus_wants() -> None:
    for metric in METRICS.values():
        assert metric.name.endswith("_seconds" if metric.histogram else "_total")
        assert metric.help.endswith(".")
    assert snapshots.VERSION == 1
