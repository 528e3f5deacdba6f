"""Chords, groups and chains: large ones, refused ones, open ones; stamped and replaced ones."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

from celery import chord, group
from celery.canvas import StampingVisitor

from queues.errors import WarrenError
from tests.cases.bench import PRODUCERS, case
from tests.integration.helpers import awaited

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cases.bench import Bench

#: Polls a second that 40 open chords may cost after half a minute, and fewer later; one a second each is Celery's way.
POLLS = 20


def chorded(bench: Bench, members: list[Any]) -> Any:
    return chord(members, bench.step("cases.echo"), app=bench.app)


@case("chords", "chords of 300, and 10 of 20 at once", "cases", "monitor")
def chords(bench: Bench) -> None:
    large = chorded(bench, [bench.step("cases.echo", n) for n in range(300)]).apply_async()
    small = [chorded(bench, [bench.step("cases.echo", n) for n in range(20)]).apply_async() for _ in range(10)]
    for what, count, results in (("a chord of 300", 300, [large]), ("10 chords of 20", 20, small)):
        ended = {bench.ended(result, 90) for result in results}
        bench.expect(what, "their values", "their values" if ended == {str([*range(count)])} else ended)


@case("refused-chords", "a chord of 1000 with a member that cannot be sent: nothing is")
def refused_chords(bench: Bench) -> None:
    rights = bench.lab.broker.ctl("list_user_permissions", "producer", "--silent").split("\t")[1:4]
    odd: dict[str, tuple[str, Any, tuple[str, ...]]] = {
        "content": ("cases.echo", {1}, ()),
        "task": ("cases.none", 1, ()),
        "queue": ("nowhere.echo", 1, ()),
        "rights": ("math.long_task", 1, ("^none$", "^(tasks[.](cases|monitor)|celery_delayed_27)$", "^$")),
    }
    for what, (task, argument, less) in odd.items():
        if less:
            bench.lab.broker.ctl("set_permissions", "producer", *less)
        members = [bench.step("cases.echo", n) for n in range(1000)]
        members[500] = bench.step(task, argument)
        try:
            chorded(bench, members).apply_async()
            came = "sent"
        except WarrenError:
            came = "refused"
        except Exception as exc:  # noqa: BLE001
            came = f"{type(exc).__name__}: {exc}"
        finally:
            if less:
                bench.lab.broker.ctl("set_permissions", "producer", *(right.strip() for right in rights))
        sent = sum(bench.ready(queue) for queue in ("cases", "math", "monitor"))
        bench.expect(f"{what}", "refused, 0 messages", f"{came}, {sent} messages")
        bench.purge()


@case("open-chords", "40 chords that cannot end are not polled all the time", "monitor")
def open_chords(bench: Bench) -> None:
    for _ in range(40):
        chorded(bench, [bench.step("cases.echo", 1)]).apply_async()
    time.sleep(20)
    before = polled(bench)
    time.sleep(10)
    polls = (polled(bench) - before) / 10
    bench.expect("polls a second", f"at most {POLLS}", f"at most {POLLS}" if polls <= POLLS else f"{polls:.1f}")


def polled(bench: Bench) -> int:
    """How often the monitor's worker has looked at a chord."""
    return sum('"task started"' in line and "chord_unlock" in line for line in bench.log("monitor").splitlines())


class Visitor(StampingVisitor):
    """Stamps each signature with texts, or with values of other kinds."""

    def __init__(self, **stamps: Any) -> None:
        self.stamps = stamps

    def on_signature(self, _sig: Any, **_headers: Any) -> dict[str, Any]:
        return {**self.stamps, "stamped_headers": [*self.stamps]}


@case("stamps", "stamps by keyword and by a visitor", "cases", "monitor")
def stamps(bench: Bench) -> None:
    echo = bench.step
    made: dict[str, tuple[Callable[[], Any], Any]] = {
        "task": (lambda: echo("cases.echo", 5), 5),
        "chain": (lambda: echo("cases.echo", 5) | echo("cases.pair", 6), [5, 6]),
        "group": (lambda: group(echo("cases.echo", 1), echo("cases.echo", 2), app=bench.app), [1, 2]),
        "chord": (lambda: chorded(bench, [echo("cases.echo", 1), echo("cases.echo", 2)]), [1, 2]),
        "replaced": (lambda: echo("cases.replace", 5), 5),
    }
    how: dict[str, dict[str, Any]] = {
        "by keyword": {"visitor": None, "stamp": "value"},
        "by a visitor": {"visitor": Visitor(monitoring=uuid.uuid4().hex)},
        "with loose values": {"visitor": Visitor(note={"a": [1, None]}, at=5)},
    }
    for what, (make, should) in made.items():
        for name, options in how.items():
            signature = make()
            signature.stamp(**options)
            result = signature.apply_async()
            came = repr(result.get(timeout=20)) if what == "group" else bench.ended(result)
            bench.expect(f"{what}, {name}", should, came)
    for name, value in {"set": {1}, "uuid": uuid.uuid4(), "object": object()}.items():
        signature = echo("cases.echo", 5)
        signature.stamp(mark=value)
        try:
            came = bench.ended(signature.apply_async())
        except WarrenError:
            came = "5"  # refused in a sentence is as good
        except Exception as exc:  # noqa: BLE001
            came = f"{type(exc).__name__}: {exc}"
        bench.expect(f"a stamp that is a {name}", "5", came, PRODUCERS)


@case("replaced", "tasks that replace themselves, one of them not to be run twice", "cases", "monitor")
def replaced(bench: Bench) -> None:
    for by, should in {"echo": 5, "chain": 5, "group": [5, 5], "chord": [5, 5]}.items():
        bench.expect(by, should, bench.ended(bench.send("cases.replace", 5, kwargs={"by": by})))
    task_id = str(uuid.uuid4())
    bench.expect("a `once` task", 5, bench.ended(bench.send("cases.steady", 5, task_id=task_id)))
    bench.send("cases.steady", 5, task_id=task_id)
    awaited(lambda: bench.letter(task_id) != "none", 6)
    bench.expect("its message again", "none", bench.letter(task_id))
