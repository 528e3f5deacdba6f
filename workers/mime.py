"""One mail as bytes: its addresses, headers and bodies, checked so that nobody can smuggle in a header or a line."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import unicodedata
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from email import policy
from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from email_validator import EmailNotValidError, validate_email

from workers.refusal import MailRejected, too_large

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Postfix refuses more by default; a server's own SIZE counts when it is smaller.
MAX_BYTES = 10_240_000
#: Bytes of a line without its end (RFC 5322, 2.1.1).
MAX_LINE = 998
#: Addresses in copy, and headers of the caller's.
MAX_CC, MAX_HEADERS = 20, 20

_POLICY = policy.SMTP.clone(cte_type="7bit")
_NAMED = re.compile(r'(?:"([^"\\]*)"|([^"<>@,;\\]*))\s*<([^<>]+)>')
#: Bytes that no head may have: half a line end, controls, and what is not ASCII.
_FORBIDDEN = re.compile(rb"(?<!\r)\n|\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\xff]")
#: Characters that no server need pass on as they are (RFC 5322, 2.3 and 4.1).
_UNSENDABLE = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f]")
_LONG = re.compile(rb"[^\n]{%d}" % (MAX_LINE + 2))  # with its carriage return
#: Bytes that quoted-printable leaves as they are.
_AS_IT_IS = bytes({9, 10, 13, *range(32, 127)} - {ord("=")})
#: Names that a caller may give: they tell a reader or a filter something, and nobody where the mail goes.
_EXTRA = re.compile(r"x-[a-z0-9]+(?:-[a-z0-9]+)*|feedback-id|importance|list-id|precedence", re.IGNORECASE)
#: Names by which a provider takes recipients or orders (SendGrid, Mailgun, Mandrill, Mailjet, Postmark, SES).
_ORDERS = re.compile(r"x-(?:smtpapi|mailgun|mc|mj|pm|ses)(?:-.*)?", re.IGNORECASE)
#: A URL that stands in a header as it is: a long one would otherwise become an encoded word, which no reader follows.
_URL = re.compile(r"https://[!#-;=?-~]{1,900}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A mail as its caller gives it; nothing in it is trusted.

    Attributes:
        to_addr: the recipient, one bare address.
        subject: one line of text.
        body: plain text.
        html: the same as HTML, if wanted.
        from_addr: author instead of the configured one: `a@b.example` or `Name <a@b.example>`.
        reply_to: where answers go.
        cc: bare addresses that get the same mail and are seen.
        headers: more headers, see `_EXTRA`.
        list_unsubscribe: an https URL that unsubscribes this recipient when it is posted to (RFC 8058).
    """

    to_addr: str
    subject: str
    body: str
    html: str | None = None
    from_addr: str | None = None
    reply_to: str | None = None
    cc: Sequence[str] = ()
    headers: Mapping[str, str] | None = None
    list_unsubscribe: str | None = None


@dataclass(frozen=True, slots=True)
class Letter:
    """A mail ready to be sent.

    Attributes:
        recipients: addresses of the envelope.
        message_id: with its angle brackets.
        payload: the mail with CRLF line ends, dots not yet doubled.
    """

    recipients: tuple[str, ...]
    message_id: str
    payload: bytes


def compose(draft: Draft, author: Address, recipients: Sequence[Address], message_id: str) -> Letter:
    """Make the whole mail.

    Args:
        draft: what the caller gave.
        author: checked.
        recipients: checked, the first one is the draft's `to_addr`.
        message_id: with its angle brackets.

    Raises:
        MailRejected: `invalid_address`, `invalid_header` or `too_large`.
    """
    message = EmailMessage(policy=_POLICY)
    message["From"] = author
    message["To"] = recipients[0]
    if len(recipients) > 1:
        message["Cc"] = recipients[1:]
    message["Subject"] = _one_line(draft.subject, "The subject")
    if draft.reply_to is not None:
        message["Reply-To"] = mailbox(draft.reply_to, "The reply address", named=True)
    for name, value in _extra(draft.headers):
        message[name] = value
    head = _headers(message) + _unsubscribe(draft.list_unsubscribe)
    body = _part(_text(draft.body, "The body"), "plain")
    if draft.html is not None:
        body = _alternative(body, _part(_text(draft.html, "The HTML body"), "html"))
    # Our own headers need no parser, which would take half of the time.
    ours = (
        f"Date: {format_datetime(datetime.now(UTC))}\r\nMessage-ID: {message_id}\r\n"
        "Auto-Submitted: auto-generated\r\nMIME-Version: 1.0\r\n"
    )
    payload = ours.encode("ascii") + head + body
    if len(payload) > MAX_BYTES:
        raise too_large(MAX_BYTES)
    return Letter(tuple(recipient.addr_spec for recipient in recipients), message_id, payload)


def identify(key: str, recipient: Address, domain: str) -> str:
    """The Message-ID that belongs to a key and a recipient: readers and servers recognise a repetition by it."""
    digest = hashlib.sha256(f"{key}\0{recipient.addr_spec}".encode(errors="replace")).hexdigest()[:32]
    return f"<{digest}@{domain}>"


def copies(addresses: Sequence[str]) -> list[Address]:
    """The addresses in copy.

    Raises:
        MailRejected: `invalid_address`.
    """
    if not isinstance(addresses, list | tuple) or len(addresses) > MAX_CC:
        raise MailRejected("invalid_address", f"Copies go to a list of at most {MAX_CC} addresses: give one.")
    return [mailbox(address, "An address in copy") for address in addresses]


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
        if len(value) > MAX_LINE:  # more would be looked at for minutes
            raise EmailNotValidError
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


def _extra(headers: Mapping[str, str] | None) -> list[tuple[str, str]]:
    if headers is None:
        return []
    if not isinstance(headers, dict) or len(headers) > MAX_HEADERS:
        raise MailRejected("invalid_header", f"Headers are a mapping of at most {MAX_HEADERS} names to texts.")
    for name in headers:
        if not isinstance(name, str) or len(name) > 60 or not _EXTRA.fullmatch(name) or _ORDERS.fullmatch(name):
            raise MailRejected(
                "invalid_header",
                "A header's name is not allowed: use X-NAME, Feedback-ID, Importance, List-Id or Precedence, and no "
                "name by which a mail provider takes orders.",
            )
    if len({name.lower() for name in headers}) < len(headers):
        raise MailRejected("invalid_header", "A header is given twice: give each name once.")
    return [(name, _one_line(value, "A header's value")) for name, value in headers.items()]


def _unsubscribe(url: str | None) -> bytes:
    if url is None:
        return b""
    try:
        good = isinstance(url, str) and _URL.fullmatch(url) and urlsplit(url).hostname
    except ValueError:
        good = None
    if not good:
        raise MailRejected(
            "invalid_header", "The address to unsubscribe at is one https URL of at most 900 ASCII characters."
        )
    return f"List-Unsubscribe: <{url}>\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n".encode("ascii")


def _one_line(value: str, who: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_LINE or _controls(value):
        raise MailRejected("invalid_header", f"{who} must be one line of text of at most {MAX_LINE} characters.")
    return value


def _text(value: str, who: str) -> str:
    if not isinstance(value, str):
        raise MailRejected("invalid_header", f"{who} must be text, not {type(value).__name__}.")
    # JSON can carry half a character, UTF-8 cannot.
    data = value.encode("utf-8", "replace")
    if len(data) > MAX_BYTES:  # encoding it would take long, for nothing
        raise too_large(MAX_BYTES)
    return data.decode("utf-8")


def _part(text: str, subtype: str) -> bytes:
    """A text with its headers: as it is where every server passes that on, else the shorter of the two encodings."""
    # Never a list of lines: of a mail of short ones, it would take more memory than a worker has.
    body = text.encode().replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if body and not body.endswith(b"\n"):
        body += b"\n"
    body = body.replace(b"\n", b"\r\n")
    encoding = "7bit"
    unsendable = _UNSENDABLE.search(text)
    if unsendable or not text.isascii() or _LONG.search(body):
        # Each byte that is quoted becomes three, while base64 makes four of every three.
        if not unsendable and 6 * len(body.translate(None, _AS_IT_IS)) <= len(body):
            encoding, body = "quoted-printable", binascii.b2a_qp(body)
        else:
            encoding, body = "base64", base64.encodebytes(body).replace(b"\n", b"\r\n")
    head = f'Content-Type: text/{subtype}; charset="utf-8"\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n'
    return head.encode("ascii") + body


def _alternative(*parts: bytes) -> bytes:
    """The same in several forms, the best one last."""
    edge = f"=_{uuid.uuid4().hex}".encode("ascii")
    inner = b"".join(b"--" + edge + b"\r\n" + part + b"\r\n" for part in parts)
    return b'Content-Type: multipart/alternative; boundary="' + edge + b'"\r\n\r\n' + inner + b"--" + edge + b"--\r\n"


def _controls(value: str) -> bool:
    return any(unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} for character in value)


def _headers(message: EmailMessage) -> bytes:
    try:
        head = message.as_bytes().removesuffix(b"\r\n")
    except (MessageError, ValueError):
        head = b""
    lines = head.removesuffix(b"\r\n").split(b"\r\n")
    names = [line.partition(b":")[0].decode("ascii", "replace") for line in lines if line[:1] not in b" \t" or not line]
    # Encoded words are decoded and written anew: on Python without the fix of CVE-2024-6923, as new header lines.
    hidden = any(_controls(str(value)) for value in message.values())
    if hidden or names != message.keys() or _FORBIDDEN.search(head):
        raise MailRejected("invalid_header", "A header contains hidden lines or control characters: give plain text.")
    return head
