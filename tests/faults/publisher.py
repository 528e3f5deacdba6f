"""Publishes one task in a process of its own, to be killed while it does: `python -m tests.faults.publisher SIDE`.

Each line of standard input is a task id: a fork of this process connects, says so, and publishes at SIGUSR1.
"""

from __future__ import annotations

import os
import signal
import sys
import uuid
from typing import Any

from queues.app import create_app
from queues.settings import Settings
from tests.faults import control, journal


def main() -> None:
    """Fork for each line until standard input ends; with a number behind, publish so many tasks and end."""
    side, log, task, *count = sys.argv[1:]
    if count:
        app = make_app(side)
        for _ in range(int(count[0])):
            send(app, log, task, str(uuid.uuid4()))
        return
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            publish(side, log, task, line.strip())
            os._exit(0)
        os.waitpid(pid, 0)
        print("over", flush=True)


def publish(side: str, log: str, task: str, task_id: str) -> None:
    """Publish one task, wait for the signal, publish another."""
    # Blocked before anybody knows of this process: the signal waits for `sigwait`.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    app = make_app(side)
    # The first publish opens the channel that the second one finds.
    send(app, log, task, str(uuid.uuid4()))
    print(f"ready {os.getpid()}", flush=True)
    signal.sigwait({signal.SIGUSR1})
    send(app, log, task, task_id)


def make_app(side: str) -> Any:
    """The app of a producer, from the environment."""
    return control.create_app(os.environ) if side == "stock" else create_app(Settings.from_env(os.environ))


def send(app: Any, log: str, task: str, task_id: str) -> None:
    """Publish, with the outcome in the log."""
    journal.append(log, id=task_id, outcome="sending", task=task)
    try:
        app.send_task(task, [0.0], task_id=task_id)
    except Exception as exc:  # noqa: BLE001 - the log tells
        journal.append(log, id=task_id, outcome="unknown", error=str(exc))
    else:
        journal.append(log, id=task_id, outcome="confirmed")


if __name__ == "__main__":
    main()
