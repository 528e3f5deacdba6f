"""Sends one mail to one recipient over a verified, cached SMTP connection, and tells how far it came.

No address and no text of a mail ever appears in an error: replies of servers quote them, so only codes are kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import os
import re
import smtplib
import socket
import ssl
import time
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime
from email import policy
from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

from email_validator import EmailNotValidError, validate_email

from queues.errors import PermanentError, TransientError

if TYPE_CHECKING:
    from collections.abc import Callable

#: Postfix refuses more by default; a server's own SIZE counts when it is smaller.
MAX_BYTES = 10_240_000

_CHECK_AFTER_SECONDS = 5
_MAX_IDLE_SECONDS = 60
_MAX_MAILS = 100
_POLICY = policy.SMTP.clone(cte_type="7bit")
_AUTHENTICATION = {530, 534, 535, 538}
_REFUSED_SENDER = {"5.1.7", "5.1.8"}
_TOO_LARGE = {"5.2.3", "5.3.4"}
_WAIT = re.compile(
    r"\b(?:in|after|for|wait|again)\s+(\d{1,5})\s*(s|secs?|seconds?|m|mins?|minutes?|h|hours?)\b", re.IGNORECASE
)
_SECONDS = {"s": 1, "m": 60, "h": 3600}
_NAMED = re.compile(r'(?:"([^"\\]*)"|([^"<>@,;\\]*))\s*<([^<>]+)>')
_BARE_NEWLINE = re.compile(rb"(?<!\r)\n|\r(?!\n)")
#: Characters that no server need pass on as they are (RFC 5322, 2.3 and 4.1).
_UNSENDABLE = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f]")


class MailRejected(PermanentError):
    """The mail can never be sent: ``invalid_address``, ``invalid_header``, ``too_large`` or ``refused``."""


class MailDeferred(TransientError):
    """The mail was surely not sent, and may be later: ``deferred``."""


class MailConfiguration(TransientError):
    """No mail can be sent until an operator acts; the recipient is not to blame: ``configuration``."""


class MailUncertain(TransientError):
    """The relay had the whole mail and did not answer; sending again may send it twice: ``uncertain``."""


class MailResult(TypedDict):
    """What ``Mailer.send`` returns: plain JSON values."""

    status: str
    to: str
    message_id: str
    smtp_code: int
    smtp_reply: str
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SmtpConfig:
    """How to reach the relay. Timeouts in seconds.

    Attributes:
        security: ``starttls`` (587), ``tls`` (465), or ``none``, on a loopback address only.
        ca_file: The authority that signed the relay's certificate; the system's authorities unless given.
        password_file: Read at every connection, so that a new password needs no restart.
        from_addr: Envelope sender, and author unless the mail names another: ``a@b.example`` or ``Name <a@b.example>``.
        data_timeout: For the answer to the final dot. Too short, and mails are sent twice (RFC 5321, 4.5.3.2.6).
        server_name: The name in the relay's certificate, where it is not the host.
    """

    host: str
    port: int
    from_addr: str
    security: Literal["starttls", "tls", "none"] = "starttls"
    ca_file: str | os.PathLike[str] | None = None
    user: str | None = None
    password_file: str | os.PathLike[str] | None = None
    connect_timeout: float = 10
    command_timeout: float = 60
    data_timeout: float = 300
    server_name: str | None = None

    def __post_init__(self) -> None:
        if self.security not in {"starttls", "tls", "none"}:
            raise _configuration("The mail security must be starttls, tls or none: correct it.")
        if self.security == "none" and not _is_loopback(self.host):
            raise _configuration("Mail without TLS may only go to a loopback address: use starttls or tls.")
        if (self.user is None) != (self.password_file is None):
            raise _configuration("The mail user and password file belong together: set both or none.")


class Mailer:
    """Sends mails over one connection at a time, made when it is first needed.

    Raises:
        MailConfiguration: The configured sender is no address.
    """

    def __init__(self, config: SmtpConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        try:
            self._from = _mailbox(config.from_addr, "The sender", named=True)
        except MailRejected:
            raise _configuration("The configured sender is not one valid address: correct it.") from None
        self._session: _Session | None = None

    def send(
        self,
        to_addr: str,
        subject: str,
        body: str,
        *,
        html: str | None = None,
        from_addr: str | None = None,
        reply_to: str | None = None,
        key: str,
    ) -> MailResult:
        """Send one mail to one recipient.

        Args:
            to_addr: The only recipient.
            subject: One line of text.
            body: Plain text.
            html: The same as HTML, if wanted.
            from_addr: Author, instead of the configured one.
            reply_to: Where answers go.
            key: Same key and recipient, same Message-ID: servers and readers recognise a repetition.

        Raises:
            MailRejected: The mail can never be sent.
            MailDeferred: It was surely not sent; try again later.
            MailConfiguration: Nothing can be sent until an operator acts.
            MailUncertain: It may have been sent.
        """
        recipient = _mailbox(to_addr, "The recipient")
        message_id = self._message_id(key, recipient)
        payload = _serialise(self._compose(recipient, message_id, subject, body, html, from_addr, reply_to))
        attempts = 1
        while True:
            try:
                reply = self._deliver(recipient.addr_spec, payload)
            except _LostError as lost:
                if attempts > 1 or not lost.worth_repeating:
                    raise MailDeferred(
                        "deferred",
                        f"The connection to the relay was lost before the mail was sent ({lost}): try later.",
                    ) from None
                attempts += 1
            else:
                return MailResult(
                    status="sent",
                    to=to_addr,
                    message_id=message_id,
                    smtp_code=reply.code,
                    smtp_reply=reply.text[:200],
                    attempts=attempts,
                )

    def close(self) -> None:
        """Say QUIT, if connected. A later send connects again."""
        if self._session and self._session.pid == os.getpid():
            with contextlib.suppress(smtplib.SMTPException, OSError):
                # The answer is not waited for: it could only keep a worker from stopping.
                self._session.smtp.putcmd("QUIT")
        self._drop()

    def _message_id(self, key: str, recipient: Address) -> str:
        digest = hashlib.sha256(f"{key}\0{recipient.addr_spec}".encode(errors="replace")).hexdigest()[:32]
        return f"<{digest}@{self._from.domain}>"

    def _compose(
        self,
        recipient: Address,
        message_id: str,
        subject: str,
        body: str,
        html: str | None,
        from_addr: str | None,
        reply_to: str | None,
    ) -> EmailMessage:
        message = EmailMessage(policy=_POLICY)
        message["From"] = self._from if from_addr is None else _mailbox(from_addr, "The sender", named=True)
        message["To"] = recipient
        message["Subject"] = _one_line(subject, "The subject")
        message["Date"] = format_datetime(datetime.now(UTC))
        message["Message-ID"] = message_id
        message["Auto-Submitted"] = "auto-generated"
        if reply_to is not None:
            message["Reply-To"] = _mailbox(reply_to, "The reply address", named=True)
        text = _text(body, "The body")
        message.set_content(text, cte=_encoding(text))
        if html is not None:
            text = _text(html, "The HTML body")
            message.add_alternative(text, subtype="html", cte=_encoding(text))
        return message

    def _deliver(self, recipient: str, payload: bytes) -> _Reply:
        if self._session:
            self._session.dot_sent = False
        try:
            session = self._checkout()
            session.mails += 1
            session.used_at = self._clock()
            reply = session.transfer(self._from.addr_spec, recipient, payload)
        except (MailRejected, MailDeferred, MailConfiguration):
            self._reset()
            raise
        except BaseException as error:
            # Whatever came, a time limit too: nobody knows what this connection would answer next.
            uncertain = self._session is not None and self._session.dot_sent
            self._drop()
            if uncertain and isinstance(error, Exception):
                raise MailUncertain(
                    "uncertain",
                    "The relay took the whole mail and then fell silent, so it may have been sent:"
                    " look for its Message-ID in the relay's log before sending it again.",
                ) from None
            raise
        session.used_at = self._clock()
        return reply

    def _checkout(self) -> _Session:
        session = self._session
        if session:
            idle = self._clock() - session.used_at
            if session.pid != os.getpid() or idle > _MAX_IDLE_SECONDS or session.mails >= _MAX_MAILS:
                self.close()
            elif idle > _CHECK_AFTER_SECONDS and not session.answers("NOOP"):
                self._drop()
        if self._session is None:
            self._session = _Session(self._config)
            self._session.open()
        return self._session

    def _reset(self) -> None:
        if self._session and not (self._session.ready and self._session.answers("RSET")):
            self._drop()

    def _drop(self) -> None:
        if self._session:
            self._session.smtp.close()
        self._session = None


@dataclass(frozen=True, slots=True)
class _Reply:
    code: int
    text: str

    @classmethod
    def of(cls, answer: tuple[int, bytes]) -> _Reply:
        return cls(answer[0], answer[1].decode("utf-8", "replace"))

    @property
    def status(self) -> str:
        """The code and, if there is one, the enhanced code: all of a reply that names nobody."""
        return f"{self.code} {self.enhanced}".rstrip()

    @property
    def enhanced(self) -> str:
        match = re.match(r"[245]\.\d{1,3}\.\d{1,3}\b", self.text)
        return match[0] if match else ""


class _LostError(Exception):
    """The connection ended before the final dot was sent, so the mail was surely not taken."""

    def __init__(self, reason: str, *, worth_repeating: bool) -> None:
        super().__init__(reason)
        self.worth_repeating = worth_repeating


class _Session:
    """One connection to the relay."""

    def __init__(self, config: SmtpConfig) -> None:
        self.smtp = smtplib.SMTP(timeout=config.command_timeout)
        self.pid = os.getpid()
        self.mails = 0
        self.used_at = 0.0
        self.ready = False
        self.dot_sent = False
        self._config = config

    def open(self) -> None:
        """Connect, secure and authenticate; never in clear text where TLS was asked for."""
        config = self._config
        context = None if config.security == "none" else _tls_context(config)
        name = config.server_name or config.host
        try:
            sock = socket.create_connection((config.host, config.port), config.connect_timeout)
            # The dot follows the text in a packet of its own, which Nagle's algorithm would hold back.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if context and config.security == "tls":
                sock = context.wrap_socket(sock, server_hostname=name)
            self._use(sock)
            self._step("greeting", self.smtp.getreply, 220)
            self._step("EHLO", self.smtp.ehlo)
            if context and config.security == "starttls":
                if not self.smtp.has_extn("starttls"):
                    raise _configuration("The relay offers no STARTTLS: use its TLS port with security tls.")
                self._step("STARTTLS", lambda: self.smtp.docmd("STARTTLS"), 220)
                sock.settimeout(config.connect_timeout)
                self._use(context.wrap_socket(sock, server_hostname=name))
                self._step("EHLO", self.smtp.ehlo)
        except ssl.SSLCertVerificationError as error:
            raise _configuration(
                f"The relay's certificate is not valid for {name} ({error.verify_message}):"
                " set the CA file and the server name that belong to it."
            ) from None
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            raise _LostError("during the TLS handshake", worth_repeating=False) from None
        except ssl.SSLError as error:
            raise _configuration(f"No TLS with the relay ({error.reason}): check the port and the security.") from None
        except OSError as error:
            raise _LostError(f"connecting ended with {type(error).__name__}", worth_repeating=False) from None
        self._authenticate()
        self.ready = True

    def answers(self, command: str) -> bool:
        """Tell whether the connection is still good."""
        try:
            self._timeout(self._config.connect_timeout)
            good = self.smtp.docmd(command)[0] == 250
            self._timeout(self._config.command_timeout)
        except (smtplib.SMTPException, OSError):
            return False
        return good

    def transfer(self, sender: str, recipient: str, payload: bytes) -> _Reply:
        """Send one mail. If this ends by an error, ``dot_sent`` tells whether the mail may have been taken."""
        smtp = self.smtp
        size = smtp.esmtp_features.get("size", "")
        if size.isdigit() and 0 < int(size) < len(payload):
            raise _too_large(int(size))
        self._step("MAIL", lambda: smtp.mail(sender, [f"size={len(payload)}"] if smtp.has_extn("size") else []))
        self._step("RCPT", lambda: smtp.rcpt(recipient))
        self._step("DATA", lambda: smtp.docmd("DATA"), 354)
        self._timeout(self._config.data_timeout)
        try:
            smtp.send(re.sub(rb"(?m)^\.", b"..", payload))
        except smtplib.SMTPServerDisconnected:
            raise _LostError("while the text was sent", worth_repeating=True) from None
        self.dot_sent = True
        smtp.send(b".\r\n")
        reply = _Reply.of(smtp.getreply())
        if reply.code // 100 not in {2, 4, 5}:
            raise smtplib.SMTPException
        self._timeout(self._config.command_timeout)
        if reply.code >= 300:
            self.dot_sent = False
            raise _refusal(reply, "the end of the mail")
        return reply

    def _use(self, sock: socket.socket) -> None:
        sock.settimeout(self._config.command_timeout)
        # What the relay said before TLS may have been said by anybody (RFC 3207): it is forgotten.
        self.smtp.sock, self.smtp.file = sock, None
        self.smtp.helo_resp = self.smtp.ehlo_resp = None
        self.smtp.esmtp_features, self.smtp.does_esmtp = {}, False

    def _timeout(self, seconds: float) -> None:
        if self.smtp.sock:
            self.smtp.sock.settimeout(seconds)

    def _step(self, name: str, action: Callable[[], tuple[int, bytes]], expected: int = 250) -> None:
        try:
            reply = _Reply.of(action())
        except (smtplib.SMTPServerDisconnected, smtplib.SMTPResponseException) as error:
            # A relay that was silent for a minute will be silent for another.
            raise _LostError(f"at {name}", worth_repeating=not isinstance(error.__context__, TimeoutError)) from None
        if reply.code == expected or (name == "RCPT" and reply.code == 251):
            return
        if reply.code == 421 and self.mails > 1:
            raise _LostError(f"at {name}, closed by the relay", worth_repeating=True)
        raise _refusal(reply, name)

    def _authenticate(self) -> None:
        user, file = self._config.user, self._config.password_file
        if user is None or file is None:
            return
        smtp = self.smtp
        # One method only: SMTP.login() would try a wrong password with each, and accounts are locked for less.
        offered = smtp.esmtp_features.get("auth", "").upper().split()
        method = next((method for method in ("PLAIN", "LOGIN") if method in offered), None)
        if method is None:
            raise _configuration("The relay offers no AUTH PLAIN or LOGIN: check the port, or send without a user.")
        try:
            smtp.user, smtp.password = user, Path(file).read_text(encoding="utf-8").rstrip("\r\n")
            smtp.auth(method, smtp.auth_plain if method == "PLAIN" else smtp.auth_login)
        except smtplib.SMTPAuthenticationError as error:
            reply = (error.smtp_code, error.smtp_error if isinstance(error.smtp_error, bytes) else b"")
            raise _refusal(_Reply.of(reply), "AUTH") from None
        except smtplib.SMTPServerDisconnected:
            raise _LostError("at AUTH", worth_repeating=False) from None
        except OSError as error:
            raise _configuration(f"The mail password file is unreadable ({error.strerror}): correct it.") from None
        except (smtplib.SMTPException, ValueError):
            raise _configuration("The mail user and password cannot be used: they must be ASCII.") from None


def _tls_context(config: SmtpConfig) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=config.ca_file)
    except OSError as error:
        raise _configuration(f"The CA file of the relay cannot be used ({error.strerror}): correct it.") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _refusal(reply: _Reply, step: str) -> PermanentError | TransientError:
    """Tell whose fault a negative reply is. What concerns our access or our sender never blames the recipient."""
    said = f"The relay said {reply.status} at {step}"
    if reply.code in _AUTHENTICATION or reply.enhanced.startswith("5.7.") or reply.enhanced in _REFUSED_SENDER:
        return _configuration(f"{said}: check user, password and what the relay lets this sender do.")
    if not 500 <= reply.code < 600:
        wait = _WAIT.search(reply.text) if 400 <= reply.code < 500 else None
        seconds = float(wait[1]) * _SECONDS[wait[2][0].lower()] if wait else None
        return MailDeferred("deferred", f"{said}: try later.", seconds)
    if reply.enhanced in _TOO_LARGE or (reply.code == 552 and not reply.enhanced and step != "RCPT"):
        return _too_large(None)
    if step in {"RCPT", "DATA", "the end of the mail"}:
        return MailRejected("refused", f"{said}: the recipient cannot be reached by this mail, correct either.")
    return _configuration(f"{said}: check the relay's address, port and log.")


def _mailbox(value: str, who: str, *, named: bool = False) -> Address:
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
        raise _too_large(MAX_BYTES)
    return payload


def _too_large(limit: int | None) -> MailRejected:
    bound = f"{limit} bytes" if limit else "the relay's limit"
    return MailRejected("too_large", f"The mail is larger than {bound}: shorten it, and send files as links.")


def _configuration(message: str) -> MailConfiguration:
    return MailConfiguration("configuration", message)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
