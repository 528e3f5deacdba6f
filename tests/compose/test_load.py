"""Under load from the host: scaling, a rolling restart, the death of a worker and of the broker. Nothing is lost."""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.compose.deployment import PROVISION, eventually

if TYPE_CHECKING:
    from tests.compose.deployment import Deployment

pytestmark = pytest.mark.compose

TASK = "image.process_image"
CONSUMERS = 'celery_queue_consumers{queue="image"}'


def settle(deployment: Deployment, sent: list[str], before: float, *, exact: bool) -> None:
    """All tasks succeed; where nothing died, none was run twice, by the workers' own count."""
    deployment.await_success(sent)
    print(f"\n{len(sent)} sent, lost 0", end="")
    if exact:
        eventually(lambda: deployment.completions(TASK) - before >= len(sent), "not every task was counted")
        time.sleep(6)  # a worker tells what it did every 5 s: what was done twice would be counted by now
        doubled = deployment.completions(TASK) - before - len(sent)
        print(f", doubled {doubled:g}", end="")
        assert doubled == 0


def kill(deployment: Deployment, name: str) -> None:
    """End a container without a word, as a machine does that loses its power."""
    subprocess.run(["docker", "kill", name], check=True, capture_output=True, timeout=30)


def test_image_workers_scale_under_load(deployment: Deployment) -> None:
    before = deployment.completions(TASK)
    with deployment.load() as found:
        for replicas in (4, 1):
            deployment.compose("up", "-d", "--wait", "--no-recreate", "--scale", f"worker-image={replicas}")
            eventually(
                lambda replicas=replicas: deployment.queues()["image"]["consumers"] == replicas,  # type: ignore[misc]
                f"the queue image has not {replicas} consumers",
            )
            if replicas == 4:
                eventually(lambda: deployment.ask_prometheus(CONSUMERS) == 4, "Prometheus does not see the workers")
        assert deployment.queues()["math"]["consumers"] == 1
    settle(deployment, found["sent"], before, exact=True)


def test_rolling_restart_under_load(deployment: Deployment) -> None:
    """Workers first: each is replaced while producers go on."""
    before = deployment.completions(TASK)
    with deployment.load() as found:
        deployment.compose("up", "-d", "--wait", "--no-deps", "--force-recreate", "worker-image")
        deployment.compose("up", "-d", "--wait", "--no-deps", "--force-recreate", "valkey")
    settle(deployment, found["sent"], before, exact=True)


def test_update_under_load(deployment: Deployment) -> None:
    """New images for everything of ours: broker and result store go on."""
    deployment.up()  # Compose takes what was recreated without its dependencies for changed
    before, starts = deployment.completions(TASK), deployment.starts()
    with deployment.load() as found:
        deployment.retag()
        deployment.compose(*PROVISION)
        deployment.up()
    settle(deployment, found["sent"], before, exact=True)
    now = deployment.starts()
    kept = {name for name in starts if now[name] == starts[name]}
    assert kept == {f"/{deployment.container(name)}" for name in ("rabbitmq", "valkey", "prometheus")}


def test_death_of_a_worker_under_load(deployment: Deployment) -> None:
    with deployment.load() as found:
        deployment.compose("up", "-d", "--wait", "--no-recreate", "--scale", "worker-image=2")
        kill(deployment, deployment.container("worker-image", 2))
        deployment.compose("up", "-d", "--wait", "--no-recreate", "--scale", "worker-image=1")
    settle(deployment, found["sent"], 0, exact=False)


def test_death_of_the_broker_under_load(deployment: Deployment) -> None:
    with deployment.load() as found:
        eventually(lambda: deployment.queues()["image"]["consumers"] >= 1, "no worker consumes")
        kill(deployment, deployment.container("rabbitmq"))
        deployment.compose("up", "-d", "--wait")
        time.sleep(3)
    settle(deployment, found["sent"], 0, exact=False)
    print(f", {found['again']} repeats of a producer", end="")
