"""What guard, measuring and ledger cost: CPU seconds of the worker, its main process and its children, per no-op task.

Run by `make bench-guard`. Each round starts every variant once, in turn, on the same broker and result store; a
variant's cost is its median over the rounds, relative to the worker without guard and measuring.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ops.local import Stack
from ops.processes import clean_environment
from queues.app import WarrenCelery, create_app
from queues.settings import Settings
from queues.topology import QUEUES

if TYPE_CHECKING:
    from collections.abc import Iterator

VARIANTS = ("stock", "unmetered", "warren", "once")
RESULTS = Path(__file__).parent / "results" / "guard.jsonl"
PATIENCE = 180.0
TICK = os.sysconf("SC_CLK_TCK")


def cpu(pid: int) -> float:
    """CPU seconds of a process, its children included, dead or alive."""
    pids = [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    fields = [Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split() for one in pids]
    ticks = sum(int(field[11]) + int(field[12]) for field in fields) + int(fields[0][13]) + int(fields[0][14])
    return ticks / TICK


def wait_for(condition: Any, what: str) -> None:
    limit = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > limit:
            raise TimeoutError(what)
        time.sleep(0.05)


@contextlib.contextmanager
def worker_of(stack: Stack, variant: str, queue: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker with parts taken out, see `tests.benchmarks.variants`, from when it consumes until it has ended."""
    beat = stack.folder / f"bench-{variant}.alive"
    beat.unlink(missing_ok=True)
    settings = {**stack.environment(QUEUES.queue(queue).user), "BENCH_VARIANT": variant, "HEARTBEAT_FILE": str(beat)}
    command = (sys.executable, "-m", "celery", "-A", "tests.benchmarks.variants", "worker", "-Q", queue)
    with (stack.folder / "log" / f"bench-{variant}.log").open("ab") as log:
        worker = subprocess.Popen(
            (*command, "--loglevel", "WARNING"),
            env={**clean_environment(), **settings},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        wait_for(beat.exists, f"{variant} did not start: see {log.name}")
        yield worker
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.wait(PATIENCE)


def measure(stack: Stack, app: WarrenCelery, variant: str, count: int) -> dict[str, Any]:
    """Start the variant, let it run the tasks, and see what they cost."""
    with worker_of(stack, variant, "math") as worker:
        app.send_task("math.add", [1, 2]).get(timeout=PATIENCE)
        before, begun = cpu(worker.pid), time.perf_counter()
        last = [app.send_task("math.add", [number, 1]) for number in range(count)][-1]
        last.get(timeout=PATIENCE)
        wait_for(lambda: drained(app, "math"), "the queue did not drain")
        took, spent = time.perf_counter() - begun, cpu(worker.pid) - before
    return {"variant": variant, "cpu_ms": spent / count * 1000, "per_s": count / took, "count": count}


def drained(app: WarrenCelery, queue: str) -> bool:
    """Whether no message waits."""
    with app.connection_for_read() as connection, connection.channel() as channel:
        return bool(channel.queue_declare(queue, passive=True).message_count == 0)


def report(rounds: list[dict[str, Any]]) -> str:
    """A table: median and quartiles of the CPU of a task, and what each variant adds."""
    columns = ("variant", "CPU ms/task", "quartiles", "to stock", "to the one above", "tasks/s")
    lines = ["{:<12}{:>12}{:>16}{:>10}{:>18}{:>9}".format(*columns)]
    by_round = {name: [one["cpu_ms"] for one in rounds if one["variant"] == name] for name in VARIANTS}
    above = ""
    for name in VARIANTS:
        values = by_round[name]
        low, middle, high = statistics.quantiles(values, n=4)
        ratios = [100 * (value / other - 1) for value, other in zip(values, by_round["stock"], strict=True)]
        steps = [100 * (value / other - 1) for value, other in zip(values, by_round[above or name], strict=True)]
        rate = statistics.median(one["per_s"] for one in rounds if one["variant"] == name)
        lines.append(
            f"{name:<12}{middle:>12.3f}{f'{low:.3f}-{high:.3f}':>16}{statistics.median(ratios):>+9.1f}%"
            f"{statistics.median(steps):>+17.1f}%{rate:>9.0f}"
        )
        above = name
    return "\n".join(lines)


def main() -> None:
    """Run the rounds, keep the raw figures, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--tasks", type=int, default=1500)
    options = parser.parse_args()
    rounds = []
    with tempfile.TemporaryDirectory(prefix="warren-bench-") as folder, Stack(Path(folder) / "home") as stack:
        stack.prepare()
        stack.broker.start()
        try:
            environment = {**stack.environment("operator"), "BROKER_HOSTS": f"127.0.0.1:{stack.broker.ports.amqps}"}
            with create_app(Settings.from_env(environment)) as app:
                for number in range(options.rounds):
                    for variant in VARIANTS[number % 4 :] + VARIANTS[: number % 4]:
                        rounds.append({"round": number, **measure(stack, app, variant, options.tasks)})
                        print(json.dumps(rounds[-1]), file=sys.stderr, flush=True)
        finally:
            stack.broker.stop()
    about = {name: version(name) for name in ("celery", "kombu", "amqp", "billiard", "SQLAlchemy")}
    about |= {"python": platform.python_version(), "cores": str(os.cpu_count())}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("".join(json.dumps(line) + "\n" for line in ({"about": about}, *rounds)), encoding="utf-8")
    print(report(rounds))


if __name__ == "__main__":
    main()
