"""What supervisor is told, and how a signal is understood."""

from __future__ import annotations

import configparser
import fcntl
import os
import pty
import shlex
import signal
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

import pytest
from supervisor.options import ServerOptions

from ops.errors import OpsError
from ops.local import Stack
from ops.processes import ProcessManager, Service, StoppedError, check_path, descendants, kill_tree
from ops.signals import Signals
from queues.topology import QUEUES, STOP_MARGIN

SERVICES = [
    Service("broker", ("/bin/sh", "run"), {}, 30),
    Service("mail", ("/bin/true",), {}),
    *(
        Service(queue.user, ("/bin/echo", "100%", "%(x)s"), {"A": "50% of it's"}, queue.stop_grace_period)
        for queue in QUEUES
    ),
    Service("beat", ("/bin/true",), {}),
]


def made(folder: Path) -> ProcessManager:
    for name in ("run", "log"):
        (folder / name).mkdir(parents=True)
    return ProcessManager(folder)


def test_only_the_parent_is_signalled_and_has_its_grace_period(tmp_path: Path) -> None:
    parser = configparser.RawConfigParser()
    parser.read_string(ProcessManager(tmp_path).render(SERVICES))
    graces = {service.name: STOP_MARGIN for service in SERVICES}
    graces |= {"broker": 30} | {queue.user: queue.stop_grace_period for queue in QUEUES}
    assert {section for section in parser.sections() if section.startswith("program:")} == {
        f"program:{name}" for name in graces
    }
    for name, grace in graces.items():
        program = parser[f"program:{name}"]
        assert (program["stopasgroup"], program["killasgroup"], program["stopsignal"]) == ("false", "false", "TERM")
        assert int(program["stopwaitsecs"]) == grace


def test_supervisor_reads_percent_signs_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "100% it's %(here)s"
    manager = made(folder)
    config = folder / "supervisord.conf"
    config.write_text(manager.render(SERVICES), encoding="utf-8")
    monkeypatch.chdir(folder)
    options = ServerOptions()
    options.realize(["--nodaemon", "--configuration", str(config)])
    programs = {program.name: program for group in options.process_group_configs for program in group.process_configs}
    worker = programs["worker-math"]
    assert shlex.split(worker.command)[-3:] == ["/bin/echo", "100%", "%(x)s"]
    assert worker.environment == {"A": "50% of it's"}
    assert worker.stdout_logfile == "log/worker-math.log"
    assert options.configroot.supervisord.server_configs[0]["file"] == str(folder / "run" / "supervisor.sock")


@pytest.mark.parametrize("name", ["short", "long" * 40])
def test_a_long_path_does_not_keep_supervisor_from_starting(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    folder = tmp_path / name
    manager = made(folder)
    manager.start([Service("broker", ("/bin/sleep", "60"), {}, 5), Service("beat", ("/bin/sleep", "60"), {}, 5)])
    try:
        short = manager._short_folder
        assert (short is not None) == (len(name) > 100)
        if short is not None:
            assert short.stat().st_mode & 0o777 == 0o700
        assert manager.pid("broker")
    finally:
        manager.stop(20)
    assert short is None or not short.exists()


WAITING = """\
import time
from ops.signals import until_signalled
with until_signalled() as signalled:
    print("waiting", flush=True)
    while not signalled():
        time.sleep(0.05)
"""


def test_a_terminal_that_is_gone_is_noticed_where_make_leads_its_session(tmp_path: Path, project: Path) -> None:
    """As `ssh -t host make up` or a terminal window with that command: make is told, waits for us and says nothing."""
    done = tmp_path / "done"
    (tmp_path / "waiting.py").write_text(WAITING)
    (tmp_path / "Makefile").write_text(f"all:\n\t@{sys.executable} waiting.py; touch {done}\n")
    terminal, inner = pty.openpty()

    def own_terminal() -> None:
        os.setsid()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    leader = subprocess.Popen(
        ["make", "-C", str(tmp_path), "--no-print-directory"],
        stdin=inner,
        stdout=inner,
        stderr=inner,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(project)},
        preexec_fn=own_terminal,
    )
    os.close(inner)
    assert os.read(terminal, 1) == b"w"
    os.close(terminal)
    try:
        leader.wait(20)
        assert done.exists()
    finally:
        for pid in descendants(leader.pid):
            os.kill(pid, signal.SIGKILL)
        leader.kill()
        leader.wait()


def test_a_wait_for_something_to_come_up_ends_with_the_wish_to_stop(tmp_path: Path) -> None:
    manager = made(tmp_path / "home")
    services = [Service("broker", ("/bin/sleep", "60"), {}, 5), Service("beat", ("/bin/sleep", "60"), {}, 5)]
    manager.start(services)
    try:
        signals = Signals()
        manager.interrupted = signals
        manager.wait_for("nothing", lambda: True)
        signals.note(signal.SIGINT, None)
        with pytest.raises(StoppedError, match="before everything was up") as caught:
            manager.wait_for("what never comes", lambda: False)
        assert caught.value.exit_code == 130
        assert manager.alive()
    finally:
        manager.stop(20)
    assert not manager.alive()


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a ;b", "a\nb", "a #b"])
def test_a_path_that_supervisor_cannot_read_is_a_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(OpsError, match="choose a folder without"):
        check_path(tmp_path / name)


def test_killing_ends_what_would_take_its_time() -> None:
    code = "import subprocess, sys; subprocess.run(['/bin/sh', '-c', 'trap : TERM; while :; do sleep 0.1; done'])"
    process = subprocess.Popen([sys.executable, "-c", code])
    limit = time.monotonic() + 10
    while not (found := list(descendants(process.pid))) and time.monotonic() < limit:
        time.sleep(0.02)
    assert found
    kill_tree(process)
    assert process.returncode == -signal.SIGKILL
    while time.monotonic() < limit and any(is_running(pid) for pid in found):
        time.sleep(0.02)
    assert not any(is_running(pid) for pid in found)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_only_a_second_ctrl_c_means_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    signals = Signals()
    assert not signals()
    signals.note(signal.SIGINT, None)
    signals.note(signal.SIGINT, None)  # the first one's echo
    now[0] += 1
    signals.note(signal.SIGHUP, None)
    assert signals()
    assert not signals.hurry()
    signals.note(signal.SIGINT, None)
    assert signals.hurry()


def test_the_first_signal_ends_what_a_raised_block_waits_for() -> None:
    signals = Signals()
    with pytest.raises(KeyboardInterrupt), signals.raised():
        signals.note(signal.SIGTERM, None)
    assert signals()
    signals.note(signal.SIGTERM, None)  # what stops everything then is not interrupted


def test_a_signal_outside_a_raised_block_is_only_noted() -> None:
    signals = Signals()
    with signals.raised():
        pass
    signals.note(signal.SIGINT, None)
    assert signals()


@pytest.mark.parametrize("where", ["/dev/null", "/proc/foo"])
def test_a_folder_that_cannot_be_made_is_a_sentence(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ops import broker

    monkeypatch.setattr(broker, "find_rabbitmq", lambda: Path("/bin/true"))
    with pytest.raises(OpsError, match="set WARREN_HOME to a folder of your own"):
        Stack(Path(where)).prepare()
