"""What the trip has shown: a row for each kind of message and of figure, with what missed it."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from tests.faults.upgrade import figures
from tests.faults.upgrade.account import Row, lateness, latest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.faults.upgrade.trip import Trip

#: Seconds after a delayed message is in its queue: what is published then must not begin before it.
BEHIND = 10.0
#: Runs of a task that kills its process, whichever versions run it: once, and twice again.
POISON_RUNS = 3


class Verdict:
    """Reads everything once."""

    def __init__(self, trip: Trip) -> None:
        self.trip = trip
        self.sent, self.ran = trip.sent(), trip.ran()
        self.letters = trip.home.letters(trip.base)
        self.results: dict[str, dict[str, Any]] = {}

    def rows(self) -> list[Row]:
        """All of them."""
        return [
            self.load(),
            self.sums(),
            self.journaled("delayed", "delayed", self.on_time),
            self.journaled("retried", "retried by `faults.again`", self.each_attempt),
            self.answered("attempts", "retried by `math.reliable_task`", lambda value: value.get("attempts") == 4),
            self.journaled("long", "running when the other version stops"),
            self.killed(),
            self.answered("chord", "chords, half-done", lambda value: value == 55),
            self.once(),
            self.mails(),
            self.dead(),
            self.replayed(),
            self.poison(),
            figures.ticks(self),
            figures.counts(self),
            figures.states(self.trip),
            figures.processes(self.trip),
        ]

    def base_row(self, what: str, *kinds: str) -> Row:
        """What was sent of these kinds."""
        confirmed = self.sent.confirmed(*kinds)
        return Row(what, sent=len(self.sent.of(*kinds)), confirmed=len(confirmed))

    def journaled(self, kind: str, what: str, more: Any = None) -> Row:
        """Tasks that write down their runs."""
        row = self.base_row(what, kind)
        self.account(row, self.sent.of(kind).keys(), self.sent.confirmed(kind))
        row.require(row.done, "none was done")
        if more is not None:
            more(row, self.sent.of(kind))
        return row

    def account(self, row: Row, ids: Iterable[str], confirmed: set[str]) -> None:
        """Where these tasks ran, and how often."""
        ids = set(ids)
        done = {name for name in ids if self.ran.ends.get(name)}
        by = self.ran.by(done)
        lost = confirmed - done - self.letters.keys()
        innocent = ids & self.letters.keys()
        row.done, row.by_base, row.by_head = len(done), by["base"], by["head"]
        row.lost, row.doubled = len(lost), self.ran.doubled(ids)
        row.require(not lost, f"{len(lost)} lost: {sorted(lost)[:3]}")
        row.require(not innocent, f"{len(innocent)} became dead letters: {self.reasons(innocent)}")
        # One that ran when its worker was killed runs again.
        twice = self.ran.doubled(ids - self.trip.killed)
        row.require(not twice, f"{twice} run twice that did not run at a kill")
        ends = sum(len(self.ran.ends[name]) - 1 for name in done - self.trip.killed)
        row.require(not ends, f"{ends} ended twice")

    def reasons(self, ids: Iterable[str]) -> str:
        """Why the first of these are dead letters."""
        found = sorted({str(self.letters[name]["reason"]) for name in ids})
        return ", ".join(found[:3])

    def load(self) -> Row:
        """The load: what waits, what is being run."""
        row = self.journaled("run", "the load, `faults.run`")
        refused = len(self.sent.refused("run", "sum", "once"))
        false = {name for name in self.sent.refused("run") if self.ran.attempts(name)}
        row.require(not false, f"{len(false)} run that had been refused")
        seconds = self.trip.load.seconds if self.trip.load else 0.0
        rate = len(self.sent.confirmed("run", "sum", "once")) / (seconds or 1.0)
        row.note = f"{rate:.0f} tasks/s over {seconds:.0f} s, with sums and `once`; {refused} refused"
        return row

    def sums(self) -> Row:
        """Tasks whose results are compared."""
        return self.answered("sum", "the load, `math.add`", None)

    def answered(self, kind: str, what: str, right: Any) -> Row:
        """Tasks that leave a result."""
        row = self.base_row(what, kind)
        confirmed = self.sent.confirmed(kind)
        answers = {name: self.result(name) for name in self.sent.of(kind)}
        done = {name for name, answer in answers.items() if answer["status"] == "SUCCESS"}
        row.done, row.lost = len(done), len(confirmed - done)
        missing = sorted((name, answers[name]["status"]) for name in confirmed - done)
        row.require(not missing, f"{len(missing)} without result: {missing[:3]}")
        wrong = [name for name in done if not (right or self.is_sum(name))(answers[name]["result"])]
        row.require(not wrong, f"{len(wrong)} wrong results, as {answers[wrong[0]]['result'] if wrong else ''}")
        row.require(done, "none was done")
        return row

    def is_sum(self, name: str) -> Any:
        """Whether a result is the sum of what was sent."""
        wanted = sum(self.sent.first[name]["args"])
        return lambda value: value == wanted

    def result(self, name: str) -> dict[str, Any]:
        """A result, asked for once."""
        if name not in self.results:
            self.results[name] = self.trip.result(name)
        return self.results[name]

    def on_time(self, row: Row, events: dict[str, dict[str, Any]]) -> None:
        """Delayed tasks begin when they are due, as far as workers are there and have come so far."""
        late, overtaken = [], 0
        others = [(event["t"], self.ran.attempts(name)) for name, event in self.sent.of("run").items()]
        began = [(at, attempts[0]["t"]) for at, attempts in others if attempts]
        for name, event in events.items():
            due, attempts = event["t"] + event["countdown"], self.ran.attempts(name)
            if attempts:
                late.append(lateness(due, attempts[0]["t"], self.trip.away))
                there = latest(event["t"], due, self.trip.away) + BEHIND
                overtaken += any(at > there and start < attempts[0]["t"] for at, start in began)
        if late:
            row.note = f"late by {median(late):.1f} s (median), {max(late):.1f} s at most, with the load before them"
            row.require(min(late) >= -0.05, f"one began {-min(late):.1f} s early")
        row.require(not overtaken, f"{overtaken} began behind what was published {BEHIND:.0f} s after they were there")

    def each_attempt(self, row: Row, events: dict[str, dict[str, Any]]) -> None:
        """Every attempt was made, and some tasks were tried by both versions."""
        both = 0
        for name, event in events.items():
            attempts = self.ran.attempts(name)
            both += len({one["by"] for one in attempts}) > 1
            wanted, made = event["args"][0] + 1, len({one["attempt"] for one in attempts})
            row.require(made == wanted or not self.ran.ends.get(name), f"{made} attempts in place of {wanted}")
        row.note = f"{both} of them tried by both versions"
        row.require(both, "none was tried by both versions")

    def killed(self) -> Row:
        """Tasks that ran when their worker was killed."""
        row = self.journaled("killed", "running when a worker is killed")
        allowed = sum(len(pids) for _, pids in self.trip.kills)
        every = self.sent.of("run", "delayed", "retried", "long", "killed")
        doubled = self.ran.doubled(every)
        row.note = f"{len(self.trip.kills)} workers of {allowed} processes; of all kinds {doubled} ran twice"
        row.require(doubled <= allowed, f"{doubled} of all kinds run twice, {allowed} ran at a kill")
        return row

    def once(self) -> Row:
        """Tasks that must not run twice, some sent again through the other version."""
        row = self.base_row("`once`", "once")
        self.account(row, self.sent.of("once").keys(), self.sent.confirmed("once"))
        again = self.sent.again & self.sent.of("once").keys()
        row.note = f"{len(again)} sent again when they had been done"
        row.require(again, "none was sent again")
        known = self.trip.scraper.counters.of("celery_task_deduplicated_total", task="faults.once")
        row.require(known >= len(again), f"{known:.0f} counted as recognised of {len(again)} sent again")
        return row

    def mails(self) -> Row:
        """Mails at the server: one for each key."""
        row = self.answered("mail", "mails, each twice", lambda value: value["status"] == "sent")
        inbox = [path.read_text(errors="replace") for path in self.trip.home.folder.glob("mail/*.eml")]
        keys = [self.sent.first[name]["args"][1] for name in self.sent.of("mail")]
        arrived = {key: sum(f"\nSubject: {key}" in text.replace("\r\n", "\n") for text in inbox) for key in keys}
        row.doubled = sum(max(0, count - 1) for count in arrived.values())
        row.require(all(count == 1 for count in arrived.values()), f"arrived: {sorted(arrived.values())}")
        same = [self.result(name) for name in self.sent.confirmed("same-mail")]
        row.note = f"{len(same)} sent again under another id"
        known = sum(one["status"] == "SUCCESS" and one["result"]["status"] == "duplicate" for one in same)
        row.require(same and known == len(same), f"{known} of {len(same)} recognised by their key")
        return row

    def dead(self) -> Row:
        """Dead letters, as each version lists the other's."""
        row = Row("dead letters, listed by the other version", sent=0, done=0, lost=0)
        for before, after in self.trip.listed:
            missing = before.keys() - after.keys()
            changed = [name for name in before.keys() & after.keys() if differs(before[name], after[name])]
            row.sent, row.done = (row.sent or 0) + len(before), (row.done or 0) + len(before) - len(missing)
            row.lost = (row.lost or 0) + len(missing)
            row.require(not missing, f"{len(missing)} are gone: {sorted(missing)[:3]}")
            row.require(not changed, f"{len(changed)} are told otherwise: {[after[name] for name in changed[:1]]}")
            row.require(before, "there were none")
        kept = self.sent.confirmed("dead") - self.letters.keys()
        row.require(not kept, f"{len(kept)} failed for good and are no dead letters at the end")
        return row

    def replayed(self) -> Row:
        """Dead letters that the other version sends again."""
        replayed = self.trip.replayed
        row = Row("dead letters, replayed by the other version", sent=len(replayed), done=0, lost=0)
        for name, kind in replayed.items():
            letter, ended = self.letters.get(name), self.ran.ends.get(name, [])
            good = {
                "expired": letter is None and len(ended) == 1,
                "missing": letter is None and self.result(name)["status"] == "SUCCESS",
                # It was told that it had been done: answered, never run.
                "doubtful": letter is None and not ended and self.result(name)["status"] == "SUCCESS",
                # It fails once more.
                "dead": letter is not None and letter["replays"] == 1,
            }[kind]
            row.done = (row.done or 0) + good
            row.require(good, f"{kind}: {len(ended)} runs, {self.result(name)['status']}, letter {letter}"[:200])
        row.doubled = sum(max(0, len(self.ran.ends.get(name, [])) - 1) for name in replayed)
        return row

    def poison(self) -> Row:
        """Tasks that kill their process: the versions count its deaths together."""
        row = self.base_row("poison", "poison")
        ids = self.sent.confirmed("poison")
        runs = {name: len(self.ran.attempts(name)) for name in ids}
        row.done = len(ids & self.letters.keys())
        row.lost = len(ids) - row.done
        most = max(runs.values(), default=0)
        row.note = f"each ran at most {most} times and is a dead letter"
        row.require(not row.lost, f"{row.lost} are no dead letters")
        row.require(0 < most <= POISON_RUNS, f"one ran {most} times")
        return row

    def ended(self, *kinds: str) -> int:
        """How often tasks of these kinds ended."""
        return sum(len(self.ran.ends.get(name, [])) for name in self.sent.of(*kinds))


def differs(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two versions tell different things of one dead letter."""
    # A second copy may have come with a word of its own.
    more = () if one["copies"] != other["copies"] else ("error", "at")
    return any(one[name] != other[name] for name in ("task", "reason", "queue", "retries", *more))
