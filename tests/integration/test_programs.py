"""The programs that a task started end with it, however they were started and however it ends."""

from __future__ import annotations

import functools
import os
import signal
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from queues.app import create_app
from queues.settings import Settings
from tests.integration.helpers import OPENED, PATIENCE, acting_as, awaited, children, ended, start
from tests.integration.lab_table import LAB, WAYS

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

    from ops.local import Stack
    from queues.app import WarrenCelery

pytestmark = pytest.mark.integration


@pytest.fixture
def lab(idle: Stack) -> WarrenCelery:
    """A producer that knows the tests' own tasks, too."""
    app = create_app(Settings.from_env(idle.environment("producer")), LAB, name="test-lab")
    OPENED.append(app)
    return app


@pytest.fixture
def begin(idle: Stack, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Start a math worker with the tests' own tasks."""
    started: list[subprocess.Popen[bytes]] = []

    def begin() -> subprocess.Popen[bytes]:
        environment = {
            **idle.environment("worker-math"),
            "JOURNAL": str(tmp_path / "journal"),
            "REMOTE_CONTROL": "full",
        }
        log = tmp_path / f"worker{len(started)}.log"
        started.append(start(environment, "worker", "-Q", "math", log=log, app="tests.integration.lab"))
        return started[-1]

    yield begin
    for process in started:
        process.terminate()
        ended(process)


def marked(text: str) -> dict[int, str]:
    """Processes that have this in their command line or environment, or in the name of a file that they hold open."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            command = (folder / "cmdline").read_bytes()
            names = [os.fsencode(link.readlink()) for link in (folder / "fd").iterdir()]
            if any(text.encode() in each for each in (command, (folder / "environ").read_bytes(), *names)):
                found[int(folder.name)] = command.replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
    return found


def journal(folder: Path) -> list[str]:
    path = folder / "journal"
    return path.read_text().splitlines() if path.exists() else []


def launched(lab: WarrenCelery, folder: Path, way: str, then: str) -> str:
    """Have a task start a program and wait until it has; gives the program's mark."""
    mark = f"program-{uuid.uuid4().hex}"
    lab.send_task("math.launch", [way, mark, then])
    assert awaited(lambda: f"{mark} started" in journal(folder) and marked(mark)), (way, then)
    return mark


def test_programs_end_with_their_task(
    idle: Stack, lab: WarrenCelery, begin: Callable[[], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """By a soft or a hard time limit, by the death of the process, and by an operator."""
    begin()
    operator = acting_as(idle, "operator")
    marks: dict[tuple[str, str], str] = {}
    for then in ("soft", "hard", "kill", "revoked"):
        for way in WAYS if then != "revoked" else ("grandchild", "bare-session", "daemon"):
            # Nothing tells where that one came from once its parent is dead.
            if (way, then) != ("bare-session", "kill"):
                marks[way, then] = mark = f"program-{uuid.uuid4().hex}"
                task = lab.send_task("math.launch", [way, mark, then])
                if then == "revoked":
                    started = f"{mark} started"
                    assert awaited(functools.partial(lambda line: line in journal(tmp_path), started)), way
                    operator.control.revoke(task.id, terminate=True)
    assert awaited(lambda: all(f"{mark} started" in journal(tmp_path) for mark in marks.values()))
    assert awaited(lambda: lab.send_task("math.add", [1, 1]).get(timeout=PATIENCE) == 2)
    assert awaited(lambda: not left(marks), patience=30) is True, left(marks)


def left(marks: dict[tuple[str, str], str]) -> dict[tuple[str, str], dict[int, str]]:
    """What runs of all these."""
    return {case: found for case, mark in marks.items() if (found := marked(mark))}


def test_what_a_task_leaves_runs_until_its_process_ends(
    lab: WarrenCelery, begin: Callable[[], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    worker = begin()
    kept = {way: launched(lab, tmp_path, way, "end") for way in WAYS}
    ended_by_limit = launched(lab, tmp_path, "grandchild", "soft")
    assert awaited(lambda: not marked(ended_by_limit))
    # Other tasks' programs are not touched, though that one ran in the same process.
    assert all(marked(mark) for mark in kept.values())
    worker.terminate()
    assert ended(worker) == 0
    assert awaited(lambda: not any(marked(mark) for mark in kept.values())), kept


def test_what_a_killed_worker_left_is_ended_by_the_next(
    lab: WarrenCelery, begin: Callable[[], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    worker = begin()
    marks = [launched(lab, tmp_path, way, "end") for way in ("popen", "grandchild", "left-by-shell", "executed-daemon")]
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    assert all(marked(mark) for mark in marks)
    begin()
    assert awaited(lambda: not any(marked(mark) for mark in marks))


def test_zombies_are_not_left(lab: WarrenCelery, begin: Callable[[], subprocess.Popen[bytes]], tmp_path: Path) -> None:
    worker = begin()
    marks = [launched(lab, tmp_path, way, "kill") for way in ("grandchild", "left-by-shell")]
    assert awaited(lambda: not any(marked(mark) for mark in marks))
    assert awaited(lambda: all(state(child) != "Z" for child in children(worker.pid)))


def state(pid: int) -> str:
    """One letter; nothing where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
