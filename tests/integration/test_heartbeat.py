"""A worker is healthy while it consumes, and not while the broker does not answer."""

from __future__ import annotations

import os
import signal

import pytest

from ops.local import Stack
from queues import tasks
from tests.integration.helpers import PATIENCE, awaited

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("stubs")]


def test_the_file_is_fresh_while_the_worker_consumes_and_only_then(stack: Stack) -> None:
    path = stack.folder / "run" / "worker-math.alive"
    first = path.stat().st_mtime
    assert awaited(lambda: path.stat().st_mtime > first)
    broker = stack.processes.pid("broker")
    os.kill(broker, signal.SIGSTOP)
    try:
        seen: list[float] = []

        def unchanged_for_three_looks() -> bool:
            seen.append(path.stat().st_mtime if path.exists() else 0.0)
            return len(seen) > 220 and len(set(seen[-220:])) == 1

        assert awaited(unchanged_for_three_looks, 60)
    finally:
        os.kill(broker, signal.SIGCONT)
    assert awaited(lambda: path.exists() and path.stat().st_mtime > seen[-1], 60)
    assert tasks.add(1, 2).get(timeout=PATIENCE) == 3
