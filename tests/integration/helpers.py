"""Looking into a running stack."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from queues.app import WarrenCelery, create_app
from queues.settings import Settings

if TYPE_CHECKING:
    from ops.local import Stack

Found = TypeVar("Found")
#: Runs `warren` with arguments.
Run = Callable[..., subprocess.CompletedProcess[str]]

PROJECT = Path(__file__).parents[2]
#: Seconds after which something that should happen has not.
PATIENCE = 120.0
#: Apps to close when the test ends.
OPENED: list[WarrenCelery] = []


def awaited(look: Callable[[], Found], patience: float = PATIENCE) -> Found:
    """Look until what is seen is true; the last sight otherwise, for the assertion to show."""
    limit = time.monotonic() + patience
    while True:
        found = look()
        if found or time.monotonic() > limit:
            return found
        time.sleep(0.05)


def lines(log: Path) -> list[dict[str, Any]]:
    """What a worker has logged, but for what others print there."""
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]


@contextlib.contextmanager
def alarmed(stack: Stack) -> Iterator[None]:
    """A memory alarm."""
    stack.broker.ctl("set_vm_memory_high_watermark", "0.00001")
    try:
        yield
    finally:
        calm(stack)


def calm(stack: Stack) -> None:
    """End a memory alarm."""
    stack.broker.ctl("set_vm_memory_high_watermark", "0.4")


def acting_as(stack: Stack, role: str, **changes: str) -> WarrenCelery:
    """An app with another role's rights."""
    app = create_app(Settings.from_env({**stack.environment(role), **changes}), name=f"test-{role}")
    OPENED.append(app)
    return app


def messages(app: WarrenCelery, queue: str) -> list[Any]:
    """All messages of a queue, put back when they have been looked at."""
    with app.connection_for_read() as connection, connection.channel() as channel:
        found = []
        while (message := channel.basic_get(queue)) is not None:
            found.append(message)
        return found


def consumers(app: WarrenCelery, queue: str) -> int:
    """How many consume a queue now, from the queue itself and not from statistics."""
    with app.connection_for_read() as connection, connection.channel() as channel:
        count: int = channel.queue_declare(queue, passive=True).consumer_count
        return count


def ready(app: WarrenCelery, queue: str) -> int:
    """How many messages wait in a queue now, from the queue itself and not from statistics."""
    with app.connection_for_read() as connection, connection.channel() as channel:
        count: int = channel.queue_declare(queue, passive=True).message_count
        return count


def dead_letter(stack: Stack, queue: str, task_id: str) -> Any:
    """The dead letter of a task, awaited."""
    operator = acting_as(stack, "operator")

    def look() -> Any:
        found = [message for message in messages(operator, f"{queue}.dead") if message.headers.get("id") == task_id]
        return found[0] if found else None

    return awaited(look)


def processes(text: str) -> dict[int, str]:
    """Running processes whose command line, environment or folder holds a text, by pid."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            command = (folder / "cmdline").read_bytes()
            everything = command + (folder / "environ").read_bytes() + str((folder / "cwd").readlink()).encode()
        except OSError:
            continue
        if text.encode() in everything:
            found[int(folder.name)] = command.replace(b"\0", b" ").decode(errors="replace").strip()
    return found


def children(pid: int) -> list[int]:
    """A process's children."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def start(environment: dict[str, str], *arguments: str, log: Path, app: str = "workers.app") -> subprocess.Popen[bytes]:
    """A worker or beat as a process; what it prints goes into the log."""
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", app, *arguments],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT), **environment},
            cwd=log.parent,
            stdout=output,
            stderr=output,
        )


def ended(process: subprocess.Popen[bytes], patience: float = 60) -> int:
    """The exit code of a process that should end on its own."""
    try:
        return process.wait(patience)
    finally:
        process.kill()
        process.wait()
