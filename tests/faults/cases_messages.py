"""Messages that no worker can run, and tasks that end their process."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from tests.faults import messages
from tests.faults.registry import each

if TYPE_CHECKING:
    from tests.faults.trial import Trial

#: Of the random bodies; another seed finds others.
SEED = 20261124
#: Runs of a task that ends its process: the first, and as many more as the limit for such deaths.
POISON_RUNS = 3
#: Bytes that the parent's memory may grow by over a bomb of 300 MB.
BOMB_MARGIN = 30 * 1024 * 1024


@each("malformed", "the 14 malformed messages, a good task behind each", smoke=True)
def malformed(trial: Trial) -> None:
    """Each is a dead letter, and the worker lives on."""
    trial.start()
    for body, headers, properties in messages.malformed().values():
        trial.guilty.add(trial.producer.put(body, headers, **properties))
        trial.send()
    trial.settle(40)
    if trial.ours:
        trial.require(trial.finished() == 14, f"{trial.finished()} of 14 good tasks ran")


@each("random", "1000 random bodies and headers from a seed, 20 good tasks among them")
def random_bodies(trial: Trial) -> None:
    """Some of them are tasks after all, and run."""
    trial.start()
    for number, (body, headers) in enumerate(messages.noise(trial.times(1000, 200), SEED)):
        trial.guilty.add(trial.producer.put(body, headers))
        if number % 50 == 0:
            trial.send()
    trial.settle(40 if not trial.ours else 90, quiet=12)


@each(
    "poison", "tasks that kill their process, exit, segfault or raise MemoryError, 20 good tasks among them", smoke=True
)
def poison(trial: Trial) -> None:
    """Each is tried within a limit, and ends as a dead letter; the others run."""
    trial.start()
    for how in ("kill", "exit", "memory", "segfault"):
        task_id = str(uuid.uuid4())
        trial.guilty.add(task_id)
        trial.send("faults.die", (how,), task_id=task_id)
        for _ in range(5):
            trial.send(args=(0.05,))
            # The other process runs one of these while the poison ends its own.
    trial.settle(60, quiet=10)
    runs = max((trial.runs().started[task_id, 0] for task_id in trial.guilty), default=0)
    trial.line.note = f"the poison ran at most {runs} times"
    if trial.ours:
        trial.require(trial.finished() == 20, f"{trial.finished()} of 20 good tasks ran")
        trial.require(runs <= POISON_RUNS, f"a task that kills its process ran {runs} times")


@each("unknown-task", "20 tasks of a newer producer that this worker does not know, 20 good ones among them")
def unknown_task(trial: Trial) -> None:
    """They are kept for the newer worker."""
    trial.start()
    for _ in range(20):
        trial.guilty.add(trial.producer.put(messages.BODY, messages.headers(task="faults.newer")))
        trial.send()
    trial.settle(40)


@each("oversized", "arguments of 1 MB (10 of them), 15 MB and 17 MB")
def oversized(trial: Trial) -> None:
    """Taken and run, or refused: RabbitMQ 4 takes 16 MiB, and closes the channel over more."""
    trial.start()
    outcomes = [trial.send("faults.swallow", ("x" * 1_000_000,)) for _ in range(10)]
    outcomes += [trial.send("faults.swallow", ("x" * size,)) for size in (15_000_000, 17_000_000)]
    trial.send()
    trial.settle(60)
    trial.line.note = f"17 MB {outcomes[-1]}"
    if trial.ours:
        trial.require(outcomes[-1] == "refused", f"17 MB were {outcomes[-1]}")


@each("bomb", "242 bytes that decompress to 300 MB")
def bomb(trial: Trial) -> None:
    """The main process must not do it."""
    trial.start()
    trial.send()
    trial.await_finished(1)
    before = trial.workers[0].memory()
    trial.guilty.add(trial.producer.put(messages.bomb(), messages.headers(compression="application/x-bz2")))
    for _ in range(5):
        trial.send()
    trial.await_finished(6, 30)
    grown = max(0, trial.workers[0].memory() - before)
    trial.settle(30)
    trial.line.note = f"the worker's memory grew by {grown / 2**20:.0f} MB"
    if trial.ours:
        trial.require(grown < BOMB_MARGIN, f"the worker's memory grew by {grown} bytes")
