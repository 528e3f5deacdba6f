"""Images per second through RabbitMQ, against the pure function in as many processes on the same cores."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

from ops.local import Stack
from queues.app import create_app
from queues.settings import Settings
from queues.topology import QUEUES
from tests.benchmarks.guard import cpu
from workers.imaging import process_image
from workers.storage import LocalStorage

#: Images of one measurement.
IMAGES = 120
#: Seconds that a measurement may take.
PATIENCE = 300


def end_to_end(sources: dict[str, Path], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Measure in turn; images per second between the first and the last file that is written.

    Args:
        sources: files by name.
        rounds: how often each is measured.
    """
    found: dict[str, dict[str, list[float]]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="warren-bench-") as folder,
        Stack(Path(folder) / "stack", only=("worker-image",)) as stack,
    ):
        stack.start()
        for source in sources.values():
            LocalStorage(stack.images).write(source.name, source.read_bytes())
        for round_number in range(rounds + 1):
            for source in sources.values():
                name = f"{source.name} → 800×600, {QUEUES.queue('image').concurrency} processes"
                before = spent(stack)
                seen = {"pure": rate(stack.images, through_processes(stack.images, source.name))}
                between = spent(stack)
                seen["broker"] = rate(stack.images, through_broker(stack, source.name))
                after = spent(stack)
                seen["pure_cpu_ms"] = (between["pure"] - before["pure"]) / IMAGES * 1000
                for part in ("worker", "rabbitmq"):
                    seen[f"{part}_cpu_ms"] = (after[part] - between[part]) / IMAGES * 1000
                if round_number:  # the first warms up
                    for figure, value in seen.items():
                        found.setdefault(name, {}).setdefault(figure, []).append(value)
                    print(name, {figure: round(value, 1) for figure, value in seen.items()}, file=sys.stderr)
    return found


def spent(stack: Stack) -> dict[str, float]:
    """CPU seconds until now: of finished children of this process, the image worker with its pool, and RabbitMQ."""
    finished = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "pure": finished.ru_utime + finished.ru_stime,
        "worker": cpu(stack.processes.pid("worker-image")),
        "rabbitmq": cpu(stack.processes.pid("broker")),
    }


def rate(images: Path, outputs: list[str]) -> float:
    """Results per second, from their modification times, without those that the start delayed."""
    written = sorted((images / name).stat().st_mtime_ns for name in outputs)
    steady = written[len(written) // 10 :]
    for name in outputs:
        (images / name).unlink()
    return (len(steady) - 1) / (steady[-1] - steady[0]) * 1e9


def through_processes(images: Path, source: str) -> list[str]:
    """The pure function, in as many processes as the worker has."""
    outputs = [f"pure/{number}.jpg" for number in range(IMAGES)]
    workers = QUEUES.queue("image").concurrency
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=resize_all, args=(images, source, outputs[index::workers])) for index in range(workers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
        assert process.exitcode == 0
    return outputs


def resize_all(images: Path, source: str, outputs: list[str]) -> None:
    """What one process does."""
    storage = LocalStorage(images)
    for output in outputs:
        process_image(storage, source, [800, 600], output=output)


def through_broker(stack: Stack, source: str) -> list[str]:
    """The task, as a producer sends it: all are in the queue before most are done."""
    outputs = [f"broker/{number}.jpg" for number in range(IMAGES)]
    with create_app(Settings.from_env(stack.environment("producer")), name="warren-bench") as app:
        sent = [app.send_task("image.process_image", [source, [800, 600]], {"output": output}).id for output in outputs]
        limit = time.monotonic() + PATIENCE
        while not all((stack.images / output).exists() for output in outputs):
            if time.monotonic() > limit:
                raise TimeoutError(f"not all of {len(sent)} images were made: see {stack.folder / 'log'}")
            time.sleep(0.2)
    os.sync()
    return outputs
