"""docs/add-a-queue.md, followed in a copy of the project: all steps pass, and each one forgotten names its file."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

CHECKS = (
    "tests/drift/test_compose_file.py",
    "tests/drift/test_docs.py",
    "tests/unit/test_stubs.py",
    "tests/drift/test_tasks.py",
)
AFTER = {
    "queues/topology.py": '        QueueSpec(\n            name="email"',
    "queues/tasks.py": '@stub("monitor.check_status")',
    "docker-compose.rabbitmq.yml": "  # One only: two would send every tick twice.",
}


def steps(project: Path) -> dict[str, str]:
    text = (project / "docs" / "add-a-queue.md").read_text()
    found = re.findall(r"<!-- step: (\S+) -->\n +```\w+\n(.*?)\n +```", text, re.DOTALL)
    return {name: re.sub(r"^ {3}", "", block, flags=re.MULTILINE) + "\n" for name, block in found}


def copy_of(project: Path, target: Path) -> Path:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=project, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if (project / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(project / name, target / name)
    return target


def apply(root: Path, name: str, block: str) -> None:
    path = root / name
    if not path.exists():
        path.write_text(block)
        return
    text = path.read_text()
    assert AFTER[name] in text, f"{name}: the place to add at is gone, mend AFTER"
    path.write_text(text.replace(AFTER[name], f"{block}\n{AFTER[name]}", 1))


def check(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *CHECKS],
        cwd=root,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )


def render(root: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "ops", "render"],
        cwd=root,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(root)},
        check=True,
    )


@pytest.mark.parametrize(
    "forgotten", [None, "workers/pdf_tasks.py", "queues/tasks.py", "docker-compose.rabbitmq.yml", "make render"]
)
def test_each_step_of_the_recipe_is_needed_and_enough(project: Path, tmp_path: Path, forgotten: str | None) -> None:
    root = copy_of(project, tmp_path)
    for name, block in steps(project).items():
        if name != forgotten:
            apply(root, name, block)
    if forgotten != "make render":
        render(root)
    done = check(root)
    if forgotten is None:
        assert done.returncode == 0, done.stdout
    else:
        assert done.returncode == 1, done.stdout
        assert forgotten in done.stdout
