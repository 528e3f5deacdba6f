"""How often a mail arrives whose sender is killed at the worst moments, against what the policy promises."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from tests.benchmarks.email_lab import PATIENCE, wait_for

if TYPE_CHECKING:
    from tests.benchmarks.email_lab import Lab

POINTS = ("before-dot", "dot", "answered", "recorded")
#: Mails that arrive for one that was killed there, and how many of them are held: by the policy.
PROMISED = {
    "resend": {"before-dot": (1, 0), "dot": (2, 0), "answered": (2, 0), "recorded": (1, 0)},
    "hold": {"before-dot": (0, 1), "dot": (1, 1), "answered": (1, 1), "recorded": (1, 0)},
}
READY = ("SUCCESS", "FAILURE")


def measure(lab: Lab, point: str, who: str, policy: str, count: int) -> dict[str, Any]:
    """Kill the sender of each of so many mails once, and count what arrived."""
    marks = lab.folder / f"marks-{point}-{who}-{policy}"
    marks.mkdir()
    environment = {"MAIL_RATE": "0", "BENCH_MARKS": str(marks)}
    subjects = [f"crash {point} {who} {policy}{number}" for number in range(count)]
    began = time.monotonic()
    results = [lab.send(subject, on_uncertain=policy) for subject in subjects]
    worker = lab.worker(**environment)
    limit = time.monotonic() + PATIENCE + 10 * count
    states: list[str] = []
    while True:
        if not worker.alive:
            worker = lab.worker(**environment)
        states = [lab.app.AsyncResult(result.id).state for result in results]
        if all(state in READY for state in states) and len(list(marks.iterdir())) == count:
            break
        if time.monotonic() > limit:
            raise TimeoutError(f"{point} {who} {policy}: {Counter(states)}, dead letters {lab.reasons()}")
        time.sleep(0.2)
    wait_for(lambda: lab.waiting() == 0, "the queue did not drain")
    arrived = Counter(subject for _, subject in lab.relay.taken)
    per_mail = Counter(arrived[f"{subject}"] for subject in subjects)
    held = sum(state == "FAILURE" for state in states)
    letters, promised = lab.reasons(), PROMISED[policy][point]
    row = {
        "point": point,
        "killed": who,
        "policy": policy,
        "kills": len(list(marks.iterdir())),
        "arrived": {str(number): mails for number, mails in sorted(per_mail.items())},
        "held": held,
        "letters": dict(letters),
        "promised": f"{promised[0]} each, {promised[1] * count} held",
        "kept": per_mail == Counter({promised[0]: count}) and held == letters["in-doubt"] == promised[1] * count,
        "seconds": round(time.monotonic() - began, 1),
    }
    lab.clear()
    return row
