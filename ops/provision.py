"""`python -m ops.provision FOLDER`: all that a Compose deployment needs to know, made before its services start.

    FOLDER/authority, passwords    the certificate authority and every password: for this program alone
    FOLDER/rabbitmq                ca.crt, tls.crt, tls.key, rabbitmq.conf, definitions.json
    FOLDER/valkey                  ca.crt, tls.crt, tls.key, valkey.conf
    FOLDER/mail                    the mail catcher's: ca.crt, tls.crt, tls.key, smtp-password
    FOLDER/<role>                  a broker user's: ca.crt, tls.crt, tls.key, broker-password, and what its work needs

A service is shown its own folder only, at `/run/secrets`. What is missing is made, what is good is kept, and
certificates are made anew in their last 30 days.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ops import definitions
from ops.certs import Authority, replace_file
from ops.errors import OpsError
from ops.passwords import generate_password, hash_password
from queues.environment import Reader
from queues.errors import WarrenError
from queues.settings import BROKER_TLS_PORT
from queues.topology import QUEUES, Topology

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ops.certs import Identity

#: Where a service sees its folder.
MOUNT = "/run/secrets"
#: The users of the images: 999 in RabbitMQ's and Valkey's official ones, ours in the Dockerfile.
RABBITMQ_UID = 999
VALKEY_UID = 999
WARREN_UID = 10001
#: Debian's bundle of public authorities, which the relay of a user is checked against.
PUBLIC_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
#: The user that needs the mail relay.
MAILER = "worker-email"

# The memory limits stay well below the containers' in docker-compose.rabbitmq.yml: a drift test compares them.
_RABBITMQ_CONF = f"""\
# Written by ops.provision at every start of the deployment.
listeners.tcp = none
listeners.ssl.default = {BROKER_TLS_PORT}
ssl_options.cacertfile = {MOUNT}/ca.crt
ssl_options.certfile = {MOUNT}/tls.crt
ssl_options.keyfile = {MOUNT}/tls.key
ssl_options.versions.1 = tlsv1.3
ssl_options.versions.2 = tlsv1.2
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
ssl_options.depth = 1
ssl_handshake_timeout = 5000
auth_mechanisms.1 = PLAIN
management.ssl.port = 15671
management.ssl.cacertfile = {MOUNT}/ca.crt
management.ssl.certfile = {MOUNT}/tls.crt
management.ssl.keyfile = {MOUNT}/tls.key
management.ssl.versions.1 = tlsv1.3
management.ssl.versions.2 = tlsv1.2
prometheus.tcp.ip = 127.0.0.1
prometheus.ssl.port = 15691
prometheus.ssl.cacertfile = {MOUNT}/ca.crt
prometheus.ssl.certfile = {MOUNT}/tls.crt
prometheus.ssl.keyfile = {MOUNT}/tls.key
prometheus.ssl.versions.1 = tlsv1.3
prometheus.ssl.versions.2 = tlsv1.2
load_definitions = {MOUNT}/definitions.json
vm_memory_high_watermark.absolute = 600MiB
raft.wal_max_size_bytes = 64000000
disk_free_limit.absolute = 500MB
log.console = true
log.console.level = info
"""
# `health` may do nothing but PING; the workers' user may not administer, so none of them can empty or stop the store.
_VALKEY_CONF = f"""\
# Written by ops.provision at every start of the deployment.
port 0
tls-port 6379
tls-cert-file {MOUNT}/tls.crt
tls-key-file {MOUNT}/tls.key
tls-ca-cert-file {MOUNT}/ca.crt
tls-auth-clients optional
tls-protocols "TLSv1.2 TLSv1.3"
user default on #{{password}} ~* &* +@all -@admin -@dangerous
user health on nopass resetkeys resetchannels -@all +ping
dir /data
appendonly yes
appendfsync everysec
save ""
maxmemory 256mb
maxmemory-policy noeviction
"""
_PRODUCER_SETTINGS = """\
# A producer's settings on this machine, for bash and zsh: source this file.
_warren=$(cd "$(dirname "${{BASH_SOURCE[0]:-$0}}")" && pwd)
export BROKER_HOSTS={published} BROKER_SERVER_NAME=rabbitmq BROKER_USER={role}
export BROKER_CA="$_warren/ca.crt" BROKER_CERT="$_warren/tls.crt" BROKER_KEY="$_warren/tls.key"
export BROKER_PASSWORD_FILE="$_warren/broker-password"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What the deployment's owner decides.

    Attributes:
        broker_names: further names and addresses under which producers reach the broker.
        published: where producers on this machine find the broker.
        smtp_host: the owner's mail relay; empty for the mail catcher.
        smtp_password: the relay's password; empty for the catcher's own.
        smtp_ca: the authority of the relay's certificate; empty for the public ones, or the catcher's own.
    """

    broker_names: tuple[str, ...] = ()
    published: str = f"127.0.0.1:{BROKER_TLS_PORT}"
    smtp_host: str = ""
    smtp_password: str = field(default="", repr=False)
    smtp_ca: bytes = b""

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Given:
        """Read the environment; an empty file counts as none, so that Compose can mount /dev/null instead.

        Raises:
            ConfigurationError: everything wrong at once, a line each.
        """
        reader = Reader(environ)
        password = reader.secret("SMTP_PASSWORD")
        ca = b""
        if path := reader.text("SMTP_CA"):
            try:
                ca = Path(path).read_bytes()
            except OSError as exc:
                reader.problem(f"SMTP_CA={path!r} cannot be read ({exc.strerror}): give the file of an authority")
            if ca and b"-----BEGIN CERTIFICATE-----" not in ca:
                reader.problem("SMTP_CA holds no certificate: give a file in PEM form")
        host, _, port = reader.text("WARREN_AMQPS_ADDRESS", str(BROKER_TLS_PORT)).rpartition(":")
        if not port.isdigit():
            reader.problem("WARREN_AMQPS_ADDRESS is no address to publish at: write it as 127.0.0.1:5671")
        given = cls(
            broker_names=tuple(name for name in reader.text("BROKER_NAMES").replace(",", " ").split() if name),
            published=f"{'127.0.0.1' if host in ('', '0.0.0.0', '[::]') else host}:{port}",  # noqa: S104 - compared
            smtp_host=reader.text("SMTP_HOST"),
            smtp_password=password.reveal().strip() if password else "",
            smtp_ca=ca,
        )
        if given.smtp_host and given.smtp_host != "mail" and reader.text("SMTP_USER") and not given.smtp_password:
            reader.problem(
                "SMTP_PASSWORD_FILE is missing: give the file that holds the password of SMTP_USER, or set SMTP_USER="
            )
        reader.check()
        return given


class Provision:
    """Everything in one folder; `run()` brings it up to date."""

    def __init__(
        self,
        folder: Path,
        given: Given,
        *,
        topology: Topology = QUEUES,
        chown: Callable[[Path, int, int], None] = os.chown,
    ) -> None:
        self.folder = folder
        self.given = given
        self.topology = topology
        self._chown = chown
        self._written: list[str] = []

    def run(self) -> list[str]:
        """Make what is missing or outdated.

        Returns:
            The files that were written, relative to the folder.

        Raises:
            OpsError: the folder cannot be written, or its files do not belong together.
        """
        self._written = []
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.folder.chmod(0o700)
            authority = Authority.ensure(self.folder / "authority")
            for name, uid, files in self._services(authority):
                self._place(name, uid, files)
        except OSError as exc:
            raise OpsError(
                f"cannot write {exc.filename or self.folder} ({exc.strerror}): run as root, and give the volume room"
            ) from exc
        return self._written

    def _services(self, authority: Authority) -> Iterator[tuple[str, int, dict[str, bytes]]]:
        """Name, user id and files of each service."""
        roles = definitions.roles(self.topology)
        passwords = {role: self._password(role) for role in roles}
        results, smtp = self._password("valkey"), self.given.smtp_password or self._password("mail")
        broker = authority.server(("rabbitmq", *self.given.broker_names), role="rabbitmq")
        conf = _VALKEY_CONF.format(password=hashlib.sha256(results.encode()).hexdigest())
        yield (
            "rabbitmq",
            RABBITMQ_UID,
            {
                **identity_files(broker),
                "rabbitmq.conf": _RABBITMQ_CONF.encode(),
                "definitions.json": self._definitions(passwords),
            },
        )
        valkey = identity_files(authority.server(("valkey",), role="valkey"))
        yield "valkey", VALKEY_UID, {**valkey, "valkey.conf": conf.encode()}
        mail = identity_files(authority.server(("mail",), role="mail"))
        yield "mail", WARREN_UID, {**mail, "smtp-password": smtp.encode()}
        for role in roles:
            files = {**identity_files(authority.client(role)), "broker-password": passwords[role].encode()}
            if role == definitions.OPERATOR or role.startswith("worker-"):
                files["results-password"] = results.encode()
            if role == MAILER:
                files |= {"smtp-password": smtp.encode(), "smtp-ca.crt": self._smtp_ca(authority)}
            if role == definitions.PRODUCER:
                files["env.sh"] = _PRODUCER_SETTINGS.format(published=self.given.published, role=role).encode()
            yield role, WARREN_UID, files

    def _smtp_ca(self, authority: Authority) -> bytes:
        """The one authority, or bundle, that the mail relay is checked against."""
        if self.given.smtp_ca:
            return self.given.smtp_ca
        catcher = self.given.smtp_host in ("", "mail")
        return (authority.folder / "ca.crt" if catcher else PUBLIC_AUTHORITIES).read_bytes()

    def _password(self, name: str) -> str:
        """A password that is made once."""
        path = self.folder / "passwords" / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if not path.exists():
            replace_file(path, generate_password().encode(), 0o600)
        return path.read_text(encoding="utf-8").strip()

    def _definitions(self, passwords: Mapping[str, str]) -> bytes:
        """RabbitMQ's definitions; a hash that still fits its password is kept, or the file would never be the same."""
        try:
            before = json.loads((self.folder / "rabbitmq" / "definitions.json").read_bytes())
            kept = {user["name"]: user["password_hash"] for user in before["users"]}
        except (OSError, ValueError, KeyError, TypeError):
            kept = {}
        hashes = {role: rehash(password, kept.get(role, "")) for role, password in passwords.items()}
        document = definitions.build(hashes, rabbitmq=(4, 3), topology=self.topology)
        return json.dumps(document, indent=1).encode() + b"\n"

    def _place(self, name: str, uid: int, files: Mapping[str, bytes]) -> None:
        """Give a service its folder: what is in it belongs to the service, and only it may read it."""
        folder = self.folder / name
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
        for file, content in files.items():
            path = folder / file
            if path.exists() and path.read_bytes() == content:
                # A volume that was restored from a copy may have lost owners and modes.
                path.chmod(0o400)
                self._chown(path, uid, uid)
                continue
            # In one step, owner included: a service that runs never sees a file that it cannot read.
            staged = folder / f".{file}"
            replace_file(staged, content, 0o400)
            self._chown(staged, uid, uid)
            staged.replace(path)
            self._written.append(f"{name}/{file}")
        self._chown(folder, uid, uid)


def identity_files(identity: Identity) -> dict[str, bytes]:
    """A certificate's three files under the names that services know."""
    return {
        "ca.crt": identity.ca.read_bytes(),
        "tls.crt": identity.cert.read_bytes(),
        "tls.key": identity.key.read_bytes(),
    }


def rehash(password: str, known: str) -> str:
    """The known hash where it is one of this password, else a new one."""
    try:
        if known and hash_password(password, base64.b64decode(known)[:4]) == known:
            return known
    except ValueError:
        pass
    return hash_password(password)


def main() -> None:
    """Provision a folder; a problem is one sentence and exit code 1."""
    parser = argparse.ArgumentParser(prog="python -m ops.provision", description="Provision a Compose deployment.")
    parser.add_argument("folder", type=Path, help="a volume that only this program sees as a whole")
    folder: Path = parser.parse_args().folder
    try:
        written = Provision(folder, Given.from_env(os.environ)).run()
    except WarrenError as exc:
        sys.exit(str(exc))
    services = dict.fromkeys(name.partition("/")[0] for name in written)
    print(f"{len(written)} files written for {', '.join(services)}" if written else "everything is up to date")


if __name__ == "__main__":
    main()
