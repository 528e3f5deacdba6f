"""Every command of the README: run here, or in the test named beside it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ops.local import Stack

pytestmark = pytest.mark.integration

#: Beginnings of commands that another test runs.
ELSEWHERE = {
    "make ": ".ci/run",
    "docker compose ": "tests/compose/test_compose.py",
    "python3 -m ops check --compose": "tests/compose/test_compose.py",
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
    here = [line for line in commands(project) if not line.startswith(tuple(ELSEWHERE))]
    assert len(here) >= 8
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    if not (project / ".venv").exists():
        here = [line for line in here if "activate" not in line]
    done = subprocess.run(
        ["bash", "-euxc", "\n".join(here)], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 processed_dogs-320x320-fit-" in done.stdout
    assert "100 x math.add confirmed" in done.stdout
    assert "broker and table agree" in done.stdout


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
    assert "one of 1 in math.dead" in done.stdout
