"""What the email tasks decide about their arguments and results; no connection, and no Celery."""

from __future__ import annotations

import datetime
import math
import re
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from queues.errors import PermanentError
from queues.publish import FIRST_PUBLISHED_AT
from workers.refusal import MailConfiguration, MailRejected

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Seconds that a mail waits which cannot be sent until an operator acts: half of its age, within these bounds.
SHORTEST_WAIT, LONGEST_WAIT = 60.0, 900.0
#: Seconds after which it is given up (RFC 5321, 4.5.4.1: four to five days).
GIVE_UP = 5 * 86400.0
#: Half a character, which JSON can carry and UTF-8 cannot.
_HALF = re.compile("[\ud800-\udfff]")


def duplicate(sent: Any) -> Any:
    """The answer to another mail with the key of one that was sent."""
    return {**sent, "status": "duplicate"} if isinstance(sent, dict) and sent.get("status") == "sent" else sent


def personal(url: str, address: str) -> str:
    """The link by which one recipient unsubscribes."""
    return url.replace("{recipient}", quote(address, safe="")) if isinstance(url, str) else url


def check(on_uncertain: object, key: object, expires_at: float | str | None) -> None:
    """Check what is no part of the mail itself.

    Raises:
        MailRejected: `invalid_argument`, or `expired`.
    """
    if on_uncertain not in (None, "resend", "hold"):
        raise MailRejected("invalid_argument", "on_uncertain is resend or hold: correct it.")
    if key is not None and (not isinstance(key, str) or not key or _HALF.search(key)):
        raise MailRejected("invalid_argument", "idempotency_key is a text: give one, or leave it out.")
    if expires_at is None:
        return
    try:
        limit = float(expires_at) if isinstance(expires_at, int | float) else moment(expires_at)
        if math.isnan(limit):
            raise ValueError(expires_at)
    except (TypeError, ValueError, OverflowError):
        raise MailRejected(
            "invalid_argument",
            "expires_at is a date and time with its offset, like 2026-01-31T12:00:00+09:00, or seconds since 1970.",
        ) from None
    if time.time() >= limit:
        raise MailRejected("expired", "The mail's time is over, it was not sent: send it anew if it still matters.")


def moment(text: str) -> float:
    """Seconds since the epoch of a date and time in ISO form.

    Raises:
        ValueError: it is none, or has no offset.
    """
    when = datetime.datetime.fromisoformat(text)
    if when.tzinfo is None:
        raise ValueError(text)
    return when.timestamp()


def postponed(exc: MailConfiguration, headers: Mapping[str, Any]) -> MailConfiguration | PermanentError:
    """The error that has the mail wait until an operator has acted, or gives it up."""
    published = headers.get(FIRST_PUBLISHED_AT)
    age = time.time() - published if isinstance(published, int | float) else 0.0
    if age > GIVE_UP:
        return PermanentError(exc.code, exc.message)
    return MailConfiguration(exc.code, exc.message, min(max(age / 2, SHORTEST_WAIT), LONGEST_WAIT))
