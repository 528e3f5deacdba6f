"""RabbitMQ's management API: a client with one kept, verified connection."""

from __future__ import annotations

import base64
import http.client
import json
import os
import ssl
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

from ops.errors import OpsError, UnreachableError
from queues.environment import Reader, bracket, is_loopback
from queues.errors import ConfigurationError
from queues.remedies import certificate_remedy
from queues.settings import BrokerSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from queues.settings import TlsFiles

#: Seconds for connecting and for each answer; Prometheus gives a scrape 10 s.
TIMEOUT = 4.0
_COLUMNS = (
    *("name", "state", "messages", "messages_ready", "messages_unacknowledged", "consumers", "head_message_timestamp"),
    *("messages_dlx", "message_bytes", "message_stats.publish", "message_stats.ack", "message_stats.redeliver"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagementSettings:
    """The broker, and where its management API answers.

    Attributes:
        broker: user, password, authority, certificate and server name serve both.
        url: `https://host:port`, or `http://` on loopback.
    """

    broker: BrokerSettings
    url: str

    @classmethod
    def read(cls, reader: Reader) -> ManagementSettings:
        """Read `BROKER_*` and `MANAGEMENT_URL`."""
        broker = BrokerSettings.read(reader, worker=True)
        if broker.login == "EXTERNAL" and broker.password is None:
            reader.problem("BROKER_PASSWORD_FILE is missing: the management API takes no certificate for a login")
        url = reader.text("MANAGEMENT_URL").rstrip("/")
        if not url:
            reader.problem("MANAGEMENT_URL is missing: set it to https://HOST:15671, the broker's management API")
            return cls(broker=broker, url=url)
        try:
            parts = urlsplit(url)
            valid = (
                parts.scheme in ("https", "http")
                and parts.netloc.lower() == f"{bracket(parts.hostname or '')}:{parts.port}"
            )
        except ValueError:
            valid = False
        if not valid or parts.path or parts.query:
            reader.problem("MANAGEMENT_URL is no address: write https://HOST:PORT, without user and path")
        elif parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            reader.problem("MANAGEMENT_URL=http:// sends the password in clear text: use https://")
        return cls(broker=broker, url=url)


class Management:
    """Asks one broker; safe to share between threads."""

    def __init__(self, settings: ManagementSettings, *, timeout: float = TIMEOUT) -> None:
        """Describe the broker; it is reached at the first question.

        Args:
            settings: where, and as whom: a user with the tag `monitoring` or above.
            timeout: seconds for connecting and for each read.
        """
        broker, parts = settings.broker, urlsplit(settings.url)
        host = parts.hostname or ""
        self.where = parts.netloc
        self.vhost = broker.vhost
        self._connection: http.client.HTTPConnection
        if parts.scheme == "https":
            self._connection = _HttpsConnection(
                host,
                parts.port,
                timeout=timeout,
                context=_context(broker.files),
                server_name=broker.server_name or host,
            )
        else:
            self._connection = http.client.HTTPConnection(host, parts.port, timeout=timeout)
        password = broker.password.reveal() if broker.password else ""
        login = base64.b64encode(f"{broker.user}:{password}".encode()).decode()
        self._headers = {"Authorization": f"Basic {login}", "Accept": "application/json"}
        self._lock = threading.Lock()

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Management:
        """Read `BROKER_*` and `MANAGEMENT_URL`.

        Raises:
            ConfigurationError: everything wrong at once, a line each.
        """
        reader = Reader(os.environ if environ is None else environ)
        settings = ManagementSettings.read(reader)
        reader.check()
        return cls(settings)

    def queues(self) -> list[dict[str, Any]]:
        """All queues of the virtual host; what the broker does not know of a queue is missing in its row.

        Raises:
            OpsError: see `get`.
        """
        path = f"/api/queues/{quote(self.vhost, safe='')}"
        found: list[dict[str, Any]] = self.get(path, columns=",".join(_COLUMNS))
        return found

    def nodes(self) -> list[dict[str, Any]]:
        """The cluster's nodes with their alarms; what is not known of a node is missing in its row.

        Raises:
            OpsError: see `get`.
        """
        found: list[dict[str, Any]] = self.get("/api/nodes", columns="name,running,mem_alarm,disk_free_alarm")
        return found

    @property
    def not_after(self) -> str | None:
        """Until when the certificate of the management API is valid, as ssl writes it; None while not connected."""
        sock = self._connection.sock
        if not isinstance(sock, ssl.SSLSocket):
            return None
        try:
            certificate = sock.getpeercert()
        except (OSError, ValueError):
            return None
        return str(certificate["notAfter"]) if certificate else None

    def definitions(self) -> dict[str, Any]:
        """The broker's definitions, of this virtual host only.

        Raises:
            OpsError: see `get`.
        """
        found: dict[str, Any] = self.get("/api/definitions")
        return {
            kind: [item for item in items if item.get("vhost", self.vhost) == self.vhost]
            for kind, items in found.items()
            if isinstance(items, list)
        }

    def version(self) -> tuple[int, int]:
        """RabbitMQ's major and minor version.

        Raises:
            OpsError: see `get`.
        """
        major, minor, *_ = self.get("/api/overview", columns="rabbitmq_version")["rabbitmq_version"].split(".")
        return int(major), int(minor)

    def get(self, path: str, **query: str) -> Any:
        """The decoded answer to a GET.

        Raises:
            UnreachableError: no answer in time, or none that can be trusted.
            OpsError: the broker refuses.
        """
        body = self._answer("GET", path, f"{path}?{urlencode(query, safe=',')}" if query else path)
        try:
            return json.loads(body)
        except ValueError as exc:
            raise UnreachableError(f"{self.where} did not answer in JSON: check MANAGEMENT_URL") from exc

    def import_definitions(self, document: Mapping[str, Any]) -> None:
        """Add and change what a definitions document holds, exactly as the broker does at its start.

        Raises:
            OpsError: see `get`.
        """
        self._answer("POST", "/api/definitions", body=json.dumps(document))

    def delete(self, *path: str) -> None:
        """Delete what a path of names leads to, such as `("exchanges", vhost, name)`; what is gone already is no error.

        Raises:
            OpsError: see `get`.
        """
        target = "/".join(("/api", *(quote(part, safe="") for part in path)))
        self._answer("DELETE", target, accepted=(http.client.NOT_FOUND,))

    def _answer(
        self, method: str, path: str, target: str = "", body: str | None = None, accepted: tuple[int, ...] = ()
    ) -> bytes:
        """The body of a successful answer."""
        try:
            with self._lock:
                status, answer = self._ask(method, target or path, body)
        except ssl.SSLCertVerificationError as exc:
            raise UnreachableError(
                f"the certificate of {self.where} is not valid ({exc.verify_message}): "
                f"{certificate_remedy(exc, 'MANAGEMENT_URL')}"
            ) from exc
        except (OSError, http.client.HTTPException) as exc:
            raise UnreachableError(
                f"the management API at {self.where} does not answer ({exc or type(exc).__name__}): "
                "start the broker, or check MANAGEMENT_URL"
            ) from exc
        if status == http.client.UNAUTHORIZED:
            raise OpsError(f"{self.where} refused the login: check BROKER_USER, its password, and its tag monitoring")
        if status >= http.client.MULTIPLE_CHOICES and status not in accepted:
            raise OpsError(f"{self.where} answered {status} to {path}: check BROKER_VHOST and the user's rights")
        return answer

    def close(self) -> None:
        """Close the connection; the next question opens one again."""
        with self._lock:
            self._connection.close()

    def _ask(self, method: str, target: str, body: str | None) -> tuple[int, bytes]:
        """Ask once, and once more where a kept connection turns out to have been closed meanwhile."""
        kept = self._connection.sock is not None
        try:
            return self._exchange(method, target, body)
        except (ConnectionError, http.client.BadStatusLine, ssl.SSLEOFError):
            if not kept:
                raise
        return self._exchange(method, target, body)

    def _exchange(self, method: str, target: str, body: str | None) -> tuple[int, bytes]:
        headers = self._headers if body is None else {**self._headers, "Content-Type": "application/json"}
        try:
            self._connection.request(method, target, body=body, headers=headers)
            answer = self._connection.getresponse()
            return answer.status, answer.read()
        except BaseException:
            # Half an answer must not be taken for the next one's.
            self._connection.close()
            raise


class _HttpsConnection(http.client.HTTPSConnection):
    """HTTPS whose certificate is checked for a name of our choice."""

    def __init__(
        self, host: str, port: int | None, *, timeout: float, context: ssl.SSLContext, server_name: str
    ) -> None:
        super().__init__(host, port, timeout=timeout, context=context)
        self._tls = context
        self._server_name = server_name

    def connect(self) -> None:
        """Connect and verify."""
        http.client.HTTPConnection.connect(self)
        self.sock = self._tls.wrap_socket(self.sock, server_hostname=self._server_name)


def _context(files: TlsFiles) -> ssl.SSLContext:
    """A verifying context.

    Raises:
        ConfigurationError: the files are no certificates, or do not belong together.
    """
    try:
        context = ssl.create_default_context(cafile=files.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if files.cert and files.key:
            context.load_cert_chain(files.cert, files.key)
    except OSError as exc:
        raise ConfigurationError(
            f"BROKER_CA, BROKER_CERT or BROKER_KEY cannot be used ({exc.strerror}): give PEM files that belong together"
        ) from exc
    return context
