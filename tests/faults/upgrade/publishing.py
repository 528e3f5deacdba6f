"""The producers of the versions, and the load that they keep up."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ops.processes import clean_environment
from tests.faults.upgrade.account import Tail

if TYPE_CHECKING:
    from tests.faults.upgrade.home import Home
    from tests.faults.upgrade.versions import Version

#: Tasks a second that producers are asked for, and how many may wait before they are held back: the case is to end.
RATE = 100.0
MOST_WAITING = 100
#: The same while there is no broker: each is refused.
RATE_AWAY = 20.0


class Publisher:
    """The producer of a version."""

    def __init__(self, version: Version, home: Home, log: Path) -> None:
        self.version = version
        words = ("-P", str(Path(__file__).with_name("producer.py")), str(log))
        with (home.logs / f"producer-{version.name}.log").open("ab") as output:
            self.process = subprocess.Popen(
                version.command(*words),
                env={**clean_environment(), **home.settings("producer"), **home.environment(version)},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                text=True,
            )

    def tell(self, do: str, **what: Any) -> None:
        """Have it do something."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **what}) + "\n")
        self.process.stdin.flush()

    def send(self, kind: str, task: str, *args: Any, task_id: str | None = None, **options: Any) -> str:
        """Have it publish a task; gives its id."""
        name = task_id or str(uuid.uuid4())
        self.tell("send", kind=kind, task=task, args=list(args), task_id=name, **options)
        return name

    def chord(self, later: int) -> None:
        """Three chords, of which half of the members wait."""
        for _ in range(3):
            members = [
                {"task": "math.multiply", "args": [number, number], **({"countdown": later} if number % 2 else {})}
                for number in range(6)
            ]
            self.tell("chord", kind="chord", members=members, body="math.xsum", task_id=str(uuid.uuid4()))

    def mail(self, key: str, kind: str = "mail") -> str:
        """A mail whose subject is its key."""
        body, options = "The burrow is dry.\n", {"idempotency_key": key}
        return self.send(kind, "email.send_email", "alice@example.com", key, body, kwargs=options)

    def close(self) -> None:
        """Have it publish no more, and wait for its end."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Load:
    """Keeps the rate, but holds producers back where too many wait: a busy machine would never come to an end."""

    def __init__(self, producer: Publisher, journals: Path) -> None:
        #: Who publishes now.
        self.producer = producer
        #: Whether there is a broker.
        self.away = False
        #: Seconds that it took.
        self.seconds = 0.0
        self._journals = journals
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No more load."""
        self._ending.set()
        self._thread.join(5)

    def _run(self) -> None:
        told: tuple[Publisher, float] | None = None
        logs: dict[Path, Tail] = {}
        load: set[str] = set()
        confirmed, ended = 0, 0
        begun = time.monotonic()
        while not self._ending.wait(0.3):
            for path in self._journals.iterdir():
                for event in logs.setdefault(path, Tail(path)).new():
                    if event.get("outcome") == "sending" and event["kind"] in ("run", "once"):
                        load.add(event["id"])
                    confirmed += event.get("outcome") == "confirmed" and event["id"] in load
                    ended += event.get("event") == "end" and event["id"] in load
            producer, few = self.producer, confirmed - ended < MOST_WAITING
            rate = RATE_AWAY if self.away else RATE if few else 0.0
            if (producer, rate) != told:
                # It may have been closed a moment ago.
                with contextlib.suppress(OSError, ValueError):
                    producer.tell("load", rate=rate) if rate else producer.tell("hold")
                told = (producer, rate)
        self.seconds = time.monotonic() - begun
