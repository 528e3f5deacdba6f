"""`make demo`: real work through every queue of an embedded stack, each outcome checked and shown."""

from __future__ import annotations

import email
import email.policy
import os
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import chord, group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from ops import session
from ops.definitions import OPERATOR
from ops.errors import INTERRUPTED
from ops.local import Stack
from ops.processes import StoppedError
from ops.signals import until_signalled
from queues import tasks
from queues.app import create_app
from queues.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from queues.app import WarrenCelery

PHOTOS = Path(__file__).parent.parent / "examples" / "photos"
SIZE = [320, 320]
PATIENCE = 60
STARTED = 'celery_task_started_total{queue="image",task="image.process_image"}'
DEAD = 'celery_dead_letter_messages{queue="math"}'
#: What a person looks for first in the exporter's answer.
INTERESTING = (
    'celery_queue_messages_ready{queue="math"}',
    'celery_queue_consumers{queue="image"}',
    DEAD,
    STARTED,
    'celery_task_queue_wait_seconds_sum{queue="math",task="math.add"}',
    'celery_task_runtime_seconds_count{outcome="succeeded",queue="email",task="email.send_email"}',
)


@dataclass
class Report:
    """What was done, and whether it came out as it should."""

    rows: list[tuple[str, str, str, bool]] = field(default_factory=list)

    def add(self, queue: str, what: str, outcome: object, *, good: bool) -> None:
        """Note one piece of work."""
        self.rows.append((queue, what, str(outcome), good))

    @property
    def failures(self) -> int:
        """How many came out otherwise."""
        return sum(not good for *_, good in self.rows)

    def table(self) -> Table:
        """A table for a person."""
        table = Table(title="What Warren did", title_justify="left", header_style="bold")
        for column in ("queue", "work", "outcome", ""):
            table.add_column(column, overflow="fold")
        for queue, what, outcome, good in self.rows:
            table.add_row(queue, what, outcome, "[green]✓[/]" if good else "[bold red]✗[/]")
        return table


def run(console: Console) -> int:
    """Start the stack, do the work, print what happened.

    Returns:
        The process's exit code: 0 where everything came out as expected.
    """
    began = time.monotonic()
    with until_signalled() as signalled, Stack(session.home() / "demo") as stack:
        stack.heed(signalled)
        try:
            with console.status("starting") as spinner:
                stack.start(lambda step: spinner.update(f"starting {step}"))
        except StoppedError:
            console.print("stopping")
            raise
        up = time.monotonic() - began
        console.print(
            f"RabbitMQ (TLS), {len(stack.services()) - 2} Celery and exporter processes, a mail server: "
            f"up in [bold]{up:.1f} s[/]"
        )
        os.environ.update(stack.environment("producer"))
        report = Report()
        try:
            with signalled.raised():
                for part in PARTS:
                    if signalled():
                        raise KeyboardInterrupt
                    part(report, stack, console)
        except KeyboardInterrupt:
            console.print("stopping")
            return INTERRUPTED
        console.print(report.table())
        console.print(f"thumbnails: {stack.images}")
        for line in interesting_lines(stack):
            console.print(line, style="dim", highlight=False, soft_wrap=True)
        console.print("stopping")
    seconds = time.monotonic() - began
    verdict = (
        "everything as expected"
        if not report.failures
        else f"{report.failures} not as expected: see {stack.folder / 'log'}"
    )
    console.print(f"{verdict}, [bold]{seconds:.1f} s[/] in all")
    return 1 if report.failures else 0


def attempt(report: Report, queue: str, what: str, work: Callable[[], tuple[object, bool]]) -> None:
    """Do one piece of work; whatever it raises is its outcome."""
    try:
        outcome, good = work()
    except Exception as exc:  # noqa: BLE001 - shown in the table, and the exit code
        outcome, good = f"{type(exc).__name__}: {exc}", False
    report.add(queue, what, outcome, good=good)


_background: dict[str, Any] = {}


def before(_report: Report, stack: Stack, _console: Console) -> None:
    """The exporter's totals outlive a stop of the stack: what this run adds is counted from here."""
    _background["counted"] = sample(stack, STARTED) or 0.0


def failures_in_background(_report: Report, _stack: Stack, _console: Console) -> None:
    """A task that fails once and one that always does: the broker's delay and its statistics take seconds."""
    _background["retry"] = tasks.reliable_task({"fail_times": 1})
    _background["poisoned"] = tasks.reliable_task({"fail": True})


def sums(report: Report, _stack: Stack, _console: Console) -> None:
    """A chain, a group and a chord."""

    def chain() -> tuple[object, bool]:
        value = (tasks.add.s(2, 3) | tasks.multiply.s(10)).apply_async().get(timeout=PATIENCE)
        return value, value == 50

    def many() -> tuple[object, bool]:
        values = group(tasks.add.s(i, i) for i in range(20)).apply_async().get(timeout=PATIENCE)
        return f"{len(values)} results, the last {values[-1]}", values == [2 * i for i in range(20)]

    def fan_in() -> tuple[object, bool]:
        value = chord([tasks.multiply.s(i, i) for i in range(10)])(tasks.xsum.s()).get(timeout=PATIENCE)
        return value, value == 285

    attempt(report, "math", "chain: (2 + 3) × 10", chain)
    attempt(report, "math", "group of 20 sums", many)
    attempt(report, "math", "chord: sum of 10 squares", fan_in)


def progress(report: Report, _stack: Stack, console: Console) -> None:
    """A long task, its progress watched from here."""

    def watch() -> tuple[object, bool]:
        running = tasks.long_task(3)
        seen: list[int] = []
        limit = time.monotonic() + PATIENCE
        bar = ProgressBar(total=3, width=40)
        with Live(bar, console=console, transient=True, refresh_per_second=8):
            while not running.ready() and time.monotonic() < limit:
                now = tasks.status(running.id)
                if now["state"] == "PROGRESS" and now["info"]["current"] not in seen:
                    seen.append(now["info"]["current"])
                    bar.update(seen[-1])
                time.sleep(0.1)
        return f"saw {', '.join(f'{step}/3' for step in seen)}, then {running.state}", bool(
            seen
        ) and running.successful()

    attempt(report, "math", "long task of 3 steps, watched", watch)


def photographs(report: Report, stack: Stack, _console: Console) -> None:
    """Real photographs: one turned by EXIF, one with transparency, one WebP."""
    from workers.storage import LocalStorage

    storage = LocalStorage(stack.images)
    photos = sorted(path for path in PHOTOS.iterdir() if path.suffix.lower() in (".jpg", ".png", ".webp"))
    for photo in photos:
        storage.write(photo.name, photo.read_bytes())
    sent = [(photo, tasks.process_image(photo.name, SIZE)) for photo in photos]
    for photo, running in sent:

        def look(running: Any = running) -> tuple[object, bool]:
            done = running.get(timeout=PATIENCE)
            source = done["source"]
            fits = max(done["width"], done["height"]) == max(SIZE) and (stack.images / done["path"]).is_file()
            turned = ", turned upright" if source["orientation"] not in (None, 1) else ""
            shape = f"{source['width']}×{source['height']} → {done['width']}×{done['height']}"
            return f"{shape}, {source['bytes'] // 1024} → {done['bytes'] // 1024} KiB{turned}", fits

        attempt(report, "image", photo.name, look)


def mail(report: Report, stack: Stack, _console: Console) -> None:
    """A mail over verified STARTTLS and AUTH, read where it arrived."""

    def deliver() -> tuple[object, bool]:
        subject = "Grüße aus dem Kaninchenbau"
        sent = tasks.send_email("alice@example.com", subject, "The burrow is dry.\n").get(timeout=PATIENCE)
        for path in stack.mails.glob("*.eml"):
            received = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
            if received["Message-ID"] == sent["message_id"]:
                return f"received by {received['To']}: “{received['Subject']}”", received["Subject"] == subject
        return "sent, but not found in the mailbox", False

    attempt(report, "email", "a mail", deliver)


def poison(report: Report, stack: Stack, _console: Console) -> None:
    """A task that can never succeed ends as FAILURE and as a dead letter."""

    def fail() -> tuple[object, bool]:
        poisoned = _background["poisoned"]
        poisoned.get(timeout=PATIENCE, propagate=False)
        limit = time.monotonic() + PATIENCE
        with create_app(Settings.from_env(stack.environment(OPERATOR)), name="warren-demo") as app:
            # By its id: an earlier run's dead letter is none of ours.
            while poisoned.id not in (dead := dead_ids(app, "math.dead")):
                if time.monotonic() > limit:
                    return f"{poisoned.state}, but no dead letter", False
                time.sleep(0.2)
        while sample(stack, DEAD) != len(dead):
            if time.monotonic() > limit:
                return f"{poisoned.state} and in math.dead, but the exporter has not counted it", False
            time.sleep(0.5)
        return f"{poisoned.state}, and one of {len(dead)} in math.dead", poisoned.state == "FAILURE"

    attempt(report, "math", "a poisoned task", fail)


def dead_ids(app: WarrenCelery, queue: str) -> list[str]:
    """The ids of all messages in a queue of dead letters; they are put back when the channel closes."""
    found = []
    with app.connection_for_read() as connection, connection.channel() as channel:
        while (message := channel.basic_get(queue)) is not None:
            found.append(message.headers.get("id"))
    return found


def retried(report: Report, _stack: Stack, _console: Console) -> None:
    """The task that failed once, in the meantime."""

    def wait() -> tuple[object, bool]:
        done = _background["retry"].get(timeout=PATIENCE)
        return f"succeeded on attempt {done['attempts']}", done["attempts"] == 2

    attempt(report, "math", "a task that fails once, retried by the broker's delay", wait)


def metrics(report: Report, stack: Stack, _console: Console) -> None:
    """The exporter has counted what was done here."""

    def look() -> tuple[object, bool]:
        limit = time.monotonic() + PATIENCE
        expected = sum(queue == "image" for queue, *_ in report.rows)
        while True:
            counted = (sample(stack, STARTED) or 0.0) - _background["counted"]
            if counted >= expected:
                return f"{counted:.0f} image tasks started", counted == expected
            if time.monotonic() > limit:
                return f"{counted:.0f} image tasks started, {expected} expected", False
            time.sleep(0.5)

    attempt(report, "metrics", "the exporter's count", look)


#: In this order: what takes seconds in the background begins first and is looked at last.
PARTS = (before, failures_in_background, sums, progress, photographs, mail, poison, retried, metrics)


def scrape(stack: Stack) -> list[str]:
    """The exporter's answer, a line each."""
    with urllib.request.urlopen(stack.metrics_url, timeout=10) as answer:
        text: str = answer.read().decode()
    return text.splitlines()


def sample(stack: Stack, name: str) -> float | None:
    """One sample's value, or None where the exporter has none."""
    for line in scrape(stack):
        if line.startswith(f"{name} "):
            return float(line.rpartition(" ")[2])
    return None


def interesting_lines(stack: Stack) -> list[str]:
    """A few samples for a person."""
    return [line for line in scrape(stack) if line.startswith(INTERESTING)]
