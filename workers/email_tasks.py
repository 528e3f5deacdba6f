"""The email queue's tasks."""

from __future__ import annotations

import contextlib
import uuid
from typing import TYPE_CHECKING, Any

from celery import signals
from celery.exceptions import SoftTimeLimitExceeded

from queues.errors import TransientError
from workers import mailing, once
from workers.app import app
from workers.ledger import LedgerUnavailableError
from workers.mailer import Draft, MailConfiguration, MailDeferred, Mailer
from workers.rate import Pace
from workers.settings import mail_interval, smtp
from workers.task import register

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Seconds between two mails of all workers together; 0 without a limit.
INTERVAL = mail_interval()

#: One connection for each worker process, made on first use: a connection cannot be shared across a fork.
mailer = Mailer(smtp())


@signals.worker_process_init.connect(weak=False)
def join_the_others(**_: Any) -> None:
    """Keep the common rate; to have looked early saves the wait before the first mail."""
    store = once.bound_store()
    if store is not None and INTERVAL:
        mailer.turns = pace = Pace(store, "email", INTERVAL)
        with contextlib.suppress(LedgerUnavailableError):
            pace.look()


@signals.worker_process_shutdown.connect(weak=False)
def say_goodbye(**_: Any) -> None:
    """Leave the relay properly."""
    mailer.close()


@register("email.send_email", bind=True, begins=True, duplicate=mailing.duplicate)
def send_email(
    self: Any,
    to_addr: str,
    subject: str,
    body: str,
    *,
    html: str | None = None,
    from_addr: str | None = None,
    reply_to: str | None = None,
    cc: Sequence[str] = (),
    headers: Mapping[str, str] | None = None,
    list_unsubscribe: str | None = None,
    idempotency_key: str | None = None,
    on_uncertain: str | None = None,
    expires_at: float | str | None = None,
    raise_on_error: bool = True,
) -> dict[str, Any]:
    """Send one mail; a retry keeps the task id and so the Message-ID."""
    mailing.check(on_uncertain, idempotency_key, expires_at)
    draft = Draft(
        to_addr=to_addr,
        subject=subject,
        body=body,
        html=html,
        from_addr=from_addr,
        reply_to=reply_to,
        cc=cc,
        headers=headers,
        list_unsubscribe=list_unsubscribe,
    )
    try:
        result = mailer.send(draft, key=idempotency_key or self.request.id, before_dot=once.begin)
    except MailConfiguration as exc:
        raise mailing.postponed(exc, self.request.headers or {}) from exc
    except SoftTimeLimitExceeded:
        if mailer.handed_over:
            raise
        raise MailDeferred("deferred", "The time limit came before the mail was sent: look at the relay.") from None
    except LedgerUnavailableError as exc:
        raise TransientError("ledger_away", f"the ledger does not answer ({exc}): look at RESULT_BACKEND") from exc
    return {**result, "attempts": self.request.retries + 1}


# Kept at SMTP instead (workers.rate): Celery's bucket is full at each start, and counts what is only answered.
send_email.rate_limit = None


@register("email.send_bulk", bind=True)
def send_bulk(
    self: Any,
    recipients: Sequence[str],
    subject: str,
    body: str,
    *,
    html: str | None = None,
    from_addr: str | None = None,
    reply_to: str | None = None,
    headers: Mapping[str, str] | None = None,
    list_unsubscribe: str | None = None,
    idempotency_key: str | None = None,
    on_uncertain: str | None = None,
    expires_at: float | str | None = None,
    raise_on_error: bool = True,
) -> dict[str, Any]:
    """Enqueue one mail for each recipient, or none where one of them or the mail is not right.

    `{recipient}` in `list_unsubscribe` is replaced by the address. Run again, it enqueues the same mails again, which
    the ledger recognises.
    """
    mailing.check(on_uncertain, idempotency_key, expires_at)
    addresses = mailer.recipients(recipients)
    options = {
        "html": html,
        "from_addr": from_addr,
        "reply_to": reply_to,
        "headers": headers,
        "on_uncertain": on_uncertain,
        "expires_at": expires_at,
    }
    given = {name: value for name, value in options.items() if value is not None}
    bulk = idempotency_key or self.request.id
    mails: dict[str, dict[str, Any]] = {}
    for address in addresses:
        link = {} if list_unsubscribe is None else {"list_unsubscribe": mailing.personal(list_unsubscribe, address)}
        mails[address] = {**given, **link, "idempotency_key": f"{bulk}:{address}"}
    # The one with the longest link.
    probe = max(addresses, key=lambda address: len(mailing.personal("{recipient}", address)))
    parts = {name: value for name, value in mails[probe].items() if name in Draft.__slots__}
    mailer.compose(Draft(to_addr=probe, subject=subject, body=body, **parts), bulk)
    ids = []
    for address, kwargs in mails.items():
        task_id = str(uuid.uuid5(uuid.NAMESPACE_OID, kwargs["idempotency_key"]))
        app.send_task(send_email.name, [address, subject, body], kwargs, task_id=task_id)
        ids.append(task_id)
    return {"status": "queued", "count": len(ids), "task_ids": ids}
