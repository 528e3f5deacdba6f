"""`python -m ops.provision FOLDER`: all that a Compose deployment needs to know, made before its services start.

    FOLDER/authority, passwords    the certificate authority and every password: for this program alone
    FOLDER/rabbitmq                ca.crt, tls.crt, tls.key, rabbitmq.conf, definitions.json
    FOLDER/valkey                  ca.crt, tls.crt, tls.key, valkey.conf, users.acl
    FOLDER/mail                    the mail catcher's: ca.crt, tls.crt, tls.key, smtp-password
    FOLDER/prometheus              ca.crt
    FOLDER/grafana                 admin-password
    FOLDER/<role>                  a broker user's: ca.crt, tls.crt, tls.key, broker-password, and what its work needs

A service is shown its own folder only, at `/run/secrets`. What is missing is made, what is good is kept, and
certificates are made anew in their last 30 days. The definitions that the broker imports at its start are made once:
after that only `warren apply` changes the topology, since only it has asked the broker what that would cost.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ops import definitions
from ops.certs import Authority
from ops.errors import OpsError
from ops.files import replace_file
from ops.given import Given
from ops.own import Own
from ops.passwords import generate_password, hash_password
from ops.servers import KEEPER, RABBITMQ_CONF, VALKEY_CONF, valkey_users
from queues.errors import WarrenError
from queues.topology import QUEUES, Topology

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ops.certs import Identity

#: The users of the images: 999 in RabbitMQ's and Valkey's official ones, ours in the Dockerfile.
RABBITMQ_UID = 999
VALKEY_UID = 999
WARREN_UID = 10001
#: nobody, in Prometheus' image, and Grafana's own user in its.
PROMETHEUS_UID = 65534
GRAFANA_UID = 472
#: Debian's bundle of public authorities, which the relay of a user is checked against.
PUBLIC_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
#: The user that needs the mail relay.
MAILER = "worker-email"
#: The version of RabbitMQ in docker-compose.rabbitmq.yml.
RABBITMQ = (4, 3)

#: Files of which a service that runs already notices no change, and what makes it take them. RabbitMQ looks at its
#: certificate by itself, and clients read theirs when they connect again.
TAKEN_BY = {
    "rabbitmq/rabbitmq.conf": "restart rabbitmq",
    "rabbitmq/definitions.json": "restart rabbitmq",
    "valkey/valkey.conf": "restart valkey",
    "valkey/users.acl": "run --rm apply",
    "valkey/tls.crt": "run --rm apply",
}

_PRODUCER_SETTINGS = """\
# A producer's settings on this machine, for bash and zsh: source this file.
_warren=$(cd "$(dirname "${{BASH_SOURCE[0]:-$0}}")" && pwd)
export BROKER_HOSTS={published} BROKER_SERVER_NAME=rabbitmq BROKER_USER={role}
export BROKER_CA="$_warren/ca.crt" BROKER_CERT="$_warren/tls.crt" BROKER_KEY="$_warren/tls.key"
export BROKER_PASSWORD_FILE="$_warren/broker-password"
"""
#: Flower's own form of settings: who may look at its pages.
_FLOWER_SETTINGS = """\
basic_auth = ["{role}:{password}"]
cookie_secret = "{cookie}"
"""


class Provision:
    """Everything in one folder; `run()` brings it up to date."""

    def __init__(
        self,
        folder: Path,
        given: Given,
        *,
        topology: Topology = QUEUES,
        take_topology: bool = False,
        chown: Callable[[Path, int, int], None] = os.chown,
    ) -> None:
        """Describe the folder.

        Args:
            folder: What only this program sees as a whole.
            given: The owner's decisions.
            topology: The table.
            take_topology: Write the table's definitions even where others stand.
            chown: Gives a file away.
        """
        self.folder = folder
        self.given = given
        self.own = Own(given.own)
        self.topology = topology
        #: Whether the definitions that the broker imports are not the table's.
        self.outdated = False
        #: What `run()` wrote in the place of something else.
        self.replaced: list[str] = []
        self._take_topology = take_topology
        self._chown = chown
        self._written: list[str] = []

    def run(self) -> list[str]:
        """Make what is missing or outdated.

        Returns:
            The files that were written, relative to the folder.

        Raises:
            OpsError: the folder cannot be written, its files do not belong together, or the owner's cannot be used.
        """
        self._written, self.replaced = [], []
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.folder.chmod(0o700)
            if self.own.has_certificates:
                self.own.check(self._servers(), definitions.roles(self.topology))
            authority = Authority.ensure(self.folder / "authority")
            for name, uid, files in self._services(authority):
                self._place(name, uid, files)
        except OSError as exc:
            raise OpsError(
                f"cannot write {exc.filename or self.folder} ({exc.strerror}): run as root, and give the volume room"
            ) from exc
        return self._written

    def advice(self) -> list[str]:
        """What is left to do after `run()` where the deployment runs already, a sentence for each file."""
        found = []
        for path, command in TAKEN_BY.items():
            service, _, file = path.partition("/")
            if path in self.replaced:
                found.append(
                    f"{file} of {service} has changed: where {service} runs already, `{command}` hands it over"
                )
        if self.outdated:
            found.append("the table has changed, the broker's definitions have not: `run --rm apply` shows the plan")
        return found

    def rotate_passwords(self) -> None:
        """Forget every password, so that `run()` makes others; Valkey takes the one before until `retire()`.

        The owner's own are the owner's to change. Three stay: Grafana reads its own at its first start only, the mail
        catcher is for trying things out, and by the third this program reaches Valkey.

        Raises:
            OpsError: the rotation before has not ended.
        """
        passwords = self.folder / "passwords"
        if self._before():
            raise OpsError("a rotation is under way: restart the workers, run `apply`, and rotate after that")
        for path in passwords.glob("*"):
            if path.name == "valkey":
                path.replace(passwords / "valkey.before")
            elif path.name not in ("grafana", "mail", KEEPER):
                path.unlink()

    def rotate_certificates(self) -> None:
        """Forget every certificate but the authority's own, so that `run()` makes others."""
        authority = Authority.ensure(self.folder / "authority")
        for role in (*self._servers(), "mail", *definitions.roles(self.topology)):
            authority.forget(role)

    def retire(self) -> bool:
        """Forget the password that Valkey took besides the present one.

        Returns:
            Whether there was one.
        """
        before = self.folder / "passwords" / "valkey.before"
        found = before.exists()
        before.unlink(missing_ok=True)
        return found

    def _servers(self) -> dict[str, tuple[str, ...]]:
        """The names that each server's certificate must prove."""
        return {"rabbitmq": ("rabbitmq", *self.given.broker_names), "valkey": ("valkey",)}

    def _services(self, authority: Authority) -> Iterator[tuple[str, int, dict[str, bytes]]]:
        """Name, user id and files of each service."""
        roles = definitions.roles(self.topology)
        servers = {
            name: self.own.identity(name) if self.own.has_certificates else authority.server(names, role=name)
            for name, names in self._servers().items()
        }
        passwords = {role: self._password(role) for role in roles}
        results, smtp = self._password("valkey"), self.given.smtp_password or self._password("mail")
        yield (
            "rabbitmq",
            RABBITMQ_UID,
            {
                **identity_files(servers["rabbitmq"]),
                "rabbitmq.conf": RABBITMQ_CONF.encode(),
                "definitions.json": self._definitions(passwords),
            },
        )
        users = valkey_users((results, *self._before()), self._password(KEEPER))
        stores = {**identity_files(servers["valkey"]), "valkey.conf": VALKEY_CONF.encode(), "users.acl": users.encode()}
        yield "valkey", VALKEY_UID, stores
        # All that it needs to check RabbitMQ's own metrics endpoint.
        yield "prometheus", PROMETHEUS_UID, {"ca.crt": servers["rabbitmq"].ca.read_bytes()}
        yield "grafana", GRAFANA_UID, {"admin-password": self._password("grafana").encode()}
        mail = identity_files(authority.server(("mail",), role="mail"))
        yield "mail", WARREN_UID, {**mail, "smtp-password": smtp.encode()}
        for role in roles:
            identity = self.own.identity(role) if self.own.has_certificates else authority.client(role)
            files = {**identity_files(identity), "broker-password": passwords[role].encode()}
            if role == definitions.OPERATOR or role.startswith("worker-"):
                files["results-password"] = results.encode()
            if role == MAILER:
                files |= {"smtp-password": smtp.encode(), "smtp-ca.crt": self._smtp_ca(authority)}
            if role == definitions.PRODUCER:
                files["env.sh"] = _PRODUCER_SETTINGS.format(published=self.given.published, role=role).encode()
            if role == definitions.FLOWER:
                pages, cookie = self._password("flower-pages"), self._password("flower-cookie")
                settings = _FLOWER_SETTINGS.format(role=role, password=pages, cookie=cookie)
                files |= {"flowerconfig.py": settings.encode(), "pages-password": pages.encode()}
            yield role, WARREN_UID, files

    def _smtp_ca(self, authority: Authority) -> bytes:
        """The one authority, or bundle, that the mail relay is checked against."""
        if self.given.smtp_ca:
            return self.given.smtp_ca
        catcher = self.given.smtp_host in ("", "mail")
        return (authority.folder / "ca.crt" if catcher else PUBLIC_AUTHORITIES).read_bytes()

    def _password(self, name: str) -> str:
        """The owner's password, or one that is made once."""
        if own := self.own.password(name):
            return own
        path = self.folder / "passwords" / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if not path.exists():
            replace_file(path, generate_password().encode(), 0o600)
        return path.read_text(encoding="utf-8").strip()

    def _before(self) -> tuple[str, ...]:
        """The password that workers which still run may show to Valkey."""
        path = self.folder / "passwords" / "valkey.before"
        return (path.read_text(encoding="utf-8").strip(),) if path.exists() else ()

    def _definitions(self, passwords: Mapping[str, str]) -> bytes:
        """RabbitMQ's definitions: the file's own topology where there is a file, always with the present passwords.

        A hash that still fits its password is kept, or the file would never be the same.
        """
        before: dict[str, Any] = {}
        known: dict[str, str] = {}
        try:
            before = json.loads((self.folder / "rabbitmq" / "definitions.json").read_bytes())
            known = {user["name"]: user["password_hash"] for user in before["users"]}
        except (OSError, ValueError, KeyError, TypeError):
            before = {}
        hashes = {role: rehash(password, known.get(role, "")) for role, password in passwords.items()}
        document = definitions.build(hashes, rabbitmq=RABBITMQ, topology=self.topology)
        if before and not self._take_topology:
            kept = {
                **before,
                "users": [
                    user | {"password_hash": hashes.get(user["name"], user["password_hash"])}
                    for user in before["users"]
                ],
            }
            self.outdated = kept != document
            document = kept
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
            if path.exists():
                self.replaced.append(f"{name}/{file}")
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
        provision = Provision(folder, Given.from_env(os.environ))
        written = provision.run()
    except WarrenError as exc:
        sys.exit(str(exc))
    services = dict.fromkeys(name.partition("/")[0] for name in written)
    print(f"{len(written)} files written for {', '.join(services)}" if written else "everything is up to date")
    for line in provision.advice():
        print(line)


if __name__ == "__main__":
    main()
