"""Workers started as people start them: with options that others document, and as a part of other programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.cases.bench import case
from tests.faults.worker import Worker
from tests.integration.helpers import awaited

if TYPE_CHECKING:
    from tests.cases.bench import Bench

OPTIONS: dict[str, tuple[str, ...]] = {
    "none": (),
    "more processes": ("-c", "5"),
    "autoscale": ("--autoscale=4,1",),
    "prefetch": ("--prefetch-multiplier=10",),
    "an own limit": ("--time-limit=1",),
    "an own recycling": ("--max-tasks-per-child=1",),
    "a beat": ("-B",),
    "purge": ("--purge",),
    "events": ("-E",),
    "fair": ("-O", "fair"),
    "threads": ("-P", "threads"),
    "solo": ("-P", "solo"),
    "a log file": ("-f", "/nowhere/worker.log"),
    "debug": ("-l", "debug"),
    "no heartbeat": ("--without-heartbeat",),
    "another queue": ("-Q", "math"),
    "without a queue": ("-X", "cases"),
}


@case("options", "options of a worker: the table's own, or a sentence and exit code 2; what waits is kept")
def options(bench: Bench) -> None:
    for name, words in OPTIONS.items():
        sent = [bench.send("cases.echo", n) for n in range(3)]
        worker = bench.start("cases", *words)
        awaited(lambda worker=worker: worker.exits or bench.consuming("cases", 0), 40)  # type: ignore[misc]
        ended = [] if worker.exits else [bench.ended(result, 20) for result in sent]
        processes, exits = len(worker.children()), list(worker.exits)
        bench.stop("cases")
        text = bench.log("cases")
        if exits:
            sentence = (
                "a sentence, exit code 2" if {*exits} == {2} and "Traceback" not in text else f"exit codes {exits}"
            )
            kept = bench.ready("cases")
            came = sentence if kept == len(sent) else f"{sentence}, {kept} of {len(sent)} tasks kept"
        else:
            came = f"{processes} processes, {[*range(3)] if ended == ['0', '1', '2'] else ended}"
        should = "2 processes, [0, 1, 2]"
        bench.expect(name, should, should if came == "a sentence, exit code 2" else came)
        (bench.folder / "options-cases.log").rename(bench.folder / f"options-{name.replace(' ', '-')}.log")
        bench.purge()


@case("surroundings", "few and many files, an odd locale, zone and folder")
def surroundings(bench: Bench) -> None:
    for name, before in {
        "64 files": "ulimit -n 64",
        "many files": "ulimit -n $(ulimit -Hn)",
        "locale C": "export LANG=C LC_ALL=C",
        "no HOME, another zone": "unset HOME; export TZ=Asia/Kathmandu",
        "no rights for others, another folder": "umask 077; cd /",
        "optimised": "export PYTHONOPTIMIZE=1",
    }.items():
        worker = bench.start("cases")
        command, environment, log = worker.command, worker.environment, worker.log
        bench.stop("cases")
        # The folder is not on Python's path any more where it is another.
        shell = ["bash", "-c", f'export PYTHONPATH="$PWD"; {before}; exec "$@"', "bash", *command]
        bench.workers["cases"] = Worker(shell, environment, log)
        bench.consuming("cases")
        bench.expect(name, "'works'", bench.works())


FIXTURE = """
from celery.contrib.testing.worker import start_worker
from workers.app import app
with start_worker(app, queues=["cases"], concurrency=1, pool=app.conf.worker_pool, perform_ping_check=False):
    print(app.send_task("cases.echo", ["runs"]).get(timeout=20))
"""
IMPORTED = """
from celery import Celery
import workers.app
other = Celery("another", broker="memory://")
other.Worker(pool_cls="solo", quiet=True)
print("made")
"""


@case("embedded", "a worker as a part of another program: Celery's test fixture, and beside another app")
def embedded(bench: Bench) -> None:
    bench.expect("Celery's start_worker", "runs", bench.script(FIXTURE, role="worker-cases"))
    bench.expect("another app's worker", "made", bench.script(IMPORTED, role="worker-cases"))


@case("classes", "tasks with classes of their own: each has the guard", "classes")
def classes(bench: Bench) -> None:
    for name in ("registered", "based", "shared"):
        good, bad = bench.send(f"classes.{name}", "works"), bench.send(f"classes.{name}", "fail")
        bench.expect(name, "'works'", bench.ended(good, 10))
        bench.expect(f"{name}, a failure", "ValueError: asked to fail", bench.ended(bad, 10))
        awaited(lambda task_id=bad.id: bench.letter(task_id, "classes") != "none", 5)  # type: ignore[misc]
        bench.expect(f"{name}, its dead letter", "exception", bench.letter(bad.id, "classes"))
