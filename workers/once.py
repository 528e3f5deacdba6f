"""Runs the attempts of `once` tasks under the ledger, in the process that runs the task."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import time
import uuid
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from celery.exceptions import Ignore, Reject, Retry

from queues.errors import (
    InDoubtError,
    PermanentError,
    PostponedError,
    RecordedError,
    TransientError,
    UncertainError,
)
from queues.headers import CLAIM, LEDGER, OUTCOME
from workers import ledger
from workers.ledger import Attempt, Entry, LedgerUnavailableError
from workers.report import DelayedError, Mark, Running, SupersededError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import celery

    from queues.topology import TaskSpec
    from workers.ledgerstore import RedisStore, SqlStore

logger = logging.getLogger(__name__)

#: Seconds until an attempt looks again whether the one before it has ended: a quarter of what it may still take.
SOONEST_LOOK, LATEST_LOOK = 10.0, 60.0
#: Seconds until it asks a store again that did not answer.
ASK_AGAIN = 15
#: Seconds to try to record an outcome before the message carries it.
RECORD_TIME = 5.0
#: Characters of an outcome that a message can carry: all its headers must fit into one frame of 128 KiB.
CARRIED = 64 * 1024
#: What is recorded of a task that put another in its place, or asked that its message be dropped: nobody is answered.
DROPPED = {"status": "dropped"}


class GivenBackError(Reject):
    """A message goes back to its queue in the midst of a task: nothing is said about an effect."""


class FollowedLaterError(Reject):
    """The message comes again with its result, to send what follows; Celery's tracer lets no other error through."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended: with a value, with an error for good, or with one that is tried again after `wait` s.

    Attributes:
        by: the id of the task whose recorded outcome this is; empty where the attempt was run.
    """

    value: Any = None
    error: PermanentError | TransientError | None = None
    wait: int | None = None
    by: str = field(default="", compare=False)

    @property
    def state(self) -> ledger.State:
        """Its name in the ledger."""
        return "done" if self.error is None else ("failed" if self.wait is None else "retry")


class _Process:
    """What this process knows: the store, and the claim of the task at hand."""

    store: SqlStore | RedisStore | None = None
    claim: Claim | None = None


@dataclass(slots=True)
class Claim:
    """One run's hold on its key.

    Attributes:
        store: where the entry is.
        key: the entry's.
        entry: what the run wrote there last, or is about to write.
        lease: seconds that it is held.
        written: the same as it stands there, as far as the run knows.
        renewed: when the lease was last written, or was tried to be.
    """

    store: SqlStore | RedisStore
    key: str
    entry: Entry
    lease: float
    written: str | None = None
    renewed: float = field(default_factory=time.time)

    def settle(self, entry: Entry, patience: float | None = None) -> Entry:
        """Record, again and again for `patience` seconds, `RECORD_TIME` where nothing is said."""
        limit = time.monotonic() + (RECORD_TIME if patience is None else patience)
        while True:
            try:
                in_force = ledger.settle(self.store, self.key, entry, self.written)
            except LedgerUnavailableError:
                if time.monotonic() > limit:
                    raise
                time.sleep(0.5)
            else:
                self.written = entry.write() if in_force == entry else None
                return in_force

    def begin(self) -> None:
        """Say that the effect begins now: from here on, an end without a record leaves a doubt.

        Raises:
            SupersededError: somebody else has the key.
            TransientError: the ledger does not answer; the effect has not begun.
        """
        now = time.time()
        new = replace(self.entry, at=now, until=now + self.lease, begun=True)
        text = new.write()
        try:
            if not self.store.swap(self.key, self.written, text) and self.store.read(self.key) != text:
                raise SupersededError("another run has the key")
        except LedgerUnavailableError as exc:
            raise TransientError("ledger_away", f"the ledger does not answer ({exc}): look at RESULT_BACKEND") from exc
        self.entry, self.written = new, text

    def extend(self) -> None:
        """Hold the key for a whole lease from now, because the task's limits stand still; now and then is enough."""
        now = time.time()
        if self.written is None or now < self.renewed + ledger.LEASE_MARGIN / 4:
            return
        self.renewed = now
        new = replace(self.entry, at=now, until=now + self.lease)
        with contextlib.suppress(LedgerUnavailableError):
            if self.store.swap(self.key, self.written, new.write()):
                self.entry, self.written = new, new.write()

    def lapse(self, *, begun: bool) -> None:
        """End the claim without an outcome; an effect that began stays begun."""
        now = time.time()
        with contextlib.suppress(LedgerUnavailableError):
            self.settle(replace(self.entry, at=now, until=now, begun=begun), patience=0)


def bound_store() -> SqlStore | RedisStore | None:
    """The store that this process uses."""
    return _Process.store


def bind(store: SqlStore | RedisStore) -> None:
    """Use this store for every `once` task of the process and its children."""
    _Process.store = store


def begin() -> None:
    """The effect of the running task begins now; see `Claim.begin`. Without a ledger, nothing happens."""
    if _Process.claim is not None:
        _Process.claim.begin()


def extend() -> None:
    """The running task waits for the broker, longer than its limits: its claim must not end meanwhile."""
    if _Process.claim is not None:
        _Process.claim.extend()


def run(
    task: celery.Task,
    spec: TaskSpec,
    kwargs: Mapping[str, Any],
    attempt: Callable[[], Outcome],
    *,
    begins: bool,
) -> Outcome:
    """Run an attempt unless it ran already, and record how it ended.

    Args:
        task: bound to its request.
        spec: its row in the table.
        kwargs: its keyword arguments; `spec.once_key` names the one that may hold a key of the producer's.
        attempt: runs it.
        begins: the function says itself when its effect begins, by `begin`.

    Raises:
        DelayedError: another attempt runs, or the ledger does not answer: the message comes again.
        SupersededError: a later attempt has begun.
        InDoubtError: the last attempt ended without a record.
        PostponedError: the attempt had no effect, and is to be delivered again.
    """
    store, request = _Process.store, task.request
    if store is None:
        raise PermanentError("no_ledger", "this process has no ledger: run the task in a worker of its queue")
    if request.id is None:
        raise PermanentError("no_id", "a task that runs once is no part of a map or chunk: send one message for each")
    own = kwargs.get(spec.once_key) if spec.once_key else None
    if own is not None and not isinstance(own, str):
        raise PermanentError("bad_argument", f"{spec.once_key} is a text: give one, or leave it out")
    headers, now = request.headers or {}, time.time()
    attempt_of = Attempt.of(request.id, request.retries, headers)
    lease = spec.time_limit + ledger.LEASE_MARGIN
    new = Entry(
        "claimed",
        request.id,
        *attempt_of.number,
        run=uuid.uuid4().hex,
        process=process_name(os.getpid(), request.hostname),
        at=now,
        until=now + lease,
        begun=not begins,
    )
    claim = Claim(store, ledger.key_of(task.name, request.id, own), new, lease)
    known = carried_outcome(headers, attempt_of)
    if known is not None:
        # Times and names in a header are anybody's: only how it ended counts.
        until = now + lease if known.state == "retry" else 0.0
        return record(task, claim, replace(known, run=known.run or new.run, at=now, until=until))
    resend = (kwargs.get("on_uncertain") or spec.in_doubt) == "resend"
    try:
        decision = ledger.claim(store, claim.key, attempt_of, new, resend=resend)
    except LedgerUnavailableError as exc:
        with contextlib.suppress(LedgerUnavailableError):
            store.prepare()
        logger.warning("%s[%s] waits %d s: the ledger does not answer (%s)", task.name, request.id, ASK_AGAIN, exc)
        raise delayed(task, ASK_AGAIN, {CLAIM: new.run}) from exc
    if decision.action == "drop":
        raise SupersededError("a later attempt has begun")
    if decision.action == "wait":
        raise delayed(task, min(max(decision.wait / 4, SOONEST_LOOK), LATEST_LOOK))
    if decision.action == "hold":
        raise InDoubtError(decision.entry.run if decision.entry else "")
    if decision.action == "repeat" and decision.entry is not None:
        if decision.entry.value == DROPPED and decision.entry.id == request.id:
            raise SupersededError("it put another task in its place, or was to be dropped")
        return repeated(decision.entry)
    if decision.doubtful:
        logger.warning("%s[%s] runs again, though an earlier attempt may have been done", task.name, request.id)
        Running.mark(Mark.DOUBTFUL)
    claim.written = new.write()
    return ran(task, claim, attempt, resend=resend)


def ran(task: celery.Task, claim: Claim, attempt: Callable[[], Outcome], *, resend: bool) -> Outcome:
    """Run the attempt that holds the claim."""
    _Process.claim = claim
    # What is about this attempt is not for one that the task itself sends.
    task.request.headers = without_ledger(task.request.headers)
    try:
        outcome = attempt()
    except (Retry, Ignore, Reject) as exc:
        own_end(claim, exc)
        raise
    except PostponedError:
        # The same attempt comes again: its claim ends as if it had never begun.
        claim.lapse(begun=False)
        raise
    except BaseException:
        # An error that the task did not name says nothing about its effect.
        claim.lapse(begun=claim.entry.begun)
        raise
    finally:
        _Process.claim = None
    if isinstance(outcome.error, UncertainError):
        claim.lapse(begun=True)
        if outcome.wait is None or not resend:
            raise InDoubtError(claim.entry.run) from outcome.error
        return outcome
    in_force = record(task, claim, entry_of(outcome, claim))
    return outcome if in_force.state == outcome.state else in_force


def own_end(claim: Claim, exc: Retry | Ignore | Reject) -> None:
    """Record what a task has decided by Celery's own means: it leaves no doubt.

    `self.retry()` and a rejection say, as an error of ours does, that there was no effect; `replace()` and `Ignore`
    say that nothing more is to be done by this message.
    """
    if isinstance(exc, Reject) and exc.requeue:
        claim.lapse(begun=isinstance(exc, GivenBackError) and claim.entry.begun)
        return
    if isinstance(exc, Retry):
        when = exc.when.timestamp() - time.time() if isinstance(exc.when, datetime.datetime) else exc.when
        outcome = Outcome(error=TransientError("retried", exc), wait=max(1, round(when or 0)))
    elif isinstance(exc, Reject):
        outcome = Outcome(error=PermanentError("rejected", exc))
    else:
        outcome = Outcome(DROPPED)
    with contextlib.suppress(LedgerUnavailableError):
        claim.settle(entry_of(outcome, claim))


def record(task: celery.Task, claim: Claim, entry: Entry) -> Outcome:
    """Write an outcome down; where the ledger does not answer, the message carries it until it does."""
    try:
        in_force = claim.settle(entry)
    except LedgerUnavailableError as exc:
        logger.warning("%s[%s] ended, but that could not be recorded (%s)", task.name, task.request.id, exc)
        send_again(task, ASK_AGAIN, {OUTCOME: header_of(entry)})
        raise DelayedError("comes again with its outcome") from exc
    except BaseException:
        # A time limit, for one: what is known must not become a doubt.
        with contextlib.suppress(LedgerUnavailableError):
            claim.settle(entry, patience=0)
        raise
    if in_force.state == "claimed":
        raise SupersededError("another run has the key")
    return outcome_of(in_force)


def repeated(entry: Entry) -> Outcome:
    """The outcome that was recorded, marked as such."""
    Running.mark(Mark.RECORDED)
    outcome = replace(outcome_of(entry), by=entry.id)
    if outcome.error is None:
        return outcome
    return replace(outcome, error=RecordedError(outcome.error.code, outcome.error.message))


def process_name(pid: int | None, node: str | None) -> str:
    """What claims and dead letters call the process that runs a task."""
    return f"{pid}@{node}"


def send_again(task: celery.Task, seconds: float, headers: Mapping[str, str], **options: Any) -> None:
    """Send the running message again, due later; a broker that is away is waited for."""
    if OUTCOME in headers:
        options["expires"] = None  # it has been run: there is nothing left to expire
    kept = {name: value for name, value in (task.request.headers or {}).items() if name not in (CLAIM, OUTCOME)}
    message = task.signature_from_request(countdown=max(1, round(seconds)), headers={**kept, **headers}, **options)
    with task.app.keeping():
        message.apply_async()


def delayed(task: celery.Task, seconds: float, headers: Mapping[str, str] | None = None) -> DelayedError:
    """Send the running message again, due later, and give the error that ends this delivery of it."""
    send_again(task, seconds, headers or {})
    return DelayedError(f"comes again in {seconds:.0f} s")


def carry(task: celery.Task, value: Any, **done: None) -> None:
    """Send the running message again with its result, because that could not be stored, or what follows not be sent.

    Args:
        task: bound to its request.
        value: its result.
        done: `link` and `chain` as None where what they call was called.
    """
    request = task.request
    attempt = Attempt.of(request.id, request.retries, request.headers or {})
    entry = Entry("done", attempt.id, *attempt.number, run="", at=time.time(), value=value)
    if "chain" not in done and len(entry.write()) > CARRIED:
        raise Reject("what follows needs its result, which is too large to be carried", requeue=True)
    until = "its result can be stored" if "chain" in done else "what follows can be sent"
    logger.warning("%s[%s] was done, and comes again until %s", task.name, request.id, until)
    send_again(task, ASK_AGAIN, {OUTCOME: header_of(entry)}, **done)


def carried(task: celery.Task) -> Outcome | None:
    """The result that a message carries because it could not be stored: it is not run again."""
    request = task.request
    headers = request.headers or {}
    entry = carried_outcome(headers, Attempt.of(request.id or "", request.retries, headers))
    if entry is None or entry.state != "done":
        return None
    Running.mark(Mark.CARRIED)
    return outcome_of(entry)


def header_of(entry: Entry) -> str:
    """An entry as a header carries it; a value that is too large is left out with a note."""
    text = entry.write()
    return text if len(text) <= CARRIED else replace(entry, value=ledger.NOT_KEPT).write()


def entry_of(outcome: Outcome, claim: Claim) -> Entry:
    """An outcome as the ledger keeps it."""
    now = time.time()
    value = outcome.value
    if outcome.error is not None:
        value = {"code": outcome.error.code, "message": outcome.error.message, "wait": outcome.wait}
    # A pending retry is waited for by another task with the same key as long as it could take.
    until = now + (outcome.wait or 0) + claim.lease if outcome.state == "retry" else 0.0
    return replace(claim.entry, state=outcome.state, at=now, until=until, value=value)


def outcome_of(entry: Entry) -> Outcome:
    """An entry's outcome."""
    if entry.state == "done":
        return Outcome(entry.value)
    value = entry.value if isinstance(entry.value, dict) else {}
    code, message = str(value.get("code", "failed")), str(value.get("message", "an earlier attempt failed"))
    if entry.state == "retry":
        wait = value.get("wait")
        return Outcome(error=TransientError(code, message), wait=wait if isinstance(wait, int) and wait > 0 else 1)
    return Outcome(error=PermanentError(code, message))


def carried_outcome(headers: Mapping[str, Any], attempt: Attempt) -> Entry | None:
    """The outcome of this task that its message carries: a success for good, anything else of this very attempt."""
    text = headers.get(OUTCOME)
    if not isinstance(text, str):
        return None
    try:
        entry = Entry.read(text)
    except ValueError:
        return None
    if entry.id != attempt.id or entry.state == "claimed":
        return None
    return entry if entry.state == "done" or entry.number == attempt.number else None


def without_ledger(headers: Mapping[str, Any] | None) -> dict[str, Any]:
    """Headers for the next attempt, without those that are about this one."""
    return {name: value for name, value in (headers or {}).items() if name not in LEDGER}
