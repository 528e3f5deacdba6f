"""The row of the queue that runs Celery's test tasks; their names come from Celery's module when a copy is made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.faults.deployment import copy

QUEUE = "celery"
#: Seconds; longer than any test waits.
SOFT, HARD = 900, 930
#: Where the table's naming rule stands: Celery's tasks are called t.integration.tasks.add and the like.
RULES = {
    '_TASK_NAME = re.compile(r"[a-z][a-z0-9-]*\\.[a-z][a-z0-9_]*")': '_TASK_NAME = re.compile(r".+")',
    'if not task.name.startswith(f"{self.name}."):': (
        f'if self.name != "{QUEUE}" and not task.name.startswith(f"{{self.name}}."):'
    ),
}
_NAMES = """
import json
from celery import Celery
app = Celery("names")
app.set_current()
import t.integration.tasks as module
app.register_task(module.ClassBasedAutoRetryTask())
app.finalize()
found = {name: bool(task.ignore_result) for name, task in app.tasks.items() if not name.startswith("celery.")}
print(json.dumps(found))
"""


def names(python: str, tests: Path) -> dict[str, bool]:
    """Celery's test tasks, and whether each wants no result."""
    done = subprocess.run([python, "-c", _NAMES], cwd=tests, stdout=subprocess.PIPE, text=True, check=True, timeout=120)
    found: dict[str, bool] = json.loads(done.stdout)
    return found


def row(tasks: dict[str, bool]) -> str:
    """The queue in the table."""
    specs = "\n".join(
        f'TaskSpec(name="{name}", soft_time_limit={SOFT}, time_limit={HARD}, ignore_result={ignored}),'
        for name, ignored in sorted(tasks.items())
    )
    return f'QueueSpec(name="{QUEUE}", module="tests.suites.tasks", concurrency=1, tasks=(\n{specs}\n)),'


def make(project: Path, target: Path, tasks: dict[str, bool]) -> Path:
    """A copy of the project with that queue."""
    root = copy(project, target, row(tasks))
    path = root / "queues/topology.py"
    text = path.read_text()
    for old, new in RULES.items():
        if old not in text:
            sys.exit(f"queues/topology.py: the naming rule is another one, mend RULES in {__file__}")
        text = text.replace(old, new)
    path.write_text(text)
    return root
