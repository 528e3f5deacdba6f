"""What is done with dead letters: run again, dropped, or written down.

A letter is acknowledged only after what replaces it is confirmed, so that an end at any moment loses none; whoever is
stopped in between leaves one letter that was sent already.
"""

from __future__ import annotations

import datetime
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ops.browse import browse
from ops.deadletter import DEATHS, body_of, headers_of, parse, record
from ops.errors import OpsError
from queues.errors import BrokerUnavailableError, PublishError, PublishRefusedError, PublishUnknownError, WarrenError
from queues.headers import CHILD_DEATHS, DOUBT, LEDGER, OUTCOME, REASON, REPLAYS, VERDICT, attempt_name
from queues.publish import Producer, stamp
from queues.topology import QUEUES
from queues.transport import UNDECODABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ops.browse import Browser
    from ops.deadletter import DeadLetter
    from queues.app import WarrenCelery

#: Headers of the life that ended: a replay begins a new one.
DROPPED = (DEATHS, "x-delivery-count", "x-acquired-count", CHILD_DEATHS, *LEDGER)
DROPPED_PREFIXES = ("x-first-death-", "x-last-death-", "x-dead-")
#: Properties that a replay keeps. A user id could only be its own user's.
KEPT = ("content_type", "content_encoding", "correlation_id", "reply_to", "priority", "message_id", "type", "app_id")

#: Deaths of a `once` task that leave open whether it was done; only a person can tell.
DOUBTFUL = frozenset({"in-doubt", "exception", "internal-error", "memory", "time-limit", "worker-lost"})

#: Acknowledgements that RabbitMQ handles before a channel's end. Beyond 32 on their way it sets them aside, and those
#: are lost with the channel (rabbit_fifo_client, seen on 3.10: 134 of 1000 letters came back).
SURE = 16
#: How often to look for acknowledged letters that came back.
SWEEPS = 5


@dataclass(slots=True, kw_only=True)
class Report:
    """What became of the letters that were meant.

    Attributes:
        matching: how many were meant.
        done: replayed or dropped.
        failed: what was refused, by name, and why; it stays where it is.
        interrupted: the user stopped it.
        error: why the rest was not tried.
    """

    matching: int
    done: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    interrupted: bool = False
    error: WarrenError | None = None

    @property
    def left(self) -> int:
        """How many were not tried."""
        return self.matching - self.done - len(self.failed)


def replay(
    app: WarrenCelery,
    queue: str,
    letters: Iterable[DeadLetter],
    *,
    verdict: str | None = None,
    stopped: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] = lambda _done: None,
) -> Report:
    """Send letters to their queue again, the oldest first, each confirmed before it leaves the dead letters.

    Args:
        app: the operator's app.
        queue: the work queue.
        letters: from `deadletter.read`.
        verdict: whether `once` tasks in doubt were `done` or `not-done`; without it they stay where they are.
        stopped: asked before each letter.
        progress: told how many are done.
    """
    row = QUEUES.queue(queue)
    producer = Producer(app.connection_for_write(), timeout=app.conf.publish_timeout)

    def send(letter: DeadLetter, message: Any) -> None:
        headers = headers_of(message)
        if verdict is not None and not is_doubtful(letter):
            raise PublishRefusedError("it is in no doubt: replay it without --done and --not-done")
        if verdict is None and is_doubtful(letter):
            raise PublishRefusedError(
                "whether it was done is not known: look where its effect would be, then give --done or --not-done"
            )
        if UNDECODABLE in headers:
            raise PublishRefusedError("its properties cannot be decoded: export it, mend it there, and drop it")
        kept = {name: message.properties[name] for name in KEPT if message.properties.get(name) is not None}
        producer.copy(
            body_of(message),
            headers=stamp(revived(headers, letter.replays + 1) | judged(letter, headers, verdict)),
            exchange=row.exchange,
            routing_key=row.routing_key,
            delivery_mode=2,
            timestamp=int(time.time()),
            **{"content_type": "application/octet-stream", "content_encoding": "binary"} | kept,
        )

    try:
        return settle(app, queue, list(letters), send, stopped, progress)
    finally:
        producer.connection.collect()


def drop(
    app: WarrenCelery,
    queue: str,
    letters: Iterable[DeadLetter],
    *,
    stopped: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] = lambda _done: None,
) -> Report:
    """Delete letters for good; see `replay` for the arguments."""
    return settle(app, queue, list(letters), lambda _letter, _message: None, stopped, progress)


def records(
    app: WarrenCelery, queue: str, letters: Iterable[DeadLetter]
) -> Iterator[tuple[DeadLetter, dict[str, Any]]]:
    """Letters with everything that they hold, one after the other; they stay where they are."""
    with browse(app, QUEUES.queue(queue).dead_letter) as browser:
        for letter, copies in meet(browser, queue, letters):
            yield letter, record(letter, best(copies))


def settle(
    app: WarrenCelery,
    queue: str,
    letters: list[DeadLetter],
    act: Callable[[DeadLetter, Any], None],
    stopped: Callable[[], bool],
    progress: Callable[[int], None],
) -> Report:
    """Do something with each letter, and acknowledge all its copies when it is done."""
    report = Report(matching=len(letters))
    taken: Counter[Any] = Counter()
    try:
        with browse(app, QUEUES.queue(queue).dead_letter) as browser:
            for letter, copies in meet(browser, queue, letters):
                report.interrupted = report.interrupted or stopped()
                if report.interrupted or report.error:
                    # The queue is read to its end all the same, to keep its order.
                    continue
                try:
                    act(letter, best(copies))
                except (BrokerUnavailableError, PublishUnknownError) as exc:
                    report.error = exc
                    continue
                except PublishError as exc:
                    report.failed.append((letter.ref, str(exc)))
                    continue
                except Exception as exc:  # noqa: BLE001 - whatever an encoder raises, the letter stays
                    report.failed.append((letter.ref, f"it cannot be encoded again ({exc}): export it, and drop it"))
                    continue
                for message in copies:
                    browser.acknowledge(message)
                    taken[fingerprint(queue, message)] += 1
                report.done += 1
                progress(report.done)
        if taken.total() > SURE:
            sweep(app, queue, taken)
    except OpsError as exc:
        report.error = exc
    return report


def sweep(app: WarrenCelery, queue: str, taken: Counter[Any]) -> None:
    """Acknowledge again what came back."""
    for _ in range(SWEEPS):
        due, found = taken.copy(), 0
        with browse(app, QUEUES.queue(queue).dead_letter) as browser:
            for message in browser:
                mark = fingerprint(queue, message)
                if due[mark] > 0:
                    due[mark] -= 1
                    found += 1
                    browser.acknowledge(message)
        if found <= SURE:
            return


def meet(browser: Browser, queue: str, letters: Iterable[DeadLetter]) -> Iterator[tuple[DeadLetter, list[Any]]]:
    """Find letters in their queue again, each when the last of its copies is met."""
    wanted: dict[Any, list[DeadLetter]] = {}
    for letter in letters:
        wanted.setdefault(letter.key, []).append(letter)
    met: dict[Any, list[Any]] = {}
    for message in browser:
        key = parse(queue, message).key
        if not wanted.get(key):
            continue
        copies = met.setdefault(key, [])
        copies.append(message)
        if len(copies) == wanted[key][0].copies:
            yield wanted[key].pop(0), met.pop(key)


def best(copies: list[Any]) -> Any:
    """The copy that speaks for the others: the worker's, which says why."""
    return max(copies, key=lambda message: REASON in headers_of(message))


def judged(letter: DeadLetter, headers: dict[Any, Any], verdict: str | None) -> dict[str, Any]:
    """The verdict's header: it is about one run, or about the attempt that the letter was, and no other."""
    if verdict is None:
        return {}
    about = headers.get(DOUBT) or attempt_name(letter.id or "", letter.replays, letter.retries)
    return {VERDICT: f"{verdict} {about}"}


def is_doubtful(letter: DeadLetter) -> bool:
    """Whether a letter leaves open if its task was done: a person must say so before it runs again."""
    return letter.task in QUEUES.task_names and QUEUES.task(letter.task)[1].once and letter.reason in DOUBTFUL


def fingerprint(queue: str, message: Any) -> tuple[Any, int]:
    """What a message keeps when it comes back; a replay that failed again has a higher count."""
    letter = parse(queue, message)
    return letter.key, letter.replays


def revived(headers: dict[Any, Any], replays: int) -> dict[Any, Any]:
    """The headers of a letter's new life: without those of its death, nor an expiry that has passed."""
    kept = {
        name: value
        for name, value in headers.items()
        if not (isinstance(name, str) and (name in DROPPED or name.startswith(DROPPED_PREFIXES)))
    }
    if has_passed(kept.get("expires")):
        kept["expires"] = None
    # A result that waits to be stored is kept: the task was done.
    waiting = {OUTCOME: headers[OUTCOME]} if OUTCOME in headers else {}
    return kept | waiting | {REPLAYS: replays}


def has_passed(value: Any) -> bool:
    """Whether an ISO time lies in the past."""
    if not isinstance(value, str):
        return False
    try:
        when = datetime.datetime.fromisoformat(value)
    except ValueError:
        return False
    return when.replace(tzinfo=when.tzinfo or datetime.UTC) <= datetime.datetime.now(datetime.UTC)
