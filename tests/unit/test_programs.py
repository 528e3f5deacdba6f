from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from workers import programs
from workers.programs import VARIABLE, end, end_all_of, end_orphans, look, now, started_by

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")

HERE = os.getpid()
MARK = "task-0123456789"


@pytest.fixture
def run() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a program that does nothing."""
    started: list[subprocess.Popen[bytes]] = []

    def run(code: str = "", **options: Any) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-Sc", f"{code}\nprint(flush=True)\nimport time; time.sleep(60)"]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, **options))
        output = started[-1].stdout
        assert output is not None
        output.readline()
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def found(pid: int, mark: str = MARK, **options: Any) -> set[int]:
    return {program.pid for program in started_by(pid, mark, **options)}


def test_a_process_as_the_kernel_tells_it(run: Callable[..., subprocess.Popen[bytes]]) -> None:
    before = now()
    process = run("import ctypes; ctypes.CDLL(None).prctl(15, b'a) Z (1 2', 0, 0, 0)", start_new_session=True)
    seen = look(process.pid)
    assert seen is not None
    assert (seen.name, seen.parent, seen.session) == ("a) Z (1 2", HERE, process.pid)
    assert before - 1 <= seen.begun <= now() + 1
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert look(process.pid) is None, "a zombie runs no more"
    assert look(2**22 + 1) is None


@pytest.mark.parametrize("by", ["parent", "session", "name", "environment", "its parent"])
def test_what_a_process_started_is_found(run: Callable[..., subprocess.Popen[bytes]], by: str) -> None:
    if by == "parent":
        process = run(start_new_session=True, env={})
        assert process.pid in found(HERE)
        return
    if by in ("its parent", "session"):
        options = "start_new_session=True, env={}" if by == "its parent" else "env={}"
        outer = run(f"import subprocess; subprocess.Popen(['/bin/sleep', '60'], {options})", start_new_session=True)
        if by == "session":
            outer.kill()
            outer.wait()
        assert len(found(outer.pid)) == 1
        end_all_of(outer.pid, MARK)
        assert not found(outer.pid)
        return
    name = f"import ctypes; ctypes.CDLL(None).prctl(15, b'{MARK}', 0, 0, 0)"
    process = run(
        name if by == "name" else "",
        start_new_session=True,
        env={VARIABLE: f"{MARK} 1 0"} if by == "environment" else {},
    )
    assert found(2**22 + 1) == {process.pid}
    assert found(2**22 + 1, "task-of-another") == set()


def test_what_was_started_before_is_left_out(run: Callable[..., subprocess.Popen[bytes]]) -> None:
    before = run()
    time.sleep(0.03)
    since = now()
    time.sleep(0.03)
    after = run()
    seen = found(HERE, since=since)
    assert after.pid in seen
    assert before.pid not in seen


def test_a_program_that_will_not_end_is_killed(run: Callable[..., subprocess.Popen[bytes]]) -> None:
    process = run("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)", env={VARIABLE: f"{MARK} 1 0"})
    end_all_of(2**22 + 1, MARK, grace=0.05)
    assert process.wait(10) == -9


def test_a_program_that_ends_by_itself_is_not_killed(run: Callable[..., subprocess.Popen[bytes]]) -> None:
    code = "import os, signal; signal.signal(signal.SIGTERM, lambda *_: os._exit(3))"
    process = run(code, env={VARIABLE: f"{MARK} 1 0"})
    end_all_of(2**22 + 1, MARK, grace=20)
    assert process.wait(10) == 3


def test_what_was_known_is_ended_and_a_pid_that_is_used_again_is_not(
    run: Callable[..., subprocess.Popen[bytes]],
) -> None:
    one, other = (look(run(start_new_session=True, env={}).pid) for _ in range(2))
    assert one is not None
    assert other is not None
    end_all_of(2**22 + 1, MARK, known=(one, other._replace(begun=other.begun - 5)))
    assert look(one.pid) is None
    assert look(other.pid) is not None


def test_what_a_worker_left_is_ended_when_that_is_no_more(
    run: Callable[..., subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = look(HERE)
    assert own is not None
    alive = run(env={VARIABLE: f"{MARK} {HERE} {own.begun}"})
    gone = [run(env={VARIABLE: f"{MARK} {main}"}) for main in (f"{HERE} {own.begun - 5}", f"{2**22 + 1} 7")]
    odd = [run(env={VARIABLE: text}) for text in ("", "1", "x y z", f"{MARK} -1 0")]
    # Others' tests run beside this one.
    everything = programs.running
    monkeypatch.setattr(programs, "running", lambda: (each for each in everything() if each.parent == HERE))
    end_orphans()
    assert [process.wait(10) for process in gone] == [-9, -9]
    assert [process.poll() for process in (alive, *odd)] == [None] * 5


def test_what_cannot_be_seen_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable() -> list[programs.Program]:
        raise PermissionError

    assert end(unreadable) == 0
    monkeypatch.setattr(programs, "PROC", programs.PROC / "nowhere")
    assert started_by(HERE, MARK) == []


def test_what_is_begun_again_and_again_does_not_hold_a_worker_for_ever() -> None:
    assert end(lambda: [programs.Program(2**22 + 1, "", 1, 1, 1)]) == 1
