"""The exporter against real work: each count exact, depth from the real broker."""

from __future__ import annotations

import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ops.local import Stack
from queues import tasks
from tests.integration.helpers import PATIENCE, awaited

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("stubs")]


def samples(stack: Stack) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    with urllib.request.urlopen(stack.metrics_url, timeout=10) as answer:
        text = answer.read().decode()
    families = text_string_to_metric_families(text)
    return {
        (item.name, tuple(sorted(item.labels.items()))): item.value for family in families for item in family.samples
    }


def value(stack: Stack, name: str, **labels: str) -> float:
    return samples(stack).get((name, tuple(sorted(labels.items()))), 0.0)


def test_each_run_is_counted_once_with_wait_and_runtime(stack: Stack) -> None:
    labels = {"queue": "math", "task": "math.multiply"}
    names = ("celery_task_started_total", "celery_task_completions_total", "celery_task_queue_wait_seconds_count")
    before = {name: value(stack, name, **labels) for name in names}
    ran = value(stack, "celery_task_runtime_seconds_count", outcome="succeeded", **labels)
    for running in [tasks.multiply(i, i) for i in range(25)]:
        running.get(timeout=PATIENCE)
    wanted = {name: count + 25 for name, count in before.items()}
    assert awaited(lambda: {name: value(stack, name, **labels) for name in names} == wanted)
    assert value(stack, "celery_task_runtime_seconds_count", outcome="succeeded", **labels) == ran + 25


def test_an_error_value_counts_as_a_failure_and_a_retry_as_a_retry(stack: Stack) -> None:
    labels = {"queue": "math", "task": "math.reliable_task"}
    failures = value(stack, "celery_task_failures_total", exception="reported", **labels)
    raised = value(stack, "celery_task_failures_total", exception="PermanentError", **labels)
    retries = value(stack, "celery_task_retries_total", **labels)
    tasks.reliable_task({"fail": True}, raise_on_error=False).get(timeout=PATIENCE)
    tasks.reliable_task({"fail": True}).get(timeout=PATIENCE, propagate=False)
    tasks.reliable_task({"fail_times": 1}).get(timeout=PATIENCE)
    assert awaited(lambda: value(stack, "celery_task_failures_total", exception="reported", **labels) == failures + 1)
    assert awaited(
        lambda: value(stack, "celery_task_failures_total", exception="PermanentError", **labels) == raised + 1
    )
    assert awaited(lambda: value(stack, "celery_task_retries_total", **labels) == retries + 1)


def test_an_expired_tick_is_counted(stack: Stack) -> None:
    labels = {"queue": "monitor", "task": "monitor.check_status", "reason": "expired"}
    before = value(stack, "celery_task_revocations_total", **labels)
    tasks.check_status.apply_async(expires=-5)
    assert awaited(lambda: value(stack, "celery_task_revocations_total", **labels) == before + 1)


def test_depth_and_dead_letters_come_from_the_broker(stack: Stack) -> None:
    assert awaited(
        lambda: all(value(stack, "celery_queue_consumers", queue=name) == 1 for name in ("math", "image", "email"))
    )
    before = value(stack, "celery_dead_letter_messages", queue="math")
    tasks.reliable_task({"fail": True}).get(timeout=PATIENCE, propagate=False)
    assert awaited(lambda: value(stack, "celery_dead_letter_messages", queue="math") == before + 1)
    assert value(stack, "celery_queue_up", queue="math") == 1
    assert value(stack, "celery_broker_up") == 1


def test_a_restarted_worker_adds_to_the_sums(stack: Stack) -> None:
    labels = {"queue": "math", "task": "math.add"}
    before = value(stack, "celery_task_started_total", **labels)
    tasks.add(1, 2).get(timeout=PATIENCE)
    stack.processes.restart("worker-math")
    tasks.add(1, 2).get(timeout=PATIENCE)
    assert awaited(lambda: value(stack, "celery_task_started_total", **labels) == before + 2)
