"""Settings of single workers, read when their module is imported."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from queues.environment import Reader, is_loopback
from queues.errors import ConfigurationError
from queues.topology import QUEUES
from workers.startup import stop

if TYPE_CHECKING:
    from workers.mailer import SmtpConfig

#: Names of mail domains, with or without the part before the @.
MAIL_DOMAIN = re.compile(r"(?:[a-z0-9-]+\.)+[a-z0-9-]+")
MAIL_NAME = re.compile(rf"(?:[^@\s]+@)?{MAIL_DOMAIN.pattern}")


def check(reader: Reader) -> None:
    """End the process where the reader found something wrong."""
    try:
        reader.check()
    except ConfigurationError as exc:
        stop(str(exc))


def remote_control_is_full() -> bool:
    """Whether `REMOTE_CONTROL` lets the operator order workers about, and not only ask them."""
    reader = Reader(os.environ)
    choice = reader.choice("REMOTE_CONTROL", ("questions", "full"))
    check(reader)
    return choice == "full"


def memory_is_traced() -> bool:
    """Whether `TRACE_MEMORY` has each task tell what it kept."""
    reader = Reader(os.environ)
    traced = reader.flag("TRACE_MEMORY")
    check(reader)
    return traced


def image_root() -> Path:
    """The folder that holds all images, from `IMAGE_ROOT`."""
    reader = Reader(os.environ)
    name = reader.text("IMAGE_ROOT")
    root = Path(name)
    if not name:
        reader.problem("IMAGE_ROOT is missing: give the folder that holds the images")
    elif not root.is_dir() or not os.access(root, os.R_OK | os.W_OK | os.X_OK):
        reader.problem(f"IMAGE_ROOT={name!r} is no folder that this user may write: create it or change its owner")
    check(reader)
    return root


def mail_interval() -> float:
    """Seconds between two mails of the whole service, from `MAIL_RATE` or the table; 0 without a limit."""
    from workers.rate import interval

    reader = Reader(os.environ)
    rate = reader.text("MAIL_RATE", QUEUES.task("email.send_email")[1].rate_limit or "0")
    try:
        return interval(rate)
    except ValueError as exc:
        reader.problem(f"MAIL_RATE={rate!r} is refused: {exc}")
    check(reader)
    return 0.0


def smtp() -> SmtpConfig:
    """How mails leave, from the `SMTP_*` and `MAIL_*` variables."""
    from workers.mailer import SmtpConfig

    reader = Reader(os.environ)
    security = reader.choice("SMTP_SECURITY", ("starttls", "tls", "none"))
    host = reader.text("SMTP_HOST")
    sender = reader.text("MAIL_FROM")
    user = reader.text("SMTP_USER")
    password_file = reader.file("SMTP_PASSWORD_FILE")
    if not host:
        reader.problem("SMTP_HOST is missing: give the mail relay's host name")
    if not sender:
        reader.problem("MAIL_FROM is missing: give the address that mails come from")
    if security == "none" and host and not is_loopback(host):
        reader.problem(f"SMTP_SECURITY=none is refused for {host}: only a loopback relay may go without TLS")
    if user and password_file is None and not reader.text("SMTP_PASSWORD_FILE"):
        reader.problem("SMTP_PASSWORD_FILE is missing: give the file that holds the password of SMTP_USER")
    default_port = {"starttls": 587, "tls": 465, "none": 25}[security]
    port = int(reader.number("SMTP_PORT", default_port, low=1, high=65535))
    ca_file = reader.file("SMTP_CA")
    domains = mail_names(reader, reader.text("MAIL_FROM_DOMAINS"), MAIL_DOMAIN, "MAIL_FROM_DOMAINS")
    allowed = mail_names(reader, reader.text("MAIL_TO_ALLOWED"), MAIL_NAME, "MAIL_TO_ALLOWED")
    check(reader)
    return SmtpConfig(
        host=host,
        port=port,
        security=cast('Literal["starttls", "tls", "none"]', security),
        ca_file=ca_file,
        user=user or None,
        password_file=password_file if user else None,
        from_addr=sender,
        server_name=reader.text("SMTP_SERVER_NAME") or None,
        from_domains=domains,
        recipients=allowed,
    )


def mail_names(reader: Reader, text: str, kind: re.Pattern[str], variable: str) -> frozenset[str]:
    """The domains, or domains and addresses, that a variable lists with commas; in lower case."""
    found = frozenset(part.strip().lower() for part in text.split(",") if part.strip())
    what = "domain" if kind is MAIL_DOMAIN else "domain or address"
    for name in sorted(name for name in found if not kind.fullmatch(name)):
        reader.problem(f"{variable}: {name!r} is no mail {what}: write them with commas, like example.com,example.org")
    return found


@dataclass(frozen=True, slots=True)
class ReportSettings:
    """What the monitor worker keeps and sends.

    Attributes:
        state: folder of status and reports, or None: nothing is kept.
        exporter_url: the exporter's /metrics, or empty.
        report_to: recipient of the daily report, or empty.
    """

    state: Path | None
    exporter_url: str
    report_to: str


def report_settings() -> ReportSettings:
    """The monitor worker's settings, from `STATE_DIR`, `EXPORTER_URL` and `REPORT_TO`."""
    reader = Reader(os.environ)
    name = reader.text("STATE_DIR")
    state = Path(name) if name else None
    if state is not None and not (state.is_dir() and os.access(state, os.W_OK | os.X_OK)):
        reader.problem(f"STATE_DIR={name!r} is no folder that this user may write: create it or change its owner")
    url = reader.text("EXPORTER_URL")
    if url and not url.startswith(("http://", "https://")):
        reader.problem(f"EXPORTER_URL={url!r} is no URL: write http://HOST:9808/metrics")
    check(reader)
    return ReportSettings(state=state, exporter_url=url, report_to=reader.text("REPORT_TO"))
