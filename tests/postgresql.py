"""PostgreSQL as a result store: a private server that takes TLS and a password only."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.resultserver import Server

if TYPE_CHECKING:
    from ops.certs import Identity

#: Where Debian has the programs of each release; they are not in the PATH.
RELEASES = Path("/usr/lib/postgresql")
#: Seconds that a start may take.
PATIENCE = 60.0


def programs() -> Path | None:
    """The folder of the server's programs, where it is installed: the newest release's."""
    places = sorted(RELEASES.glob("*/bin/postgres"), key=lambda place: float(place.parts[-3]))
    found = places[-1] if places else shutil.which("postgres")
    return Path(found).parent if found else None


def account() -> dict[str, Any]:
    """Options of a process of its own user, where we are root: the server refuses to be."""
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwnam("postgres")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


class PostgreSQL(Server):
    """A server whose data are in a folder that its own user can reach.

    Raises:
        FileNotFoundError: it is not installed.
    """

    def prepare(self, identity: Identity) -> None:
        """Make its data: a superuser and a database, both called warren."""
        folder = programs()
        if folder is None:
            raise FileNotFoundError("PostgreSQL is not installed: run ops/bootstrap broker postgresql")
        self.program, self.account = folder / "postgres", account()
        self.data = Path(tempfile.mkdtemp(prefix="warren-postgresql-"))
        for name, source in {"server.crt": identity.cert, "server.key": identity.key, "secret": self.password}.items():
            shutil.copyfile(source, self.data / name)
            (self.data / name).chmod(0o600)
        if self.account:
            for path in (self.data, *self.data.iterdir()):
                os.chown(path, self.account["user"], self.account["group"])
        login = ("--username", "warren", "--pwfile", self.data / "secret", "--auth", "scram-sha-256")
        self._run(folder / "initdb", "-D", self.tables, *login, "--encoding", "UTF8", "--locale", "C", "--no-sync")
        self._run(self.program, "--single", "-D", self.tables, "postgres", text=b"CREATE DATABASE warren\n")
        (self.tables / "pg_hba.conf").write_text("hostssl all all all scram-sha-256\n")

    @property
    def tables(self) -> Path:
        """What the server itself writes."""
        return self.data / "tables"

    def start(self) -> subprocess.Popen[bytes]:
        """Start it, and wait until it takes connections."""
        options = {
            "port": self.port,
            "listen_addresses": "127.0.0.1,127.0.0.2",
            "unix_socket_directories": "",
            "ssl": "on",
            "ssl_cert_file": self.data / "server.crt",
            "ssl_key_file": self.data / "server.key",
            "fsync": "off",  # what is lost when the machine stops is no test's concern
        }
        words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [self.program, "-D", self.tables, *words], stdout=log, stderr=log, cwd=self.data, **self.account
            )
        limit = time.monotonic() + PATIENCE
        while not self._is_ready():
            if process.poll() is not None or time.monotonic() > limit:
                process.kill()
                raise RuntimeError(f"PostgreSQL did not start: {(self.folder / 'log').read_text()}")
            time.sleep(0.05)
        return process

    @property
    def url(self) -> str:
        """Its database."""
        return f"db+postgresql+psycopg://warren@localhost:{self.port}/warren"

    def __exit__(self, *raised: object) -> None:
        super().__exit__(*raised)
        shutil.rmtree(self.data)

    def _is_ready(self) -> bool:
        """What pg_ctl looks at: the last line of the server's own file."""
        try:
            return (self.tables / "postmaster.pid").read_text().split()[-1] == "ready"
        except (OSError, IndexError):
            return False

    def _run(self, *command: str | Path, text: bytes = b"") -> None:
        """Run a program that makes the data; what it says is the error's text."""
        done = subprocess.run(command, input=text, capture_output=True, cwd=self.data, check=False, **self.account)
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed: {done.stderr.decode()}")
