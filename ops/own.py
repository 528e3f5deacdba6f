"""Certificates and passwords that a deployment's owner gives instead of those that `ops.provision` would make.

folder/ca.crt                     the authority of all of them; its presence means that every certificate is given
folder/<name>.crt, <name>.key     rabbitmq, valkey, and each broker user's
folder/<name>.password            a broker user's, or Valkey's; where there is none, one is made
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from ops.certs import Identity, names_of, usages_of
from ops.errors import OpsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_PUBLIC = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


class Own:
    """The owner's folder; a path that is no folder (Compose mounts /dev/null) holds nothing."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder or Path(os.devnull)

    @property
    def has_certificates(self) -> bool:
        """Whether the owner gives certificates: then all of them."""
        return self.folder.is_dir() and (self.folder / "ca.crt").exists()

    def password(self, name: str) -> str | None:
        """The password given for a name.

        Raises:
            OpsError: the file is not one line of text.
        """
        path = self.folder / f"{name}.password"
        if not self.folder.is_dir() or not path.exists():
            return None
        try:
            text = path.read_text(encoding="utf-8").removesuffix("\n")
        except (OSError, UnicodeDecodeError) as exc:
            raise OpsError(f"{path.name} cannot be read ({exc}): give a password on one line") from exc
        if not text or any(character in text for character in "\0\r\n"):
            raise OpsError(f"{path.name} is empty or has more than one line: give a password on one line")
        return text

    def identity(self, name: str) -> Identity:
        """The files of a name; `check` says whether they can be used."""
        return Identity(ca=self.folder / "ca.crt", cert=self.folder / f"{name}.crt", key=self.folder / f"{name}.key")

    def check(self, servers: Mapping[str, Iterable[str]], clients: Iterable[str]) -> None:
        """Refuse certificates that a service would stumble over later.

        Args:
            servers: the names that each server's certificate must prove.
            clients: who shows one to a server.

        Raises:
            OpsError: everything wrong at once, a line for each certificate.
        """
        problems = [self._problem(name, required) for name, required in servers.items()]
        problems += [self._problem(name, None) for name in clients]
        if found := [problem for problem in problems if problem]:
            raise OpsError("\n".join(found))

    def _problem(self, name: str, required: Iterable[str] | None) -> str | None:
        """What is wrong with one certificate; `required` names make it a server's."""
        files = self.identity(name)
        try:
            authorities = x509.load_pem_x509_certificates(files.ca.read_bytes())
            certificate, *chain = x509.load_pem_x509_certificates(files.cert.read_bytes())
            key = serialization.load_pem_private_key(files.key.read_bytes(), password=None)
        except OSError as exc:
            return f"{name}: {exc.filename} cannot be read ({exc.strerror}): give it, as ca.crt asks for every pair"
        except (ValueError, TypeError) as exc:
            return f"{name}: its files are not PEM, or the key has a password ({exc}): give them without"
        now, ends = datetime.now(UTC), certificate.not_valid_after_utc
        usages, usage = usages_of(certificate), ExtendedKeyUsageOID.CLIENT_AUTH
        if required is not None:
            usage = ExtendedKeyUsageOID.SERVER_AUTH
            if missing := sorted(set(required) - set(names_of(certificate))):
                proven = ", ".join(names_of(certificate)) or "no name"
                return f"{name}.crt proves {proven} and not {', '.join(missing)}: have it signed for all these names"
        if ends < now:
            return f"{name}.crt expired on {ends.date()}: give a newer one"
        if certificate.not_valid_before_utc > now:
            return f"{name}.crt is valid from {certificate.not_valid_before_utc.date()} on: set the clock, or wait"
        if key.public_key().public_bytes(*_PUBLIC) != certificate.public_key().public_bytes(*_PUBLIC):
            return f"{name}.key is not the key of {name}.crt: give the pair that belongs together"
        if usages and usage not in usages:
            kind = "servers" if required is not None else "clients"
            return f"{name}.crt is not for {kind}: have it signed with that extended key usage"
        if not any(is_issued_by(certificate, issuer) for issuer in (*authorities, *chain)):
            return f"{name}.crt was not signed by ca.crt: give the authority that signed it"
        return None


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether an authority signed a certificate."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
