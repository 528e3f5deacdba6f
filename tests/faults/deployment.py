"""A copy of the project with one queue more, added as docs/add-a-queue.md says: the product's table stays as it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

from tests.faults.kinds_limits import HARD, SOFT
from tests.integration.test_add_a_queue import apply, copy_of

PROJECT = Path(__file__).parent.parent.parent
#: Options whose value is a path.
PATHS = ("--results", "--keep")
QUEUE = "faults"
#: Seconds between two ticks of beat.
TICK = 2

_ROW = f"""\
        QueueSpec(
            name="{QUEUE}",
            module="tests.faults.tasks",
            concurrency=2,
            tasks=(
                TaskSpec(name="faults.run", soft_time_limit=50, time_limit=60),
                TaskSpec(name="faults.die", soft_time_limit=50, time_limit=60),
                TaskSpec(name="faults.swallow", soft_time_limit=50, time_limit=60),
                TaskSpec(
                    name="faults.again",
                    soft_time_limit=50,
                    time_limit=60,
                    max_retries=12,
                    retry_backoff=1,
                    retry_backoff_max=1,
                ),
                TaskSpec(name="faults.once", soft_time_limit=4, time_limit=5, once=True),
                TaskSpec(
                    name="faults.own",
                    soft_time_limit=50,
                    time_limit=60,
                    max_retries=1,
                    retry_backoff=1,
                    retry_backoff_max=1,
                ),
                TaskSpec(name="faults.brief", soft_time_limit={SOFT}, time_limit={HARD}),
                TaskSpec(name="faults.meet", soft_time_limit=50, time_limit=60),
                TaskSpec(name="faults.echo", soft_time_limit=50, time_limit=60),
                TaskSpec(name="faults.pair", soft_time_limit=50, time_limit=60),
                TaskSpec(name="faults.tick", soft_time_limit=5, time_limit=10, every={TICK}.0, expires={TICK - 1}.0),
            ),
        ),"""


def copy(project: Path, target: Path, rows: str = "") -> Path:
    """Copy what git tracks or would, and add the row, and others."""
    root = copy_of(project, target)
    for row in filter(None, (_ROW, rows)):
        apply(root, "queues/topology.py", row)
    return root


def run(module: str, words: list[str], rows: str = "") -> int:
    """Run a module again in a copy of the project, relative paths made absolute; gives its exit code."""
    given = [str(Path(word).resolve()) if before in PATHS else word for before, word in pairwise(["", *words])]
    with tempfile.TemporaryDirectory(prefix="warren-faults-") as name:
        root = copy(PROJECT, Path(name) / "project", rows)
        environment = {**os.environ, "PYTHONPATH": str(root), "FAULTS_PROJECT": str(PROJECT)}
        process = subprocess.Popen([sys.executable, "-m", module, *given], cwd=root, env=environment)
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            return process.wait(60)
