"""The operator's commands. Each prints a table for a person, or JSON with --json; mistakes are one line."""

from __future__ import annotations

import json
import math
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ops import session
from ops.apply_cli import apply
from ops.deadletter_cli import dead_letters
from ops.definitions import OPERATOR, PRODUCER
from ops.errors import INTERRUPTED, OpsError
from queues.errors import PublishUnknownError, WarrenError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: Bytes of an image that `put` takes.
MAX_IMAGE_BYTES = 64 * 1024 * 1024

console = Console()
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Celery workers on RabbitMQ that lose nothing and tell the truth."""


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table for a person; numbers are set to the right."""
    listed = [list(row) for row in rows]
    table = Table(title=title, title_justify="left", header_style="bold")
    for index, column in enumerate(columns):
        numeric = all(isinstance(row[index], int | float) for row in listed) and bool(listed)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in listed:
        table.add_row(*("-" if value is None else str(value) for value in row))
    console.print(table)


def fail(message: str, code: int = 1) -> NoReturn:
    """End with a sentence and an exit code."""
    click.echo(message, err=True)
    raise SystemExit(code)


def duration(_context: click.Context, _parameter: click.Parameter, value: float | None) -> float | None:
    """Seconds that can be waited."""
    if value is not None and not 0 <= value < math.inf:
        raise click.BadParameter(f"{value} is no delay: give seconds, 0 or more")
    return value


@cli.command()
def up() -> None:
    """Start the whole stack here, until Ctrl-C."""
    from ops.local import Stack
    from ops.processes import StoppedError
    from ops.signals import until_signalled
    from queues.topology import QUEUES

    with until_signalled() as signalled, Stack(session.home()) as stack:
        stack.heed(signalled)
        try:
            stack.start(lambda step: click.echo(f"starting {step} ..."))
        except StoppedError:
            click.echo("stopping ...")
            raise
        rows = [
            ("broker (AMQPS)", f"127.0.0.1:{stack.broker.ports.amqps}"),
            ("broker (management)", f"https://localhost:{stack.broker.ports.management}"),
            ("metrics", stack.metrics_url),
            ("images", stack.images),
            ("received mails", stack.mails),
            ("logs", stack.folder / "log"),
            ("a producer's settings", f". {shlex.quote(str(stack.folder / 'env' / 'producer.sh'))}"),
        ]
        show("Warren is up", ("what", "where"), rows)
        click.echo("Ctrl-C stops everything.")
        while not signalled():
            if not stack.alive():
                fail(f"the process manager ended: see {stack.folder / 'log' / 'supervisord.log'}")
            time.sleep(0.2)
        longest = max(queue.stop_grace_period for queue in QUEUES)
        click.echo(
            f"stopping: running tasks are finished first, for which the longest may take {longest} s; "
            "a second Ctrl-C ends everything at once ..."
        )


@cli.command()
def demo() -> None:
    """Put real work through every queue of an embedded stack, and show it."""
    from ops.demo import run

    raise SystemExit(run(console))


@cli.command()
@click.argument("task")
@click.option("--args", "arguments", default="[]", help="Positional arguments, a JSON list.")
@click.option("--kwargs", "keywords", default="{}", help="Keyword arguments, a JSON object.")
@click.option("--count", default=1, type=click.IntRange(1), help="How many.")
@click.option("--countdown", type=float, callback=duration, help="Seconds until it may run.")
@click.option("--id", "task_id", help="The task's id: sends one again whose outcome is unknown.")
@as_json
def enqueue(
    task: str,
    arguments: str,
    keywords: str,
    count: int,
    countdown: float | None,
    task_id: str | None,
    *,
    as_json: bool,
) -> None:
    """Enqueue TASK; each is confirmed by the broker before the next.

    What ends it early, Ctrl-C too, tells how many were confirmed and which one may have been sent.
    """
    from kombu.utils.uuid import uuid

    from queues.errors import UnknownTaskError
    from queues.tasks import STUBS

    if task_id is not None and (count != 1 or not task_id.strip()):
        raise click.UsageError("--id names one task: leave --count out, and give an id")
    args, kwargs = parsed("--args", arguments, list), parsed("--kwargs", keywords, dict)
    if task not in STUBS:
        raise UnknownTaskError(f"task {task!r} is not in the table: use one of {', '.join(STUBS)}")
    STUBS[task].check(args, kwargs)
    app = session.app(PRODUCER)
    ids: list[str] = []
    current = None

    def tell(uncertain: str | None) -> None:
        if as_json:
            click.echo(json.dumps({"task": task, "count": len(ids), "ids": ids, "uncertain": uncertain}))
        words = f"{len(ids)} confirmed" + (f", last id {ids[-1]}" if ids else "")
        if uncertain:
            words += f"; {uncertain} may have been sent: `--id {uncertain}` sends it again, without --count"
        click.echo(words, err=True)

    columns = (TextColumn("enqueueing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=Console(stderr=True), transient=True, disable=count == 1 or as_json) as bar:
            progress = bar.add_task(task, total=count)
            for _ in range(count):
                current = task_id or uuid()
                ids.append(app.send_task(task, args, kwargs, countdown=countdown, task_id=current).id)
                current = None
                bar.advance(progress)
    except KeyboardInterrupt:
        tell(current)
        raise SystemExit(INTERRUPTED) from None
    except PublishUnknownError:
        tell(current)
        raise
    except WarrenError:
        tell(None)
        raise
    except Exception:
        tell(current)
        raise
    if as_json:
        click.echo(json.dumps({"task": task, "count": count, "ids": ids}))
    elif count == 1:
        click.echo(ids[0])
    else:
        click.echo(f"{count} x {task} confirmed, the last with id {ids[-1]}")


def finite(text: str) -> float:
    """A JSON number.

    Raises:
        ValueError: NaN, Infinity, or a number that becomes one.
    """
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no number in JSON")
    return number


def parsed(option: str, text: str, kind: type) -> Any:
    """JSON of the kind asked for."""
    try:
        value = json.loads(text, parse_constant=finite, parse_float=finite)
    except RecursionError:
        fail(f"{option} is nested too deeply: pass the data's key instead", 2)
    except ValueError as exc:
        fail(f"{option} is not JSON ({exc}): quote it, as in {option} '{'[1, 2]' if kind is list else '{}'}'", 2)
    if not isinstance(value, kind):
        fail(f"{option} is JSON but no {'list' if kind is list else 'object'}: wrap it", 2)
    return value


@cli.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--as", "key", help="Name below the image root; the file's own by default.")
@as_json
def put(file: Path, key: str | None, *, as_json: bool) -> None:
    """Store an image FILE in the image root, for image tasks."""
    from workers.storage import LocalStorage

    root = session.environment(PRODUCER).get("IMAGE_ROOT")
    if not root:
        raise OpsError("IMAGE_ROOT is missing: give the folder that holds the images")
    storage = LocalStorage(Path(root))
    name = storage.key(key or file.name)
    storage.write(name, image_bytes(file))
    click.echo(json.dumps({"key": name}) if as_json else name)


def image_bytes(file: Path) -> bytes:
    """An image's content.

    Raises:
        OpsError: it is no regular file, cannot be read, is too large, or no image.
    """
    if not file.is_file():
        raise OpsError(f"{file} is no regular file: give the path of an image")
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_IMAGE_BYTES + 1)
    except OSError as exc:
        raise OpsError(f"{file} cannot be read ({exc.strerror}): give a file of your own") from exc
    if len(data) > MAX_IMAGE_BYTES:
        raise OpsError(f"{file} has more than {MAX_IMAGE_BYTES // 1024 // 1024} MiB: make the image smaller")
    if not looks_like_image(data):
        raise OpsError(f"{file} is no image: give a JPEG, PNG, GIF, WebP, TIFF or AVIF")
    return data


def looks_like_image(data: bytes) -> bool:
    """Whether data begins like an image; the operator's machine needs no Pillow to see that."""
    if data[4:8] == b"ftyp":
        # The box of brands: AVIF's may be the main one or one of those that follow.
        brands = data[8 : min(int.from_bytes(data[:4], "big"), 256)]
        return any(brands[at : at + 4] in (b"avif", b"avis") for at in range(0, len(brands), 4))
    if data[:4] == b"RIFF":
        return data[8:12] == b"WEBP"
    starts = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    return data.startswith(starts)


@cli.command()
@as_json
def status(*, as_json: bool) -> None:
    """Queues with ready and running messages, consumers, dead letters. Exit code 1 where a queue has no consumer."""
    from ops.inspection import queue_table

    rows = queue_table(session.environment(OPERATOR))
    if as_json:
        click.echo(json.dumps(rows))
    else:
        columns = ("queue", "ready", "unacknowledged", "consumers", "dead letters")
        show("Queues", columns, [[row[column.replace(" ", "_")] for column in columns] for row in rows])
    raise SystemExit(0 if all(row["consumers"] for row in rows if row["kind"] == "work") else 1)


@cli.command()
@click.argument("task_id")
@as_json
def result(task_id: str, *, as_json: bool) -> None:
    """The state and result of a task. Exit code 1 where it failed, 3 where there is no trace of it."""
    from ops.inspection import task_state

    found = task_state(session.app(PRODUCER), task_id)
    if as_json:
        click.echo(json.dumps(found, default=str))
    else:
        click.echo(found["state"] + (f": {found['result']}" if found.get("result") is not None else ""))
    raise SystemExit({"unknown": 3, "FAILURE": 1}.get(found["state"], 0))


@cli.command()
@click.argument("what", type=click.Choice(["active", "scheduled", "reserved"]), default="active")
@as_json
def inspect(what: str, *, as_json: bool) -> None:
    """What workers run (active), hold for later (scheduled) or have taken (reserved)."""
    from ops.inspection import worker_tasks

    rows = worker_tasks(session.app(OPERATOR), what)
    if as_json:
        click.echo(json.dumps(rows))
    else:
        show(what.capitalize(), ("worker", "task", "id", "since"), [list(row.values()) for row in rows])


@cli.command()
@as_json
def ping(*, as_json: bool) -> None:
    """Whether the broker takes our login, and which workers answer."""
    from ops.inspection import answering

    found = answering(session.app(OPERATOR))
    if as_json:
        click.echo(json.dumps(found))
    else:
        workers = (
            ", ".join(found["workers"]) or "no worker answers: start one with celery -A workers.app worker -Q QUEUE"
        )
        click.echo(
            f"broker {found['broker']} answers in {found['seconds'] * 1000:.0f} ms (RabbitMQ {found['version']})"
        )
        click.echo(f"workers: {workers}")
    raise SystemExit(0 if found["workers"] else 1)


@cli.command()
@click.option(
    "--folder", type=click.Path(path_type=Path), help="Where certificates are; the embedded stack's by default."
)
@as_json
def certs(folder: Path | None, *, as_json: bool) -> None:
    """Certificates, and the days that they are still valid. Exit code 1 below 30 days."""
    from ops.certs import describe

    where = folder or session.home() / "certs"
    found = describe(where)
    if not found:
        fail(f"{where} holds no certificates: name their folder with --folder, or start a stack with `make up`")
    rows = [(item.name, item.kind, item.not_after.date().isoformat(), int(item.days_left)) for item in found]
    if as_json:
        click.echo(
            json.dumps([dict(zip(("name", "kind", "not_after", "days_left"), row, strict=True)) for row in rows])
        )
    else:
        show("Certificates", ("name", "kind", "valid until", "days left"), rows)
    raise SystemExit(0 if all(item.days_left >= 30 for item in found) else 1)


@cli.command()
@click.option("--check", is_flag=True, help="Write nothing; exit 1 where a file is not up to date.")
def render(*, check: bool) -> None:
    """Write everything that is generated from the table."""
    from ops.render import render_all

    stale = render_all(write=not check)
    if check and stale:
        fail(f"not up to date with queues/topology.py: {', '.join(stale)}; run `make render`")
    click.echo("written: " + ", ".join(stale) if stale else "all is up to date with queues/topology.py")


@cli.command()
@click.option("--compose", is_flag=True, help="Check instead whether Docker here can start the deployment.")
@as_json
def check(*, compose: bool, as_json: bool) -> None:  # noqa: ARG001 - ops.__main__ takes it, without any package
    """Compare the broker with the table, as the operator. Exit code 1 where they differ."""
    from ops.check import differences

    found = differences(session.environment(OPERATOR))
    if as_json:
        click.echo(json.dumps(found))
    else:
        for line in found:
            click.echo(line)
        click.echo(f"{len(found)} differences" if found else "broker and table agree")
    raise SystemExit(1 if found else 0)


cli.add_command(dead_letters)
cli.add_command(apply)
