"""Every command of the README: run here, or in the test named beside it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ops.local import Stack

pytestmark = pytest.mark.integration

COMPOSE = "tests/compose/test_compose.py"
#: Commands that another test runs.
ELSEWHERE = {
    "make test": ".ci/run",
    "docker compose -f docker-compose.rabbitmq.yml build": COMPOSE,
    "docker compose -f docker-compose.rabbitmq.yml up -d --wait": COMPOSE,
    "docker compose -f docker-compose.rabbitmq.yml run --rm ops status": COMPOSE,
    "docker compose -f docker-compose.rabbitmq.yml up -d --wait --scale worker-image=3": COMPOSE,
}


def commands(project: Path) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", (project / "README.md").read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_every_command_of_the_readme_is_run(project: Path, stack: Stack, tmp_path: Path) -> None:
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in ("examples", ".venv"):
        (folder / name).symlink_to(project / name)
    (folder / ".warren").symlink_to(stack.folder)
    here = [line for line in commands(project) if line not in ELSEWHERE and not line.startswith("make ")]
    assert len(here) >= 8
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    if not (project / ".venv").exists():
        here = [line for line in here if "activate" not in line]
    done = subprocess.run(
        ["bash", "-euxc", "\n".join(here)], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "5 processed_dogs.jpg" in done.stdout
    assert "100 x math.add confirmed" in done.stdout
    assert "broker and table agree" in done.stdout


def test_commands_run_elsewhere_really_are(project: Path) -> None:
    written = commands(project)
    for command, place in ELSEWHERE.items():
        assert command in written, f"tests/integration/test_readme.py: {command} is no longer in the README"
        text = (project / place).read_text()
        words = shlex.split(command)
        assert all(word in text for word in words[-3:] if word not in ("up", "docker")), (
            f"{place} does not run {command}"
        )


def test_make_demo_shows_that_everything_is_as_expected(project: Path, tmp_path: Path) -> None:
    assert "make demo" in commands(project)
    done = subprocess.run(
        [sys.executable, "-m", "ops", "demo"],
        cwd=tmp_path,
        env={**os.environ, "WARREN_HOME": str(tmp_path / "home"), "COLUMNS": "140"},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "everything as expected" in done.stdout
    assert "turned upright" in done.stdout
