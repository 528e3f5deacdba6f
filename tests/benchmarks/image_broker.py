"""Images per second through RabbitMQ, against the pure function in as many processes on the same cores.

Results are stored as a deployment stores them, in Redis or Valkey with TLS; RabbitMQ and that store run on the same
cores as the workers. The producer is usually elsewhere: it has sent all before the rate is taken.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ops.local import Stack
from queues.app import create_app
from queues.settings import Settings
from queues.topology import QUEUES
from tests.benchmarks.guard import cpu, drained, wait_for, worker_of
from tests.resultserver import ResultServer
from workers.imaging import process_image
from workers.storage import LocalStorage

if TYPE_CHECKING:
    import subprocess

#: Images of one measurement.
IMAGES = 150
#: Seconds that a measurement may take.
PATIENCE = 300


class Storing(Stack):
    """A stack that stores its results in a server, and starts no worker of its own."""

    def __init__(self, folder: Path, results: ResultServer) -> None:
        super().__init__(folder, only=())
        self.results = results

    def environment(self, role: str) -> dict[str, str]:
        """The settings of a role; a producer that asks for no result need not know where it is."""
        return {**super().environment(role), **(self.results.environment() if role == "worker-image" else {})}


def end_to_end(sources: dict[str, Path], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Measure the function, Celery's own worker and ours in turn.

    Args:
        sources: files by name.
        rounds: how often each is measured.

    Returns:
        By source: images per second, and milliseconds of CPU an image, of each and of each part.
    """
    found: dict[str, dict[str, list[float]]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="warren-bench-") as folder,
        ResultServer(Path(folder) / "results") as results,
        Storing(Path(folder) / "stack", results) as stack,
    ):
        stack.start()
        for source in sources.values():
            LocalStorage(stack.images).write(source.name, source.read_bytes())
        for number in range(rounds + 1):
            seen = {source.name: pure(stack.images, source.name) for source in sources.values()}
            for variant in ("stock", "warren") if number % 2 else ("warren", "stock"):
                with worker_of(stack, variant, "image") as worker:
                    for source in sources.values():
                        seen[source.name] |= through_broker(stack, worker, variant, source.name)
            for photo, figures in seen.items() if number else ():  # the first warms up
                name = f"{photo} → 800×600, {QUEUES.queue('image').concurrency} processes"
                for figure, value in figures.items():
                    found.setdefault(name, {}).setdefault(figure, []).append(value)
                print(name, {figure: round(value, 1) for figure, value in figures.items()}, file=sys.stderr)
    return found


def rate(images: Path, outputs: list[str], begun_ns: int) -> float:
    """Results per second from their modification times, of those that were written after a moment."""
    written = sorted((images / name).stat().st_mtime_ns for name in outputs)
    steady = [moment for moment in written if moment > begun_ns]
    assert len(steady) > len(written) / 2, "most were made before all were sent: send more"
    for name in outputs:
        (images / name).unlink()
    return (len(steady) - 1) / (steady[-1] - steady[0]) * 1e9


def pure(images: Path, source: str) -> dict[str, float]:
    """The function alone, in as many processes as the worker has."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    outputs = [f"pure/{number}.jpg" for number in range(IMAGES)]
    workers = QUEUES.queue("image").concurrency
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=resize_all, args=(images, source, outputs[index::workers])) for index in range(workers)
    ]
    for process in processes:
        process.start()
    begun = time.time_ns()
    for process in processes:
        process.join(PATIENCE)
        assert process.exitcode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"pure": rate(images, outputs, begun), "pure_cpu_ms": spent / IMAGES * 1000}


def resize_all(images: Path, source: str, outputs: list[str]) -> None:
    """What one process does."""
    storage = LocalStorage(images)
    for output in outputs:
        process_image(storage, source, [800, 600], output=output)


def through_broker(stack: Storing, worker: subprocess.Popen[bytes], variant: str, source: str) -> dict[str, float]:
    """The task, as a producer sends it."""
    parts = {
        "worker": worker.pid,
        "rabbitmq": stack.processes.pid("broker"),
        "results": stack.results.process.pid,
    }
    before = {part: cpu(pid) for part, pid in parts.items()}
    outputs = [f"broker/{number}.jpg" for number in range(IMAGES)]
    with create_app(Settings.from_env(stack.environment("producer")), name="warren-bench") as app:
        for output in outputs:
            app.send_task("image.process_image", [source, [800, 600]], {"output": output})
        begun = time.time_ns()
        wait_for(
            lambda: all((stack.images / output).exists() for output in outputs),
            f"not all images were made with {variant}",
        )
        wait_for(lambda: drained(app, "image"), "the queue did not drain")
    found = {variant: rate(stack.images, outputs, begun)}
    for part, pid in parts.items():
        found[f"{variant}_{part}_cpu_ms"] = (cpu(pid) - before[part]) / IMAGES * 1000
    return found
