"""Beat that may run twice: one sends the periodic tasks, the others stand by.

Celery's own beat sends everything twice where two run, keeps its schedule in a file of one machine, and loses a tick
whose publish fails. Here a tick is a moment of the clock (every 30 s: at :00 and :30), its task has an id made of name
and moment, and which ticks were sent stands in the broker, where the next beat finds it. Whoever holds the lock sends.
"""

from __future__ import annotations

import datetime
import faulthandler
import json
import logging
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import amqp.exceptions
import celery.beat
from celery.schedules import schedule as interval

from queues.errors import PublishError
from queues.publish import connect
from queues.remedies import explain
from queues.topology import BEAT_LOCK, BEAT_STATE
from queues.transport import deadline
from workers.startup import stop

if TYPE_CHECKING:
    from celery.schedules import BaseSchedule
    from kombu import Connection

    from queues.app import WarrenCelery

logger = logging.getLogger(__name__)

#: Seconds between two looks of a beat that stands by, and between two tries to send.
STEP = 1.0
#: Seconds within which the broker must say that the lock is still ours.
ANSWER_LIMIT = 5.0
#: Seconds without a turn of the loop after which the process ends, its stacks in the log.
STALL_LIMIT = 120.0
#: Seconds by which the clocks of two beats may differ: so long, what one has sent ahead is not sent again.
SKEW = 60.0
#: Seconds back from now in which missed ticks are looked for.
LOOK_BACK = 2 * 86400.0


class Lock:
    """An exclusive queue: the broker removes it with the connection that declared it, however that ends."""

    def __init__(self, app: WarrenCelery) -> None:
        self.app = app
        self.connection: Connection | None = None
        self._channel: Any = None
        self._said = ""

    def held(self) -> bool:
        """Whether the broker says, now, that the lock is ours; takes it where nobody has it."""
        try:
            with deadline(ANSWER_LIMIT):
                self._channel = self._channel or self._open()
                self._channel.queue_declare(BEAT_LOCK, exclusive=True)
        except amqp.exceptions.ResourceLocked:
            self._channel = None
            self._say("another beat sends: this one stands by")
            return False
        except Exception as exc:  # noqa: BLE001 - whatever it is, the lock is not known to be ours
            self._say(explain(self.connection, exc) if self.connection else str(exc), logging.ERROR)
            self.release()
            return False
        self._say("this beat sends")
        return True

    def release(self) -> None:
        """Give the lock up with its connection."""
        if self.connection is not None:
            self.connection.collect()
        self.connection = self._channel = None

    def channel(self) -> Any:
        """A channel of the lock's connection: what it does is done under the lock."""
        if self.connection is None:
            raise ConnectionError("the lock was lost")
        return self.connection.channel()

    def _open(self) -> Any:
        if self.connection is None:
            # Without a heartbeat the broker would keep the lock of a beat that hangs, or whose machine is gone.
            self.connection = self.app.connection_for_write(heartbeat=self.app.conf.broker_heartbeat)
        if not self.connection.connected:
            connect(self.connection)
        return self.connection.channel()

    def _say(self, text: str, level: int = logging.INFO) -> None:
        if text != self._said:
            logger.log(level, text)
        self._said = text


class Scheduler(celery.beat.Scheduler):
    """Sends what is due while it holds the lock; use it by `beat_scheduler`."""

    def __init__(self, app: WarrenCelery, *, schedule_filename: str, **options: Any) -> None:
        #: Touched while the loop turns: a sign of life, no schedule.
        self.sign = Path(schedule_filename)
        self.lock = Lock(app)
        #: Seconds since the epoch of each entry's last tick that was sent or given up, and how many were given up.
        self.sent: dict[str, float] = {}
        self.missed: dict[str, int] = {}
        self._known = False
        #: Whether a turn is under way, and whether it is to be the last.
        self.busy = self.ending = False
        super().__init__(app, **options)

    def setup_schedule(self) -> None:
        """Take the entries of `beat_schedule`; nothing is kept on this machine."""
        self.install_default_entries(self.data)
        self.update_from_dict(self.app.conf.beat_schedule)

    def tick(self, *_args: Any, **_options: Any) -> float:
        """One turn: send what is due.

        Returns:
            Seconds until the next turn.

        Raises:
            SystemExit: it was the last.
        """
        faulthandler.dump_traceback_later(STALL_LIMIT, exit=True, file=sys.stderr)
        self.busy = True
        try:
            return self._turn()
        finally:
            self.busy = False
            if self.ending:
                raise SystemExit(0)

    def _turn(self) -> float:
        try:
            self.sign.touch()
        except OSError as exc:
            stop(f"{self.sign} cannot be written ({exc.strerror}): give beat another --schedule, a file of this user's")
        if not self.lock.held():
            self._known = False
            return STEP
        try:
            if not self._known:
                self.restore()
            return min(self.attend(entry) for entry in self.schedule.values())
        except PublishError as exc:
            logger.error("a tick waits: %s", exc)  # noqa: TRY400 - a broker that is away is no fault of this code
        except Exception:
            logger.exception("a turn of beat failed, and is repeated")
        return STEP

    def attend(self, entry: Any) -> float:
        """Send an entry's last tick where it is due.

        Returns:
            Seconds until this entry is to be looked at again.
        """
        now = time.time()
        last = self.sent.setdefault(entry.name, now)
        if last > now + SKEW:
            logger.error("the last tick of %s lies ahead, at %s: check the clocks", entry.name, stamp(last))
            last = self.sent[entry.name] = now
        due = moments(entry.schedule, max(last, now - LOOK_BACK), now)
        if not due:
            return min(next_moment(entry.schedule, now) - now, float(self.max_interval))
        expires = entry.options.get("expires")
        left = None if expires is None else due[-1] + float(expires) - now
        self.give_up(entry.name, due[:-1])
        if left is not None and left <= 0:
            self.give_up(entry.name, due[-1:])
        else:
            self.send(entry, due[-1], left)
        self.sent[entry.name] = due[-1]
        self.save()
        return 0.0

    def send(self, entry: Any, moment: float, expires: float | None) -> None:
        """Publish one tick, confirmed.

        Raises:
            PublishError: it was not; the next turn tries again, under the same id.
        """
        task_id = f"{entry.name}:{stamp(moment)}"
        options = {**entry.options, "task_id": task_id, "expires": expires}
        headers = {"celery_beat_task": True}
        self.app.send_task(entry.task, entry.args, entry.kwargs, headers=headers, **options)
        logger.info("sent %s", task_id)

    def give_up(self, name: str, ticks: list[float]) -> None:
        """Count ticks that can no longer be sent in time."""
        for moment in ticks:
            self.missed[name] = self.missed.get(name, 0) + 1
            logger.error("missed %s:%s, in all %d: beat or the broker was away", name, stamp(moment), self.missed[name])

    def restore(self) -> None:
        """Read what the last beat has sent; the latest word on each entry counts."""
        channel = self.lock.channel()
        with deadline(self.app.conf.publish_timeout):
            found = []
            while (message := channel.basic_get(BEAT_STATE)) is not None:
                found.append(message)
            for message in found:
                self.merge(message.body)
            if found:
                self.save()
            for message in found:
                channel.basic_ack(message.delivery_tag)
            channel.close()
        self._known = True

    def merge(self, body: str | bytes) -> None:
        """Take over what a state says; one that is none is dropped."""
        try:
            state = json.loads(body)
            sent = {str(name): float(at) for name, at in state["sent"].items()}
            missed = {str(name): int(count) for name, count in state["missed"].items()}
        except (ValueError, TypeError, KeyError, AttributeError):
            logger.exception("a message in %s is no state of beat: it is dropped", BEAT_STATE)
            return
        for name in sent.keys() & self.schedule.keys():
            self.sent[name] = max(sent[name], self.sent.get(name, 0.0))
        for name in missed.keys() & self.schedule.keys():
            self.missed[name] = max(missed[name], self.missed.get(name, 0))

    def save(self) -> None:
        """Publish the state; the queue keeps the last one."""
        state = {"sent": self.sent, "missed": self.missed}
        with self.app.amqp.producer_pool.acquire(block=True) as producer:
            producer.publish(state, exchange=BEAT_STATE, routing_key="", delivery_mode=2)

    def close(self) -> None:
        """Let another beat take over at once."""
        faulthandler.cancel_dump_traceback_later()
        self.lock.release()

    @property
    def info(self) -> str:
        """What Celery prints at the start."""
        return f"    . one of several may run; alive -> {self.sign}"


def end_between_turns(service: celery.beat.Service) -> None:
    """Let SIGTERM end beat after the turn: Celery's handler would, between a tick and the note that it was sent."""

    def end(*_signal: object) -> None:
        service.scheduler.ending = True
        if not service.scheduler.busy:
            raise SystemExit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def moments(schedule: BaseSchedule, after: float, until: float) -> list[float]:
    """All moments of a schedule in `(after, until]`, in seconds since the epoch."""
    found = []
    while (after := next_moment(schedule, after)) <= until:
        found.append(after)
    return found


def next_moment(schedule: BaseSchedule, after: float) -> float:
    """The first moment of a schedule after another, in seconds since the epoch; an interval counts from the epoch."""
    if type(schedule) is interval:
        seconds: float = schedule.run_every.total_seconds()
        return (after // seconds + 1) * seconds
    # In the hour that a clock is set back, local time alone would lead to the past.
    for skipped in (0, 3600, 7200):
        local = datetime.datetime.fromtimestamp(after + skipped, datetime.UTC)
        last, delta, _ = schedule.remaining_delta(local)
        found: float = (last + delta).timestamp()
        if found > after:
            return found
    return after + 3600


def stamp(moment: float) -> str:
    """A moment as it stands in a task's id."""
    precision = "seconds" if moment == int(moment) else "milliseconds"
    when = datetime.datetime.fromtimestamp(moment, datetime.UTC)
    return when.isoformat(timespec=precision).replace("+00:00", "Z")
