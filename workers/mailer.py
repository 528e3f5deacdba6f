"""Sends one mail to one recipient over a verified, cached SMTP connection, and tells how far it came.

No address and no text of a mail ever appears in an error: replies of servers quote them, so only codes are kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import smtplib
import time
from typing import TYPE_CHECKING, TypedDict

from workers import mime
from workers.mime import MAX_BYTES
from workers.refusal import MailConfiguration, MailDeferred, MailRejected, MailUncertain, configuration
from workers.relay import LostError, Session, SmtpConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from email.headerregistry import Address

    from workers.refusal import Reply

__all__ = [
    "MAX_BYTES",
    "MailConfiguration",
    "MailDeferred",
    "MailRejected",
    "MailResult",
    "MailUncertain",
    "Mailer",
    "SmtpConfig",
]

_CHECK_AFTER_SECONDS = 5
_MAX_IDLE_SECONDS = 60
_MAX_MAILS = 100


class MailResult(TypedDict):
    """What ``Mailer.send`` returns: plain JSON values."""

    status: str
    to: str
    message_id: str
    smtp_code: int
    smtp_reply: str
    attempts: int


class Mailer:
    """Sends mails over one connection at a time, made when it is first needed.

    Raises:
        MailConfiguration: The configured sender is no address.
    """

    def __init__(self, config: SmtpConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        try:
            self._from = mime.mailbox(config.from_addr, "The sender", named=True)
        except MailRejected:
            raise configuration("The configured sender is not one valid address: correct it.") from None
        self._session: Session | None = None

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
        recipient = mime.mailbox(to_addr, "The recipient")
        author = self._from if from_addr is None else mime.mailbox(from_addr, "The sender", named=True)
        message_id = self._message_id(key, recipient)
        payload = mime.compose(author, recipient, message_id, subject, body, html=html, reply_to=reply_to)
        attempts = 1
        while True:
            try:
                reply = self._deliver(recipient.addr_spec, payload)
            except LostError as lost:
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

    def _deliver(self, recipient: str, payload: bytes) -> Reply:
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

    def _checkout(self) -> Session:
        session = self._session
        if session:
            idle = self._clock() - session.used_at
            if session.pid != os.getpid() or idle > _MAX_IDLE_SECONDS or session.mails >= _MAX_MAILS:
                self.close()
            elif idle > _CHECK_AFTER_SECONDS and not session.answers("NOOP"):
                self._drop()
        if self._session is None:
            self._session = Session(self._config)
            self._session.open()
        return self._session

    def _reset(self) -> None:
        if self._session and not (self._session.ready and self._session.answers("RSET")):
            self._drop()

    def _drop(self) -> None:
        if self._session:
            self._session.smtp.close()
        self._session = None
