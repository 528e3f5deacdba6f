"""De-duplication of tasks that must not run twice: who may run an attempt, and what became of the last one.

A task with `once` in the table claims its key before it runs and records its outcome before it answers. Whoever comes
again gets the recorded outcome; an attempt that never recorded one leaves a doubt, which nobody runs over silently.
This module decides; `workers.once` acts, and `workers.ledgerstore` keeps the entries.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from kombu.utils.json import dumps, loads

from queues.headers import CLAIM, DEAD_PROCESS, REPLAYS, VERDICT, attempt_name

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Seconds beyond a task's hard time limit that its claim is taken for live: clocks differ, and a killed process may
#: have sent its last bytes late.
LEASE_MARGIN = 60
#: How often an entry is read again when somebody else changed it meanwhile.
TRIES = 10
#: What stands in place of a value that cannot be kept.
NOT_KEPT = {"status": "done", "note": "its result could not be kept"}

State = Literal["claimed", "retry", "failed", "done"]
STATES = ("claimed", "retry", "failed", "done")


class LedgerUnavailableError(Exception):
    """The store does not answer."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One delivery of a task, as its message says.

    Attributes:
        id: the task's id.
        replays: how often an operator replayed it.
        retries: how often it was tried before.
        run: the run whose claim this message made before, if the answer to that was lost.
        dead: the process that died while it ran this very attempt.
        verdict: what an operator found out: `done`, `not-done`, or nothing.
        about: the run, or the attempt, that the verdict is about.
    """

    id: str
    replays: int = 0
    retries: int = 0
    run: str = ""
    dead: str = ""
    verdict: str = ""
    about: str = ""

    @classmethod
    def of(cls, task_id: str, retries: int, headers: Mapping[str, Any]) -> Attempt:
        """Read an attempt; a header that makes no sense counts as none."""
        verdict, _, about = _text(headers.get(VERDICT)).partition(" ")
        known = verdict in ("done", "not-done")
        return cls(
            id=task_id,
            replays=_count(headers.get(REPLAYS)),
            retries=retries,
            run=_text(headers.get(CLAIM)),
            dead=_text(headers.get(DEAD_PROCESS)),
            verdict=verdict if known else "",
            about=about if known else "",
        )

    @property
    def number(self) -> tuple[int, int]:
        """Its place among the attempts of one id."""
        return self.replays, self.retries


@dataclass(frozen=True, slots=True)
class Entry:
    """What the ledger holds for one key.

    Attributes:
        state: `claimed` while an attempt runs, then its outcome.
        id: the task's.
        replays: see `Attempt`.
        retries: see `Attempt`.
        run: names the one run that holds or held the claim.
        process: the process of that run.
        at: seconds since the epoch of the last change.
        until: the end of the lease of a claim or of a pending retry.
        begun: whether the effect may have begun; a lapsed claim that has not leaves no doubt.
        value: the result of `done`, the error of `retry` and `failed`.
    """

    state: State
    id: str
    replays: int
    retries: int
    run: str
    at: float
    until: float = 0.0
    process: str = ""
    begun: bool = True
    value: Any = field(default=None)

    @property
    def number(self) -> tuple[int, int]:
        """The attempt's place among those of one id."""
        return self.replays, self.retries

    @property
    def attempt(self) -> str:
        """The attempt's name in a verdict."""
        return attempt_name(self.id, self.replays, self.retries)

    def write(self) -> str:
        """One line of JSON; a value that is none is left out with a note."""
        try:
            value = dumps(self.value)
        except (TypeError, ValueError):
            value = dumps(NOT_KEPT)
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return json.dumps({**fields, "value": value}, separators=(",", ":"))

    @classmethod
    def read(cls, text: str) -> Entry:
        """What `write` wrote, here or in a newer version.

        Raises:
            ValueError: it is something else.
        """
        try:
            fields = json.loads(text)
            known = {name: fields[name] for name in cls.__dataclass_fields__ if name in fields}
            value = known.pop("value")
            entry = cls(**known)
        except (TypeError, KeyError, ValueError) as exc:
            raise ValueError(f"no ledger entry: {text[:80]!r}") from exc
        texts, counts = (entry.id, entry.run, entry.process, value), (entry.replays, entry.retries)
        times = (entry.at, entry.until)
        if not (
            entry.state in STATES
            and all(isinstance(item, str) for item in texts)
            and all(_count(item) == item for item in counts)
            and all(isinstance(item, int | float) and math.isfinite(item) for item in times)
        ):
            raise ValueError(f"no ledger entry: {text[:80]!r}")
        try:
            return replace(entry, value=loads(value))
        except Exception:  # noqa: BLE001 - kombu's decoder runs what a `__type__` in a result names
            return replace(entry, value=NOT_KEPT)


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with an attempt.

    Attributes:
        action: `run`; `repeat` the recorded outcome; `wait` for a live attempt; `drop` one that was superseded; `hold`
            one in doubt.
        entry: what to write before running, the outcome to repeat, or what is in doubt.
        wait: seconds to wait.
        doubtful: the last attempt ended without a record.
    """

    action: Literal["run", "repeat", "wait", "drop", "hold"]
    entry: Entry | None = None
    wait: float = 0.0
    doubtful: bool = False


def decide(attempt: Attempt, entry: Entry | None, new: Entry, *, resend: bool) -> Decision:
    """Whether an attempt may run.

    Args:
        attempt: the one that asks.
        entry: what the ledger holds for its key.
        new: the claim that it would make, now.
        resend: run again what is in doubt, instead of holding it.
    """
    run = Decision("run", new)
    done = replace(new, state="done", until=0.0, value={"status": "done", "by": "operator"})
    if entry is None:
        return Decision("repeat", done) if attempt.verdict == "done" else run
    if entry.state == "done":
        return Decision("repeat", entry)
    mine = entry.id == attempt.id
    live = new.at < entry.until
    if entry.state == "claimed":
        if mine and attempt.run and attempt.run == entry.run:
            return run  # claimed by an earlier delivery of this message, which went no further
        died = mine and attempt.number == entry.number and attempt.dead and attempt.dead == entry.process
        if live and not died:
            late = mine and attempt.number < entry.number
            return Decision("drop") if late else Decision("wait", wait=entry.until - new.at)
        if attempt.verdict and attempt.about in (entry.run, entry.attempt):
            return Decision("repeat", done) if attempt.verdict == "done" else run
        if not entry.begun:
            return run
        return replace(run, doubtful=True) if resend else Decision("hold", entry, doubtful=True)
    if mine and attempt.number <= entry.number:
        return (
            Decision("drop") if entry.state == "retry" and attempt.number < entry.number else Decision("repeat", entry)
        )
    if entry.state == "retry" and not mine and live:
        return Decision("wait", wait=entry.until - new.at)
    return run


class Store(Protocol):
    """Where entries are kept: text by key, changed only by whoever has read the newest."""

    def read(self, key: str) -> str | None:
        """The entry, or None."""

    def swap(self, key: str, old: str | None, new: str) -> bool:
        """Write an entry where the old one still stands; False where it does not."""


def claim(store: Store, key: str, attempt: Attempt, new: Entry, *, resend: bool) -> Decision:
    """Decide, and write what the decision says, as one step.

    Raises:
        LedgerUnavailableError: the store does not answer, or is overrun.
    """
    fresh = Attempt(attempt.id)
    tried: Decision | None = None
    for number in range(TRIES):
        # Nearly every message comes for the first time: its claim needs no look before.
        text = store.read(key) if number or attempt != fresh else None
        entry = _read(text)
        if tried is not None and tried.entry is not None and entry == tried.entry:
            return tried  # the store had taken it, and its answer was lost
        decision = decide(attempt, entry, new, resend=resend)
        if decision.action not in ("run", "repeat") or decision.entry is None or decision.entry == entry:
            return decision
        tried = decision
        if store.swap(key, text, decision.entry.write()):
            return decision
    raise LedgerUnavailableError("the entry changed at every try")


def settle(store: Store, key: str, outcome: Entry, known: str | None = None) -> Entry:
    """Record how a run ended, or learn that it is of no account any more.

    Args:
        store: where entries are kept.
        key: the entry's.
        outcome: what to write.
        known: what the run itself wrote last, as far as it knows.

    Returns:
        The entry in force: the outcome, or one that a later run or a success put there.

    Raises:
        LedgerUnavailableError: the store does not answer, or is overrun.
    """
    for number in range(TRIES):
        text = known if known is not None and not number else store.read(key)
        entry = _read(text)
        if entry is not None:
            if entry == outcome or entry.state == "done":
                return entry
            # A success is a fact, whoever holds the claim; anything else ends nobody else's run.
            if outcome.state != "done" and entry.run != outcome.run:
                return entry
        if store.swap(key, text, outcome.write()):
            return outcome
    raise LedgerUnavailableError("the entry changed at every try")


def key_of(task: str, task_id: str, own: object) -> str:
    """An entry's key: the task's id, or a digest of the key that the producer chose."""
    if not isinstance(own, str) or not own:
        return f"{task}:{task_id}"
    return f"{task}=" + hashlib.sha256(own.encode(errors="surrogatepass")).hexdigest()


def _read(text: str | None) -> Entry | None:
    return Entry.read(text) if text is not None else None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
