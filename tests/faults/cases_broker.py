"""Faults of the broker and of the network; most are met by both sides at once."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import time
from typing import TYPE_CHECKING, Any

from ops import definitions
from queues.topology import CONSUMER_TIMEOUT_MARGIN, QUEUES, QueueSpec, TaskSpec, TopologyError
from tests.faults.cases_producers import publisher
from tests.faults.deployment import QUEUE
from tests.faults.registry import both, each
from tests.faults.trial import together
from tests.faults.wire import Wire
from tests.integration.helpers import awaited

if TYPE_CHECKING:
    from tests.faults.lab import Lab
    from tests.faults.trial import Trial

#: Seconds that the half-open case waits: Celery's heartbeat of 120 s is noticed after 240.
HALF_OPEN = 100.0


@both("broker-kill", "broker SIGKILL under load, started again after 5 s", bound=260, smoke=True)
def broker_kill(lab: Lab, trials: list[Trial]) -> None:
    """What was confirmed is on disk."""
    together(trials, lambda trial: trial.start())
    for trial in trials:
        trial.load(trial.times(1500, 400), 60, args=(0.01,))
        trial.load_once(trial.times(150, 0), 10)
        trial.allowed += 2
    for trial in trials:
        trial.await_finished(60)
    lab.broker.kill()
    time.sleep(5)
    lab.broker.start()
    for trial in trials:
        trial.healed()
    together(trials, lambda trial: trial.settle(150, quiet=15))


@both("broker-restart", "orderly restart of the broker under load, 5 times", bound=400)
def broker_restart(lab: Lab, trials: list[Trial]) -> None:
    """Every worker consumes again after each."""
    together(trials, lambda trial: trial.start())
    for trial in trials:
        trial.load(10_000, 20, args=(0.01,))
    for _ in range(5):
        lab.broker.stop()
        lab.broker.start()
        for trial in trials:
            trial.allowed += 2
            moment = trial.healed()
            trial.await_next(moment, 30)
        time.sleep(1)
    for trial in trials:
        trial.loads[0].stop()
    together(trials, lambda trial: trial.settle(120, quiet=15))


@both("connections-closed", "the broker closes all connections while tasks of 1 s run, 3 times", bound=260)
def connections_closed(lab: Lab, trials: list[Trial]) -> None:
    """What runs is run again: by then, ours has ended the first run."""
    together(trials, lambda trial: trial.start())
    for trial in trials:
        trial.load(30, 60, args=(1.0,))
        trial.load_once(10, 5, 1.0)
    for _ in range(3):
        for trial in trials:
            trial.await_next(time.time(), 30)
        lab.broker.ctl("close_all_connections", "--global", "fault injected")
        for trial in trials:
            trial.allowed += 2
            trial.healed()
    together(trials, lambda trial: trial.settle(150, quiet=15))
    for trial in trials:
        twice = sum(count - 1 for count in trial.runs().finished.values())
        trial.line.note = f"{twice} completed twice"
        if trial.ours:
            trial.require(not twice, f"{twice} tasks completed twice")


@both("half-open", "the workers' connections go silent, and neither end is told")
def half_open(lab: Lab, trials: list[Trial]) -> None:
    """As when a NAT forgets a connection: only heartbeats notice. New connections pass."""
    wires = {trial.side.name: Wire(lab.broker.port) for trial in trials}
    try:
        together(trials, lambda trial: trial.start(port=wires[trial.side.name].port))
        for trial in trials:
            trial.load(300, 30, args=(0.01,))
            trial.allowed += 2
        for trial in trials:
            trial.await_finished(60)
        for wire in wires.values():
            wire.silence()
        time.sleep(1)
        for trial in trials:
            trial.healed()
        together(trials, lambda trial: trial.settle(HALF_OPEN, quiet=HALF_OPEN))
    finally:
        for wire in wires.values():
            wire.close()


@both("broker-frozen", "SIGSTOP of the broker under load for 25 s")
def broker_frozen(lab: Lab, trials: list[Trial]) -> None:
    """Whoever publishes is told within 15 s."""
    together(trials, lambda trial: trial.start())
    for trial in trials:
        trial.load(600, 40, args=(0.01,))
        trial.allowed += 2
    for trial in trials:
        trial.await_finished(60)
    lab.broker.freeze(True)
    time.sleep(25)
    lab.broker.freeze(False)
    for trial in trials:
        trial.healed()
    together(trials, lambda trial: trial.settle(90, quiet=20))
    note_publishing(trials)


def note_publishing(trials: list[Trial]) -> None:
    """The longest publish, in the remark."""
    from tests.faults.journal import Sent

    for trial in trials:
        trial.line.note = f"longest publish {Sent.of(trial.log).longest:.1f} s"


@both("memory-alarm", "memory alarm while a full queue is worked off", bound=260, smoke=True)
def memory_alarm(lab: Lab, trials: list[Trial]) -> None:
    """Tasks that publish nothing go on; a publish, a retry and a chain's step wait or are told."""
    alarm(lab, trials, "memory")


@both("disk-alarm", "disk alarm while a full queue is worked off", bound=260)
def disk_alarm(lab: Lab, trials: list[Trial]) -> None:
    """The same for the other alarm."""
    alarm(lab, trials, "disk")


def alarm(lab: Lab, trials: list[Trial], kind: str) -> None:
    """Count the tasks of a window before the alarm and of one within."""
    short = trials[0].short
    # Enough for whoever starts first to be busy until the other has been counted, too.
    tasks, window = (225, 5) if short else (700, 8)
    together(trials, lambda trial: fill(trial, tasks))
    before = counts(trials, window)
    # Producers that publish and end, as a web request or a cron job does.
    blocked: list[subprocess.Popen[str]] = []
    lab.alarm(kind)
    try:
        time.sleep(1)
        within = counts(trials, window)
        blocked += [publisher(trial, "faults.run", "1" if short else "2") for trial in trials]
        # The tasks that retry come last: they begin while the alarm is on, and what they publish must wait.
        awaited(lambda: all(trial.finished() >= tasks for trial in trials), 60)
        for process in blocked:
            process.wait(60)
        time.sleep(2)
    finally:
        lab.alarm(None)
        for trial in trials:
            trial.healed()
        for process in blocked:
            process.kill()
            process.communicate()
    together(trials, lambda trial: trial.settle(60, quiet=12))
    for trial, normal, alarmed in zip(trials, before, within, strict=True):
        rate = alarmed / normal if normal else 0.0
        trial.line.note = f"{rate:.0%} of the normal rate during the alarm"
        trial.line.figures["alarm_rate"] = round(rate, 3)
        if trial.ours:
            # Other tests run beside the smoke: there, only a standstill is told apart.
            wanted = 0.2 if short else 0.8
            trial.require(rate >= wanted, f"{rate:.0%} of the normal rate, {wanted:.0%} wanted")


def fill(trial: Trial, tasks: int) -> None:
    """A queue of tasks, some that retry behind them, and a worker that has begun with it."""
    trial.load(tasks, 2000, args=(0.1,)).join(60)
    for _ in range(4):
        # The alarm outlasts these limits.
        trial.send("faults.again", (1,), soft_time_limit=2, time_limit=3)
    trial.start()
    trial.await_finished(10)


def counts(trials: list[Trial], window: int) -> list[int]:
    """Tasks of each that end in a window of some seconds."""
    before = [trial.finished() for trial in trials]
    time.sleep(window)
    return [trial.finished() - count for trial, count in zip(trials, before, strict=True)]


@both("results-down", "the result store takes no write for 20 s under load", bound=400)
def results_down(lab: Lab, trials: list[Trial]) -> None:
    """A lock on the SQLite file; workers wait for it, and no longer than they must."""
    together(trials, lambda trial: trial.start())
    for trial in trials:
        trial.load(600, 30, args=(0.01,))
    for trial in trials:
        trial.await_finished(60)
    stores = {trial.side.name: results_of(lab, trial) for trial in trials}
    locks = [sqlite3.connect(path, timeout=20, isolation_level=None) for path in stores.values()]
    try:
        for lock in locks:
            lock.execute("BEGIN IMMEDIATE")
        time.sleep(20)
    finally:
        for lock in locks:
            with contextlib.suppress(sqlite3.Error):
                lock.execute("ROLLBACK")
            lock.close()
    for trial in trials:
        trial.healed()
    together(trials, lambda trial: trial.settle(90, quiet=20))
    for trial in trials:
        # Ours sends a result that could not be stored again with its message: it is there when the message is.
        store = stores[trial.side.name]
        awaited(lambda trial=trial, store=store: set(trial.runs().finished) <= stored(store), 90)  # type: ignore[misc]
        missing = set(trial.runs().finished) - stored(store)
        trial.line.note = f"{len(missing)} results missing"
        if trial.ours:
            trial.require(not missing, f"{len(missing)} results missing")
    together(trials, lambda trial: trial.settle(30))


def stored(path: str) -> set[str]:
    """Ids whose success is recorded in a SQLite file."""
    with contextlib.closing(sqlite3.connect(path, timeout=20)) as store:
        return {row[0] for row in store.execute("SELECT task_id FROM celery_taskmeta WHERE status = 'SUCCESS'")}


def results_of(lab: Lab, trial: Trial) -> str:
    """The SQLite file of a side's results."""
    settings: dict[str, Any] = trial.side.environment()
    return str(settings.get("RESULT_BACKEND") or settings["STOCK_RESULTS"]).removeprefix("db+sqlite:///")


@both("consumer-timeout", "a task that would run longer than the broker's consumer timeout")
def consumer_timeout(lab: Lab, trials: list[Trial]) -> None:
    """The table refuses such limits; here all is scaled down: timeout 20 s, hard limit 12 s, a task of 60 s."""
    with contextlib.suppress(TopologyError):
        task = TaskSpec(name="faults.x", soft_time_limit=50, time_limit=1800 - CONSUMER_TIMEOUT_MARGIN + 1)
        QueueSpec(name="faults", module="m", tasks=(task,), consumer_timeout=1800)
        trials[0].require(False, "the table takes a limit above the consumer timeout")
    set_timeout(lab, 20_000, 3000)
    try:
        together(trials, overrun)
    finally:
        set_timeout(lab, 1_800_000, 60_000)


def overrun(trial: Trial) -> None:
    """The long task, and short ones beside it."""
    trial.start()
    limits: dict[str, Any] = {"time_limit": 12, "soft_time_limit": 10} if trial.ours else {}
    trial.guilty.add("long")
    trial.send("faults.run", (60.0,), task_id="long", **limits)
    trial.load(80, 2, args=(0.01,)).join(60)
    trial.settle(40, quiet=25)
    runs = sum(count for (task_id, _), count in trial.runs().started.items() if task_id == "long")
    trial.line.note = f"the long task began {runs} times"
    if trial.ours:
        trial.require(runs == 1, f"the long task began {runs} times")


def set_timeout(lab: Lab, timeout: int, tick: int) -> None:
    """The consumer timeout and how often the node looks, in milliseconds, for connections of now on."""
    lab.broker.ctl(
        "eval",
        f"application:set_env(rabbit, consumer_timeout, {timeout}), "
        f"application:set_env(rabbit, channel_tick_interval, {tick}).",
    )
    if lab.release >= definitions.CONSUMER_TIMEOUT_POLICY:
        policy = definitions.queue_policy(QUEUES.queue(QUEUE), lab.release) | {"consumer-timeout": timeout}
        pattern = f"^{QUEUE}$"
        lab.broker.ctl("set_policy", "--apply-to", "queues", "--priority", "1", QUEUE, pattern, json.dumps(policy))


@each("queue-deleted", "the work queue is deleted while workers and producers live, and made again after 5 s")
def queue_deleted(trial: Trial) -> None:
    """Empty at that moment: what is published while it is gone must not be taken for sent."""
    trial.start()
    trial.load(50, 50).join(30)
    trial.await_finished(50)
    with trial.side._channel() as channel:
        channel.queue_delete(trial.side.queue)
    trial.load(50, 25).join(60)
    time.sleep(3)
    if trial.ours:
        trial.lab.restore_definitions()
    trial.healed()
    # Stock declares its queue itself when it connects again; ours finds it when the operator has made it.
    awaited(lambda: (trial.side.counts(trial.side.queue) or (0, 0))[1] > 0, 60)
    trial.load(50, 50).join(60)
    trial.settle(40)
    trial.line.figures["exempt_restarts"] = True
