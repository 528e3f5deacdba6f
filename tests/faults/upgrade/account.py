"""What became of each message: logs of producers against what tasks wrote down, results, mails and dead letters."""

from __future__ import annotations

import datetime
import json
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path


#: Seconds within which an acknowledgement arrives.
UNACKNOWLEDGED = 1.0


@dataclass
class Row:
    """One line of the table: a kind of message, or of figure."""

    what: str
    sent: int | None = None
    confirmed: int | None = None
    done: int | None = None
    by_base: int | None = None
    by_head: int | None = None
    lost: int | None = None
    doubled: int | None = None
    note: str = ""
    failures: list[str] = field(default_factory=list)

    def require(self, condition: object, failure: str) -> None:
        """A figure that must hold."""
        if not condition:
            self.failures.append(failure)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Tail:
    """A log that grows: what has come since the last look; a line that is being written is left for the next."""

    def __init__(self, path: Path) -> None:
        self.path, self._at = path, 0

    def new(self) -> list[dict[str, Any]]:
        """The events that have come."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._at)
                whole, end, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        self._at += len(whole + end)
        return [json.loads(line) for line in whole.splitlines()]


class Sent:
    """What producers wrote down: for each id the kind, the time and the outcome."""

    def __init__(self, logs: Iterable[Path]) -> None:
        self.first: dict[str, dict[str, Any]] = {}
        self.outcome: dict[str, str] = {}
        #: Ids that were sent again on purpose.
        self.again: set[str] = set()
        for event in sorted((event for log in logs for event in Tail(log).new()), key=lambda event: event["t"]):
            name = event["id"]
            if event["outcome"] != "sending":
                # A second message of one id cannot take back the confirm of the first.
                if self.outcome.get(name) != "confirmed":
                    self.outcome[name] = event["outcome"]
            elif event["kind"] == "again":
                self.again.add(name)
            else:
                self.first.setdefault(name, event)
                self.outcome.setdefault(name, "unknown")

    def of(self, *kinds: str) -> dict[str, dict[str, Any]]:
        """All that was sent of these kinds."""
        return {name: event for name, event in self.first.items() if event["kind"] in kinds}

    def confirmed(self, *kinds: str) -> set[str]:
        """The ids of these kinds that the broker has taken for certain."""
        return {name for name in self.of(*kinds) if self.outcome[name] == "confirmed"}

    def refused(self, *kinds: str) -> set[str]:
        """The ids of these kinds that it has not taken, for certain."""
        return {name for name in self.of(*kinds) if self.outcome[name] == "refused"}


class Ran:
    """What tasks wrote down, by the version that ran them."""

    def __init__(self, journals: Mapping[str, Path]) -> None:
        self.starts: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
        self.ends: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for version, path in journals.items():
            for event in Tail(path).new():
                event["by"] = version
                if event["event"] == "start":
                    self.starts[event["id"], event["attempt"]].append(event)
                else:
                    self.ends[event["id"]].append(event)

    def attempts(self, name: str) -> list[dict[str, Any]]:
        """Every start of a task, in time."""
        found = [event for (task, _), events in self.starts.items() if task == name for event in events]
        return sorted(found, key=lambda event: event["t"])

    def doubled(self, ids: Iterable[str]) -> int:
        """Starts beyond the first of each attempt of these tasks."""
        wanted = set(ids)
        return sum(len(events) - 1 for (name, _), events in self.starts.items() if name in wanted)

    def by(self, ids: Iterable[str]) -> Counter[str]:
        """How many of these tasks each version has ended."""
        return Counter(self.ends[name][0]["by"] for name in ids if self.ends.get(name))

    def running(self, pids: Iterable[int], moment: float) -> set[str]:
        """What these processes had in hand at a moment, or had ended so shortly before that nobody may know."""
        wanted = set(pids)
        found: set[str] = set()
        last: dict[int, dict[str, Any]] = {}
        for event in (event for events in self.starts.values() for event in events if event["pid"] in wanted):
            if event["t"] >= last.get(event["pid"], {"t": 0.0})["t"]:
                last[event["pid"]] = event
            if any(
                end["pid"] in wanted and end["t"] >= moment - UNACKNOWLEDGED for end in self.ends.get(event["id"], ())
            ):
                found.add(event["id"])
        return found | {event["id"] for event in last.values()}


@dataclass(frozen=True, slots=True)
class Window:
    """A time in which the broker or all workers were away, on purpose."""

    begin: float
    end: float

    def holds(self, moment: float, before: float = 0.0, after: float = 0.0) -> bool:
        """Whether a moment is in it, or so many seconds around."""
        return self.begin - before <= moment <= self.end + after


def lateness(due: float, began: float, away: Iterable[Window]) -> float:
    """Seconds that a task began after it was due and somebody could run it; below zero where it came early."""
    for window in away:
        if window.begin <= due <= window.end and began > due:
            due = min(window.end, began)
    return began - due


def latest(sent: float, due: float, away: Iterable[Window]) -> float:
    """When a delayed message is in its queue at the latest: it goes through several delays, which need the broker."""
    pauses = [window.end - max(window.begin, sent) for window in away if sent < window.end and window.begin < due]
    return due + sum(pauses)


def missing_ticks(every: int, ids: Iterable[str]) -> list[float]:
    """The moments of a periodic task, between its first and last, of which there is no id."""
    known = {round(datetime.datetime.fromisoformat(one.partition(":")[2]).timestamp()) for one in ids}
    return [moment for moment in range(min(known), max(known), every) if moment not in known] if known else []
