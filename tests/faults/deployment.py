"""A copy of the project with one queue more, added as docs/add-a-queue.md says: the product's table stays as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.faults.kinds_limits import HARD, SOFT
from tests.integration.test_add_a_queue import apply, copy_of

if TYPE_CHECKING:
    from pathlib import Path

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


def copy(project: Path, target: Path) -> Path:
    """Copy what git tracks or would, and add the row."""
    root = copy_of(project, target)
    apply(root, "queues/topology.py", _ROW)
    return root
