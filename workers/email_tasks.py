"""The email queue's task."""

from __future__ import annotations

from typing import Any

from celery import signals

from workers.mailer import Mailer
from workers.settings import smtp
from workers.task import register

#: One connection for each worker process, made on first use: a connection cannot be shared across a fork.
mailer = Mailer(smtp())


@signals.worker_process_shutdown.connect(weak=False)
def say_goodbye(**_: Any) -> None:
    """Leave the relay properly."""
    mailer.close()


@register("email.send_email", bind=True)
def send_email(
    self: Any,
    to_addr: str,
    subject: str,
    body: str,
    *,
    html: str | None = None,
    from_addr: str | None = None,
    reply_to: str | None = None,
    idempotency_key: str | None = None,
    raise_on_error: bool = True,
) -> dict[str, Any]:
    """Send one mail; a retry keeps the task id and so the Message-ID."""
    result = mailer.send(
        to_addr,
        subject,
        body,
        html=html,
        from_addr=from_addr,
        reply_to=reply_to,
        key=idempotency_key or self.request.id,
    )
    return {**result, "attempts": self.request.retries + 1}
