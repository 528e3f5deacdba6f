"""The whole stack on one machine: broker, mail sink, workers, beat and exporter under supervisor, in one folder.

Supervisor signals the parent of each service alone, waits the table's grace period and restarts what died. It runs in
a session of its own, so that a terminal's Ctrl-C reaches only the command in front, which then stops it by its pid;
every process also asks the kernel to be told to end when its own parent is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import xmlrpc.client
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from supervisor.xmlrpc import SupervisorTransport

from ops import broker as brokers
from ops import definitions
from ops.certs import Authority
from ops.errors import OpsError
from ops.passwords import generate_password, hash_password
from queues.topology import QUEUES, STOP_MARGIN, QueueSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

#: The exporter's usual port; another free one is taken where it is in use.
EXPORTER_PORT = 9808
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


class Stack:
    """The stack of one folder; use it as a context manager to have everything stopped at the end."""

    def __init__(self, folder: Path, *, only: tuple[str, ...] | None = None) -> None:
        self.folder = folder.resolve()
        self.only = only
        self.broker: brokers.EmbeddedBroker
        self.ports: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None

    @property
    def images(self) -> Path:
        """The image root."""
        return self.folder / "images"

    @property
    def mails(self) -> Path:
        """Where the mail sink keeps what it received."""
        return self.folder / "mail"

    @property
    def metrics_url(self) -> str:
        """The exporter's address."""
        return f"http://127.0.0.1:{self.ports['exporter']}/metrics"

    def prepare(self) -> None:
        """Make what is missing: certificates, passwords, definitions, result tables, settings by role.

        Raises:
            OpsError: RabbitMQ is missing, or another stack runs in the folder.
        """
        brokers.find_rabbitmq()
        for name in ("images", "mail", "state", "log", "run", "env", "secrets"):
            (self.folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        self._take_lock()
        authority = Authority.ensure(self.folder / "certs")
        server = authority.server(["localhost", "127.0.0.1"])
        passwords = {role: self._secret(role) for role in definitions.roles()}
        self._secret("smtp")
        self.broker = brokers.EmbeddedBroker(
            self.folder / "broker",
            server_cert=server.cert,
            server_key=server.key,
            ca=server.ca,
            # The node's own consumer timeout serves for all queues; Debian's 3.10 knows no policy for it.
            definitions=definitions.build(
                {role: hash_password(password) for role, password in passwords.items()}, rabbitmq=(3, 10)
            ),
            consumer_timeout_s=max(queue.consumer_timeout for queue in QUEUES),
            client=authority.client(definitions.OPERATOR),
        )
        self.broker.prepare()
        self.ports = self._choose_ports()
        self._make_result_tables()
        for role in definitions.roles():
            self._write_environment(role, authority)

    def start(self, progress: Callable[[str], None] = lambda _step: None) -> None:
        """Start everything and wait until every worker consumes.

        Raises:
            OpsError: a service did not come up; the message names its log.
        """
        self.prepare()
        config = self.folder / "supervisord.conf"
        config.write_text(self._supervisor_config(), encoding="utf-8")
        config.chmod(0o600)
        socket_file = self.folder / "run" / "supervisor.sock"
        socket_file.unlink(missing_ok=True)
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
        self._await("supervisor", lambda: self._rpc("getState") is not None)
        progress("broker")
        self.broker.wait(START_TIMEOUT, alive=self.alive)
        progress("services")
        wanted = [service for service in self.services()[1:] if self.only is None or service.name in self.only]
        for service in wanted:
            if "HEARTBEAT_FILE" in service.environment:
                Path(service.environment["HEARTBEAT_FILE"]).unlink(missing_ok=True)
            self._rpc("startProcess", process_name(service.name), False)
        for service in wanted:
            self._await(service.name, functools.partial(self._is_up, service))

    def stop(self) -> None:
        """Stop everything: services first, within their grace periods, the broker last."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            self.broker.ease_stop()
            process.terminate()
            limit = max(queue.stop_grace_period for queue in QUEUES) + 60
            try:
                process.wait(limit)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_details: object) -> None:
        self.stop()

    def environment(self, role: str) -> dict[str, str]:
        """The settings of a role."""
        content: dict[str, str] = json.loads((self.folder / "env" / f"{role}.json").read_text(encoding="utf-8"))
        return content

    def restart(self, name: str) -> None:
        """Stop a service as supervisor would, and start it again."""
        self._rpc("stopProcess", process_name(name), True)
        self._rpc("startProcess", process_name(name), True)

    def pid(self, name: str) -> int:
        """The process id of a service."""
        return int(self._rpc("getProcessInfo", process_name(name))["pid"])

    def alive(self) -> bool:
        """Whether supervisor still runs."""
        return self._process is not None and self._process.poll() is None

    def services(self) -> list[Service]:
        """Everything that runs, the broker first."""
        celery = (sys.executable, "-m", "celery", "-A", "workers.app")
        found = [
            Service("broker", tuple(self.broker.command()), {}, 30),
            Service("mail", self._mail_command(), {}),
        ]
        found += [self._worker(queue, celery) for queue in QUEUES]
        beat = self.folder / "state" / "beat-schedule"
        found.append(
            Service(
                "beat",
                (*celery, "beat", "--loglevel", "INFO", "--schedule", str(beat), "--pidfile="),
                self.environment("beat"),
            )
        )
        found.append(Service("exporter", (sys.executable, "-m", "ops.exporter"), self.environment("exporter")))
        return found

    def _worker(self, queue: QueueSpec, celery: tuple[str, ...]) -> Service:
        environment = {
            **self.environment(queue.user),
            "HEARTBEAT_FILE": str(self.folder / "run" / f"{queue.user}.alive"),
        }
        return Service(
            queue.user,
            (*celery, "worker", "-Q", queue.name, "--loglevel", "INFO"),
            environment,
            queue.stop_grace_period,
        )

    def _mail_command(self) -> tuple[str, ...]:
        certs = self.folder / "certs"
        identity = Authority.ensure(certs).server(["localhost", "127.0.0.1"], role="mail")
        return (
            *(sys.executable, "-m", "ops.mailsink", "--port", str(self.ports["smtp"]), "--folder", str(self.mails)),
            *("--cert", str(identity.cert), "--key", str(identity.key)),
            *("--password-file", str(self.folder / "secrets" / "smtp")),
        )

    def _secret(self, name: str) -> str:
        path = self.folder / "secrets" / name
        if not path.exists():
            path.touch(mode=0o600)
            path.write_text(generate_password(), encoding="utf-8")
        return path.read_text(encoding="utf-8").strip()

    def _take_lock(self) -> None:
        self._lock = (self.folder / "lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            self._lock = None
            raise OpsError(
                f"a stack already runs in {self.folder}: stop it, or set WARREN_HOME to another folder"
            ) from None

    def _choose_ports(self) -> dict[str, int]:
        path = self.folder / "ports.json"
        ports: dict[str, int] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        wanted = {"exporter": EXPORTER_PORT, "smtp": 0}
        for name, usual in wanted.items():
            port = ports.get(name, usual)
            ports[name] = port if port and is_free(port) else free_port()
        path.write_text(json.dumps(ports), encoding="utf-8")
        return ports

    def _make_result_tables(self) -> None:
        """Create the tables once, here: workers that all try at their start would collide."""
        from celery.backends.database.session import ResultModelBase
        from sqlalchemy import create_engine

        path = self.folder / "results.sqlite"
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.close()
        import celery.backends.database.models  # noqa: F401 - registers the tables

        engine = create_engine(f"sqlite:///{path}")
        ResultModelBase.metadata.create_all(engine)
        engine.dispose()
        path.chmod(0o600)

    def _write_environment(self, role: str, authority: Authority) -> None:
        identity = authority.client(role)
        values = {
            "BROKER_HOSTS": f"127.0.0.1:{self.broker.ports.amqps}",
            "BROKER_SERVER_NAME": "localhost",
            "BROKER_CA": str(identity.ca),
            "BROKER_CERT": str(identity.cert),
            "BROKER_KEY": str(identity.key),
            "BROKER_USER": role,
            "BROKER_PASSWORD_FILE": str(self.folder / "secrets" / role),
            "RESULT_BACKEND": f"db+sqlite:///{self.folder / 'results.sqlite'}",
            "IMAGE_ROOT": str(self.images),
        }
        if role == "worker-email":
            values |= {
                "SMTP_HOST": "localhost",
                "SMTP_PORT": str(self.ports["smtp"]),
                "SMTP_CA": str(identity.ca),
                "SMTP_USER": "warren",
                "SMTP_PASSWORD_FILE": str(self.folder / "secrets" / "smtp"),
                "MAIL_FROM": "warren@example.com",
            }
        if role == "worker-monitor":
            values |= {"STATE_DIR": str(self.folder / "state"), "EXPORTER_URL": self.metrics_url}
        if role in (definitions.EXPORTER, definitions.OPERATOR):
            values["MANAGEMENT_URL"] = f"https://localhost:{self.broker.ports.management}"
        if role == definitions.EXPORTER:
            values["EXPORTER_ADDRESS"] = f"127.0.0.1:{self.ports['exporter']}"
        base = self.folder / "env" / role
        base.with_suffix(".json").write_text(json.dumps(values, indent=1), encoding="utf-8")
        lines = "".join(f"export {name}='{value}'\n" for name, value in values.items())
        base.with_suffix(".sh").write_text(lines, encoding="utf-8")

    def _supervisor_config(self) -> str:
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
        for service in self.services():
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
        grouped = ",".join(service.name for service in self.services() if service.name not in BASE)
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

    def _await(self, what: str, condition: Callable[[], Any]) -> None:
        limit = time.monotonic() + START_TIMEOUT
        while not condition():
            if self._process is None or self._process.poll() is not None:
                raise OpsError(f"supervisor ended: see {self.folder / 'log' / 'supervisord.out'}")
            if time.monotonic() > limit:
                raise OpsError(f"{what} was not up after {START_TIMEOUT} s: see {self.folder / 'log'}/{what}.log")
            time.sleep(0.1)


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


def is_free(port: int) -> bool:
    """Whether a port of the loopback address can be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port of the loopback address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


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
