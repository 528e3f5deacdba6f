"""What producers and workers share: settings from the environment, read once, checked together."""

from __future__ import annotations

import importlib.util
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit
from zoneinfo import ZoneInfo

from queues.environment import Reader, bracket, check_host, is_loopback, shown
from queues.topology import QUEUES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from queues.environment import Secret

BROKER_TLS_PORT = 5671
BROKER_PLAIN_PORT = 5672
RESULT_KINDS = (
    "db+sqlite:///ABSOLUTE_PATH, db+postgresql://USER@HOST/DATABASE (or db+postgresql+psycopg://), "
    "rediss://HOST:PORT/0, redis:// on loopback, or disabled://"
)
#: Days that dead letters of `once` tasks are kept, and the ledger at least as long.
LEDGER_DAYS = math.ceil(
    max((queue.dead_letter_ttl for queue in QUEUES if any(task.once for task in queue.tasks)), default=0) / 86400
)
POSTGRESQL = ("db+postgresql", "db+postgresql+psycopg")


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Certificate files of one connection: the authority to trust, and our own certificate and key."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    @classmethod
    def read(cls, reader: Reader, prefix: str) -> TlsFiles:
        """Read `<prefix>_CA`, `_CERT` and `_KEY`."""
        files = cls(ca=reader.pem(f"{prefix}_CA"), cert=reader.pem(f"{prefix}_CERT"), key=reader.pem(f"{prefix}_KEY"))
        if bool(files.cert) != bool(files.key):
            reader.problem(f"{prefix}_CERT and {prefix}_KEY belong together: set both, or neither")
        return files


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerSettings:
    """How to reach RabbitMQ.

    Attributes:
        hosts: addresses tried in turn.
        tls: False only for a loopback host with BROKER_PLAINTEXT=1.
        server_name: the name that every broker certificate must carry; None checks each host's own name.
        login: PLAIN (user and password) or EXTERNAL (the client certificate's common name).
        driver: pyamqp, or librabbitmq in a plaintext producer.
    """

    hosts: tuple[tuple[str, int], ...] = (("127.0.0.1", BROKER_TLS_PORT),)
    user: str = "producer"
    password: Secret | None = None
    vhost: str = "/"
    tls: bool = True
    files: TlsFiles = field(default_factory=TlsFiles)
    server_name: str | None = None
    login: str = "PLAIN"
    driver: str = "pyamqp"
    heartbeat: int = 20

    @classmethod
    def read(cls, reader: Reader, *, worker: bool) -> BrokerSettings:
        """Read the `BROKER_*` variables."""
        plaintext = reader.flag("BROKER_PLAINTEXT")
        hosts = reader.hosts("BROKER_HOSTS", "127.0.0.1", BROKER_PLAIN_PORT if plaintext else BROKER_TLS_PORT)
        files = TlsFiles.read(reader, "BROKER")
        login = reader.choice("BROKER_LOGIN", ("PLAIN", "EXTERNAL"))
        driver = reader.choice("BROKER_DRIVER", ("pyamqp", "librabbitmq"))
        password = reader.secret("BROKER_PASSWORD")
        server_name = reader.text("BROKER_SERVER_NAME")
        if server_name:
            try:
                check_host(server_name)
            except ValueError as exc:
                reader.problem(f"BROKER_SERVER_NAME={shown(server_name)} {exc}")
        for host, _ in hosts:
            if plaintext and not is_loopback(host):
                reader.problem(f"BROKER_PLAINTEXT=1 is refused for {host}: only a loopback host may go without TLS")
        if not plaintext and files.ca is None and not reader.text("BROKER_CA"):
            reader.problem("BROKER_CA is missing: give the file of the authority that signed the broker's certificate")
        if plaintext and (files.ca or files.cert):
            reader.problem("BROKER_PLAINTEXT=1 contradicts BROKER_CA and BROKER_CERT: remove the one or the others")
        if login == "EXTERNAL" and files.cert is None:
            reader.problem("BROKER_LOGIN=EXTERNAL needs a client certificate: set BROKER_CERT and BROKER_KEY")
        if login == "PLAIN" and password is None and not reader.text("BROKER_PASSWORD_FILE"):
            reader.problem("BROKER_PASSWORD_FILE is missing: give the file that holds the broker user's password")
        if driver == "librabbitmq" and worker:
            reader.problem("BROKER_DRIVER=librabbitmq is refused in a worker: it cannot consume; remove it")
        if driver == "librabbitmq" and not plaintext:
            reader.problem("BROKER_DRIVER=librabbitmq has no TLS: remove it, or set BROKER_PLAINTEXT=1 on loopback")
        if driver == "librabbitmq" and importlib.util.find_spec("librabbitmq") is None:
            reader.problem(
                "BROKER_DRIVER=librabbitmq is not installed, and does not build on Python 3.11 or later: "
                "remove the variable"
            )
        return cls(
            hosts=hosts,
            user=reader.text("BROKER_USER", "producer"),
            password=password,
            vhost=reader.text("BROKER_VHOST", "/"),
            tls=not plaintext,
            files=files,
            server_name=server_name or None,
            login=login,
            driver=driver,
            heartbeat=int(reader.number("BROKER_HEARTBEAT", 20, low=5, high=300)),
        )

    @property
    def url(self) -> str:
        """The URL, as kombu reads it, of all hosts, password included: never log it."""
        scheme = "librabbitmq" if self.driver == "librabbitmq" else ("amqps" if self.tls else "pyamqp")
        login = quote(self.user, safe="")
        if self.password is not None:
            login += ":" + quote(self.password.reveal(), safe="")
        vhost = quote(self.vhost, safe="")
        return ";".join(f"{scheme}://{login}@{bracket(host)}:{port}/{vhost}" for host, port in self.hosts)

    @property
    def where(self) -> str:
        """The hosts as a person reads them."""
        return ", ".join(f"{bracket(host)}:{port}" for host, port in self.hosts)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultSettings:
    """Where results are stored: empty `url` stores none.

    Attributes:
        url: a Celery result backend without its password.
        expires: seconds that a result is kept.
        ledger_days: days that the ledger of `once` tasks keeps an entry.
    """

    url: str = ""
    password: Secret | None = None
    files: TlsFiles = field(default_factory=TlsFiles)
    expires: int = 3600
    ledger_days: int = LEDGER_DAYS

    @classmethod
    def read(cls, reader: Reader) -> ResultSettings:
        """Read `RESULT_BACKEND` and the `RESULT_*` variables."""
        url = reader.text("RESULT_BACKEND")
        files = TlsFiles.read(reader, "RESULT")
        if url:
            check_backend(reader, url, ca=bool(reader.text("RESULT_CA")))
        return cls(
            url=url,
            password=reader.secret("RESULT_PASSWORD"),
            files=files,
            expires=int(reader.number("RESULT_EXPIRES", 3600, low=60, high=30 * 86400)),
            # A dead letter that outlives its entry would be replayed as if it had never run.
            ledger_days=int(reader.number("LEDGER_DAYS", LEDGER_DAYS, low=LEDGER_DAYS, high=3660)),
        )

    @property
    def kind(self) -> str:
        """`redis`, `sql` or, where no result is stored, an empty string."""
        if self.url.startswith(("redis://", "rediss://")):
            return "redis"
        return "sql" if self.url.startswith("db+") else self.url.partition(":")[0]


def check_backend(reader: Reader, url: str, *, ca: bool) -> None:
    """Note what is wrong with `RESULT_BACKEND`, never showing what may be a password."""
    scheme = url.partition("://")[0]
    if url == "disabled://":
        return
    if "?" in url or "#" in url:
        # An option in the URL beats ours: ssl_cert_reqs=none would switch verification off.
        reader.problem(
            "RESULT_BACKEND holds a query or fragment: leave it out; use RESULT_CA, RESULT_CERT and RESULT_KEY for TLS"
        )
    elif scheme == "db+sqlite":
        check_sqlite(reader, url)
    elif scheme in ("redis", "rediss", *POSTGRESQL) and "://" in url:
        check_server(reader, scheme, url, ca=ca)
    else:
        reader.problem(f"RESULT_BACKEND is of no kind that keeps results safely: write {RESULT_KINDS}")


def check_sqlite(reader: Reader, url: str) -> None:
    """Note what is wrong with the path of a `db+sqlite:///` URL."""
    path = Path(url.removeprefix("db+sqlite:///"))
    if not url.startswith("db+sqlite:////"):
        reader.problem("RESULT_BACKEND=db+sqlite needs an absolute path: write db+sqlite:////PATH, with four slashes")
    elif not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        reader.problem(
            f"RESULT_BACKEND: {str(path.parent)!r} is no folder that this user may write: create it or change its owner"
        )


def check_server(reader: Reader, scheme: str, url: str, *, ca: bool) -> None:
    """Note what is wrong with the URL of a result store on the network."""
    try:
        parts = urlsplit(url)
        host, password, _ = parts.hostname or "", parts.password, parts.port
        # urlsplit drops line breaks, and SQLAlchemy takes what stands before a later @ as user and password.
        if re.search(r"\s", url) or "@" in parts.path:
            raise ValueError(url)
    except ValueError:
        reader.problem(f"RESULT_BACKEND={scheme} has no valid host, port and path: write {RESULT_KINDS}")
        return
    if password is not None:
        reader.problem("RESULT_BACKEND holds a password: take it out of the URL and use RESULT_PASSWORD_FILE")
    try:
        check_host(host)
    except ValueError as exc:
        reader.problem(f"RESULT_BACKEND={scheme}: {shown(host)} {exc}")
        return
    if scheme == "redis" and not is_loopback(host):
        reader.problem("RESULT_BACKEND=redis:// sends results in clear text: use rediss:// and set RESULT_CA")
    if not ca and (scheme == "rediss" or (scheme in POSTGRESQL and not is_loopback(host))):
        reader.problem(
            "RESULT_CA is missing: give the file of the authority that signed the result store's certificate"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that producers and workers share.

    Attributes:
        timezone: zone of crontab schedules; timestamps are UTC.
        publish_timeout: seconds within which every publish ends as confirmed, refused or unknown.
    """

    broker: BrokerSettings = field(default_factory=BrokerSettings)
    results: ResultSettings = field(default_factory=ResultSettings)
    timezone: str = "Asia/Seoul"
    publish_timeout: float = 15.0

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, *, worker: bool = False) -> Settings:
        """Read the environment.

        Raises:
            ConfigurationError: everything wrong at once, a line each.
        """
        reader = Reader(os.environ if environ is None else environ)
        settings = cls(
            broker=BrokerSettings.read(reader, worker=worker),
            results=ResultSettings.read(reader),
            timezone=reader.text("TIMEZONE", "Asia/Seoul"),
            publish_timeout=reader.number("PUBLISH_TIMEOUT", 15.0, low=1, high=600),
        )
        try:
            ZoneInfo(settings.timezone)
        except (OSError, ValueError, KeyError):
            reader.problem(f"TIMEZONE={settings.timezone!r} is unknown: use a name such as Asia/Seoul or UTC")
        if worker and not settings.results.url:
            reader.problem(
                "RESULT_BACKEND is missing: a worker stores results; set db+sqlite:////PATH or rediss://HOST"
            )
        reader.check()
        return settings
