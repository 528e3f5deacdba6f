"""`pip install .` gives a producer, elsewhere and alone, what it needs and no more."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.integration.test_add_a_queue import copy_of

if TYPE_CHECKING:
    from pathlib import Path

    from ops.local import Stack

pytestmark = pytest.mark.integration


def test_a_producer_installed_into_an_empty_environment_enqueues(stack: Stack, project: Path, tmp_path: Path) -> None:
    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    elsewhere.mkdir()
    copy_of(project, source)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", source], check=True)
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    )
    names = {line.partition("==")[0].lower() for line in listed.stdout.splitlines()}
    assert "celery" in names
    assert not names & {"pillow", "prometheus-client", "sqlalchemy", "redis", "cryptography", "rich", "pydantic"}
    environment = {name: value for name, value in stack.environment("producer").items() if name != "RESULT_BACKEND"}
    code = "from queues import tasks; import queues; print(tasks.add(2, 3).id, queues.__file__)"
    done = subprocess.run([python, "-c", code], env=environment, cwd=elsewhere, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "venv") in done.stdout
    warren = subprocess.run([tmp_path / "venv" / "bin" / "warren", "status"], capture_output=True, text=True)
    assert "install the operator's packages with pip install '.[ops]'" in warren.stderr
