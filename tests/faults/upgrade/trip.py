"""From one version to the other and back, under load: what is done, and in which order."""

from __future__ import annotations

import shutil
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import Celery

from tests.faults.upgrade.account import Ran, Sent, Window
from tests.faults.upgrade.counters import Scraper
from tests.faults.upgrade.home import Home
from tests.faults.upgrade.publishing import Load, Publisher
from tests.faults.upgrade.running import Beside, Up
from tests.faults.upgrade.versions import PROJECT
from tests.integration.helpers import awaited

if TYPE_CHECKING:
    from tests.faults.upgrade.versions import Version

#: Seconds of load with one version alone, and with both.
ALONE, TOGETHER = 6.0, 8.0
#: Seconds within which everything has ended after the load; a killed claim is waited for 65 s.
SETTLING = 180.0
DELAYS = tuple(f"celery_delayed_{level}" for level in range(28))
PHOTO = "burrow.jpg"


class Trip:
    """One run; `close` leaves nothing behind."""

    def __init__(self, base: Version, head: Version, folder: Path) -> None:
        self.base, self.head, self.folder = base, head, folder
        logs, journals = folder / "log", folder / "journal"
        for path in (logs, journals):
            path.mkdir()
        self.home = Home(folder / "home", journals, logs)
        self.scraper = Scraper(lambda: self.home.exporter, self.home.exporting)
        self.up: Up | None = None
        self.beside: Beside | None = None
        self.load: Load | None = None
        self.away: list[Window] = []
        #: Tasks that may have run when their worker was killed, and when which processes died so.
        self.killed: set[str] = set()
        self.kills: list[tuple[float, set[int]]] = []
        #: What the broker held when the old version's workers were told to stop, and what ended otherwise than well.
        self.switches: list[dict[str, Any]] = []
        self.exits: list[str] = []
        #: Dead letters by leg: as the old version listed them, and then the new one; and those that were replayed.
        self.listed: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self.replayed: dict[str, str] = {}
        self._begun = time.monotonic()
        self._leg: dict[str, list[str]] = {}

    # What has happened so far

    def sent(self) -> Sent:
        """What producers wrote down."""
        return Sent(sorted(self.home.journals.glob("sent-*")))

    def ran(self) -> Ran:
        """What tasks wrote down."""
        return Ran({version.name: self.home.journal(version) for version in (self.base, self.head)})

    def result(self, name: str) -> dict[str, Any]:
        """A task's state and result."""
        found: dict[str, Any] = self._results.backend.get_task_meta(name, cache=False)
        return found

    # The way

    def go(self) -> None:
        """There and back."""
        self.say(f"{self.base.commit} alone")
        self.arrive(self.base)
        backend = self.home.settings("producer")["RESULT_BACKEND"]
        self._results = Celery("observer", backend=backend, set_as_current=False)
        shutil.copy(next((PROJECT / "examples" / "photos").glob("*.jpg")), self.folder / PHOTO)
        self.load = Load(Publisher(self.base, self.home, self.home.journals / "sent-base"), self.home.journals)
        self.work()
        self.switch(self.base, self.head)
        self.work()
        self.switch(self.head, self.base)
        self.say(f"{self.base.commit} alone again")
        time.sleep(ALONE)
        self.rest()

    def arrive(self, version: Version) -> None:
        """Start a version's stack, and wait until it works."""
        self.up = Up(version, self.home)
        self.up.wait()

    def work(self) -> None:
        """One version alone; what it does now the other one will find."""
        time.sleep(ALONE)
        producer, before = self._producer, self.dead()
        self._leg = {
            "dead": [producer.send("dead", "math.reliable_task", {"fail": True}) for _ in range(3)],
            "expired": [producer.send("expired", "faults.run", 0.0, countdown=2, expires=1) for _ in range(3)],
            "missing": [producer.send("missing", "image.process_image", f"{uuid.uuid4()}.jpg", 64) for _ in range(2)],
            # No number of seconds: nobody knows whether it had its effect.
            "doubtful": [producer.send("doubtful", "faults.once", "x")],
            "mail": [producer.mail(f"mail-{uuid.uuid4()}") for _ in range(2)],
        }
        producer.chord(later=40)
        gone = sum(len(self._leg[kind]) for kind in ("dead", "expired", "missing", "doubtful"))
        awaited(lambda: self.dead() >= before + gone, 60)

    def dead(self) -> int:
        """How many dead letters there are."""
        return sum(ready for ready, _ in self.home.counts(*(f"{queue}.dead" for queue in self.home.queues)).values())

    def switch(self, old: Version, new: Version) -> None:
        """The new version beside the old one, then in its place; first on the running broker, then with its own."""
        assert self.up is not None
        assert self.load is not None
        up, there = self.up, new is self.head
        if there:
            # docs/deploy.md: the table's changes come before the workers.
            self.say(f"{new.commit} applies its definitions")
            self.home.ops(new, "apply", "--yes")
            self.home.ops(new, "check")
        self.say(f"{new.commit} beside {old.commit}")
        self.beside = Beside(new, self.home)
        producer = self._producer
        self.kill_worker(up)
        for _ in range(3):
            producer.send("poison", "faults.die", "kill")
        time.sleep(TOGETHER)
        # Each of the two counts what the workers of both tell.
        up.stop_exporter()
        self.beside.export()
        letters = self.home.letters(old)
        self.fill(producer)
        self.note_switch(f"{old.commit} to {new.commit}")
        self.say(f"{old.commit} stops, {new.commit} goes on")
        up.stop_services()
        log = self.home.journals / f"sent-{new.name}{len(self.switches)}"
        self.load.producer = Publisher(new, self.home, log)
        producer.close()
        self.listed.append((letters, self.home.letters(new)))
        if not there:
            self.home.ops(new, "apply", "--yes")
            self.home.ops(new, "check")
        self.say(f"the broker starts again with {new.commit}")
        begun = time.time()
        self.load.away = True
        self.exits += self.beside.stop_services()
        if code := up.stop():
            self.exits.append(f"`up` of {old.commit}: exit {code}")
        self.arrive(new)
        self.load.away = False
        self.away.append(Window(begun, time.time()))
        self.say(f"{new.commit} alone")
        self.repeat(new)

    def repeat(self, version: Version) -> None:
        """Letters of the other version are replayed by this one, and what was done is sent once more."""
        images = Path(self.home.settings("worker-image")["IMAGE_ROOT"])
        sent = self.sent()
        for name in self._leg["missing"]:
            shutil.copy(self.folder / PHOTO, images / sent.first[name]["args"][0])
        for queue, kind, more in (
            ("faults", "expired", ()),
            ("image", "missing", ()),
            ("faults", "doubtful", ("--done",)),
            ("math", "dead", ()),
        ):
            names = self._leg[kind][:2]
            words = [word for name in names for word in ("--id", name)]
            try:
                self.home.ops(version, "dead-letters", "replay", queue, *words, *more, "--json")
            except AssertionError as exc:
                self.exits.append(str(exc)[:300])
            self.replayed |= dict.fromkeys(names, kind)
        producer, ran = self._producer, self.ran()
        theirs = [
            name for name in sent.confirmed("once") if {end["by"] for end in ran.ends.get(name, ())} - {version.name}
        ]
        for name in theirs[:20]:
            producer.send("again", "faults.once", 0.01, task_id=name)
        for name in self._leg["mail"]:
            producer.mail(sent.first[name]["args"][1], kind="same-mail")

    def fill(self, producer: Publisher) -> None:
        """Work that will be half-done when the old version's workers stop."""
        for _ in range(3):
            producer.send("attempts", "math.reliable_task", {"fail_times": 3})
            producer.send("retried", "faults.again", 12)
            producer.send("retried", "faults.again", 8)
        long = {producer.send("long", "faults.run", 4.0) for _ in range(12)}
        awaited(lambda: any(name in long for name, _ in self.ran().starts), 90)
        producer.chord(later=30)
        for number in range(30):
            producer.send("delayed", "faults.run", 0.0, countdown=3 + 2 * number)
        last = [producer.send("run", "faults.run", 0.02) for _ in range(60)][-1]
        awaited(lambda: self.sent().outcome.get(last, "unknown") != "unknown", 60)

    def kill_worker(self, up: Up) -> None:
        """SIGKILL to the old version's worker of the queue `faults` while it runs tasks; supervisor starts another."""
        producer = self._producer
        names = {producer.send("killed", "faults.run", 3.0) for _ in range(6)}
        for _ in range(4):
            producer.send("once", "faults.once", 2.0)
        pid = up.pid("worker-faults")
        awaited(lambda: self.ran().running(offspring(pid), time.time()) & names, 90)
        children = set(offspring(pid))
        up.kill("worker-faults")
        moment = time.time()
        self.kills.append((moment, children))
        # Its processes end with it.
        awaited(lambda: not any(Path(f"/proc/{child}").exists() for child in children), 30)
        self.killed |= self.ran().running(children, moment)

    def note_switch(self, what: str) -> None:
        """What there is now, while both versions work."""
        with self.home.channel() as channel:
            queues = [*self.home.queues, *(f"{queue}.dead" for queue in self.home.queues), *DELAYS]
            ready = {queue: channel.queue_declare(queue, passive=True).message_count for queue in queues}
        sent, ran = self.sent(), self.ran()
        begun = {name for name, _ in ran.starts}
        unfinished = {name for name in begun if not ran.ends.get(name)}
        once = sent.of("once").keys()
        self.switches.append(
            {
                "what": what,
                "ready": sum(ready[queue] for queue in self.home.queues),
                "delayed": sum(ready[queue] for queue in DELAYS),
                "unacknowledged": len(unfinished & sent.of("run", "long", "delayed").keys()),
                "retries": len(unfinished & sent.of("retried").keys()),
                "dead": sum(ready[f"{queue}.dead"] for queue in self.home.queues),
                "chords": sum(self.result(name)["status"] == "PENDING" for name in sent.of("chord")),
                "once": len(once & ran.ends.keys()),
            }
        )

    def rest(self) -> None:
        """No more load; wait until all has ended."""
        assert self.load is not None
        self.load.stop()
        self._producer.close()
        self.say("waiting for what is left")
        sent = self.sent()
        journaled = sent.confirmed("run", "once", "delayed", "retried", "long", "killed")
        others = sent.confirmed("sum", "attempts", "chord", "mail", "same-mail", "missing")
        done: set[str] = set()

        def ended() -> bool:
            ran = self.ran()
            if not all(ran.ends.get(name) for name in journaled):
                return False
            done.update(name for name in others - done if self.result(name)["status"] == "SUCCESS")
            return not others - done

        awaited(ended, SETTLING)
        # Counts come once a second.
        time.sleep(3)

    def say(self, stage: str) -> None:
        """Where the case is."""
        self.scraper.stage = stage
        print(f"{time.monotonic() - self._begun:6.1f} s  {stage}", flush=True)

    def close(self) -> None:
        """Stop everything."""
        self.scraper.stop()
        if self.load is not None:
            self.load.stop()
            self.load.producer.close()
        if self.beside is not None:
            self.beside.stop_services()
        if self.up is not None:
            self.up.stop()

    @property
    def _producer(self) -> Publisher:
        assert self.load is not None
        return self.load.producer


def offspring(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
