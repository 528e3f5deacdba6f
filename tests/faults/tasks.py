"""The tasks of Warren's side, registered as any queue's are."""

from __future__ import annotations

from typing import Any

from queues.errors import TransientError
from tests.faults import journal, work
from workers import once as ledger
from workers.task import register

# At the head, as a user's own set-up is: no task is registered where it fails.
work.at_import()


@register("faults.run", bind=True)
def run(self: Any, seconds: float = 0.0) -> None:
    work.run(self, seconds)


@register("faults.die", bind=True)
def die(self: Any, how: str) -> None:
    work.die(self, how)


@register("faults.swallow", bind=True)
def swallow(self: Any, text: str) -> None:
    work.swallow(self, text)


@register("faults.again", bind=True)
def again(self: Any, times: int) -> None:
    """Fails so many times, and then succeeds."""
    journal.note(self.request, "start")
    if self.request.retries < times:
        raise TransientError("asked_to_retry", "asked to be retried: it is retried")
    journal.note(self.request, "end")


@register("faults.once", bind=True, begins=True)
def once(self: Any, seconds: float = 0.0) -> None:
    work.once(self, seconds, ledger.begin)


@register("faults.tick", bind=True)
def tick(self: Any) -> None:
    work.run(self)


@register("faults.own", bind=True)
def own(self: Any, kind: str) -> Any:
    return work.own(self, kind)


@register("faults.brief", bind=True)
def brief(self: Any, kind: str) -> Any:
    return work.own(self, kind)


@register("faults.meet", bind=True)
def meet(self: Any, folder: str, count: int) -> None:
    work.meet(self, folder, count)


@register("faults.echo", bind=True)
def echo(self: Any, value: Any = None) -> Any:
    return work.echo(self, value)


@register("faults.pair", bind=True)
def pair(self: Any, one: Any, two: Any) -> Any:
    return work.echo(self, [one, two])
