"""The mail relay: how to reach it, and one verified SMTP session with it."""

from __future__ import annotations

import functools
import os
import smtplib
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from queues.environment import is_loopback
from queues.errors import PermanentError, TransientError
from workers.refusal import Reply, configuration, refusal, too_large

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


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
        from_domains: Domains that mails may come from; that of ``from_addr`` always may.
        recipients: Domains and addresses that mails may go to, in lower case; everywhere where there are none.
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
    from_domains: frozenset[str] = frozenset()
    recipients: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.security not in {"starttls", "tls", "none"}:
            raise configuration("The mail security must be starttls, tls or none: correct it.")
        if self.security == "none" and not is_loopback(self.host):
            raise configuration("Mail without TLS may only go to a loopback address: use starttls or tls.")
        if (self.user is None) != (self.password_file is None):
            raise configuration("The mail user and password file belong together: set both or none.")


class LostError(Exception):
    """The connection ended before the final dot was sent, so the mail was surely not taken."""

    def __init__(self, reason: str, *, worth_repeating: bool) -> None:
        super().__init__(reason)
        self.worth_repeating = worth_repeating


class Session:
    """One connection to the relay.

    Attributes:
        smtp: The protocol.
        pid: Of the process that made it.
        mails: How many were begun.
        used_at: When it was last used, by the clock of its owner.
        ready: Whether mails may be sent.
        dot_sent: Whether the last mail may have been taken.
    """

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
                    raise configuration("The relay offers no STARTTLS: use its TLS port with security tls.")
                self._step("STARTTLS", lambda: self.smtp.docmd("STARTTLS"), 220)
                sock.settimeout(config.connect_timeout)
                self._use(context.wrap_socket(sock, server_hostname=name))
                self._step("EHLO", self.smtp.ehlo)
        except ssl.SSLCertVerificationError as error:
            raise configuration(
                f"The relay's certificate is not valid for {name} ({error.verify_message}):"
                " set the CA file and the server name that belong to it."
            ) from None
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            raise LostError("during the TLS handshake", worth_repeating=False) from None
        except ssl.SSLError as error:
            raise configuration(f"No TLS with the relay ({error.reason}): check the port and the security.") from None
        except OSError as error:
            raise LostError(f"connecting ended with {type(error).__name__}", worth_repeating=False) from None
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

    def transfer(
        self, sender: str, recipients: Sequence[str], payload: bytes, before_dot: Callable[[], None] = lambda: None
    ) -> Reply:
        """Send one mail to all of its recipients or to none.

        If this ends by an error, ``dot_sent`` tells whether the mail may have been taken.

        Args:
            sender: Of the envelope.
            recipients: Of the envelope.
            payload: The mail, with CRLF line ends.
            before_dot: Called when the relay has everything but the final dot; an error of it ends the transfer.
        """
        smtp = self.smtp
        size = smtp.esmtp_features.get("size", "")
        if size.isdecimal() and 0 < int(size) < len(payload):
            raise too_large(int(size))
        limit = f" SIZE={len(payload)}" if smtp.has_extn("size") else ""
        commands = {"MAIL": f"MAIL FROM:<{sender}>{limit}", "RCPT": f"RCPT TO:<{recipients[0]}>"}
        commands |= {f"RCPT of copy {number}": f"RCPT TO:<{one}>" for number, one in enumerate(recipients) if number}
        self._dialogue({**commands, "DATA": "DATA"})
        self._timeout(self._config.data_timeout)
        try:
            smtp.send(stuffed(payload))
        except smtplib.SMTPServerDisconnected:
            raise LostError("while the text was sent", worth_repeating=True) from None
        before_dot()
        self.dot_sent = True
        smtp.send(b".\r\n")
        reply = Reply.of(smtp.getreply())
        if reply.code // 100 not in {2, 4, 5}:
            raise smtplib.SMTPException
        self._timeout(self._config.command_timeout)
        if reply.code >= 300:
            self.dot_sent = False
            raise refusal(reply, "the end of the mail")
        return reply

    def _use(self, sock: socket.socket) -> None:
        sock.settimeout(self._config.command_timeout)
        # What the relay said before TLS may have been said by anybody (RFC 3207): it is forgotten.
        self.smtp.sock, self.smtp.file = sock, None
        self.smtp.helo_resp = self.smtp.ehlo_resp = None
        self.smtp.esmtp_features, self.smtp.does_esmtp = {}, False

    def _dialogue(self, commands: dict[str, str]) -> None:
        """Say everything up to the text, at once where the relay allows that (RFC 2920); the first refusal ends it."""
        if not self.smtp.has_extn("pipelining"):
            for name, command in commands.items():
                self._step(name, functools.partial(self.smtp.docmd, command), 354 if name == "DATA" else 250)
            return
        refused: Exception | None = None
        try:
            self.smtp.send("".join(f"{command}\r\n" for command in commands.values()))
        except smtplib.SMTPServerDisconnected:
            raise LostError("at MAIL", worth_repeating=True) from None
        for name in commands:
            try:
                self._step(name, self.smtp.getreply, 354 if name == "DATA" else 250)
            except (PermanentError, TransientError) as error:
                refused = refused or error
            except LostError as error:
                raise refused or error from None
            else:
                # It waits for the text now, though not everybody is to get it: only the end of the line tells it off.
                self.ready = self.ready and not (refused and name == "DATA")
        if refused:
            raise refused

    def _timeout(self, seconds: float) -> None:
        if self.smtp.sock:
            self.smtp.sock.settimeout(seconds)

    def _step(self, name: str, action: Callable[[], tuple[int, bytes]], expected: int = 250) -> None:
        try:
            reply = Reply.of(action())
        except (smtplib.SMTPServerDisconnected, smtplib.SMTPResponseException) as error:
            # A relay that was silent for a minute will be silent for another.
            raise LostError(f"at {name}", worth_repeating=not isinstance(error.__context__, TimeoutError)) from None
        if reply.code == expected or (name.startswith("RCPT") and reply.code == 251):
            return
        if reply.code == 421 and self.mails > 1:
            raise LostError(f"at {name}, closed by the relay", worth_repeating=True)
        raise refusal(reply, name)

    def _authenticate(self) -> None:
        user, file = self._config.user, self._config.password_file
        if user is None or file is None:
            return
        smtp = self.smtp
        # One method only: SMTP.login() would try a wrong password with each, and accounts are locked for less.
        offered = smtp.esmtp_features.get("auth", "").upper().split()
        method = next((method for method in ("PLAIN", "LOGIN") if method in offered), None)
        if method is None:
            raise configuration("The relay offers no AUTH PLAIN or LOGIN: check the port, or send without a user.")
        try:
            smtp.user, smtp.password = user, Path(file).read_text(encoding="utf-8").rstrip("\r\n")
            smtp.auth(method, smtp.auth_plain if method == "PLAIN" else smtp.auth_login)
        except smtplib.SMTPAuthenticationError as error:
            reply = (error.smtp_code, error.smtp_error if isinstance(error.smtp_error, bytes) else b"")
            raise refusal(Reply.of(reply), "AUTH") from None
        except smtplib.SMTPServerDisconnected:
            raise LostError("at AUTH", worth_repeating=False) from None
        except OSError as error:
            raise configuration(f"The mail password file is unreadable ({error.strerror}): correct it.") from None
        except (smtplib.SMTPException, ValueError):
            raise configuration("The mail user and password cannot be used: they must be ASCII.") from None


def stuffed(payload: bytes) -> bytes:
    """A mail with the dots doubled that lead a line, so that none of them ends it (RFC 5321, 4.5.2)."""
    return payload.replace(b"\r\n.", b"\r\n..")


def _tls_context(config: SmtpConfig) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=config.ca_file)
    except OSError as error:
        raise configuration(f"The CA file of the relay cannot be used ({error.strerror}): correct it.") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
