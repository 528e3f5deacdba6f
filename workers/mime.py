"""One mail as bytes: its addresses, headers and bodies, checked so that nobody can smuggle in a header or a line."""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime
from email import policy
from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime

from email_validator import EmailNotValidError, validate_email

from workers.refusal import MailRejected, too_large

#: Postfix refuses more by default; a server's own SIZE counts when it is smaller.
MAX_BYTES = 10_240_000

_POLICY = policy.SMTP.clone(cte_type="7bit")
_NAMED = re.compile(r'(?:"([^"\\]*)"|([^"<>@,;\\]*))\s*<([^<>]+)>')
_BARE_NEWLINE = re.compile(rb"(?<!\r)\n|\r(?!\n)")
#: Characters that no server need pass on as they are (RFC 5322, 2.3 and 4.1).
_UNSENDABLE = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f]")


def compose(
    author: Address,
    recipient: Address,
    message_id: str,
    subject: str,
    body: str,
    *,
    html: str | None,
    reply_to: str | None,
) -> bytes:
    """Return the whole mail.

    Raises:
        MailRejected: ``invalid_address``, ``invalid_header`` or ``too_large``.
    """
    message = EmailMessage(policy=_POLICY)
    message["From"] = author
    message["To"] = recipient
    message["Subject"] = _one_line(subject, "The subject")
    message["Date"] = format_datetime(datetime.now(UTC))
    message["Message-ID"] = message_id
    message["Auto-Submitted"] = "auto-generated"
    if reply_to is not None:
        message["Reply-To"] = mailbox(reply_to, "The reply address", named=True)
    text = _text(body, "The body")
    message.set_content(text, cte=_encoding(text))
    if html is not None:
        text = _text(html, "The HTML body")
        message.add_alternative(text, subtype="html", cte=_encoding(text))
    return _serialise(message)


def mailbox(value: str, who: str, *, named: bool = False) -> Address:
    """Return one address, with the name before it where that is allowed.

    Args:
        value: As it was given.
        who: Of whom, for the message of the error.
        named: Whether ``Name <a@b.example>`` will do.

    Raises:
        MailRejected: ``invalid_address``.
    """
    try:
        match = _NAMED.fullmatch(value) if named and not _controls(value) else None
        name, address = ((match[1] or match[2] or "").strip(), match[3]) if match else ("", value)
        # Test environment: the reserved domain .test is let through, which can harm nobody.
        valid = validate_email(
            address, check_deliverability=False, allow_smtputf8=False, strict=True, test_environment=True
        )
    except (EmailNotValidError, TypeError):
        raise MailRejected(
            "invalid_address", f"{who} is not one valid ASCII address: give exactly one, like name@example.org."
        ) from None
    return Address(name, addr_spec=valid.ascii_email or "")


def _one_line(value: str, who: str) -> str:
    if not isinstance(value, str) or len(value) > 998 or _controls(value):
        raise MailRejected("invalid_header", f"{who} must be one line of text of at most 998 characters.")
    return value


def _text(value: str, who: str) -> str:
    if not isinstance(value, str):
        raise MailRejected("invalid_header", f"{who} must be text, not {type(value).__name__}.")
    # JSON can carry half a character, UTF-8 cannot.
    return value.encode("utf-8", "replace").decode("utf-8")


def _encoding(text: str) -> str | None:
    return "base64" if _UNSENDABLE.search(text) else None


def _controls(value: str) -> bool:
    return any(unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} for character in value)


def _serialise(message: EmailMessage) -> bytes:
    try:
        payload = message.as_bytes()
    except (MessageError, ValueError):
        payload = b""
    head = payload.partition(b"\r\n\r\n")[0].split(b"\r\n")
    names = [line.partition(b":")[0].decode("ascii", "replace") for line in head if not line.startswith((b" ", b"\t"))]
    # Encoded words are decoded and written anew: on Python without the fix of CVE-2024-6923, as new header lines.
    hidden = any(_controls(str(value)) for value in message.values())
    if hidden or names != message.keys() or _BARE_NEWLINE.search(payload):
        raise MailRejected("invalid_header", "A header contains hidden lines or control characters: give plain text.")
    if len(payload) > MAX_BYTES:
        raise too_large(MAX_BYTES)
    return payload
