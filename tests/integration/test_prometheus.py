"""Dashboards, rules and scrape configuration on a real Prometheus that scrapes a real stack."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from ops import dashboards
from tests.integration.helpers import PATIENCE, acting_as, awaited
from tests.integration.prometheus import Prometheus, find

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ops.local import Stack

pytestmark = pytest.mark.integration

QUERIES = [
    pytest.param(expression, id=f"{board.uid.removeprefix('warren-')}-{panel.title}-{number}")
    for board in dashboards.dashboards()
    for panels in board.rows.values()
    for panel in panels
    for number, expression in enumerate(panel.queries.values())
]


@pytest.fixture(scope="module")
def prometheus(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has seen work of every kind: success, failure, retry, delay, a message that is none."""
    find("prometheus")
    with Prometheus(stack.folder / "prometheus.yml", tmp_path_factory.mktemp("prometheus")) as running:
        app = acting_as(stack, "producer")
        assert awaited(lambda: running.value('sum(celery_task_started_total{queue="math"})') is not None)
        with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
            producer.publish(b"nonsense", exchange="tasks.math", routing_key="math", content_type="application/json")
        later = app.send_task("math.reliable_task", ({"fail_times": 1},))
        sent = [app.send_task("math.add", (i, i)) for i in range(20)]
        sent += [app.send_task("math.multiply", (i, i), countdown=1) for i in range(3)]
        sent += [app.send_task("math.reliable_task", ({"fail": True},)) for _ in range(2)]
        sent.append(app.send_task("image.inspect_image", ("missing.png",)))
        reader = acting_as(stack, "operator")
        for result in (*sent, later):
            reader.AsyncResult(result.id).get(timeout=PATIENCE, propagate=False)
        # A rate needs two scrapes, the broker's statistics are five seconds old, rules are evaluated after that.
        assert awaited(lambda: running.value('max(queue:celery_task_started:rate5m{queue="math"}) > 0'))

        def acknowledged() -> float | None:
            # A counter that is first seen when all is done does not rise any more.
            app.send_task("math.add", (1, 1))
            return running.value("max(rate(celery_queue_messages_acknowledged_total[1m])) > 0")

        assert awaited(acknowledged)
        assert awaited(lambda: running.value("max(queue_task:celery_task_failures:ratio10m) > 0"))
        yield running


def test_both_targets_answer(prometheus: Prometheus) -> None:
    assert prometheus.value('up{job="warren"}') == 1
    assert awaited(lambda: prometheus.value('up{job="rabbitmq"}') == 1)
    assert awaited(lambda: prometheus.value("rabbitmq_connections") is not None)


def test_prometheus_counts_what_was_done(prometheus: Prometheus) -> None:
    for query, least in (
        ('celery_task_completions_total{task="math.add"}', 20),
        ('celery_task_queue_wait_seconds_count{task="math.multiply"}', 3),
        ('celery_task_eta_lateness_seconds_count{task="math.multiply"}', 3),
        ('celery_task_failures_total{task="math.reliable_task",exception="PermanentError"}', 2),
        ('celery_task_retries_total{task="math.reliable_task"}', 1),
        ('sum(celery_task_rejections_total{queue="math"})', 1),
    ):
        assert awaited(lambda query=query, least=least: (prometheus.value(query) or 0) >= least), query  # type: ignore[misc]


def substituted(expression: str) -> str:
    """An expression as Grafana sends it while everything is chosen."""
    return re.sub(r"\$(queue|task)\b", ".+", expression)


@pytest.mark.parametrize("expression", QUERIES)
def test_every_panel_shows_something(stack: Stack, prometheus: Prometheus, expression: str) -> None:
    query = substituted(expression)
    if "oldest_task_start" in query:
        acting_as(stack, "producer").send_task("math.long_task", (4,))
    assert "$" not in query
    assert awaited(lambda: prometheus.query(query)), query


def test_every_rule_can_be_evaluated_and_the_right_alert_is_up(prometheus: Prometheus) -> None:
    groups: list[dict[str, Any]] = prometheus.get("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) > 30
    assert [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] == "err"] == []
    # Dead letters were made; everything else is well.
    wanted = {("WarrenDeadLetters", "math"), ("WarrenDeadLetters", "image")}
    assert awaited(lambda: active(prometheus) >= wanted), active(prometheus)
    assert {name for name, _ in active(prometheus)} <= {"WarrenDeadLetters", "WarrenFailures"}


def active(prometheus: Prometheus) -> set[tuple[str, str | None]]:
    """Alerts whose condition holds, with their queue."""
    found = prometheus.get("alerts")["alerts"]
    return {(alert["labels"]["alertname"], alert["labels"].get("queue")) for alert in found}
