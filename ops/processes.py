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
import time
import xmlrpc.client
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from supervisor.xmlrpc import SupervisorTransport

from ops.errors import OpsError
from queues.topology import STOP_MARGIN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

#: What the other services need, started before and stopped after them.
BASE = ("broker", "mail")
#: Seconds until every service must be up.
START_TIMEOUT = 90
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


class ProcessManager:
    """Supervisor in a folder: `log` holds what services print, `run` its socket."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, services: Sequence[Service]) -> None:
        """Start supervisor and the first service.

        Raises:
            OpsError: it does not start.
        """
        config = self.folder / "supervisord.conf"
        config.touch(mode=0o600)
        config.write_text(self._config(services), encoding="utf-8")
        (self.folder / "run" / "supervisor.sock").unlink(missing_ok=True)
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

    def stop(self, patience: float) -> None:
        """Stop the services, within their grace periods, then what they need, then supervisor.

        Args:
            patience: seconds after which supervisor is killed, and with it everything.
        """
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def wait_for(self, what: str, condition: Callable[[], Any]) -> None:
        """Look until a condition holds.

        Raises:
            OpsError: supervisor ended, or it took too long.
        """
        limit = time.monotonic() + START_TIMEOUT
        while not condition():
            if not self.alive():
                raise OpsError(f"supervisor ended: see {self.folder / 'log' / 'supervisord.out'}")
            if time.monotonic() > limit:
                raise OpsError(f"{what} was not up after {START_TIMEOUT} s: see {self.folder / 'log'}/{what}.log")
            time.sleep(0.1)

    def _config(self, services: Sequence[Service]) -> str:
        run, log = self.folder / "run", self.folder / "log"
        parts = [
            "[supervisord]",
            f"logfile={log}/supervisord.log",
            "logfile_maxbytes=5MB",
            "logfile_backups=1",
            f"pidfile={run}/supervisord.pid",
            f"childlogdir={log}",
            "umask=077",
            "[unix_http_server]",
            f"file={run}/supervisor.sock",
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
                f"directory={self.folder}",
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
                f"stdout_logfile={log}/{service.name}.log",
                "stdout_logfile_maxbytes=10MB",
                "stdout_logfile_backups=1",
            ]
        # One group, so that supervisor stops its services side by side, before mail sink and broker.
        grouped = ",".join(service.name for service in services if service.name not in BASE)
        parts += ["[group:services]", f"programs={grouped}", "priority=10"]
        return "\n".join(parts) + "\n"

    def _rpc(self, method: str, *arguments: Any) -> Any:
        transport = SupervisorTransport(None, None, f"unix://{self.folder / 'run' / 'supervisor.sock'}")
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
    return '"' + value.replace("%", "%%").replace('"', '\\"') + '"'


def clean_environment() -> dict[str, str]:
    """The caller's environment without settings of another stack."""
    return {name: value for name, value in os.environ.items() if not name.startswith(PREFIXES)}


def end_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent ends, however it ends."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


@contextlib.contextmanager
def until_signalled() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C, SIGTERM and a closed terminal into a flag for the block."""
    got: list[int] = []
    names = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {name: signal.signal(name, lambda number, _frame: got.append(number)) for name in names}
    try:
        yield lambda: bool(got)
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
