"""A result store as deployments have one: a server with TLS and a password; it can be stopped, frozen and restarted."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from ops.certs import Authority
from ops.ports import free_port

if TYPE_CHECKING:
    from celery import Celery

    from ops.certs import Identity

#: What all of them ask for.
PASSWORD = "secret-of-the-store"


def installed() -> str | None:
    """The program of Redis or Valkey, where there is one."""
    return shutil.which("redis-server") or shutil.which("valkey-server")


def need_store(program: object, name: str) -> None:
    """Skip without a server on a laptop; in CI that is a failure."""
    if program is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{name} is not installed: run ops/bootstrap {name}")


def forget(app: Celery) -> None:
    """Have results that outlive their server not say goodbye to it: it takes twenty seconds, and is an error."""
    app.backend.remove_pending_result = lambda result: result


class Server(ABC):
    """A server of the names store.test and localhost with one folder; a context manager stops it."""

    #: What a URL of it begins with.
    scheme: str

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.authority = Authority.ensure(folder / "certs")
        self.password = folder / "password"
        self.password.write_text(PASSWORD, encoding="utf-8")
        self.port = free_port()
        self.prepare(self.authority.server(["store.test", "localhost"], role="store"))
        self.process = self.start()

    @abstractmethod
    def prepare(self, identity: Identity) -> None:
        """Make what the server needs besides certificate and password."""

    @abstractmethod
    def start(self) -> subprocess.Popen[bytes]:
        """Start it, the first time or once more with what it has stored."""

    @property
    @abstractmethod
    def url(self) -> str:
        """Where results are stored, as `RESULT_BACKEND`."""

    def environment(self) -> dict[str, str]:
        """What makes a service store its results here."""
        return {
            "RESULT_BACKEND": self.url,
            "RESULT_CA": str(self.authority.folder / "ca.crt"),
            "RESULT_PASSWORD_FILE": str(self.password),
        }

    def freeze(self) -> None:
        """Answer nothing, and keep all connections."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Answer again."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it; whoever connects is refused."""
        self.thaw()
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)

    def restart(self) -> None:
        """Start it again after `stop`."""
        self.process = self.start()

    def _signal(self, number: signal.Signals) -> None:
        """Signal the server and then what it has started: it starts nothing more meanwhile."""
        if self.process.poll() is not None:
            return
        self.process.send_signal(number)
        for child in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            os.kill(int(child), number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        if self.process.poll() is None:
            self.stop()


class ResultServer(Server):
    """Redis or Valkey, with a log of what it stored.

    Raises:
        FileNotFoundError: neither is installed.
    """

    def prepare(self, identity: Identity) -> None:
        """Make its options."""
        program = installed()
        if program is None:
            raise FileNotFoundError("neither redis-server nor valkey-server is installed: install one of them")
        options = {
            "port": "0",
            "tls-port": str(self.port),
            "bind": "127.0.0.1 127.0.0.2",
            "tls-cert-file": str(identity.cert),
            "tls-key-file": str(identity.key),
            "tls-ca-cert-file": str(identity.ca),
            "tls-auth-clients": "no",
            "requirepass": PASSWORD,
            "dir": str(self.folder),
            "appendonly": "yes",
            "appendfsync": "everysec",
        }
        words = [word for name, value in options.items() for word in (f"--{name}", *value.split())]
        self.command = [program, *words, "--save", ""]

    def start(self) -> subprocess.Popen[bytes]:
        """Start it; it listens a moment later."""
        return subprocess.Popen(self.command, stdout=subprocess.DEVNULL)

    @property
    def url(self) -> str:
        """Its first database."""
        return f"rediss://localhost:{self.port}/0"
