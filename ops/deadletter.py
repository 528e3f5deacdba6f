"""Dead letters: what each one says, which are meant, and how they are written down."""

from __future__ import annotations

import base64
import datetime
import hashlib
import math
import re
from collections import Counter
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from ops.browse import browse
from queues.headers import AT, ERROR, REASON, REPLAYS, WORKER
from queues.publish import PUBLISHED_AT
from queues.topology import QUEUES
from queues.transport import UNDECODABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from queues.app import WarrenCelery

#: Header of the broker's: where the message died, how, and how often, the newest first.
DEATHS = "x-death"

#: Ids that are shown as they are; any other message is shown under a name made from its content.
_PLAIN_ID = re.compile(r"[\w.:@/+=-]{1,64}", re.ASCII)
_AGO = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
#: The end of the year 9999, in seconds since the epoch.
_END_OF_TIME = 253402300799


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """One dead letter; two copies of one message count once.

    Attributes:
        queue: the work queue that it comes from.
        key: what its copies have in common.
        id: the task's id, where it has one.
        task: the task's name, where it says one.
        reason: a short code.
        error: the error's text.
        worker: the worker that gave it up; None where the broker did.
        at: seconds since the epoch when it died, as far as the message tells.
        retries: attempts before this one.
        replays: how often it was replayed.
        size: bytes of its body.
        copies: messages in the queue.
    """

    queue: str
    key: tuple[str | None, str | None, str]
    id: str | None
    task: str | None
    reason: str
    error: str | None
    worker: str | None
    at: float | None
    retries: int
    replays: int
    size: int
    copies: int = 1

    @property
    def ref(self) -> str:
        """What an operator calls it: the id, or `~` and a digest where there is no id to write."""
        if self.id is not None and _PLAIN_ID.fullmatch(self.id):
            return self.id
        return "~" + hashlib.sha256(repr(self.key).encode()).hexdigest()[:12]

    @property
    def by_broker(self) -> bool:
        """Whether the broker dead-lettered it: no worker could say why."""
        return self.worker is None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        names = ("queue", "id", "task", "reason", "error", "worker", "retries", "replays", "size", "copies")
        return {"ref": self.ref, "at": iso(self.at)} | {name: getattr(self, name) for name in names}


def parse(queue: str, message: Any) -> DeadLetter:
    """What a message of a dead-letter queue says; nothing in it is taken on trust.

    Args:
        queue: the work queue's name.
        message: py-amqp's message.
    """
    headers, properties, body = headers_of(message), message.properties, body_of(message)
    death = death_in(queue, headers)
    task_id, task = text(headers.get("id")), text(headers.get("task"))
    own = text(headers.get(REASON))
    reason = own or text(death.get("reason")) or ("undecodable" if UNDECODABLE in headers else "unknown")
    times = (headers.get(AT), death.get("time"), headers.get(PUBLISHED_AT), properties.get("timestamp"))
    at = next((found for found in map(seconds, times) if found is not None), None)
    digest = hashlib.sha256(body)
    if task_id is None:
        # Without an id, equal bodies are two messages, told apart as far as they differ.
        digest.update(repr((reason, at)).encode())
    return DeadLetter(
        queue=queue,
        key=(task_id, task, digest.hexdigest()),
        id=task_id,
        task=task,
        reason=reason,
        error=text(headers.get(ERROR)) or ("its properties cannot be decoded" if UNDECODABLE in headers else None),
        worker=text(headers.get(WORKER)) or ("?" if own else None),
        at=at,
        retries=count(headers.get("retries")),
        replays=count(headers.get(REPLAYS)),
        size=len(body),
    )


def merge(letters: Iterable[DeadLetter]) -> list[DeadLetter]:
    """Count copies of one id once, where the first one stands; the worker's copy speaks for the broker's."""
    found: dict[Any, DeadLetter] = {}
    for number, letter in enumerate(letters):
        key = letter.key if letter.id is not None else number
        other = found.get(key)
        if other is None:
            found[key] = letter
            continue
        best = max(other, letter, key=lambda one: (not one.by_broker, one.replays, one.at or 0))
        found[key] = replace(best, copies=other.copies + 1, replays=max(other.replays, letter.replays))
    return list(found.values())


def read(
    app: WarrenCelery, queue: str, progress: Callable[[int, int], None] = lambda _done, _total: None
) -> list[DeadLetter]:
    """All dead letters of a queue, the oldest first; they stay where they are.

    Raises:
        OpsError: they cannot be read.
    """

    def letters() -> Iterator[DeadLetter]:
        with browse(app, QUEUES.queue(queue).dead_letter) as browser:
            for message in browser:
                yield parse(queue, message)
                progress(browser.seen, max(browser.seen, browser.total))

    return merge(letters())


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which letters are meant: those that fit every part that is given."""

    ids: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    since: float | None = None

    @property
    def is_empty(self) -> bool:
        """Whether all are meant."""
        return not (self.ids or self.tasks or self.reasons or self.since is not None)

    def matches(self, letter: DeadLetter) -> bool:
        """Whether a letter is meant; one without a time was never `since`."""
        return (
            (not self.ids or letter.id in self.ids or letter.ref in self.ids)
            and (not self.tasks or letter.task in self.tasks)
            and (not self.reasons or letter.reason in self.reasons)
            and (self.since is None or (letter.at is not None and letter.at >= self.since))
        )


def since(value: str, now: float) -> float:
    """A point in time: `90s`, `15m`, `2h`, `3d`, `1w` ago, or an ISO date or time, UTC where it names no zone.

    Raises:
        ValueError: it is none of these.
    """
    ago = _AGO.fullmatch(value.strip().lower())
    if ago:
        return now - float(ago[1]) * _UNITS[ago[2]]
    try:
        when = datetime.datetime.fromisoformat(value.strip())
    except ValueError:
        raise ValueError(f"{value!r} is no time: write 90s, 15m, 2h, 3d, 1w, or 2026-01-31T12:00") from None
    return when.replace(tzinfo=when.tzinfo or datetime.UTC).timestamp()


def reasons(letters: Iterable[DeadLetter]) -> dict[str, int]:
    """How many died of what, the most frequent first."""
    return dict(Counter(letter.reason for letter in letters).most_common())


def record(letter: DeadLetter, message: Any) -> dict[str, Any]:
    """Everything that a letter holds, for one line of JSON; a body that is no UTF-8 text is base64."""
    body = body_of(message)
    try:
        written = {"body": body.decode(), "body_encoding": "text"}
    except UnicodeDecodeError:
        written = {"body": base64.b64encode(body).decode(), "body_encoding": "base64"}
    properties = {name: value for name, value in message.properties.items() if name != "application_headers"}
    return letter.as_dict() | {"headers": plain(headers_of(message)), "properties": plain(properties)} | written


def plain(value: Any) -> Any:
    """A header's value in JSON's types."""
    if isinstance(value, dict):
        return {key if isinstance(key, str) else repr(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, datetime.datetime):
        return value.replace(tzinfo=value.tzinfo or datetime.UTC).isoformat()
    if isinstance(value, Decimal) or (isinstance(value, float) and not math.isfinite(value)):
        return str(value)
    return value


def headers_of(message: Any) -> dict[Any, Any]:
    """A message's headers."""
    found = message.properties.get("application_headers")
    return found if isinstance(found, dict) else {}


def body_of(message: Any) -> bytes:
    """A message's body; py-amqp gives an empty one as text."""
    return message.body if isinstance(message.body, bytes) else str(message.body or "").encode(errors="surrogatepass")


def death_in(queue: str, headers: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """The broker's note of the death in this queue: a delayed message also died in each delay queue."""
    deaths = headers.get(DEATHS)
    tables = [item for item in deaths if isinstance(item, dict)] if isinstance(deaths, list) else []
    return next((item for item in tables if item.get("queue") == queue), tables[0] if tables else {})


def text(value: Any) -> str | None:
    """A text that is not empty, or None."""
    return value if isinstance(value, str) and value else None


def count(value: Any) -> int:
    """A count, 0 where it is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def seconds(value: Any) -> float | None:
    """Seconds since the epoch, or None where a value is no time that could be written."""
    if isinstance(value, datetime.datetime):
        return value.replace(tzinfo=value.tzinfo or datetime.UTC).timestamp()
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= _END_OF_TIME:
        return float(value)
    return None


def iso(at: float | None) -> str | None:
    """A time as people and programs read it, in UTC."""
    return datetime.datetime.fromtimestamp(at, datetime.UTC).isoformat(timespec="seconds") if at is not None else None
