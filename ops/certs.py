"""A small certificate authority in a folder, for the stacks that bring their own TLS.

    folder/ca.crt              what everyone trusts
    folder/authority/ca.key    signs, and never leaves this folder
    folder/<role>.crt, .key    one pair for each server and client

Everything is made when missing, kept while it is good, and made anew in its last 30 days.
"""

from __future__ import annotations

import contextlib
import fcntl
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ops.errors import OpsError
from ops.files import replace_file
from ops.issuer import common_name, self_signed, signed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

CA_DAYS = 3650
LEAF_DAYS = 397  # the longest life that every TLS stack in use accepts
RENEW_DAYS = 30
# kombu connects to 127.0.0.1 where the URL says localhost, and then checks that name.
LOOPBACK = ("localhost", "127.0.0.1")

_ROLE = re.compile(r"[a-z][a-z0-9-]*")
_KINDS = {ExtendedKeyUsageOID.SERVER_AUTH: "server", ExtendedKeyUsageOID.CLIENT_AUTH: "client"}


@dataclass(frozen=True, slots=True)
class Identity:
    """The three files that one end of a TLS connection needs.

    Attributes:
        ca: The authority to trust.
        cert: Our own certificate.
        key: Its private key, readable by its owner alone.
    """

    ca: Path
    cert: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Certificate:
    """What an operator wants to know of one certificate.

    Attributes:
        name: File name.
        role: Common name: who presents it.
        kind: ``authority``, ``server`` or ``client``.
        names: DNS names and addresses that it proves; none for a client.
        not_after: End of its validity, in UTC.
        days_left: Days until then; negative once it has expired.
    """

    name: str
    role: str
    kind: str
    names: tuple[str, ...]
    not_after: datetime
    days_left: float


class Authority:
    """An authority in a folder; `ensure()` makes or opens it."""

    def __init__(
        self, folder: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, now: Callable[[], datetime]
    ) -> None:
        self.folder = folder
        self.certificate = certificate
        self._key = key
        self._now = now

    @classmethod
    def ensure(cls, folder: Path, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Authority:
        """Open the authority in `folder`, made where there is none and renewed where it ends soon.

        A renewed authority keeps its key and name, so that whoever trusts the old file trusts what the new one signs.

        Args:
            folder: Where all files go; made with mode 0700.
            now: The clock.

        Raises:
            OpsError: the folder cannot be written, or its files do not belong together.
        """
        path, key_path = folder / "ca.crt", folder / "authority" / "ca.key"
        with _writing(folder):
            key_path.parent.mkdir(mode=0o700, exist_ok=True)
            key = _read_key(key_path)
            certificate = _read(path) if path.exists() else None
            if certificate is not None and (key is None or key.public_key() != certificate.public_key()):
                raise OpsError(f"{path} and {key_path} do not belong together: restore the key, or remove both")
            if key is None:
                key = ec.generate_private_key(ec.SECP256R1())
                replace_file(key_path, _key_bytes(key), 0o600)
            if certificate is None or _days(certificate, now()) < RENEW_DAYS:
                # OpenSSL finds an issuer by its name: two authorities of one name in a bundle would be confused.
                name = certificate.subject if certificate else common_name(f"Warren authority {secrets.token_hex(4)}")
                certificate = self_signed(name, key, now(), CA_DAYS)
                replace_file(path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
        return cls(folder, certificate, key, now)

    def server(self, names: Sequence[str], role: str = "broker") -> Identity:
        """A server's certificate for `names` (DNS names or addresses) and for this machine's loopback.

        Raises:
            OpsError: a name is no host name, the role is no file name, or the folder cannot be written.
        """
        return self._leaf(role, ExtendedKeyUsageOID.SERVER_AUTH, tuple(dict.fromkeys((*names, *LOOPBACK))))

    def client(self, role: str) -> Identity:
        """A client's certificate; its common name is the role.

        Raises:
            OpsError: the role is no file name, or the folder cannot be written.
        """
        return self._leaf(role, ExtendedKeyUsageOID.CLIENT_AUTH, ())

    def forget(self, role: str) -> None:
        """Forget a certificate, so that the next call for it makes another.

        Raises:
            OpsError: the folder cannot be written.
        """
        with _writing(self.folder):
            (self.folder / f"{role}.crt").unlink(missing_ok=True)

    def _leaf(self, role: str, usage: x509.ObjectIdentifier, names: tuple[str, ...]) -> Identity:
        if not _ROLE.fullmatch(role) or role == "ca":
            raise OpsError(f"{role!r} cannot name a certificate: use lower-case letters, digits and dashes, not 'ca'")
        files = Identity(ca=self.folder / "ca.crt", cert=self.folder / f"{role}.crt", key=self.folder / f"{role}.key")
        with _writing(self.folder):
            if not self._is_good(files, usage, names):
                key = ec.generate_private_key(ec.SECP256R1())
                certificate = signed(
                    self.certificate,
                    self._key,
                    common_name(role),
                    key,
                    self._now(),
                    LEAF_DAYS,
                    usage=usage,
                    names=names,
                )
                replace_file(files.key, _key_bytes(key), 0o600)
                replace_file(files.cert, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
        return files

    def _is_good(self, files: Identity, usage: x509.ObjectIdentifier, names: tuple[str, ...]) -> bool:
        """Whether the pair exists, belongs together, is ours, says what is asked for, and lasts."""
        try:
            certificate, key = _read(files.cert), _read_key(files.key)
            certificate.verify_directly_issued_by(self.certificate)
        except (OpsError, ValueError, TypeError, InvalidSignature):
            return False
        return (
            key is not None
            and key.public_key() == certificate.public_key()
            and usages_of(certificate) == (usage,)
            and set(names_of(certificate)) == set(names)
            and _days(certificate, self._now()) >= RENEW_DAYS
        )


def days_left(path: Path) -> float:
    """Days until the certificate in `path` expires; negative once it has.

    Raises:
        OpsError: there is no such file, or no certificate in it.
    """
    return _days(_read(path), datetime.now(UTC))


def describe(folder: Path) -> list[Certificate]:
    """All certificates of a folder, the one that expires first at the head.

    Raises:
        OpsError: a file named like a certificate holds none.
    """
    found = []
    for path in folder.glob("*.crt"):
        certificate = _read(path)
        common_names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        usages = usages_of(certificate)
        found.append(
            Certificate(
                name=path.name,
                role=str(common_names[0].value) if common_names else path.stem,
                kind=_KINDS.get(usages[0], "authority") if usages else "authority",
                names=names_of(certificate),
                not_after=certificate.not_valid_after_utc,
                days_left=_days(certificate, datetime.now(UTC)),
            )
        )
    return sorted(found, key=lambda entry: (entry.not_after, entry.name))


def names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """The DNS names and addresses that a certificate proves."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(entry.value) for entry in extension)


def usages_of(certificate: x509.Certificate) -> tuple[x509.ObjectIdentifier, ...]:
    """What a certificate is good for; nothing where it does not say."""
    try:
        return tuple(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return ()


def _days(certificate: x509.Certificate, now: datetime) -> float:
    return (certificate.not_valid_after_utc - now) / timedelta(days=1)


def _read(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as exc:
        raise OpsError(f"cannot read the certificate {path} ({exc.strerror}): give the right file") from exc
    except ValueError as exc:
        raise OpsError(f"{path} holds no certificate: remove it, and it will be made anew") from exc


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey | None:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise OpsError(f"cannot read the key {path} ({exc.strerror}): run as its owner") from exc
    except ValueError as exc:
        raise OpsError(f"{path} holds no private key: restore it, or remove the folder {path.parent}") from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise OpsError(f"{path} is not a key that Warren made: choose another folder for its certificates")
    return key


def _key_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """One writer at a time, and one sentence where the folder cannot be written."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as exc:
        raise OpsError(
            f"cannot write certificates in {folder} ({exc.strerror}): choose a folder of your own, or remove it"
        ) from exc
