"""How many mails reach the relay in any half-open minute, whatever is done to the workers meanwhile."""

from __future__ import annotations

import signal
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from tests.benchmarks.email_lab import GREY, wait_for
from workers.rate import interval

if TYPE_CHECKING:
    from tests.benchmarks.email_lab import Lab, Worker

MINUTE = 60.0
#: One mail in so many goes to somebody who is refused for a while: retries count too.
GREY_EVERY = 10

#: Does something to the workers, and sleeps in between; gives what was done.
Scenario = Callable[["Lab", float, str], Iterator[str]]


def busiest(times: list[float]) -> int:
    """The most that lie in one half-open minute."""
    ordered = sorted(times)
    return max((bisect_left(ordered, start + MINUTE) - place for place, start in enumerate(ordered)), default=0)


def active(lab: Lab) -> Worker:
    """The worker that sends now."""
    before = {worker.name: worker.started() for worker in lab.workers if worker.alive}
    found: list[Worker] = []

    def look() -> bool:
        found[:] = [one for one in lab.workers if one.alive and one.started() > before.get(one.name, 0)]
        return bool(found)

    wait_for(look, "no worker sends")
    return found[0]


def steady(count: int) -> Scenario:
    """So many workers, left alone."""

    def run(lab: Lab, step: float, rate: str) -> Iterator[str]:
        for worker in [lab.worker(MAIL_RATE=rate) for _ in range(count)]:
            worker.wait()
        yield f"{count} workers"
        time.sleep(3 * step)

    return run


def killed(lab: Lab, step: float, rate: str) -> Iterator[str]:
    """Two workers; three times the one that sends is killed with all its processes, and another one started."""
    for worker in [lab.worker(MAIL_RATE=rate) for _ in range(2)]:
        worker.wait()
    for _ in range(3):
        time.sleep(step)
        victim = active(lab)
        victim.signal(signal.SIGKILL)
        lab.worker(MAIL_RATE=rate)
        yield f"kill -9 {victim.name}"
    time.sleep(step)


def orphaned(lab: Lab, step: float, rate: str) -> Iterator[str]:
    """Two workers; three times only the main process is killed: its child finishes the mail that it has."""
    for worker in [lab.worker(MAIL_RATE=rate) for _ in range(2)]:
        worker.wait()
    for _ in range(3):
        time.sleep(step)
        victim = active(lab)
        victim.process.kill()
        lab.worker(MAIL_RATE=rate)
        yield f"kill -9 of the main process of {victim.name}"
    time.sleep(step)


def stopped(lab: Lab, step: float, rate: str) -> Iterator[str]:
    """Two workers; the one that sends is stopped until the other has taken over, and then goes on."""
    for worker in [lab.worker(MAIL_RATE=rate) for _ in range(2)]:
        worker.wait()
    for _ in range(2):
        time.sleep(step)
        victim = active(lab)
        victim.signal(signal.SIGSTOP)
        began = time.monotonic()
        yield f"SIGSTOP {victim.name}"
        heir = active(lab)
        yield f"{heir.name} took over after {time.monotonic() - began:.1f} s"
        time.sleep(step / 2)
        victim.signal(signal.SIGCONT)
        yield f"SIGCONT {victim.name}"
    time.sleep(step)


def scaled(lab: Lab, step: float, rate: str) -> Iterator[str]:
    """One worker, four, one."""
    lab.worker(MAIL_RATE=rate).wait()
    time.sleep(step)
    for worker in [lab.worker(MAIL_RATE=rate) for _ in range(3)]:
        worker.wait()
    yield "4 workers"
    time.sleep(step)
    for worker in lab.workers[:3]:
        worker.process.send_signal(signal.SIGTERM)
    yield "1 worker"
    time.sleep(step)


def everything(lab: Lab, step: float, rate: str) -> Iterator[str]:
    """One after the other, without a pause for the count."""
    for scenario in (killed, stopped, scaled):
        yield from scenario(lab, step, rate)


SCENARIOS: dict[str, Scenario] = {
    "1 worker": steady(1),
    "2 workers": steady(2),
    "4 workers": steady(4),
    "kill -9 x3": killed,
    "kill -9 x3 of the main process alone": orphaned,
    "SIGSTOP x2": stopped,
    "scaled 1-4-1": scaled,
}


def measure(lab: Lab, rate: str, *, long: bool) -> Iterator[dict[str, Any]]:
    """Run all scenarios."""
    for name, scenario in SCENARIOS.items():
        yield run(lab, name, scenario, rate, 25.0)
    if long:
        yield run(lab, "all of them", everything, "10/m", 60.0)


def run(lab: Lab, name: str, scenario: Scenario, rate: str, step: float) -> dict[str, Any]:
    """Run one scenario over a queue that never ends, and count."""
    limit = round(MINUTE / interval(rate))
    for number in range(round(limit * step / MINUTE) * 12 + 50):
        lab.send(f"rate {number}", to="ada@example.com" if number % GREY_EVERY else GREY)
    began = time.time()
    done = [(round(time.time() - began, 1), event) for event in scenario(lab, step, rate)]
    seconds = time.time() - began
    begun, taken = list(lab.relay.begun), [when for when, _ in lab.relay.taken]
    subjects = [subject for _, subject in lab.relay.taken]
    left = lab.waiting()
    lab.clear()
    return {
        "scenario": name,
        "limit": limit,
        "seconds": round(seconds, 1),
        "transactions": len(begun),
        "mails": len(taken),
        "busiest_begun": busiest(begun),
        "busiest_taken": busiest(taken),
        "twice": len(subjects) - len(set(subjects)),
        "left": left,
        "kept": busiest(begun) <= limit and busiest(taken) <= limit and left > 0,
        "events": done,
        "raw": {
            "begun": [round(when - began, 3) for when in begun],
            "taken": [round(when - began, 3) for when in taken],
        },
    }
