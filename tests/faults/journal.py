"""What producers and tasks write down: one JSON line for each event, by one write each, so that a kill tears none."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from dataclasses import dataclass, field
from time import time  # as it was: a task may replace it
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

#: The variable that names a worker's journal.
VARIABLE = "FAULTS_JOURNAL"

#: The task that asks not to be run twice.
ONCE = "faults.once"

_files: dict[str, int] = {}


def append(path: str | Path, **event: Any) -> None:
    """Append one event with its time (seconds since the epoch)."""
    name = str(path)
    if name not in _files:
        _files[name] = os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(_files[name], json.dumps({**event, "t": time()}).encode() + b"\n")


def close(path: str | Path) -> None:
    """Close a file that this process has appended to."""
    if (file := _files.pop(str(path), None)) is not None:
        os.close(file)


def note(request: Any, event: str) -> None:
    """Append a task's `start` or `end` to the journal of this worker."""
    append(os.environ[VARIABLE], id=request.id, attempt=request.retries, pid=os.getpid(), event=event)


def read(path: Path) -> list[dict[str, Any]]:
    """All events so far; a line that is being written is left out."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


@dataclass
class Runs:
    """What the tasks did.

    Attributes:
        started: how often each attempt `(id, retries)` began.
        finished: how often each id ended.
        ends: times of all ends, rising.
        first: time of the first start of each id.
    """

    started: dict[tuple[str, int], int] = field(default_factory=lambda: defaultdict(int))
    finished: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    ends: list[float] = field(default_factory=list)
    first: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path) -> Runs:
        """Read a journal."""
        runs = cls()
        for event in read(path):
            if event["event"] == "start":
                runs.started[event["id"], event["attempt"]] += 1
                runs.first.setdefault(event["id"], event["t"])
            else:
                runs.finished[event["id"]] += 1
                runs.ends.append(event["t"])
        runs.ends.sort()
        return runs

    def duplicated(self, but: set[str]) -> int:
        """Runs begun beyond the first of each attempt: one that was killed half-way may have had its effect."""
        return sum(count - 1 for (task_id, _), count in self.started.items() if task_id not in but)

    def doubled(self, ids: set[str]) -> int:
        """Effects beyond the first of each of these ids, whatever the attempt."""
        return sum(count - 1 for task_id, count in self.finished.items() if task_id in ids)

    def next_end(self, after: float) -> float | None:
        """Seconds from a moment until the next task ended."""
        return next((end - after for end in self.ends if end >= after), None)


@dataclass
class Sent:
    """What a producer did, by outcome: the ids of each."""

    outcomes: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    #: The longest publish, in seconds.
    longest: float = 0.0
    #: Times at which each id was confirmed.
    confirmed_at: dict[str, float] = field(default_factory=dict)
    #: Ids of tasks that ask not to be run twice.
    once: set[str] = field(default_factory=set)
    #: What the producer was told last, where that was an error.
    last_error: str = ""

    @classmethod
    def of(cls, path: Path) -> Sent:
        """Read a producer's log; what has no outcome is unknown: its producer was killed."""
        last: dict[str, str] = {}
        begun: dict[str, float] = {}
        sent = cls()
        for event in read(path):
            name, outcome = event["id"], event["outcome"]
            if outcome == "sending":
                begun[name] = event["t"]
                if event.get("task") == ONCE:
                    sent.once.add(name)
            elif name in begun:
                sent.longest = max(sent.longest, event["t"] - begun[name])
            sent.last_error = event.get("error", "")
            if outcome == "confirmed":
                sent.confirmed_at[name] = event["t"]
            # A second try with the same id cannot take back a confirm.
            if last.get(name) != "confirmed":
                last[name] = outcome
        for name, outcome in last.items():
            sent.outcomes["unknown" if outcome == "sending" else outcome].add(name)
        return sent

    @property
    def all(self) -> set[str]:
        """Every id."""
        return set().union(*self.outcomes.values())

    def of_kind(self, outcome: str) -> set[str]:
        """The ids with an outcome: confirmed, refused or unknown."""
        return self.outcomes.get(outcome, set())
