"""A producer of one version, told what to publish by JSON lines on standard input; it ends with them.

It runs with that version's folder first in Python's path, so what it publishes is what that version's users publish.
Each id is written down before and after, with its outcome.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import uuid
from typing import Any

from celery import chord

from tests.faults.publisher import make_app

#: Threads that keep up the rate: a publish waits for the broker's confirm.
THREADS = 4
#: What twenty messages of the load are.
MIX = ("run",) * 17 + ("sum",) * 2 + ("once",)
LOAD = {"run": ("faults.run", [0.005]), "sum": ("math.add", []), "once": ("faults.once", [0.01])}


class Producer:
    """Publishes, and notes."""

    def __init__(self, log: str) -> None:
        self.app = make_app("ours")
        self.file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.going, self.ending = threading.Event(), threading.Event()
        self.lock = threading.Lock()
        self.number = 0
        self.next_at = 0.0
        self.rate = 0.0

    def note(self, **event: Any) -> None:
        """One line by one write."""
        os.write(self.file, json.dumps({**event, "t": time.time()}).encode() + b"\n")

    def send(self, kind: str, task: str, args: list[Any], task_id: str | None = None, **options: Any) -> None:
        """Publish one task."""
        task_id = task_id or str(uuid.uuid4())
        kwargs = options.pop("kwargs", {})
        self.note(id=task_id, kind=kind, task=task, args=args, outcome="sending", countdown=options.get("countdown"))
        self.settle(task_id, lambda: self.app.send_task(task, args, kwargs, task_id=task_id, **options))

    def chord(self, kind: str, members: list[dict[str, Any]], body: str, task_id: str) -> None:
        """Publish a chord whose body has that id."""
        self.note(id=task_id, kind=kind, task=body, args=[], outcome="sending", countdown=None)
        header = [self.app.signature(member.pop("task"), **member) for member in members]
        last = self.app.signature(body).set(task_id=task_id)
        self.settle(task_id, lambda: chord(header, last, app=self.app).apply_async())

    def settle(self, task_id: str, publish: Any) -> None:
        """Call, and write down what came of it."""
        try:
            publish()
        except Exception as exc:  # noqa: BLE001 - the log tells
            # By name: where the class stands is the version's own affair.
            names = {kind.__name__ for kind in type(exc).__mro__}
            refused = "PublishError" in names and "PublishUnknownError" not in names
            outcome = "refused" if refused else "unknown"
            self.note(id=task_id, outcome=outcome, error=f"{type(exc).__name__}: {exc}"[:300])
        else:
            self.note(id=task_id, outcome="confirmed")

    def work(self) -> None:
        """One thread of the load."""
        while self.going.wait() and not self.ending.is_set():
            with self.lock:
                number, self.number = self.number, self.number + 1
                now = time.monotonic()
                self.next_at = max(self.next_at, now - 0.5) + 1 / self.rate
                pause = self.next_at - now
            if pause > 0:
                time.sleep(pause)
            kind = MIX[number % len(MIX)]
            task, args = LOAD[kind]
            self.send(kind, task, args or [number, 1])

    def main(self) -> None:
        """Do as told until standard input ends."""
        threads = [threading.Thread(target=self.work, daemon=True) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for line in sys.stdin:
            command = json.loads(line)
            match command.pop("do"):
                case "load":
                    self.rate = command["rate"]
                    self.going.set()
                case "hold":
                    self.going.clear()
                case "send":
                    self.send(**command)
                case "chord":
                    self.chord(**command)
        self.ending.set()
        self.going.set()
        for thread in threads:
            thread.join(20)


if __name__ == "__main__":
    Producer(sys.argv[1]).main()
