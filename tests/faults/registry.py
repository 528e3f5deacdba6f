"""The cases, in the order in which they are run."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.faults.trial import together

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.lab import Lab
    from tests.faults.trial import Trial


@dataclass(frozen=True, slots=True)
class Case:
    """One fault.

    Attributes:
        name: as `--case` takes it.
        title: what is injected, in one line.
        run: injects it.
        shared: whether both sides meet the same fault at once, or one after the other.
        bound: seconds after which the case has failed.
        control: why stock Celery does not take part; empty where it does.
        smoke: whether `make test` runs it in its short form.
        family: the name under which `--case` takes it with others; empty where it has none.
    """

    name: str
    title: str
    run: Callable[..., Any]
    shared: bool
    bound: float
    control: str
    smoke: bool
    family: str = ""


CASES: dict[str, Case] = {}


def each(
    name: str, title: str, *, bound: float = 150, control: str = "", smoke: bool = False, family: str = ""
) -> Callable[[Callable[[Trial], Any]], Callable[[Trial], Any]]:
    """A case that one side runs after the other."""

    def note(run: Callable[[Trial], Any]) -> Callable[[Trial], Any]:
        CASES[name] = Case(name, title, run, shared=False, bound=bound, control=control, smoke=smoke, family=family)
        return run

    return note


def at_once(
    name: str, title: str, *, bound: float = 200, smoke: bool = False
) -> Callable[[Callable[[Trial], Any]], Callable[[Trial], Any]]:
    """A case in which each side has a fault of its own, both at the same time."""

    def note(run: Callable[[Trial], Any]) -> Callable[[Trial], Any]:
        @functools.wraps(run)
        def run_all(_lab: Lab, trials: list[Trial]) -> None:
            together(trials, run)

        CASES[name] = Case(name, title, run_all, shared=True, bound=bound, control="", smoke=smoke)
        return run

    return note


def both(
    name: str, title: str, *, bound: float = 200, smoke: bool = False
) -> Callable[[Callable[[Lab, list[Trial]], Any]], Callable[[Lab, list[Trial]], Any]]:
    """A case whose fault is the broker's: both sides meet it at once."""

    def note(run: Callable[[Lab, list[Trial]], Any]) -> Callable[[Lab, list[Trial]], Any]:
        CASES[name] = Case(name, title, run, shared=True, bound=bound, control="", smoke=smoke)
        return run

    return note
