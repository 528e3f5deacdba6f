"""Processes of one machine under supervisor.

Supervisor signals the parent of each service alone, waits its grace period and restarts what died. It runs in a session
of its own, so that a terminal's Ctrl-C reaches only the command in front, which then stops it by its pid; every process
also asks the kernel to be told to end when its own parent is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xmlrpc.client
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from supervisor.xmlrpc import SupervisorTransport

from ops.errors import INTERRUPTED, OpsError
from queues.topology import STOP_MARGIN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

#: What the other services need, started before and stopped after them.
BASE = ("broker", "mail")
#: Seconds until every service must be up.
START_TIMEOUT = 90
#: Bytes of a unix socket's path: the kernel takes 107, and supervisor first binds one with its pid behind the name.
SOCKET_PATH = 107 - len(".4194304")
#: What supervisor's configuration cannot carry in a path: its ways to quote differ from line to line.
UNFIT = frozenset('"\\;#')
#: Variables that must not leak from the caller's shell into a service.
PREFIXES = (
    "BROKER_",
    "RESULT_",
    "SMTP_",
    "MAIL_",
    "EXPORTER_",
    "MANAGEMENT_",
    "IMAGE_",
    "STATE_",
    "HEARTBEAT_",
    "REPORT_",
)


@dataclass(frozen=True, slots=True)
class Service:
    """One process under supervisor.

    Attributes:
        name: also the name of its log file.
        command: its arguments; the first is a path.
        environment: variables besides the caller's own.
        grace: seconds between SIGTERM and SIGKILL.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    grace: int = STOP_MARGIN


class StoppedError(OpsError):
    """Somebody wished to stop before everything was up."""

    exit_code: ClassVar[int] = INTERRUPTED


class ProcessManager:
    """Supervisor in a folder: `log` holds what services print, `run` its socket."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        #: Whether the start is to be given up.
        self.interrupted: Callable[[], bool] = lambda: False
        self._process: subprocess.Popen[bytes] | None = None
        self._socket = folder / "run" / "supervisor.sock"
        self._short_folder: Path | None = None

    def start(self, services: Sequence[Service]) -> None:
        """Start supervisor and the first service.

        Raises:
            OpsError: it does not start, or the folder's path cannot be told to it.
        """
        check_path(self.folder)
        if len(os.fsencode(self._socket)) > SOCKET_PATH:
            self._short_folder = Path(tempfile.mkdtemp(prefix="warren-"))
            self._socket = self._short_folder / "supervisor.sock"
        config = self.folder / "supervisord.conf"
        config.touch(mode=0o600)
        config.write_text(self.render(services), encoding="utf-8")
        self._socket.unlink(missing_ok=True)
        with (self.folder / "log" / "supervisord.out").open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "supervisor.supervisord", "--nodaemon", "--configuration", str(config)],
                cwd=self.folder,
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        self.wait_for("supervisor", lambda: self._rpc("getState") is not None)

    def start_service(self, service: Service) -> None:
        """Start one service; `wait_until_up` tells when it is."""
        if "HEARTBEAT_FILE" in service.environment:
            Path(service.environment["HEARTBEAT_FILE"]).unlink(missing_ok=True)
        self._rpc("startProcess", process_name(service.name), False)

    def wait_until_up(self, service: Service) -> None:
        """Wait until a service runs and, where it has one, its heartbeat file is there.

        Raises:
            OpsError: it ended, or took too long; the message names its log.
        """
        self.wait_for(service.name, lambda: self._is_up(service))

    def restart(self, name: str) -> None:
        """Stop a service as at the end, and start it again."""
        self._rpc("stopProcess", process_name(name), True)
        self._rpc("startProcess", process_name(name), True)

    def pid(self, name: str) -> int:
        """The process id of a service."""
        return int(self._rpc("getProcessInfo", process_name(name))["pid"])

    def alive(self) -> bool:
        """Whether supervisor still runs."""
        return self._process is not None and self._process.poll() is None

    def starting(self) -> bool:
        """Whether supervisor still runs, asked while something is waited for that is to come up.

        Raises:
            StoppedError: the start is to be given up.
        """
        if self.interrupted():
            raise StoppedError("stopped before everything was up")
        return self.alive()

    def end_services(self) -> None:
        """Begin to stop the services, the broker stays; `stop` waits for them."""
        with contextlib.suppress(OpsError):
            self._rpc("stopProcessGroup", "services", False)

    def stop(self, patience: float, hurry: Callable[[], bool] = lambda: False) -> None:
        """Stop the services, within their grace periods, then what they need, then supervisor.

        Args:
            patience: seconds after which supervisor is killed, and with it everything.
            hurry: whether everything is to be killed now.
        """
        process, self._process = self._process, None
        try:
            if process is None or process.poll() is not None:
                return
            process.terminate()
            limit = time.monotonic() + patience
            while process.poll() is None:
                if hurry() or time.monotonic() > limit:
                    kill_tree(process)
                time.sleep(0.05)
        finally:
            if self._short_folder is not None:
                shutil.rmtree(self._short_folder, ignore_errors=True)
                self._short_folder = None
                self._socket = self.folder / "run" / "supervisor.sock"

    def wait_for(self, what: str, condition: Callable[[], Any]) -> None:
        """Look until a condition holds.

        Raises:
            OpsError: supervisor ended, it took too long, or the start is to be given up.
        """
        limit = time.monotonic() + START_TIMEOUT
        while not condition():
            if not self.starting():
                raise OpsError(f"supervisor ended: see {self.folder / 'log' / 'supervisord.out'}")
            if time.monotonic() > limit:
                raise OpsError(f"{what} was not up after {START_TIMEOUT} s: see {self.folder / 'log'}/{what}.log")
            time.sleep(0.1)

    def render(self, services: Sequence[Service]) -> str:
        """Supervisor's configuration.

        Its own paths are relative to the folder, where it is started: it expands `%` once in some lines and twice in
        others, so that a path with one could not be written the same way everywhere.
        """
        parts = [
            "[supervisord]",
            "logfile=log/supervisord.log",
            "logfile_maxbytes=5MB",
            "logfile_backups=1",
            "pidfile=run/supervisord.pid",
            "childlogdir=log",
            "umask=077",
            "[unix_http_server]",
            f"file={escaped(str(self._socket))}",
            "chmod=0700",
            "[rpcinterface:supervisor]",
            "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface",
        ]
        tell = shutil.which("setpriv")
        for service in services:
            command = (tell, "--pdeathsig", "TERM", "--", *service.command) if tell else service.command
            first = service.name == "broker"
            parts += [
                f"[program:{service.name}]",
                "command=" + " ".join(quoted(word) for word in command),
                "environment=" + ",".join(f"{name}={quoted(value)}" for name, value in service.environment.items()),
                f"autostart={'true' if first else 'false'}",
                "autorestart=true",
                "startsecs=1",
                "startretries=5",
                f"priority={1 if first else 2 if service.name == 'mail' else 10}",
                "stopsignal=TERM",
                "stopasgroup=false",
                "killasgroup=false",
                f"stopwaitsecs={service.grace}",
                "redirect_stderr=true",
                f"stdout_logfile=log/{service.name}.log",
                "stdout_logfile_maxbytes=10MB",
                "stdout_logfile_backups=1",
            ]
        # One group, so that supervisor stops its services side by side, before mail sink and broker.
        grouped = ",".join(service.name for service in services if service.name not in BASE)
        parts += ["[group:services]", f"programs={grouped}", "priority=10"]
        return "\n".join(parts) + "\n"

    def _rpc(self, method: str, *arguments: Any) -> Any:
        transport = SupervisorTransport(None, None, f"unix://{self._socket}")
        proxy = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport)
        try:
            return getattr(proxy.supervisor, method)(*arguments)
        except xmlrpc.client.Fault as exc:
            raise OpsError(f"supervisor: {exc.faultString}; see {self.folder / 'log' / 'supervisord.log'}") from exc
        except OSError:
            return None
        finally:
            transport.close()

    def _is_up(self, service: Service) -> bool:
        name = service.name
        state = (self._rpc("getProcessInfo", process_name(name)) or {}).get("statename")
        if state == "FATAL":
            raise OpsError(f"{name} does not start: {self._last_line(name)} (see {self.folder / 'log' / name}.log)")
        heartbeat = service.environment.get("HEARTBEAT_FILE")
        return state == "RUNNING" and (heartbeat is None or Path(heartbeat).exists())

    def _last_line(self, name: str) -> str:
        with contextlib.suppress(OSError, IndexError):
            return (self.folder / "log" / f"{name}.log").read_text(errors="replace").splitlines()[-1]
        return "it printed nothing"


def process_name(service: str) -> str:
    """A service's name for supervisor."""
    return service if service in BASE else f"services:{service}"


def quoted(value: str) -> str:
    """A value as supervisor's configuration takes it."""
    return '"' + escaped(value).replace('"', '\\"') + '"'


def escaped(value: str) -> str:
    """A value that supervisor expands once."""
    return value.replace("%", "%%")


def check_path(folder: Path) -> None:
    """Refuse a folder that supervisor's configuration cannot name.

    Raises:
        OpsError: what is wrong with it.
    """
    if any(character in UNFIT or not character.isprintable() for character in str(folder)):
        raise OpsError(
            f"supervisor cannot read {str(folder)!r} from its settings: choose a folder without quotation marks, "
            "backslashes, semicolons, '#' and control characters in its path"
        )


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill supervisor, and then at once what it started: by themselves its services would end their tasks first."""
    found = list(descendants(process.pid))
    process.kill()
    process.wait()
    for pid in found:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def descendants(pid: int) -> Iterable[int]:
    """The processes that a process started, and theirs; the nearest first."""
    waiting = [pid]
    while waiting:
        for path in Path(f"/proc/{waiting.pop(0)}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found = [int(child) for child in path.read_text().split()]
                waiting += found
                yield from found


def clean_environment() -> dict[str, str]:
    """The caller's environment without settings of another stack."""
    return {name: value for name, value in os.environ.items() if not name.startswith(PREFIXES)}


def end_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent ends, however it ends."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
