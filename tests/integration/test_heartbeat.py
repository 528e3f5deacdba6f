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

    def touched() -> float:
        """When the file was last touched; 0 while there is none, as in a worker that an earlier test made reconnect."""
        return path.stat().st_mtime if path.exists() else 0.0

    assert awaited(touched, 60)
    first = touched()
    assert awaited(lambda: touched() > first, 60)
    broker = stack.processes.pid("broker")
    os.kill(broker, signal.SIGSTOP)
    try:
        seen: list[float] = []

        def unchanged_for_three_looks() -> bool:
            seen.append(touched())
            return len(seen) > 220 and len(set(seen[-220:])) == 1

        assert awaited(unchanged_for_three_looks, 60)
    finally:
        os.kill(broker, signal.SIGCONT)
    assert awaited(lambda: touched() > seen[-1], 60)
    assert tasks.add(1, 2).get(timeout=PATIENCE) == 3
