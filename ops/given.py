"""What the owner of a Compose deployment decides, from the environment of the service that prepares it."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from queues.environment import Reader
from queues.settings import BROKER_TLS_PORT

if TYPE_CHECKING:
    from collections.abc import Mapping


_HOST_NAME = re.compile(r"(\*\.)?[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What the deployment's owner decides.

    Attributes:
        broker_names: further names and addresses under which producers reach the broker.
        published: where producers on this machine find the broker.
        smtp_host: the owner's mail relay; empty for the mail catcher.
        smtp_password: the relay's password; empty for the catcher's own.
        smtp_ca: the authority of the relay's certificate; empty for the public ones, or the catcher's own.
        own: the folder of the owner's certificates and passwords, see `ops.own`.
    """

    broker_names: tuple[str, ...] = ()
    published: str = f"127.0.0.1:{BROKER_TLS_PORT}"
    smtp_host: str = ""
    smtp_password: str = field(default="", repr=False)
    smtp_ca: bytes = b""
    own: Path | None = None

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
        names = tuple(reader.text("BROKER_NAMES").replace(",", " ").split())
        # In a certificate they prove nothing, and a producer would be told so much later.
        if wrong := [name for name in names if not is_name(name)]:
            reader.problem(f"BROKER_NAMES: {', '.join(wrong)} cannot be a host name or address: write it as clients do")
        own = reader.text("WARREN_SECRETS")
        given = cls(
            broker_names=names,
            published=f"{'127.0.0.1' if host in ('', '0.0.0.0', '[::]') else host}:{port}",  # noqa: S104 - compared
            smtp_host=reader.text("SMTP_HOST"),
            smtp_password=password.reveal().strip() if password else "",
            smtp_ca=ca,
            own=Path(own) if own else None,
        )
        if given.smtp_host and given.smtp_host != "mail" and reader.text("SMTP_USER") and not given.smtp_password:
            reader.problem(
                "SMTP_PASSWORD_FILE is missing: give the file that holds the password of SMTP_USER, or set SMTP_USER="
            )
        reader.check()
        return given


def is_name(text: str) -> bool:
    """Whether a certificate can prove it: a host name in ASCII, with a wildcard or without, or an address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return _HOST_NAME.fullmatch(text) is not None
    return True
