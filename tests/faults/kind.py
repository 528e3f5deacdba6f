"""What a user's own code does to a worker, as a table: one kind, one task, and what should come of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

#: A state or reason that may be any: a SUCCESS without a dead letter, or a FAILURE with one.
ANY = "any"


@dataclass(frozen=True, slots=True)
class Kind:
    """One thing that a task does.

    Attributes:
        name: the task's argument.
        act: does it, given the bound task; what it returns is the result.
        state: what should stand in the result store.
        reason: of the dead letter that should be there; empty where there should be none.
        runs: how often the task should be run; 0 where that is not said.
        deaths: processes that what is left behind may end later: each runs a task again.
        task: what runs it.
        patience: seconds until its state must be there, three deaths of its process included.
        alone: whether the processes are replaced behind it, for it changes them.
        smoke: whether the smoke has it.
    """

    name: str
    act: Callable[[Any], Any]
    state: str = "FAILURE"
    reason: str = "exception"
    runs: int = 1
    deaths: int = 0
    task: str = "faults.own"
    patience: float = 15.0
    alone: bool = False
    smoke: bool = False

    def wanted(self, *, letters: bool) -> str:
        """What should come; of a side without dead letters, the state alone."""
        return self.came(self.state, Counter({self.reason: 1} if self.reason else {}), self.runs, letters=letters)

    def came(self, state: str, reasons: Counter[str], runs: int, *, letters: bool) -> str:
        """What came, in words."""
        told = f", dead letter {', '.join(sorted(reasons.elements())) or 'none'}" if letters else ""
        return f"{state}{told}" + (f", {runs} run{'s' if runs != 1 else ''}" if runs else "")

    def agrees(self, state: str, reasons: Counter[str], runs: int, *, letters: bool) -> bool:
        """Whether that is what should come."""
        if self.state == ANY:
            return (state == "SUCCESS" and not reasons) or (state == "FAILURE" and reasons.total() == letters)
        if not letters:
            return state == self.state
        if self.reason == ANY and reasons.total() == 1:
            reasons = Counter([ANY])
        return self.came(state, reasons, runs if self.runs else 0, letters=True) == self.wanted(letters=True)


#: Every kind of each group, by name.
KINDS: dict[str, dict[str, Kind]] = {}


def group(name: str, *kinds: Kind) -> None:
    """Add a group."""
    known = [kind for found in KINDS.values() for kind in found]
    KINDS[name] = {kind.name: kind for kind in kinds}
    assert len({*known, *KINDS[name]}) == len(known) + len(kinds), "two kinds of one name"


def find(name: str) -> Kind:
    """A kind by its name."""
    return next(kinds[name] for kinds in KINDS.values() if name in kinds)
