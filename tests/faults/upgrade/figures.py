"""What is no message: beat's ticks, the exporter's sums, what there was at each change, and processes."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING

import amqp

from tests.faults.upgrade.account import Row, missing_ticks

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.upgrade.trip import Trip
    from tests.faults.upgrade.verdict import Verdict

#: Seconds around a time without broker or workers, in which a tick that lasts one second may be over before it is run.
AROUND = 5.0
TICK, TICK_SECONDS = "faults.tick", 2
#: Ticks that a busy machine may hold beat up for, none of which goes by in silence.
HELD_UP = 3
#: Seconds of measuring that a killed worker takes with it: one, on a machine that is not busy.
UNMEASURED = 5.0
#: What the broker must hold when the versions change places, or the trip has shown less than it says.
STATES = ("ready", "delayed", "unacknowledged", "retries", "dead", "chords", "once")


def ticks(seen: Verdict) -> Row:
    """Periodic tasks: each moment once, those that were missed while nobody could send counted."""
    own = {version: seen.trip.home.logs / f"{version}-beat.log" for version in ("base", "head")}
    every = Counter(one for log in (*own.values(), seen.trip.home.folder / "log" / "beat.log") for one in told(log))
    missed = missing_ticks(TICK_SECONDS, every)
    outside = [one for one in missed if not any(window.holds(one, AROUND, AROUND) for window in seen.trip.away)]
    known = missed_by_beat(seen.trip)
    row = Row("ticks of beat", sent=len(every), lost=len(outside))
    row.done = sum(bool(seen.ran.ends.get(name)) for name in every)
    row.doubled = every.total() - len(every) + seen.ran.doubled(every.keys() - seen.trip.killed)
    row.note = f"{len(missed)} missed, of which beat counts {known}; the others not run were over in the queue"
    row.require(not row.doubled, f"{row.doubled} sent twice")
    row.require(len(outside) <= HELD_UP, f"{len(outside)} missed while beat and broker were there")
    row.require(len(missed) <= known, f"{len(missed)} missed, and beat knows of {known}")
    row.require(all(map(told, own.values())), "one of the versions has sent none beside the other")
    return row


def counts(seen: Verdict) -> Row:
    """The exporter's sums: they never go back, and at the end they are what was done."""
    counters = seen.trip.scraper.counters
    row = Row("sums of the exporter", sent=len(counters.last))
    row.note = f"{counters.scrapes} scrapes; {len(counters.wrong)} went back"
    row.require(not counters.wrong, counters.complaint)
    row.require(not counters.malformed, f"messages of workers not understood: {counters.malformed}")
    unmeasured = sum(
        event["pid"] in pids and moment - UNMEASURED <= event["t"] <= moment
        for moment, pids in seen.trip.kills
        for events in seen.ran.ends.values()
        for event in events
    )
    shown = []
    for task, done in (
        ("faults.run", seen.ended("run", "delayed", "long", "killed", "expired")),
        ("faults.again", seen.ended("retried")),
        ("math.add", sum(seen.result(name)["status"] == "SUCCESS" for name in seen.sent.of("sum"))),
    ):
        counted = counters.of("celery_task_completions_total", task=task)
        shown.append(f"{task} {counted:.0f} of {done}")
        least = done - (unmeasured if task.startswith("faults.") else 0)
        row.require(least <= counted <= done, f"{task}: {counted:.0f} counted, {least} to {done} done")
    row.note += "; " + ", ".join(shown)
    unstamped = counters.of("celery_task_unstamped_total")
    row.require(not unstamped, f"{unstamped:.0f} messages whose time of publishing the other version did not find")
    damaged = [path.name for path in seen.trip.home.folder.glob("state/*.damaged")]
    row.require(not damaged, f"a version could not read the other's sums: {damaged}")
    return row


def states(trip: Trip) -> Row:
    """What there was when the versions changed places."""
    row = Row("held at each change of versions")
    parts = []
    for switch in trip.switches:
        parts.append(f"{switch['what']}: " + ", ".join(f"{switch[name]} {name}" for name in STATES))
        missing = [name for name in STATES if not switch[name]]
        row.require(not missing, f"{switch['what']}: nothing {', '.join(missing)}")
    row.note = "; ".join(parts)
    return row


def processes(trip: Trip) -> Row:
    """Ends of processes that nobody asked for."""
    row = Row("processes", sent=None)
    logs = trip.home.folder.glob("log/supervisord.log*")
    ended = [line for log in logs for line in log.read_text().splitlines() if "not expected" in line]
    killed = len(trip.kills)
    row.note = f"{killed} workers killed on purpose, {max(0, len(ended) - killed)} other ends"
    row.require(len(ended) <= killed, f"ended by themselves: {ended}"[:300])
    row.require(not trip.exits, "; ".join(trip.exits))
    return row


def told(log: Path) -> list[str]:
    """The ticks that a beat says it has sent."""
    return re.findall(rf"\bsent ({re.escape(TICK)}:\S+?Z)", log.read_text()) if log.exists() else []


def missed_by_beat(trip: Trip) -> int:
    """How many ticks beat has counted as missed, over all versions: it stands in the broker."""
    try:
        with trip.home.channel() as channel:
            message = channel.basic_get("beat.state")
            if message is None:
                return 0
            channel.basic_reject(message.delivery_tag, requeue=True)
            return int(json.loads(message.body)["missed"].get(TICK, 0))
    except (amqp.AMQPError, ValueError, KeyError):
        return 0
