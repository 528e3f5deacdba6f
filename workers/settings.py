"""Settings of single workers, read when their module is imported."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn, cast

from queues.environment import Reader, is_loopback
from queues.errors import ConfigurationError

if TYPE_CHECKING:
    from workers.mailer import SmtpConfig


def stop(message: str) -> NoReturn:
    """End the process with a message for a person and exit code 2; no traceback for a mistake."""
    print(message, file=sys.stderr)
    raise SystemExit(2)


def check(reader: Reader) -> None:
    """End the process where the reader found something wrong."""
    try:
        reader.check()
    except ConfigurationError as exc:
        stop(str(exc))


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


def smtp() -> SmtpConfig:
    """How mails leave, from the `SMTP_*` and `MAIL_FROM` variables."""
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
    )


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
