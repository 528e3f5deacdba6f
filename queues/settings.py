"""Settings from the environment, read once, checked together.

Every wrong variable is reported in one error that names it and the remedy. Secrets come from files (`*_FILE`) or, where
there is no file, from the variable itself, and never show in a `repr`.
"""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote
from zoneinfo import ZoneInfo

from queues.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

MASK = "********"
BROKER_TLS_PORT = 5671
BROKER_PLAIN_PORT = 5672


class Secret:
    """A string that hides itself: `repr` and `str` show a mask, `reveal()` gives it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The secret itself."""
        return self._value

    def __repr__(self) -> str:
        return f"Secret({MASK!r})"

    def __str__(self) -> str:
        return MASK

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __bool__(self) -> bool:
        return bool(self._value)


class Reader:
    """Reads variables and collects what is wrong with them; `check()` raises it all at once."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.problems: list[str] = []

    def problem(self, text: str) -> None:
        """Note something wrong; the text names the variable and the remedy."""
        self.problems.append(text)

    def check(self) -> None:
        """Raise what was noted.

        Raises:
            ConfigurationError: one line for each problem.
        """
        if self.problems:
            raise ConfigurationError("\n".join(self.problems))

    def text(self, name: str, default: str = "") -> str:
        """A variable with surrounding space removed; empty counts as absent."""
        return self.environ.get(name, "").strip() or default

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        """One of the choices, the first being the default."""
        value = self.text(name, choices[0])
        if value not in choices:
            self.problem(f"{name}={value!r} is unknown: set it to one of {', '.join(choices)}")
            return choices[0]
        return value

    def flag(self, name: str, *, default: bool = False) -> bool:
        """A switch, 1 or 0."""
        return self.choice(name, ("1", "0") if default else ("0", "1")) == "1"

    def number(self, name: str, default: float, *, low: float, high: float) -> float:
        """A number within bounds."""
        value = self.text(name, str(default))
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not low <= number <= high:
            self.problem(f"{name}={value!r} is out of range: set it to a number from {low:g} to {high:g}")
            return default
        return number

    def file(self, name: str) -> Path | None:
        """A path that must be readable, or None where the variable is absent."""
        value = self.text(name)
        if not value:
            return None
        path = Path(value)
        if not path.is_file() or not os.access(path, os.R_OK):
            self.problem(f"{name}={value!r} cannot be read: give the path of a file that this user may read")
        return path

    def secret(self, name: str) -> Secret | None:
        """The content of the file in `<name>_FILE`, or the variable itself, or None."""
        path = self.text(f"{name}_FILE")
        value = self.environ.get(name, "")
        if path and value:
            self.problem(f"{name} and {name}_FILE are both set: keep {name}_FILE and remove {name}")
        if not path:
            return Secret(value) if value else None
        try:
            return Secret(Path(path).read_text(encoding="utf-8").rstrip("\r\n"))
        except (OSError, UnicodeDecodeError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8 text"
            self.problem(f"{name}_FILE={path!r} cannot be read ({reason}): give the path of a readable secret file")
            return None

    def hosts(self, name: str, default: str, port: int) -> tuple[tuple[str, int], ...]:
        """`host[:port]` pairs separated by commas; an IPv6 address stands in brackets."""
        found = []
        for item in self.text(name, default).split(","):
            entry = item.strip()
            host, separator, number = entry.rpartition(":") if not entry.endswith("]") else (entry, "", "")
            if not separator:
                host, number = entry, str(port)
            host = host.strip("[]")
            if not host or not number.isdigit() or not 0 < int(number) < 65536 or any(c in host for c in "/@ "):
                self.problem(f"{name}={entry!r} is no address: write host or host:port, several with commas between")
                continue
            found.append((host, int(number)))
        return tuple(found)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Certificate files of one connection: the authority to trust, and our own certificate and key."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    @classmethod
    def read(cls, reader: Reader, prefix: str) -> TlsFiles:
        """Read `<prefix>_CA`, `_CERT` and `_KEY`."""
        files = cls(
            ca=reader.file(f"{prefix}_CA"), cert=reader.file(f"{prefix}_CERT"), key=reader.file(f"{prefix}_KEY")
        )
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
        return cls(
            hosts=hosts,
            user=reader.text("BROKER_USER", "producer"),
            password=password,
            vhost=reader.text("BROKER_VHOST", "/"),
            tls=not plaintext,
            files=files,
            server_name=reader.text("BROKER_SERVER_NAME") or None,
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


def bracket(host: str) -> str:
    """An IPv6 address in brackets, any other host as it is."""
    return f"[{host}]" if ":" in host else host


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultSettings:
    """Where results are stored: empty `url` stores none.

    Attributes:
        url: a Celery result backend without its password.
        expires: seconds that a result is kept.
    """

    url: str = ""
    password: Secret | None = None
    files: TlsFiles = field(default_factory=TlsFiles)
    expires: int = 3600

    @classmethod
    def read(cls, reader: Reader) -> ResultSettings:
        """Read `RESULT_BACKEND` and the `RESULT_*` variables."""
        url = reader.text("RESULT_BACKEND")
        files = TlsFiles.read(reader, "RESULT")
        if url.startswith(("rpc", "amqp")):
            reader.problem(
                "RESULT_BACKEND=rpc loses results with the client: use db+sqlite:///, db+postgresql or rediss"
            )
        if url.startswith("redis://") and not is_loopback(host_of(url)):
            reader.problem("RESULT_BACKEND=redis:// sends results in clear text: use rediss:// and set RESULT_CA")
        if url.startswith("rediss://") and files.ca is None and not reader.text("RESULT_CA"):
            reader.problem(
                "RESULT_CA is missing: give the file of the authority that signed the result store's certificate"
            )
        return cls(
            url=url,
            password=reader.secret("RESULT_PASSWORD"),
            files=files,
            expires=int(reader.number("RESULT_EXPIRES", 3600, low=60, high=30 * 86400)),
        )

    @property
    def kind(self) -> str:
        """`redis`, `sql` or, where no result is stored, an empty string."""
        if self.url.startswith(("redis://", "rediss://")):
            return "redis"
        return "sql" if self.url.startswith("db+") else self.url.partition(":")[0]


def host_of(url: str) -> str:
    """The host in a URL, or an empty string."""
    from urllib.parse import urlsplit

    return urlsplit(url).hostname or ""


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
