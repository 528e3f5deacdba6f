"""Issues certificates: what stands in an authority's own, and in those that it signs (X.509)."""

from __future__ import annotations

import ipaddress
from datetime import timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from ops.errors import OpsError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from cryptography.hazmat.primitives.asymmetric import ec

_CLOCK_SKEW = timedelta(hours=1)


def common_name(name: str) -> x509.Name:
    """A subject that has nothing but a common name."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def self_signed(subject: x509.Name, key: ec.EllipticCurvePrivateKey, start: datetime, days: int) -> x509.Certificate:
    """An authority's certificate, for server and client certificates and no further authority.

    Args:
        subject: Its name, and its issuer's.
        key: Its key.
        start: Begin of its validity.
        days: Length of its validity.
    """
    return (
        _builder(subject, key, start)
        .issuer_name(subject)
        .not_valid_after(start + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .sign(key, hashes.SHA256())
    )


def signed(
    issuer: x509.Certificate,
    issuer_key: ec.EllipticCurvePrivateKey,
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    start: datetime,
    days: int,
    *,
    usage: x509.ObjectIdentifier,
    names: Sequence[str],
) -> x509.Certificate:
    """A server's or client's certificate, which ends no later than its issuer's.

    Args:
        issuer: The authority.
        issuer_key: The authority's key.
        subject: Who presents it.
        key: Its key.
        start: Begin of its validity.
        days: Length of its validity.
        usage: What it is good for.
        names: DNS names and addresses that it proves.

    Raises:
        OpsError: a name is no host name.
    """
    issuer_id = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        _builder(subject, key, start)
        .issuer_name(issuer.subject)
        .not_valid_after(min(start + timedelta(days=days), issuer.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_id), critical=False)
    )
    if names:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False
        )
    return builder.sign(issuer_key, hashes.SHA256())


def _builder(subject: x509.Name, key: ec.EllipticCurvePrivateKey, start: datetime) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - _CLOCK_SKEW)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except ValueError as exc:
        raise OpsError(f"{name!r} is no host name: write it in ASCII (xn--…)") from exc
