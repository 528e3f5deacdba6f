"""Faults of producers, of beat, and delays."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ops.processes import clean_environment
from queues.topology import UNDELIVERABLE
from tests.faults.deployment import TICK
from tests.faults.journal import ONCE, Sent
from tests.faults.registry import at_once, each
from tests.faults.wire import Wire
from tests.faults.worker import Worker
from tests.integration.helpers import awaited

if TYPE_CHECKING:
    from tests.faults.trial import Trial

#: Seconds of delay.
DELAY = 10
#: A queue whose worker does not run here.
DOOMED = "image"


@at_once("producer-killed", "kill -9 of a producer between its publish and the confirm, 50 times", bound=300)
def producer_killed(trial: Trial) -> None:
    """Its messages are there, though nobody was told."""
    trial.start()
    wire = Wire(trial.lab.broker.port)
    process = publisher(trial, ONCE, port=wire.port)
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(trial.times(50, 10)):
            process.stdin.write(f"{uuid.uuid4()}\n")
            process.stdin.flush()
            word, _, pid = process.stdout.readline().strip().partition(" ")
            assert word == "ready", f"the producer said {word!r}"
            kill_in_between(int(pid), wire)
            assert process.stdout.readline().strip() == "over"
            wire.cut()
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        wire.close()
    sent = Sent.of(trial.log)
    unknown = sent.of_kind("unknown")
    awaited(lambda: unknown <= set(trial.runs().finished), 20)
    arrived = len(unknown & set(trial.runs().finished))
    # Whoever does not know sends again with the same id.
    for task_id in sorted(unknown):
        trial.send(ONCE, (0.0,), task_id=task_id)
    trial.settle(40)
    trial.line.note = f"unknown {len(unknown)}, of which {arrived} had arrived; all sent again with their ids"


def publisher(trial: Trial, *words: str, port: int | None = None) -> subprocess.Popen[str]:
    """A process that publishes with a producer's rights."""
    environment = trial.side.environment(port)
    if trial.ours:
        environment = trial.lab.environment("producer")
        if port:
            environment["BROKER_HOSTS"] = f"127.0.0.1:{port}"
    return subprocess.Popen(
        [sys.executable, "-m", "tests.faults.publisher", trial.side.name, str(trial.log), *words],
        env={**clean_environment(), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def kill_in_between(pid: int, wire: Wire) -> None:
    """Let the producer publish, its answers held back, and kill it once its bytes are through."""
    wire.hold_answers()
    before = wire.sent
    os.kill(pid, signal.SIGUSR1)
    awaited(lambda: wire.sent > before + 200, 10)
    time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@each("storm", f"500 tasks delayed by {DELAY} s, 100 that retry twice and 100 immediate ones")
def storm(trial: Trial) -> None:
    """The delayed ones are on time, and the immediate ones do not wait for them."""
    trial.start()
    delayed = sent_by_threads(trial, 500, "faults.run", (0.0,), countdown=DELAY)
    sent_by_threads(trial, 100, "faults.again", (2,))
    immediate = sent_by_threads(trial, 100, "faults.run", (0.0,))
    trial.settle(60, quiet=DELAY + 6)
    runs, sent = trial.runs(), Sent.of(trial.log)
    waits = sorted(
        runs.first[i] - sent.confirmed_at[i] for i in immediate if i in runs.first and i in sent.confirmed_at
    )
    late = sorted(runs.first[i] - sent.confirmed_at[i] - DELAY for i in delayed if i in runs.first)
    figures: dict[str, Any] = {"immediate_p95": p95(waits), "late_p95": p95(late), "early": -min(late, default=0.0)}
    trial.line.figures |= {name: round(value, 2) for name, value in figures.items()}
    begun = sorted(runs.first[i] for i in delayed if i in runs.first)
    # Two processes may write down in another order than they were given.
    behind = sum(runs.first[i] > begun[10] for i in immediate if i in runs.first) if len(begun) > 10 else 0
    trial.line.figures["immediate_behind"] = behind
    trial.line.note = (
        f"immediate: 95 % within {p95(waits):.1f} s, {behind} of them behind delayed ones; "
        f"delayed: 95 % at most {p95(late):.1f} s late"
    )
    if trial.ours:
        trial.require(not behind, f"{behind} immediate tasks ran behind delayed ones")
        trial.require(figures["early"] < 0.1, f"a delayed task ran {figures['early']:.1f} s early")


def p95(values: list[float]) -> float:
    """The value that 95 % do not exceed."""
    return values[int(len(values) * 0.95) - 1] if values else 0.0


def sent_by_threads(trial: Trial, count: int, task: str, args: tuple[Any, ...], **options: Any) -> list[str]:
    """Publish from four threads at once; the ids."""
    ids = [str(uuid.uuid4()) for _ in range(count)]

    def publish(part: list[str]) -> None:
        for task_id in part:
            trial.send(task, args, task_id=task_id, **options)

    threads = [threading.Thread(target=publish, args=(ids[number::4],)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ids


@each("undeliverable", "100 tasks delayed to a deleted queue, 100 to a good one", smoke=True)
def undeliverable(trial: Trial) -> None:
    """The good ones are on time; the others are kept where an alert counts them."""
    trial.start()
    count = trial.times(100, 50)
    if trial.ours:
        with trial.side._channel() as channel:
            channel.queue_delete(DOOMED)
        doomed, options = "image.process_image", {}
    else:
        # This producer has sent there before: it takes the queue for declared.
        options = {"queue": "doomed"}
        trial.side.producer.send_task("faults.run", [0.0], queue="doomed")
        with trial.side._channel() as channel:
            channel.queue_delete("doomed")
        doomed = "faults.run"
    try:
        lost = sent_by_threads(
            trial, count, doomed, ("x.png", [8, 8]) if trial.ours else (0.0,), countdown=5, **options
        )
        good = sent_by_threads(trial, count, "faults.run", (0.0,), countdown=5)
        trial.await_finished(count, 40)
        if trial.ours:
            awaited(lambda: (trial.side.counts(UNDELIVERABLE) or (0, 0))[0] >= count, 30)
        kept = (trial.side.counts(UNDELIVERABLE) or (0, 0))[0] if trial.ours else 0
    finally:
        if trial.ours:
            trial.lab.restore_definitions()
    trial.settle(20)
    runs, sent = trial.runs(), Sent.of(trial.log)
    late = sorted(runs.first[i] - sent.confirmed_at[i] - 5 for i in good if i in runs.first)
    ran = len(set(good) & set(runs.finished))
    trial.line.note = f"{ran} in time, at most {max(late, default=0):.1f} s late; {kept} kept as undeliverable"
    trial.line.figures |= {"kept": kept, "good_executed": ran, "doomed": len(lost)}
    if trial.ours:
        trial.require(kept == count, f"{kept} of {count} in {UNDELIVERABLE}")
        trial.require(ran == count, f"{ran} of {count} good ones ran")


@each("two-beats", f"two beats at once, a tick every {TICK} s")
def two_beats(trial: Trial) -> None:
    """One tick, one task, whoever sends it."""
    trial.start()
    beats = [beat(trial, number) for number in range(2)]
    try:
        awaited(lambda: trial.finished() >= 3, 40)
        begun, before = time.time(), trial.finished()
        time.sleep(8 * TICK)
        seconds, ticks = time.time() - begun, trial.finished() - before
    finally:
        for process in beats:
            process.stop()
    expected = seconds / TICK
    trial.settle(20)
    trial.line.figures |= {"expected": round(expected, 1), "ticks": ticks}
    trial.line.note = f"{ticks} ticks in {seconds:.0f} s, {expected:.0f} wanted"
    if trial.ours:
        trial.require(abs(ticks - expected) <= 2, f"{ticks} ticks, {expected:.0f} wanted")


def beat(trial: Trial, number: int) -> Worker:
    """A beat with a schedule file of its own."""
    app = "workers.app" if trial.ours else "tests.faults.control"
    schedule = trial.folder / f"beat-{number}"
    command = [sys.executable, "-m", "celery", "-A", app, "beat", "--schedule", str(schedule), "--pidfile="]
    environment = trial.lab.environment("beat") if trial.ours else {**trial.side.environment(), "STOCK_TICK": str(TICK)}
    return Worker(command, environment, Path(trial.folder / f"beat-{number}.log"))
