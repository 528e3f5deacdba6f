"""Sends one mail over a verified, cached SMTP connection, and tells how far it came.

No address and no text of a mail ever appears in an error or in the log: replies of servers quote them, so only codes
are kept.
"""

from __future__ import annotations

import contextlib
import logging
import os
import smtplib
import time
from typing import TYPE_CHECKING, Protocol, TypedDict

from workers import mime
from workers.mime import MAX_BYTES, Draft, Letter
from workers.refusal import MailConfiguration, MailDeferred, MailRejected, MailUncertain, configuration
from workers.relay import LostError, Session, SmtpConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from email.headerregistry import Address

    from workers.refusal import Reply

__all__ = [
    "MAX_BYTES",
    "Draft",
    "MailConfiguration",
    "MailDeferred",
    "MailRejected",
    "MailResult",
    "MailUncertain",
    "Mailer",
    "SmtpConfig",
]

logger = logging.getLogger(__name__)

_CHECK_AFTER_SECONDS = 5
_MAX_IDLE_SECONDS = 60
_MAX_MAILS = 100
#: Recipients of one bulk mail.
MAX_RECIPIENTS = 10_000
#: Seconds that a relay is left alone which refused not a mail but us: accounts are locked after too many tries.
PAUSE = 60.0


class MailResult(TypedDict):
    """What ``Mailer.send`` returns: plain JSON values."""

    status: str
    to: str
    message_id: str
    smtp_code: int
    smtp_reply: str
    attempts: int


class Turns(Protocol):
    """Who may send when, see `workers.rate.Pace`."""

    def wait(self) -> None:
        """Wait for a turn, and take it."""

    def still(self) -> bool:
        """Whether it is still ours."""

    def done(self) -> None:
        """The mail is over."""


class Mailer:
    """Sends mails over one connection at a time, made when it is first needed.

    Attributes:
        turns: Whom to ask before each mail; None sends at once.

    Raises:
        MailConfiguration: The configured sender is no address.
    """

    def __init__(
        self,
        config: SmtpConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.turns: Turns | None = None
        self._config = config
        self._clock, self._sleep = clock, sleep
        try:
            self._from = mime.mailbox(config.from_addr, "The sender", named=True)
        except MailRejected:
            raise configuration("The configured sender is not one valid address: correct it.") from None
        self._domains = config.from_domains | {self._from.domain.lower()}
        self._session: Session | None = None
        self._paused_until = 0.0
        #: The Message-ID of the last mail, if that could not be sent for want of an operator.
        self._stuck = ""

    @property
    def handed_over(self) -> bool:
        """Whether the relay may have taken the mail of the last call of `send`."""
        return self._session is not None and self._session.dot_sent

    def compose(self, draft: Draft, key: str) -> Letter:
        """Check a mail and make its bytes.

        Args:
            draft: The mail.
            key: Same key and recipient, same Message-ID: servers and readers recognise a repetition.

        Raises:
            MailRejected: The mail can never be sent.
        """
        recipient = self.recipient(draft.to_addr, "The recipient")
        author = self._from
        if draft.from_addr is not None:
            author = mime.mailbox(draft.from_addr, "The sender", named=True)
        if author.domain.lower() not in self._domains:
            raise MailRejected("not_allowed", "Mails may not come from this domain: add it to MAIL_FROM_DOMAINS.")
        copies = mime.copies(draft.cc)
        for copy in copies:
            self._admit(copy, "An address in copy")
        return mime.compose(draft, author, [recipient, *copies], mime.identify(key, recipient, self._from.domain))

    def recipient(self, value: str, who: str) -> Address:
        """Check one address that a mail is to go to.

        Args:
            value: As it was given.
            who: Of whom, for the message of the error.

        Raises:
            MailRejected: ``invalid_address`` or ``not_allowed``.
        """
        found = mime.mailbox(value, who)
        self._admit(found, who)
        return found

    def recipients(self, given: Sequence[str]) -> list[str]:
        """The addresses of a bulk mail, each once.

        Raises:
            MailRejected: There are none, too many, or wrong ones, which are told by their places.
        """
        if not isinstance(given, list | tuple) or not 0 < len(given) <= MAX_RECIPIENTS:
            raise MailRejected(
                "invalid_argument", f"Recipients are a list of 1 to {MAX_RECIPIENTS} addresses: give one."
            )
        wrong = []
        for place, address in enumerate(given):
            try:
                self.recipient(address, "The recipient")
            except MailRejected:
                wrong.append(place)
        if wrong:
            places = ", ".join(map(str, wrong[:20]))
            raise MailRejected(
                "invalid_address",
                f"{len(wrong)} recipients are not valid or not allowed, at the places {places} counted from 0:"
                " mend them; no mail was enqueued.",
            )
        return list(dict.fromkeys(given))

    def send(self, draft: Draft, *, key: str, before_dot: Callable[[], None] = lambda: None) -> MailResult:
        """Send one mail to all of its recipients, or to none.

        Args:
            draft: The mail.
            key: See `compose`.
            before_dot: Called right before the relay could take the mail; its errors pass, and nothing was sent.

        Raises:
            MailRejected: The mail can never be sent.
            MailDeferred: It was surely not sent; try again later.
            MailConfiguration: It cannot be sent until an operator acts.
            MailUncertain: It may have been sent.
        """
        if self._session:
            self._session.dot_sent = False
        letter = self.compose(draft, key)
        self._sleep(max(0.0, self._paused_until - self._clock()))
        attempts = 1
        while True:
            try:
                reply = self._deliver(letter, before_dot)
            except LostError as lost:
                if attempts > 1 or not lost.worth_repeating:
                    raise MailDeferred(
                        "deferred",
                        f"The connection to the relay was lost before the mail was sent ({lost}): try later.",
                    ) from None
                attempts += 1
            except MailConfiguration as error:
                self._stand_still(error, letter.message_id)
                raise
            else:
                self._go_on()
                return MailResult(
                    status="sent",
                    to=draft.to_addr,
                    message_id=letter.message_id,
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

    def _admit(self, address: Address, who: str) -> None:
        allowed = self._config.recipients
        if allowed and not allowed & {address.domain.lower(), address.addr_spec.lower()}:
            raise MailRejected(
                "not_allowed", f"{who} may not be written to: add it, or its domain, to MAIL_TO_ALLOWED."
            )

    def _deliver(self, letter: Letter, before_dot: Callable[[], None]) -> Reply:
        def last_words() -> None:
            before_dot()
            if self.turns and not self.turns.still():
                raise LostError("it took so long that it was another's turn", worth_repeating=True)

        try:
            session = self._checkout()
            if self.turns:
                self.turns.wait()
            session.mails += 1
            try:
                reply = session.transfer(self._from.addr_spec, letter.recipients, letter.payload, last_words)
            finally:
                session.used_at = self._clock()
                if self.turns:
                    self.turns.done()
        except (MailRejected, MailDeferred, MailConfiguration):
            self._reset()
            raise
        except BaseException as error:
            # Whatever came, a time limit too: nobody knows what this connection would answer next.
            uncertain = self.handed_over
            self._drop()
            if uncertain and isinstance(error, Exception):
                raise MailUncertain(
                    "uncertain",
                    "The relay took the whole mail and then fell silent, so it may have been sent:"
                    " look for its Message-ID in the relay's log before sending it again.",
                ) from None
            raise
        return reply

    def _stand_still(self, error: MailConfiguration, message_id: str) -> None:
        """Leave the relay alone if it refuses every mail: it did not let us in, or not the mail before either."""
        everybody = self._session is None or self._stuck not in ("", message_id)
        self._stuck = message_id
        if not everybody:
            logger.warning("a mail waits: %s", error)
            return
        if not self._paused_until:
            logger.error("no mail is sent until this is put right: %s", error)
        self._paused_until = self._clock() + PAUSE

    def _go_on(self) -> None:
        if self._paused_until:
            logger.warning("mails are sent again")
        self._paused_until, self._stuck = 0.0, ""

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
