"""The whole stack on one machine: broker, mail sink, workers, beat and exporter, in one folder."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import shlex
import sqlite3
import sys
from typing import IO, TYPE_CHECKING, Self

from ops import broker as brokers
from ops import definitions, scraping
from ops.certs import Authority
from ops.errors import OpsError
from ops.files import replace_file
from ops.passwords import generate_password, hash_password
from ops.ports import RANGE, free_port, keep
from ops.processes import START_TIMEOUT, ProcessManager, Service, check_path
from ops.session import DEFAULT_FOLDER
from queues.topology import QUEUES, QueueSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ops.signals import Signals

#: The exporter's port in the stack of the usual folder; another free one is taken where it is in use.
EXPORTER_PORT = 9808


class Stack:
    """The stack of one folder; use it as a context manager to have everything stopped at the end."""

    def __init__(self, folder: Path, *, only: tuple[str, ...] | None = None) -> None:
        self.folder = folder.resolve()
        self.only = only
        self.broker: brokers.EmbeddedBroker
        self.ports: dict[str, int] = {}
        self.processes = ProcessManager(self.folder)
        #: Whether `stop` is to kill everything instead of waiting.
        self.hurry: Callable[[], bool] = lambda: False
        self._lock: IO[str] | None = None

    def heed(self, signalled: Signals) -> None:
        """Give up starting at the first signal, and stop at once at a second Ctrl-C."""
        self.processes.interrupted, self.hurry = signalled, signalled.hurry

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
            OpsError: RabbitMQ is missing, another stack runs in the folder, or it cannot be written.
        """
        brokers.find_rabbitmq()
        check_path(self.folder)
        try:
            self._prepare()
        except OSError as exc:
            raise OpsError(
                f"the stack's folder {self.folder} cannot be written ({exc.strerror or exc}): "
                "set WARREN_HOME to a folder of your own"
            ) from exc

    def _prepare(self) -> None:
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
        self._write_scrape_config(server.ca)
        for role in definitions.roles():
            self._write_environment(role, authority)

    def start(self, progress: Callable[[str], None] = lambda _step: None) -> None:
        """Start everything and wait until every worker consumes.

        Raises:
            OpsError: a service did not come up; the message names its log. Or a signal came first, see `heed`.
        """
        self.prepare()
        services = self.services()
        self.processes.start(services)
        progress("broker")
        wanted = [service for service in services[1:] if self.only is None or service.name in self.only]
        # Beside the broker's boot: their imports take as long, and each waits for its broker.
        for service in wanted:
            self.processes.start_service(service)
        self.broker.wait(START_TIMEOUT, alive=self.processes.starting)
        progress("services")
        for service in wanted:
            self.processes.wait_until_up(service)

    def stop(self) -> None:
        """Stop everything: services first, within their grace periods, the broker last."""
        if self.alive() and not self.hurry():
            self.processes.end_services()
            self.broker.ease_stop()
        self.processes.stop(max(queue.stop_grace_period for queue in QUEUES) + 60, self.hurry)
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

    def alive(self) -> bool:
        """Whether the process manager still runs."""
        return self.processes.alive()

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
        known: object = None
        with contextlib.suppress(FileNotFoundError, ValueError):  # a damaged file is worth no more than none
            known = json.loads(path.read_text(encoding="utf-8"))
        usual = {"exporter": EXPORTER_PORT} if self.folder.name == DEFAULT_FOLDER else {}
        # The broker's are not in use yet, and must not be chosen again.
        taken = set(dataclasses.astuple(self.broker.ports))
        ports: dict[str, int] = {}
        for name in ("exporter", "smtp"):
            port = known.get(name) if isinstance(known, dict) else None
            if port not in RANGE and port != usual.get(name):
                port = None
            port = port or usual.get(name)
            ports[name] = port if port and port not in taken and keep(port) else free_port(taken)
            taken.add(ports[name])
        replace_file(path, json.dumps(ports).encode(), 0o600)
        return ports

    def _make_result_tables(self) -> None:
        """Create the tables once, here: workers that all try at their start would collide.

        Raises:
            OpsError: the file is no database, or cannot be written.
        """
        from celery.backends.database.session import ResultModelBase
        from sqlalchemy import create_engine
        from sqlalchemy.exc import SQLAlchemyError

        path = self.folder / "results.sqlite"
        import celery.backends.database.models  # noqa: F401 - registers the tables

        engine = create_engine(f"sqlite:///{path}")
        try:
            with contextlib.closing(sqlite3.connect(path)) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
            ResultModelBase.metadata.create_all(engine)
        except (sqlite3.Error, SQLAlchemyError) as exc:
            cause = exc.__cause__ or exc
            raise OpsError(f"{path} cannot be used ({cause}): remove it, and it is made anew without results") from exc
        finally:
            engine.dispose()
        path.chmod(0o600)

    def _write_scrape_config(self, ca: Path) -> None:
        """What a Prometheus on this machine is started with."""
        text = scraping.config(
            "Written at every start of the stack: prometheus --config.file=prometheus.yml",
            exporter=f"127.0.0.1:{self.ports['exporter']}",
            broker=f"127.0.0.1:{self.broker.ports.metrics}",
            ca=str(ca),
            rules=str(scraping.RULES),
        )
        replace_file(self.folder / "prometheus.yml", text.encode(), 0o600)

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
            values["EXPORTER_STATE_DIR"] = str(self.folder / "state")
        base = self.folder / "env" / role
        replace_file(base.with_suffix(".json"), json.dumps(values, indent=1).encode(), 0o600)
        lines = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items())
        replace_file(base.with_suffix(".sh"), lines.encode(), 0o600)
