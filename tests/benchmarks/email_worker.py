"""The email worker, which dies by its own hand where a mail's subject says so: `crash POINT WHO NUMBER`.

POINT is `before-dot` (the relay has the text, and the claim says begun), `dot` (sent, the answer not read), `answered`
(read, not recorded) or `recorded` (not acknowledged); WHO is `child`, the process that runs the task, or `worker`, all
of it. Each mail does that once. The lease is short, so that nobody waits nine minutes for each.

With `BENCH_WINDOW` it writes to that file, for each mail, how long it was in doubt: the seconds from the moment that
the claim says begun, and those from the answer of the relay, to the record.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from queues.topology import QUEUES
from workers import ledger, once, relay
from workers.app import app

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["app"]

MARKS, WINDOW = os.environ.get("BENCH_MARKS", ""), os.environ.get("BENCH_WINDOW", "")
SUBJECT = b"\r\nSubject: crash "

if MARKS:
    ledger.LEASE_MARGIN = 5
    task = QUEUES.task("email.send_email")[1]
    object.__setattr__(task, "soft_time_limit", 25)
    object.__setattr__(task, "time_limit", 30)
    _transfer, _record = relay.Session.transfer, once.record
    #: Subject of the mail at hand, from the text on.
    _now = {"subject": ""}

    def die(point: str) -> None:
        words = _now["subject"].split()
        mark = Path(MARKS) / _now["subject"].replace(" ", "-")
        if len(words) < 2 or words[0] != point or mark.exists():
            return
        mark.touch()
        if words[1] == "worker":
            os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    def transfer(
        self: relay.Session, sender: str, to: Sequence[str], payload: bytes, before_dot: Callable[[], None]
    ) -> Any:
        _now["subject"] = payload.partition(SUBJECT)[2].partition(b"\r\n")[0].decode()
        read = self.smtp.getreply

        def getreply() -> Any:
            if self.dot_sent:
                die("dot")
            return read()

        def last() -> None:
            before_dot()
            die("before-dot")

        self.smtp.getreply = getreply  # type: ignore[method-assign]
        try:
            reply = _transfer(self, sender, to, payload, last)
        finally:
            self.smtp.getreply = read  # type: ignore[method-assign]
        die("answered")
        return reply

    def record(*args: Any) -> Any:
        outcome = _record(*args)
        die("recorded")
        return outcome

    relay.Session.transfer = transfer  # type: ignore[method-assign,assignment]
    once.record = record  # type: ignore[assignment]

if WINDOW:
    _claim_begins, _transferred, _recorded = once.Claim.begin, relay.Session.transfer, once.record
    _at = {"begun": 0.0, "answered": 0.0}

    def begins(self: once.Claim) -> None:
        _claim_begins(self)
        _at["begun"] = time.perf_counter()

    def transferred(*args: Any) -> Any:
        reply = _transferred(*args)
        _at["answered"] = time.perf_counter()
        return reply

    def recorded(*args: Any) -> Any:
        outcome = _recorded(*args)
        now = time.perf_counter()
        with Path(WINDOW).open("a") as file:
            file.write(f"{now - _at['begun']} {now - _at['answered']}\n")
        return outcome

    once.Claim.begin = begins  # type: ignore[method-assign]
    relay.Session.transfer = transferred  # type: ignore[method-assign,assignment]
    once.record = recorded  # type: ignore[assignment]
