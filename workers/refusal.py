"""Why a mail was not sent and whose fault it is: the errors, and what a relay's negative reply means."""

from __future__ import annotations

import re
from dataclasses import dataclass

from queues.errors import PermanentError, PostponedError, TransientError, UncertainError

_AUTHENTICATION = {530, 534, 535, 538}
_REFUSED_SENDER = {"5.1.7", "5.1.8"}
_TOO_LARGE = {"5.2.3", "5.3.4"}
_WAIT = re.compile(
    r"\b(?:in|after|for|wait|again)\s+(\d{1,5})\s*(s|secs?|seconds?|m|mins?|minutes?|h|hours?)\b", re.IGNORECASE
)
_SECONDS = {"s": 1, "m": 60, "h": 3600}
#: A relay that asks for more is not obeyed: nobody would see that mail again.
_LONGEST_WAIT = 86400.0


class MailRejected(PermanentError):
    """The mail can never be sent.

    Its code is ``invalid_address``, ``invalid_header``, ``invalid_argument``, ``not_allowed``, ``too_large``,
    ``expired`` or ``refused``.
    """


class MailDeferred(TransientError):
    """The mail was surely not sent, and may be later: ``deferred``."""


class MailConfiguration(PostponedError):
    """The mail cannot be sent until an operator acts; the recipient is not to blame: ``configuration``."""


class MailUncertain(UncertainError):
    """The relay had the whole mail and did not answer; sending again may send it twice: ``uncertain``."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer of the relay."""

    code: int
    text: str

    @classmethod
    def of(cls, answer: tuple[int, bytes]) -> Reply:
        """The answer that ``smtplib`` gives."""
        return cls(answer[0], answer[1].decode("utf-8", "replace"))

    @property
    def status(self) -> str:
        """The code and, if there is one, the enhanced code: all of a reply that names nobody."""
        return f"{self.code} {self.enhanced}".rstrip()

    @property
    def enhanced(self) -> str:
        """The enhanced code (RFC 3463), or nothing."""
        match = re.match(r"[245]\.\d{1,3}\.\d{1,3}\b", self.text)
        return match[0] if match else ""


def refusal(reply: Reply, step: str) -> PermanentError | TransientError:
    """Tell whose fault a negative reply is. What concerns our access or our sender never blames the recipient."""
    said = f"The relay said {reply.status} at {step}"
    if reply.code in _AUTHENTICATION or reply.enhanced.startswith("5.7.") or reply.enhanced in _REFUSED_SENDER:
        return configuration(f"{said}: check user, password and what the relay lets this sender do.")
    if not 500 <= reply.code < 600:
        wait = _WAIT.search(reply.text) if 400 <= reply.code < 500 else None
        seconds = min(float(wait[1]) * _SECONDS[wait[2][0].lower()], _LONGEST_WAIT) if wait else None
        return MailDeferred("deferred", f"{said}: try later.", seconds)
    if reply.enhanced in _TOO_LARGE or (reply.code == 552 and not reply.enhanced and not step.startswith("RCPT")):
        return too_large(None)
    if step.startswith("RCPT") or step in {"DATA", "the end of the mail"}:
        return MailRejected("refused", f"{said}: the recipient cannot be reached by this mail, correct either.")
    return configuration(f"{said}: check the relay's address, port and log.")


def too_large(limit: int | None) -> MailRejected:
    """The error of a mail with more bytes than a limit, or than a limit that the relay keeps to itself."""
    bound = f"{limit} bytes" if limit else "the relay's limit"
    return MailRejected("too_large", f"The mail is larger than {bound}: shorten it, and send files as links.")


def configuration(message: str) -> MailConfiguration:
    """The error of what an operator has to correct."""
    return MailConfiguration("configuration", message)
