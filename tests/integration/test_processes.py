"""The embedded stack as processes: what Ctrl-C, a closed terminal and a killed command leave behind."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.integration.helpers import PATIENCE, awaited, processes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ops.local import Stack

pytestmark = pytest.mark.integration


def ctrl_c(terminal: int, _process: subprocess.Popen[bytes]) -> None:
    os.write(terminal, b"\x03")


def close_terminal(terminal: int, _process: subprocess.Popen[bytes]) -> None:
    os.close(terminal)


def kill(_terminal: int, process: subprocess.Popen[bytes]) -> None:
    process.kill()


#: What a person has seen when it is up, and while it starts.
UP, STARTING = b"Ctrl-C stops everything", b"starting services"


@pytest.mark.usefixtures("stack")  # where there is no RabbitMQ these are skipped with the others
@pytest.mark.parametrize(
    ("seen", "end", "code"),
    [
        (UP, ctrl_c, {0}),
        (UP, close_terminal, {0, 1}),  # 1 where it still had something to say
        (UP, kill, {-9}),
        (STARTING, ctrl_c, {130}),
        (STARTING, close_terminal, {130, 1}),
    ],
)
def test_nothing_is_left_running(
    tmp_path: Path, seen: bytes, end: Callable[[int, subprocess.Popen[bytes]], None], code: set[int]
) -> None:
    home = tmp_path / "home"
    terminal, inner = pty.openpty()

    def own_terminal() -> None:
        os.setsid()
        import fcntl
        import termios

        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        [sys.executable, "-m", "ops", "up"],
        stdin=inner,
        stdout=inner,
        stderr=inner,
        env={**os.environ, "WARREN_HOME": str(home)},
        preexec_fn=own_terminal,
    )
    os.close(inner)
    printed = b""
    try:
        while seen not in printed:
            printed += os.read(terminal, 4096)
        assert len(processes(str(home))) > (8 if seen is UP else 2)
        end(terminal, process)
        if end is ctrl_c:
            while True:
                try:
                    if not (more := os.read(terminal, 4096)):
                        break
                    printed += more
                except OSError:
                    break
        assert process.wait(60) in code, printed
        # A start is given up at once, without waiting for the rest to be up.
        assert (UP in printed) == (seen is UP)
        assert awaited(lambda: not processes(str(home)), 60), processes(str(home))
    finally:
        for pid in processes(str(home)):
            os.kill(pid, signal.SIGKILL)
        process.wait()
        if end is not close_terminal:
            os.close(terminal)


def test_the_running_task_is_finished_when_its_worker_is_stopped(stack: Stack, stubs: None) -> None:
    from queues import tasks

    running = tasks.long_task(3)
    assert awaited(lambda: running.state == "PROGRESS")
    stack.processes.restart("worker-math")
    assert running.get(timeout=PATIENCE) == {"status": "success", "total": 3}
    assert running.state == "SUCCESS"


def test_a_service_that_died_is_started_again(stack: Stack, stubs: None) -> None:
    from queues import tasks

    before = stack.processes.pid("worker-math")
    os.kill(before, signal.SIGKILL)
    assert awaited(lambda: stack.processes.pid("worker-math") not in (0, before))
    assert tasks.add(1, 2).get(timeout=PATIENCE) == 3
