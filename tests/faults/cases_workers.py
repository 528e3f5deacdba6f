"""Faults of workers: killed, stopped, replaced."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.faults.registry import at_once, each

if TYPE_CHECKING:
    from tests.faults.trial import Trial


@each("kill-child", "kill -9 of a process that runs tasks, 20 times", bound=260, smoke=True)
def kill_child(trial: Trial) -> None:
    """Under load, each kill after the last one's place was taken."""
    trial.start()
    kills = trial.times(20, 5)
    trial.load(kills * 50, 100, args=(0.01,))
    trial.load_once(kills * 8, 16)
    trial.await_finished(20)
    for _ in range(kills):
        if trial.kill_child():
            trial.allowed += 1
        trial.await_next(trial.healed())
        time.sleep(0.15)
    # The ledger takes a killed process's claim for live until its lease is over.
    trial.settle(150)


@at_once("kill-parent", "kill -9 of a worker's main process, 5 times", bound=260)
def kill_parent(trial: Trial) -> None:
    """The children end with it, and the container's restart policy starts it again."""
    trial.start()
    kills = 5
    trial.load(1000, 60, args=(0.01,))
    trial.load_once(200, 12)
    trial.await_finished(20)
    for _ in range(kills):
        trial.workers[0].kill()
        trial.allowed += 2
        trial.await_next(trial.healed() + 0.5, 60)
    trial.settle(150)


#: Seconds within which an idle worker ends.
IDLE_END = 2.0


@each("sigterm", "SIGTERM under load, tasks of 1 s, and to a worker that has nothing more to do")
def sigterm(trial: Trial) -> None:
    """What runs ends, what waits stays in the queue for the next worker."""
    trial.start()
    trial.load(30, 60, args=(1.0,))
    trial.await_finished(4)
    (code, seconds), *_ = trial.stop()
    trial.start()
    trial.settle()
    # A full queue worked off, and then nothing.
    trial.load(400, 2000, args=(0.0,)).join(60)
    trial.settle()
    (idle_code, idle_seconds), *_ = trial.stop(60)
    trial.line.note = f"exit {code} after {seconds:.1f} s; idle: exit {idle_code} after {idle_seconds:.1f} s"
    trial.line.figures |= {"stop_seconds": round(seconds, 2), "idle_stop_seconds": round(idle_seconds, 2)}
    if trial.ours:
        trial.require(code == 0 and idle_code == 0, f"exit codes {code} and {idle_code}")
        trial.require(idle_seconds <= IDLE_END, f"an idle worker took {idle_seconds:.1f} s to end")


@at_once("rolling-restart", "two workers replaced in turn under load, 20 times", bound=400)
def rolling_restart(trial: Trial) -> None:
    """A rollout: SIGTERM, wait, start, then the next."""
    trial.start(2)
    restarts = 20
    trial.load(100_000, 20, args=(0.02,))
    trial.await_finished(20)
    longest = 0.0
    for number in range(restarts):
        longest = max(longest, trial.workers[number % 2].restart())
        trial.healed()
        trial.await_consumers(2)
    trial.line.note = f"longest stop {longest:.1f} s"
    for load in trial.loads:
        load.stop()
    trial.settle()
