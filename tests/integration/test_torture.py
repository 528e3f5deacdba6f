"""The thirty pains of other exporters' users, by their number in the benchmark's list: ours, on a real stack.

The comments name what goes wrong elsewhere; `python -m tests.benchmarks.exporter torture` lets another one show it.
What needs no broker is in tests/unit/test_collector.py and test_snapshots.py, what needs a load in
tests/benchmarks/exporter.py; `ELSEWHERE` says which.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import amqp
import pytest

from ops.management import Management
from queues import tasks
from queues.topology import QUEUES
from tests.integration.exporters import Metrics, OwnExporter, channel, flood
from tests.integration.helpers import PATIENCE, acting_as, awaited, children, ready

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ops.local import Stack

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("stubs")]

#: Rows that are shown elsewhere, by the test or the reason.
ELSEWHERE = {
    11: "tests/benchmarks/exporter_size.py: size, processor time of the exporter while everything changes",
    16: "tests/benchmarks/exporter_size.py: scrapes and size, a scrape's time",
    17: "tests/unit/test_snapshots.py: test_gauges_live_as_long_as_their_worker",
    24: "tests/integration/test_exporter.py: test_an_expired_tick_is_counted",
    26: "one exporter for each virtual host, by design",
    27: "tests/unit/test_collector.py: test_a_login_is_asked_for_where_one_is_set",
}
MATH = {"queue": "math", "task": "math.add"}


@pytest.fixture(scope="module")
def exporter(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnExporter]:
    """An exporter that may be tortured; the stack's own counts beside it."""
    with OwnExporter(stack, tmp_path_factory.mktemp("torture"), "torture") as own:
        own.start()
        assert awaited(lambda: own.ready)
        # Workers say everything when they start; in between only what changes.
        stack.processes.restart("worker-math")
        assert awaited(lambda: own.metrics().get("celery_task_started_total", **MATH) is not None)
        yield own


def settled(exporter: OwnExporter, name: str, wanted: float, **labels: str) -> bool:
    """Whether a sum comes to a value, and does not go beyond."""
    return bool(awaited(lambda: exporter.metrics().sum(name, **labels) == wanted)) and (
        exporter.metrics().sum(name, **labels) == wanted
    )


def test_every_pain_has_a_row() -> None:
    here = {int(number) for name in globals() for number in re.findall(r"_p(\d\d)", name)}
    assert here | set(ELSEWHERE) == set(range(1, 31))
    assert here & set(ELSEWHERE) == set()


def publish(stack: Stack, headers: dict[str, Any], *, exchange: str = "tasks.math", routing_key: str = "math") -> str:
    """A task as a foreign producer publishes it."""
    task_id = str(uuid.uuid4())
    message = amqp.Message(
        json.dumps([[1, 2], {}, {}]),
        content_type="application/json",
        content_encoding="utf-8",
        application_headers={"lang": "py", "task": "math.add", "id": task_id, "root_id": task_id} | headers,
    )
    with channel(acting_as(stack, "operator")) as opened:
        opened.basic_publish(message, exchange=exchange, routing_key=routing_key)
        opened.close()
    return task_id


def test_p01_p03_a_message_past_every_exchange_has_its_queue_and_without_a_stamp_no_wait(
    stack: Stack, exporter: OwnExporter
) -> None:
    # Elsewhere: labelled "celery" or "undefined", a wait guessed from events.
    before = exporter.metrics()
    publish(stack, {}, exchange="", routing_key="math")
    assert settled(
        exporter, "celery_task_unstamped_total", before.sum("celery_task_unstamped_total", **MATH) + 1, **MATH
    )
    after = exporter.metrics()
    assert after.sum("celery_task_completions_total", **MATH) == before.sum("celery_task_completions_total", **MATH) + 1
    count = "celery_task_queue_wait_seconds_count"
    assert after.sum(count, **MATH) == before.sum(count, **MATH)
    assert {dict(labels)["queue"] for _, labels in after.of("celery_task_")} <= set(QUEUES.names)


def test_p02_a_delayed_task_has_its_queue_and_its_lateness(exporter: OwnExporter) -> None:
    # Elsewhere: the label "None", or one for each of 2^28 routing keys.
    labels = {"queue": "math", "task": "math.multiply"}
    before = exporter.metrics()
    tasks.multiply.apply_async((2, 3), countdown=1).get(timeout=PATIENCE)
    count = "celery_task_eta_lateness_seconds_count"
    assert settled(exporter, count, before.sum(count, **labels) + 1, **labels)
    waited = "celery_task_queue_wait_seconds_sum"
    assert exporter.metrics().sum(waited, **labels) - before.sum(waited, **labels) < 5


def test_p04_p14_a_backlog_of_ten_thousand_keeps_its_waits_and_shows_in_two_numbers(
    stack: Stack, exporter: OwnExporter
) -> None:
    # Elsewhere: beyond 10 000 tasks in memory there is no wait and no queue; what workers hold is not counted.
    app, operator = acting_as(stack, "producer"), acting_as(stack, "operator")
    for _ in range(2):
        app.send_task("math.long_task", (5,))
    assert awaited(
        lambda: exporter.metrics().get("celery_worker_busy_processes", queue="math", worker=worker(exporter)) == 2
    )
    before = exporter.metrics()
    held = children(stack.processes.pid("worker-math"))
    for pid in held:
        os.kill(pid, signal.SIGSTOP)
    try:
        flood(app, "math.xsum", ([1, 2],), 10_001)
        assert awaited(lambda: exporter.metrics().get("celery_queue_messages_ready", queue="math") == 10_001)
        assert exporter.metrics().get("celery_queue_messages_unacknowledged", queue="math") == 2
    finally:
        for pid in held:
            os.kill(pid, signal.SIGCONT)
    labels = {"queue": "math", "task": "math.xsum"}
    assert awaited(lambda: exporter.metrics().sum("celery_task_started_total", **labels) > 100)
    with operator.connection_for_write() as connection, connection.channel() as purging:
        purging.queue_purge("math")
    assert awaited(
        lambda: exporter.metrics().get("celery_worker_busy_processes", queue="math", worker=worker(exporter)) == 0
    )
    assert awaited(
        lambda: (
            exporter.metrics().sum("celery_task_queue_wait_seconds_count", **labels)
            == exporter.metrics().sum("celery_task_started_total", **labels)
        )
    )
    after = exporter.metrics()
    started = after.sum("celery_task_started_total", **labels) - before.sum("celery_task_started_total", **labels)
    assert started > 100
    waits = after.sum("celery_task_queue_wait_seconds_sum", **labels) - before.sum(
        "celery_task_queue_wait_seconds_sum", **labels
    )
    assert waits / started > 0.1


def worker(exporter: OwnExporter) -> str:
    """The math worker's name."""
    names = {dict(labels)["worker"] for _, labels in exporter.metrics().of("celery_worker_concurrency", queue="math")}
    return max(names, default="")


def test_p05_a_producers_time_zone_changes_no_wait(stack: Stack, exporter: OwnExporter) -> None:
    # Elsewhere: hours too long, or zero.
    labels = {"queue": "math", "task": "math.add"}
    before = exporter.metrics()
    for zone in ("UTC-9", "UTC+8"):
        subprocess.run(
            [sys.executable, "-c", "from queues import tasks; tasks.add(1, 2).get(timeout=30)"],
            env={**os.environ, **stack.environment("producer"), "TZ": zone},
            check=True,
            timeout=60,
        )
    count, waited = "celery_task_queue_wait_seconds_count", "celery_task_queue_wait_seconds_sum"
    assert settled(exporter, count, before.sum(count, **labels) + 2, **labels)
    after = exporter.metrics()
    assert 0 < after.sum(waited, **labels) - before.sum(waited, **labels) < 10
    assert after.sum("celery_task_clock_skew_total") == before.sum("celery_task_clock_skew_total")


def test_p06_p20_p25_retries_failures_and_limits_have_wait_and_runtime(exporter: OwnExporter) -> None:
    # Elsewhere: a retry's wait is 0, only successes have a runtime, hard limits and lost processes are not seen.
    reliable, long = {"queue": "math", "task": "math.reliable_task"}, {"queue": "math", "task": "math.long_task"}
    before = exporter.metrics()
    tasks.reliable_task({"fail_times": 1}).get(timeout=PATIENCE)
    tasks.reliable_task({"fail": True}).get(timeout=PATIENCE, propagate=False)
    tasks.long_task.apply_async((5,), soft_time_limit=1).get(timeout=PATIENCE, propagate=False)
    for name, labels, more in (
        ("celery_task_queue_wait_seconds_count", reliable, 3),
        ("celery_task_retries_total", reliable, 1),
        ("celery_task_completions_total", reliable, 2),
        ("celery_task_end_to_end_seconds_count", reliable, 2),
        ("celery_task_runtime_seconds_count", {**reliable, "outcome": "retried"}, 1),
        ("celery_task_runtime_seconds_count", {**reliable, "outcome": "failed"}, 1),
        ("celery_task_timeouts_total", {**long, "kind": "soft"}, 1),
        ("celery_task_failures_total", {**long, "exception": "SoftTimeLimitExceeded"}, 1),
        ("celery_task_runtime_seconds_count", {**long, "outcome": "failed"}, 1),
    ):
        assert settled(exporter, name, before.sum(name, **labels) + more, **labels), name


def test_p07_nonsense_among_the_snapshots_stops_nothing(stack: Stack, exporter: OwnExporter) -> None:
    # Elsewhere: one event that does not fit ends the process, or silently the thread.
    before = exporter.metrics()
    nonsense = [b"", b"\xff", b"null", b'{"version": 1}', b"[" * 50_000]
    with channel(acting_as(stack, "operator")) as opened:
        for body in nonsense:
            opened.basic_publish(amqp.Message(body), exchange="metrics")
        opened.close()
    name = "celery_exporter_snapshots_malformed_total"
    assert settled(exporter, name, before.sum(name) + len(nonsense))
    tasks.add(1, 2).get(timeout=PATIENCE)
    started = "celery_task_started_total"
    assert settled(exporter, started, before.sum(started, **MATH) + 1, **MATH)


def snapshot(incarnation: str, worker: str, seq: int, *, bye: bool = False) -> bytes:
    """What a worker that does nothing sends."""
    series = [[name, "math.add", "", 0] for name in ("started", "completions", "retries")]
    message = {
        "version": 1,
        "incarnation": incarnation,
        "worker": worker,
        "queue": "math",
        "seq": seq,
        "started_at": time.time(),
        "sent_at": time.time(),
        "full": True,
        "due": 0.0,
        "gauges": {} if bye else {"concurrency": 2, "busy": 1},
        "bounds": QUEUES.queue("math").buckets,
        "series": series,
    }
    return json.dumps(message).encode()


def test_p08_p09_p10_p23_p29_a_thousand_workers_leave_no_series_and_no_memory(
    stack: Stack, exporter: OwnExporter
) -> None:
    # Elsewhere: two workers of one host are one; each pod adds 52 series a task, for ever; 1.5 GB after weeks.
    before = exporter.metrics()
    names = [f"math@pod-{number}" for number in range(1000)]
    with channel(acting_as(stack, "operator")) as opened:
        for number, name in enumerate(names):
            opened.basic_publish(amqp.Message(snapshot(f"one-{number}", name, 1)), exchange="metrics")
        opened.close()
    concurrency = "celery_worker_concurrency"
    assert awaited(lambda: len(exporter.metrics().of(concurrency)) == len(before.of(concurrency)) + 1000)
    crowded = exporter.metrics()
    assert set(crowded.of("celery_task_")) == set(before.of("celery_task_"))
    assert not [labels for _, labels in crowded.of("celery_task_") if {"worker", "hostname", "pid"} & {*dict(labels)}]
    with channel(acting_as(stack, "operator")) as opened:
        for number, name in enumerate(names[1:], 1):
            opened.basic_publish(amqp.Message(snapshot(f"one-{number}", name, 2, bye=True)), exchange="metrics")
        opened.close()
    assert awaited(lambda: len(exporter.metrics().of(concurrency)) == len(before.of(concurrency)) + 1)
    after = exporter.metrics()
    assert after.get(concurrency, queue="math", worker="math@pod-0") == 2
    assert (after.get("process_resident_memory_bytes") or 1e9) < 64 * 1024 * 1024


def test_p12_p13_p28_counts_are_exact_through_kills_and_two_exporters_agree(
    stack: Stack, exporter: OwnExporter
) -> None:
    # Elsewhere: what happens while the exporter is away for five seconds is lost, and its counters begin at zero.
    app, name = acting_as(stack, "producer"), "celery_task_completions_total"
    before, theirs = exporter.metrics(), Metrics.scrape(stack.metrics_url)
    sent, highest = 0, before.sum(name, **MATH)
    for step in range(3):
        for _ in range(40):
            app.send_task("math.add", (1, 2))
        sent += 40
        assert awaited(lambda least=highest: exporter.metrics().sum(name, **MATH) > least)  # type: ignore[misc]
        highest = exporter.metrics().sum(name, **MATH)
        exporter.end(signal.SIGKILL)
        if step == 1:
            stack.processes.restart("worker-math")
        exporter.start()
        # Whatever is shown after the start is not below what was shown before it.
        shown = awaited(lambda: exporter.ready and exporter.metrics().get(name, **MATH))
        assert shown
        assert shown >= highest
    assert settled(exporter, name, before.sum(name, **MATH) + sent, **MATH)
    assert awaited(lambda: Metrics.scrape(stack.metrics_url).sum(name, **MATH) == theirs.sum(name, **MATH) + sent)
    count = "celery_task_queue_wait_seconds_count"
    again, found = "celery_task_redeliveries_total", exporter.metrics()
    waits, returned = (found.sum(one, **MATH) - before.sum(one, **MATH) for one in (count, again))
    # The worker that was restarted may give back one that it had not begun: nobody knows the wait of a second delivery.
    assert waits + returned == sent, {
        key: (before.samples.get(key), value) for key, value in found.of("celery_task_", **MATH).items()
    }


def test_a_killed_worker_takes_nothing_along_that_it_had_sent(stack: Stack, exporter: OwnExporter) -> None:
    before, name = exporter.metrics().sum("celery_task_completions_total", **MATH), "celery_task_completions_total"
    for round_ in (1, 2):
        for running in [tasks.add(1, 2) for _ in range(10)]:
            running.get(timeout=PATIENCE)
        assert settled(exporter, name, before + 10 * round_, **MATH)
        os.kill(stack.processes.pid("worker-math"), signal.SIGKILL)
    tasks.add(1, 2).get(timeout=PATIENCE)
    assert settled(exporter, name, before + 21, **MATH)


def test_p12_an_exporter_that_hangs_loses_nothing(exporter: OwnExporter) -> None:
    before, name = exporter.metrics(), "celery_task_completions_total"
    assert exporter.process is not None
    exporter.process.send_signal(signal.SIGSTOP)
    try:
        for running in [tasks.add(1, 2) for _ in range(20)]:
            running.get(timeout=PATIENCE)
        time.sleep(6)  # longer than events live elsewhere
    finally:
        exporter.process.send_signal(signal.SIGCONT)
    assert settled(exporter, name, before.sum(name, **MATH) + 20, **MATH)


def test_an_exporter_with_an_id_in_use_counts_nothing_and_takes_over_when_it_is_free(
    stack: Stack, tmp_path: Path
) -> None:
    with OwnExporter(stack, tmp_path, "shared") as first, OwnExporter(stack, tmp_path, "shared") as second:
        first.start()
        assert awaited(lambda: first.ready)
        tasks.add(1, 2).get(timeout=PATIENCE)
        name = "celery_task_started_total"
        assert awaited(lambda: first.metrics().sum(name, **MATH) >= 1)
        second.start()
        assert awaited(lambda: "give each its own EXPORTER_ID" in second.page("/-/ready")[1])
        assert second.metrics().of("celery_task_") == {}
        counted = first.metrics().sum(name, **MATH)
        first.end(signal.SIGKILL)
        assert awaited(lambda: second.ready)
        assert second.metrics().sum(name, **MATH) == counted


def test_p15_a_queue_that_is_missing_takes_nothing_from_the_others(stack: Stack, exporter: OwnExporter) -> None:
    # Elsewhere: the whole scrape is 500, or the missing queue is an empty one.
    from ops import definitions

    operator = acting_as(stack, "operator")
    management = Management.from_env(stack.environment("operator"))
    try:
        with operator.connection_for_write() as connection, connection.channel() as deleting:
            deleting.queue_delete("image.dead")
        look = exporter.metrics
        assert awaited(lambda: look().get("celery_dead_letter_messages", queue="image") is None)
        found = look()
        assert found.get("celery_dead_letter_messages", queue="math") is not None
        assert found.get("celery_queue_up", queue="image") == 1
        assert found.get("celery_exporter_collector_success", collector="broker") == 1
    finally:
        document = definitions.objects(rabbitmq=(3, 10))
        with operator.connection_for_write() as connection, connection.channel() as making:
            (queue,) = [item for item in document["queues"] if item["name"] == "image.dead"]
            making.queue_declare("image.dead", durable=True, auto_delete=False, arguments=queue["arguments"])
            for item in document["bindings"]:
                if item["destination"] == "image.dead":
                    making.queue_bind("image.dead", item["source"], item["routing_key"])
        management.close()
    assert awaited(lambda: exporter.metrics().get("celery_dead_letter_messages", queue="image") == 0)


def test_p18_p21_p22_busy_processes_and_counts_of_the_main_process(stack: Stack, exporter: OwnExporter) -> None:
    # Elsewhere: a busy worker cannot say so; children count each for itself, in a folder that only grows.
    running = tasks.long_task(3)
    name = worker(exporter)
    assert awaited(lambda: exporter.metrics().get("celery_worker_busy_processes", queue="math", worker=name) == 1)
    oldest = exporter.metrics().get("celery_worker_oldest_task_start_timestamp_seconds", queue="math", worker=name)
    assert oldest is not None
    assert abs(time.time() - oldest) < 30
    pid = stack.processes.pid("worker-math")
    labels = {"queue": "math", "task": "math.long_task"}
    before = exporter.metrics()
    for child in children(pid):
        os.kill(child, signal.SIGKILL)
    running.get(timeout=PATIENCE)
    for lost, more in (("celery_task_worker_lost_total", 1), ("celery_task_completions_total", 1)):
        assert settled(exporter, lost, before.sum(lost, **labels) + more, **labels), lost
    for process in (pid, *children(pid)):
        assert (
            "prometheus_multiproc" not in Path(f"/proc/{process}/environ").read_bytes().decode(errors="replace").lower()
        )
        assert listening(process) == set()


def listening(pid: int) -> set[str]:
    """The TCP sockets that a process listens on."""
    inodes = set()
    for handle in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes.add(os.readlink(handle))  # noqa: PTH115 - the target is no path
        except OSError:
            continue
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return {row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes}


def test_p19_long_tasks_have_buckets(exporter: OwnExporter) -> None:
    # Elsewhere: everything beyond ten seconds is +Inf.
    found = exporter.metrics()
    for queue in QUEUES:
        edges = {
            float(dict(labels)["le"]) for _, labels in found.of("celery_task_runtime_seconds_bucket", queue=queue.name)
        }
        assert edges in (set(), {*queue.buckets, float("inf")})
        assert max(queue.buckets) >= min(queue.time_limit, 600) or queue.name == "math"


def test_p30_scrapes_and_probes_open_no_connection(stack: Stack, exporter: OwnExporter) -> None:
    # Elsewhere: one AMQP connection with TLS for each scrape, and one for each probe.
    management = Management.from_env(stack.environment("operator"))

    def connections() -> set[str]:
        found = management.get("/api/connections", columns="name,user,client_properties.connection_name")
        return {
            item["name"]
            for item in found
            if item.get("client_properties", {}).get("connection_name") == "exporter metrics.torture"
        }

    try:
        before = awaited(connections)
        assert len(before) == 1
        for _ in range(20):
            exporter.metrics()
            exporter.page("/-/ready")
            exporter.page("/-/healthy")
        assert connections() == before
    finally:
        management.close()


def test_a_restart_of_the_broker_loses_no_count(stack: Stack, exporter: OwnExporter) -> None:
    before, name = exporter.metrics(), "celery_task_completions_total"
    app = acting_as(stack, "producer")
    for running in [tasks.add(1, 2) for _ in range(20)]:
        running.get(timeout=PATIENCE)
    stack.processes.restart("broker")
    assert awaited(lambda: reaches(stack), 60)
    for _ in range(20):
        app.send_task("math.add", (1, 2))
    assert awaited(lambda: exporter.ready, 60)
    assert settled(exporter, name, before.sum(name, **MATH) + 40, **MATH)
    # A queue whose numbers are not known yet has no sample; it does not have a zero.
    assert awaited(lambda: exporter.metrics().get("celery_queue_up", queue="math") == 1, 60)


def reaches(stack: Stack) -> bool:
    """Whether the broker answers again."""
    try:
        return ready(acting_as(stack, "operator"), "math") >= 0
    except OSError:
        return False
