"""A result store as deployments have one: Redis or Valkey, with TLS, a password and a log of what it stored."""

from __future__ import annotations

import shutil
import signal
import subprocess
from typing import TYPE_CHECKING, Self

from ops.certs import Authority
from ops.ports import free_port

if TYPE_CHECKING:
    from pathlib import Path


def installed() -> str | None:
    """The server's program, where there is one."""
    return shutil.which("redis-server") or shutil.which("valkey-server")


class ResultServer:
    """A server of the names store.test and localhost in one folder; a context manager stops it.

    Raises:
        FileNotFoundError: neither Redis nor Valkey is installed.
    """

    def __init__(self, folder: Path) -> None:
        program = installed()
        if program is None:
            raise FileNotFoundError("neither redis-server nor valkey-server is installed: install one of them")
        folder.mkdir(exist_ok=True)
        self.authority = Authority.ensure(folder / "certs")
        self.password = folder / "password"
        self.password.write_text("secret-of-the-store", encoding="utf-8")
        self.port = free_port()
        server = self.authority.server(["store.test", "localhost"], role="store")
        options = {
            "port": "0",
            "tls-port": str(self.port),
            "bind": "127.0.0.1 127.0.0.2",
            "tls-cert-file": str(server.cert),
            "tls-key-file": str(server.key),
            "tls-ca-cert-file": str(server.ca),
            "tls-auth-clients": "no",
            "requirepass": "secret-of-the-store",
            "dir": str(folder),
            "appendonly": "yes",
            "appendfsync": "everysec",
        }
        words = [word for name, value in options.items() for word in (f"--{name}", *value.split())]
        self.process = subprocess.Popen([program, *words, "--save", ""], stdout=subprocess.DEVNULL)

    def environment(self) -> dict[str, str]:
        """What makes a service store its results here."""
        return {
            "RESULT_BACKEND": f"rediss://localhost:{self.port}/0",
            "RESULT_CA": str(self.authority.folder / "ca.crt"),
            "RESULT_PASSWORD_FILE": str(self.password),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        self.process.wait(10)
