"""What a producer loads, and what each stub promises."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("PIL", "prometheus_client", "pydantic", "cryptography", "rich", "sqlalchemy", "redis", "workers", "ops")


def modules_after(code: str) -> set[str]:
    script = f"import sys, json; {code}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(done.stdout)}


@pytest.mark.parametrize(
    "code", ["import queues", "import queues.tasks", "import queues; queues.tasks.add.check([1, 2], {})"]
)
def test_a_producer_stays_light(code: str) -> None:
    assert not modules_after(code) & set(HEAVY)


def test_importing_reads_no_settings_and_connects_to_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import queues.tasks"], env={"BROKER_HOSTS": "!!"}, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
