"""The monitor queue's periodic tasks, which beat sends."""

from __future__ import annotations

import datetime
import logging
import os
import time
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import amqp
from celery.states import PENDING, READY_STATES

from queues import tasks
from queues.errors import PermanentError, TransientError
from queues.headers import AT, REPLAYS
from queues.topology import DELETED_DEAD_LETTERS, HOUSEKEEPING_QUEUE, METRICS_EXCHANGE, QUEUES, UNREAD_DEAD_LETTERS
from workers import deletions, ending, monitoring
from workers.app import app
from workers.app import settings as app_settings
from workers.ledger import LedgerUnavailableError
from workers.ledgerstore import open_store
from workers.settings import report_settings
from workers.task import register
from workers.validation import is_count

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)
settings = report_settings()

#: Seconds that one look settles dead letters; more wait for the next.
SETTLE_TIME = 8.0
#: Seconds that one look counts deleted dead letters.
COUNT_TIME = 4.0
#: Failures that the result store may not take before a look gives up: one may be the letter's own fault.
PATIENCE = 3
#: The status of the look before, to log changes and not states.
_last = {"status": "ok"}
#: Seconds between two purges of the ledger.
PURGE_INTERVAL = 3600.0
_last_purge = {"at": float("-inf")}


@register("monitor.check_status")
def check_status() -> dict[str, Any]:
    """Look at broker, queues and result store; a change of status is logged, the newest is in the state folder."""
    with app.connection_for_read() as connection:
        found = monitoring.check(QUEUES, lambda name: look(connection, name), ping_results)
        if not found.down:
            count_deleted(connection)
            if found.results_answer:
                settle(connection)
    status = found.as_dict()
    status["at"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    if status["status"] != _last["status"]:
        level = logging.INFO if status["status"] == "ok" else logging.WARNING
        logger.log(level, "status %s: %s", status["status"], "; ".join(status["reasons"]) or "all is well")
        _last["status"] = status["status"]
    if settings.state:
        monitoring.write_json(settings.state / "status.json", status)
    purge_ledger()
    return status


def purge_ledger() -> None:
    """Once an hour, drop what the ledger has kept long enough."""
    store = open_store(app, app_settings.results.kind, app_settings.results.ledger_days)
    if store is None or time.monotonic() < _last_purge["at"] + PURGE_INTERVAL:
        return
    _last_purge["at"] = time.monotonic()
    try:
        store.prepare()
        store.purge()
    except LedgerUnavailableError as exc:
        logger.warning("old entries of the ledger stay: %s", exc)


def settle(connection: Any) -> None:
    """Record the failures that no worker recorded: it had died, or the result store was away."""
    limit, kept = time.monotonic() + SETTLE_TIME, 0
    with connection.channel() as channel:
        while time.monotonic() < limit and kept < PATIENCE:
            message = channel.basic_get(UNREAD_DEAD_LETTERS)
            if message is None:
                return
            if is_recorded(channel.message_to_python(message)):
                message.channel.basic_ack(message.delivery_tag)
            else:
                kept += 1  # it comes again when the channel is closed


def is_recorded(letter: Any) -> bool:
    """Record how a dead letter's task ended, where nobody has; False where the result store does not take it."""
    request, ended = ending.context(letter), monitoring.ending(letter.headers)
    if request is None or ended is None:
        return True
    try:
        if not is_open(request.id, letter.headers) or ending.end(app.backend, request, ended, patience=SETTLE_TIME):
            return True
        reason: object = "it was not stored"
    except Exception as exc:  # noqa: BLE001 - whatever a result store raises means the same here
        reason = exc
    logger.warning("the failure of task %s is recorded later: look at the result store (%s)", request.id, reason)
    return False


def count_deleted(connection: Any) -> None:
    """Count the dead letters that their retention deleted, and forget them; a crash in between counts them twice."""
    limit = time.monotonic() + COUNT_TIME
    headers, last = [], None
    with connection.channel() as channel:
        while time.monotonic() < limit and (message := channel.basic_get(DELETED_DEAD_LETTERS)) is not None:
            headers.append(message.headers)
            last = message
        if last is None:
            return
        for queue, counts in deletions.count(headers, QUEUES).items():
            logger.warning("dead letters of %s were deleted by their retention: %s", queue, dict(counts))
            body = deletions.snapshot(f"{HOUSEKEEPING_QUEUE}@retention", queue, counts)
            channel.basic_publish_confirm(
                amqp.Message(body, content_type="application/json", content_encoding="utf-8", delivery_mode=2),
                exchange=METRICS_EXCHANGE,
            )
        channel.basic_ack(last.delivery_tag, multiple=True)


def is_open(task_id: str, headers: Any) -> bool:
    """Whether nobody has recorded how a task ended; an answer that has expired since is no open one.

    One that was replayed meanwhile, and runs, is alive again.
    """
    meta = app.backend.get_task_meta(task_id, cache=False)
    if meta["status"] != PENDING:
        now = meta["result"] if isinstance(meta["result"], dict) else {}
        return meta["status"] not in READY_STATES and replays(now) <= replays(headers)
    died = headers.get(AT)
    return not isinstance(died, int | float) or time.time() - died < app.conf.result_expires


def replays(found: Any) -> int:
    """How often a task was replayed, as its message or what is stored of it says."""
    value = found.get(REPLAYS)
    return value if is_count(value) else 0


def look(connection: Any, name: str) -> monitoring.QueueState | None:
    """Ask the broker about one queue; a missing one closes the channel, so each question has its own."""
    with connection.channel() as channel:
        try:
            answer = channel.queue_declare(name, passive=True)
        except amqp.exceptions.NotFound:
            return None
    return monitoring.QueueState(ready=answer.message_count, consumers=answer.consumer_count)


def ping_results() -> float:
    """Seconds that the result store takes to answer for an id that does not exist."""
    start = time.perf_counter()
    app.backend.get_task_meta(f"ping-{os.getpid()}", cache=False)
    return time.perf_counter() - start


@register("monitor.generate_report")
def generate_report(day: str | None = None) -> dict[str, Any]:
    """Write what a day's tasks did to the state folder, and mail it where REPORT_TO says so.

    Args:
        day: ISO date, by default yesterday in the configured zone.
    """
    zone = ZoneInfo(str(app.conf.timezone))
    try:
        wanted = (
            datetime.date.fromisoformat(day) if day else datetime.datetime.now(zone).date() - datetime.timedelta(days=1)
        )
    except (TypeError, ValueError):
        raise PermanentError("bad_argument", f"day {day!r} is no ISO date: write it as 2026-01-31") from None
    if not settings.state or not settings.exporter_url:
        raise PermanentError(
            "not_configured", "reports need STATE_DIR and EXPORTER_URL: set both for the monitor worker"
        )
    path = settings.state / f"report-{wanted.isoformat()}.json"
    report = monitoring.read_json(path) or make_report(wanted, path, settings.state)
    mail = None
    if settings.report_to:
        body = monitoring.text_report(wanted.isoformat(), report["tasks"])
        mail = app.send_task(
            tasks.send_email.name,
            [settings.report_to, f"Warren: report of {wanted.isoformat()}", body],
            {"idempotency_key": f"daily-report:{wanted.isoformat()}"},
        ).id
    return {"status": "success", "day": wanted.isoformat(), "path": str(path), "email_task_id": mail}


def make_report(day: datetime.date, path: Path, state: Path) -> dict[str, Any]:
    """Subtract the counters of the last report from those of now, and remember the new ones."""
    try:
        now = monitoring.scrape(settings.exporter_url)
    except OSError as exc:
        raise TransientError("exporter_away", f"the exporter does not answer ({exc}): look at EXPORTER_URL") from exc
    counters = state / "report-counters.json"
    report = {"day": day.isoformat(), "tasks": monitoring.difference(now, monitoring.read_json(counters) or {})}
    monitoring.write_json(path, report)
    monitoring.write_json(counters, now)
    return report
