"""What every integration test cleans up."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ops.local import Stack
from queues.topology import QUEUES, UNREAD_DEAD_LETTERS
from tests.conftest import STACKS, need_rabbitmq
from tests.integration.helpers import OPENED, acting_as

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.integration.helpers import Run


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A broker of one test file's own, with our users and queues, at which nothing works."""
    need_rabbitmq()
    with Stack(tmp_path_factory.mktemp("idle") / "home") as stack:
        stack.prepare()
        try:
            stack.broker.start()
            yield stack
        finally:
            stack.broker.stop(timeout_s=0)


@pytest.fixture(autouse=True)
def _close_apps() -> Iterator[None]:
    """Close the connections that a test opened."""
    yield
    while OPENED:
        OPENED.pop().close()


@pytest.fixture(autouse=True, scope="module")
def _empty_dead_letters() -> Iterator[None]:
    """Thousands of one file's dead letters would make every look of the next file's tests slow."""
    yield
    if STACKS:
        operator = acting_as(STACKS[0], "operator")
        with operator.connection_for_write() as connection, connection.channel() as channel:
            for queue in QUEUES:
                channel.queue_purge(queue.dead_letter)
            channel.queue_purge(UNREAD_DEAD_LETTERS)
        OPENED.remove(operator)
        operator.close()


@pytest.fixture
def run(stack: Stack, tmp_path: Path) -> Run:
    """The operator's command, run as a program."""

    def command(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "WARREN_HOME": str(stack.folder), "COLUMNS": "120", **changes}
        done = subprocess.run(
            [sys.executable, "-m", "ops", *arguments],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
            timeout=60,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return command
