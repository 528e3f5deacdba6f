"""Until when the certificates are valid that the exporter sees: the broker's and its own.

The package cryptography would read them too, and take 9 MB of an exporter's 40.
"""

from __future__ import annotations

import datetime
import re
import ssl
from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily

from ops.errors import OpsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from prometheus_client.core import Metric as Family

    from queues.settings import TlsFiles

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
#: Tags of DER: a sequence, the version that a certificate may begin with, and a time with two digits for the year.
_SEQUENCE, _VERSION, _UTC_TIME = 0x30, 0xA0, 0x17


def collect(files: TlsFiles, ends: Mapping[str, str | None]) -> Iterator[Family]:
    """The end of each certificate.

    Args:
        files: the exporter's own, read anew each time: they may have been renewed.
        ends: of connections' certificates, as ssl writes them; None for what is not known.

    Raises:
        OpsError: a file cannot be read; what is known has been yielded.
    """
    family = GaugeMetricFamily(
        "celery_certificate_not_after_timestamp_seconds",
        "Until when a certificate is valid: the broker's over AMQP, its management API's, our own, the authority's.",
        labels=("certificate",),
    )
    for name, end in ends.items():
        if end is not None:
            family.add_metric((name,), ssl.cert_time_to_seconds(end))
    problem = ""
    for name, path in (("client", files.cert), ("authority", files.ca)):
        if path is None:
            continue
        try:
            family.add_metric((name,), end_of(path))
        except (OSError, ValueError) as exc:
            problem = f"{path} cannot be read ({exc}): put a PEM certificate there"
    yield family
    if problem:
        raise OpsError(problem)


def end_of(path: Path) -> float:
    """When the first certificate in a PEM file to end does so, in seconds since the epoch.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no certificate, or a damaged one.
    """
    found = [not_after(ssl.PEM_cert_to_DER_cert(text)) for text in _PEM.findall(path.read_text(encoding="latin-1"))]
    if not found:
        raise ValueError("no certificate is in it")
    return min(found)


def not_after(der: bytes) -> float:
    """When a certificate ends, in seconds since the epoch.

    Raises:
        ValueError: it is damaged.
    """
    try:
        _, certificate, _ = element(der)
        _, signed, _ = element(certificate)
        tag, _, rest = element(signed)
        if tag == _VERSION:
            _, _, rest = element(rest)  # the serial number
        for _ in range(2):
            _, _, rest = element(rest)  # the algorithm, the issuer
        tag, validity, _ = element(rest)
        _, _, second = element(validity)
        kind, text, _ = element(second)
    except IndexError:
        raise ValueError("the certificate is cut off") from None
    if tag != _SEQUENCE:
        raise ValueError("the certificate has no validity")
    when = text.decode("ascii")
    if kind == _UTC_TIME:
        when = ("19" if when[0] >= "5" else "20") + when
    return datetime.datetime.strptime(when, "%Y%m%d%H%M%SZ").replace(tzinfo=datetime.UTC).timestamp()


def element(der: bytes) -> tuple[int, bytes, bytes]:
    """The first element of DER: its tag, its content, and what follows it."""
    length, start = der[1], 2
    if length >= 0x80:
        size = length & 0x7F
        length, start = int.from_bytes(der[2 : 2 + size], "big"), 2 + size
    if len(der) < start + length:
        raise IndexError
    return der[0], der[start : start + length], der[start + length :]
