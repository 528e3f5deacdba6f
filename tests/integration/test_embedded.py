"""A worker in a thread, as applications' tests start one with Celery's fixtures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.conftest import need_rabbitmq
from tests.integration.helpers import PROJECT, acting_as, consumers

if TYPE_CHECKING:
    from pathlib import Path

    from ops.local import Stack

pytestmark = pytest.mark.integration

#: A program that starts a worker in each pool, and once more, with what Celery's fixture does by default.
AGAIN = """
import faulthandler, json, os, sys, threading, time
faulthandler.dump_traceback_later(100, exit=True)
import celery.contrib.testing.tasks
from celery import chord
from celery.contrib.testing.worker import start_worker
from queues.app import create_app
from queues.settings import Settings
from workers import heartbeat
from workers.app import app

operator = create_app(Settings.from_env(json.loads(os.environ["OPERATOR"])))
heartbeat.STALL_LIMIT = 0.01
for pool in ("solo", "prefork", "workers.limits:TaskPool", "solo"):
    with start_worker(app, pool=pool, queues=["math"]) as worker:
        from workers.math_tasks import add, xsum
        total = chord([add.s(1, 2), add.s(3, 4)])(xsum.s()).get(timeout=60)
        try:
            app.send_task("math.add", (1,)).get(timeout=60)
        except Exception as exc:
            wrong = exc.code
        answers = operator.control.ping(timeout=60, limit=1)
        print(pool, worker.consumer.hostname.partition("@")[0], total, wrong, len(answers))
"""
WRONG = """
from celery.contrib.testing.worker import start_worker
from workers.app import app
with start_worker(app, perform_ping_check=False, **OPTIONS):
    pass
"""


def program(stack: Stack, text: str) -> subprocess.CompletedProcess[str]:
    """A program with the settings of the math worker."""
    return subprocess.run(
        [sys.executable, "-c", text],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(PROJECT),
            "OPERATOR": json.dumps(stack.environment("operator")),
            **stack.environment("worker-math"),
        },
        cwd=stack.folder,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_it_works_in_each_pool_again_and_again(idle: Stack) -> None:
    done = program(idle, AGAIN)
    lines = [f"{pool} math 10 wrong-arguments 1" for pool in ("solo", "prefork", "workers.limits:TaskPool", "solo")]
    assert done.stdout.splitlines() == lines, done.stderr
    assert done.returncode == 0
    assert "Traceback" not in done.stderr, "a result is taken as from a process of a pool"
    assert consumers(acting_as(idle, "operator"), "math") == 0


@pytest.mark.parametrize("options", [{}, {"queues": ["math", "image"]}])
def test_without_its_one_queue_it_is_refused_at_once(idle: Stack, options: dict[str, list[str]]) -> None:
    done = program(idle, WRONG.replace("OPTIONS", repr(options)))
    assert "queues.errors.ConfigurationError: a worker consumes exactly one queue: give start_worker" in done.stderr


def test_the_example_of_the_docs_passes(project: Path, tmp_path: Path) -> None:
    need_rabbitmq()
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-c",
            "/dev/null",
            "-p",
            "no:cacheprovider",
            project / "examples/test_tasks.py",
        ],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(project), "HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "3 passed" in done.stdout, done.stdout + done.stderr
