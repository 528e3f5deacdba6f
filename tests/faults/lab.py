"""The broker of a run, with Warren's definitions and a virtual host for the control."""

from __future__ import annotations

import os
import secrets
import signal
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self
from urllib.parse import quote

from celery.backends.database import models  # noqa: F401 - registers the tables
from celery.backends.database.session import ResultModelBase
from sqlalchemy import create_engine

from ops.certs import Authority
from ops.local import Stack
from tests.faults import control
from tests.resultserver import ResultServer

if TYPE_CHECKING:
    from tests.resultserver import Server

#: Where results can be stored.
STORES = ("sqlite", "postgresql", "redis")
#: Seconds that rabbitmqctl may take on a busy machine.
PATIENCE = 90.0


class Broker(Protocol):
    """What a case does to a broker."""

    port: int

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl."""

    def start(self) -> None:
        """Start, and wait until it serves."""

    def stop(self) -> None:
        """Stop in an orderly way."""

    def kill(self) -> None:
        """SIGKILL."""

    def freeze(self, frozen: bool) -> None:
        """SIGSTOP, or SIGCONT."""

    def alive(self) -> bool:
        """Whether it was started, and neither stopped nor killed."""

    def remove(self) -> None:
        """Leave nothing."""

    @property
    def definitions_path(self) -> Path | str:
        """Where the node reads its definitions."""


class Embedded:
    """The private node of this machine's RabbitMQ."""

    name = "embedded"

    def __init__(self, stack: Stack) -> None:
        self.node = stack.broker
        self.port = 0

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl."""
        return self.node.ctl(*arguments, timeout_s=PATIENCE)

    def start(self) -> None:
        """Start, and wait until it serves."""
        self.node.start(PATIENCE)
        self.port = self.node.ports.amqps

    def stop(self) -> None:
        """Stop in an orderly way."""
        self.node.stop()

    def kill(self) -> None:
        """SIGKILL."""
        assert self.node.pid is not None
        os.kill(self.node.pid, signal.SIGKILL)
        while self.node.pid is not None:
            time.sleep(0.02)

    def freeze(self, frozen: bool) -> None:
        """SIGSTOP, or SIGCONT."""
        assert self.node.pid is not None
        os.kill(self.node.pid, signal.SIGSTOP if frozen else signal.SIGCONT)

    def alive(self) -> bool:
        """Whether it was started, and neither stopped nor killed."""
        return self.node.pid is not None

    def remove(self) -> None:
        """Leave nothing."""
        self.node.stop()

    @property
    def definitions_path(self) -> Path | str:
        """Where the node reads its definitions."""
        return self.node.definitions_path


def make_store(name: str, folder: Path) -> Server | None:
    """A server of its own for results; SQLite needs none."""
    if name == "redis":
        return ResultServer(folder)
    if name == "postgresql":
        from tests.postgresql import PostgreSQL

        return PostgreSQL(folder)
    return None


def stock_results(server: Server, name: str) -> str:
    """A server as stock Celery's documentation has it: the password in the URL."""
    given, authority = server.environment(), server.authority.folder / "ca.crt"
    url, password = given["RESULT_BACKEND"], quote(Path(given["RESULT_PASSWORD_FILE"]).read_text())
    if name == "redis":
        login = url.replace("://", f"://:{password}@").removesuffix("/0")
        return f"{login}/1?ssl_cert_reqs=required&ssl_ca_certs={authority}"
    return f"{url.replace('@', f':{password}@')}?sslmode=verify-full&sslrootcert={authority}"


class Lab:
    """One folder with everything of a run; use it as a context manager."""

    broker: Broker

    def __init__(self, folder: Path, kind: str = "embedded", store: str = STORES[0]) -> None:
        self.folder = folder
        self.kind, self.store = kind, store
        self.server: Server | None = None
        self.stack = Stack(folder / "warren")
        self.version = ""

    def __enter__(self) -> Self:
        self.stack.prepare()
        self.authority = Authority.ensure(self.stack.folder / "certs")
        if self.kind == "embedded":
            self.broker = Embedded(self.stack)
        else:
            from tests.faults.container import Container

            self.broker = Container(self.stack, self.authority)
        try:
            self.broker.start()
            self.server = make_store(self.store, self.folder / "store")
            self._admit_the_control()
            self.version = self.broker.ctl("version").split()[-1]
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_details: object) -> None:
        if self.server is not None:
            self.server.__exit__()
        self.broker.remove()
        self.stack.stop()

    def environment(self, role: str) -> dict[str, str]:
        """Warren's settings of a role, on this broker."""
        results = self.server.environment() if self.server else {}
        return {**self.stack.environment(role), "BROKER_HOSTS": f"127.0.0.1:{self.broker.port}", **results}

    def control_environment(self, port: int | None = None) -> dict[str, str]:
        """The control's settings."""
        identity = self.authority.client(control.NAME)
        login = f"{control.NAME}:{self.control_password}"
        return {
            "STOCK_URL": f"amqps://{login}@127.0.0.1:{port or self.broker.port}/{control.NAME}",
            "STOCK_CA": str(identity.ca),
            "STOCK_CERT": str(identity.cert),
            "STOCK_KEY": str(identity.key),
            "STOCK_RESULTS": (
                stock_results(self.server, self.store)
                if self.server
                else f"db+sqlite:///{self.folder / 'stock.sqlite'}"
            ),
        }

    def heal(self) -> None:
        """Whatever a case left: the broker serves again, without alarms."""
        if not self.broker.alive():
            self.broker.start()
        self.broker.freeze(False)
        self.alarm(None)

    def alarm(self, kind: str | None) -> None:
        """Raise the memory or disk alarm, or end both."""
        memory = "0.00001" if kind == "memory" else "0.4"
        disk = 100 * 10**12 if kind == "disk" else 50 * 10**6
        self.broker.ctl(
            "eval",
            f"vm_memory_monitor:set_vm_memory_high_watermark({memory}), "
            f"rabbit_disk_monitor:set_disk_free_limit({disk}).",
        )

    def held(self) -> dict[str, int]:
        """Messages that queues hold without offering them, among them those on their way to another queue."""
        rows = self.broker.ctl(
            "list_queues", "--silent", "name", "messages", "messages_ready", "messages_unacknowledged"
        ).splitlines()
        found = {name: [int(part or 0) for part in rest] for name, *rest in (row.split("\t") for row in rows)}
        return {name: sum(counts) for name, counts in found.items() if any(counts)}

    @property
    def release(self) -> tuple[int, int]:
        """RabbitMQ's major and minor version."""
        major, minor, *_ = self.version.split(".")
        return int(major), int(minor)

    def restore_definitions(self) -> None:
        """Import the definitions again: queues that a case deleted are there again."""
        self.broker.ctl("import_definitions", str(self.broker.definitions_path))

    def _admit_the_control(self) -> None:
        self.control_password = secrets.token_urlsafe(16)
        for command in (
            ("add_vhost", control.NAME),
            ("add_user", control.NAME, self.control_password),
            ("set_permissions", "-p", control.NAME, control.NAME, ".*", ".*", ".*"),
        ):
            self.broker.ctl(*command)
        if self.server:
            return
        # Workers that all make the tables at their start would collide.
        path = self.folder / "stock.sqlite"
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
        engine = create_engine(f"sqlite:///{path}")
        ResultModelBase.metadata.create_all(engine)
        engine.dispose()
