"""`warren dead-letters`: list, show, replay, drop and export what failed for good."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ops import deadletter, replay, session
from ops.deadletter import DeadLetter, Filter
from ops.definitions import OPERATOR
from ops.errors import INTERRUPTED, OpsError
from queues.topology import QUEUES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ops.replay import Report
    from queues.app import WarrenCelery

#: Letters that `list` shows a person who sets no limit.
SHOWN = 100
#: Characters of a body that `show` prints.
BODY_SHOWN = 20_000
#: Characters of a table's cell.
CELL = 64
#: Columns of a table that goes to a file or another program.
PLAIN_WIDTH = 250

queue_argument = click.argument("queue", type=click.Choice(QUEUES.names))
queues_argument = click.argument("queues", type=click.Choice(QUEUES.names), nargs=-1, metavar="[QUEUE]...")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
dry_run = click.option("--dry-run", is_flag=True, help="Only show which letters are meant.")


def moment(_context: click.Context, _parameter: click.Parameter, value: str | None) -> float | None:
    """The value of --since."""
    try:
        return deadletter.since(value, time.time()) if value is not None else None
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from exc


def filtered(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say which letters are meant."""
    options = (
        click.option("--id", "ids", multiple=True, help="Only this id, or this name from the list; again for more."),
        click.option("--task", "tasks", multiple=True, help="Only this task; again for more."),
        click.option("--reason", "reasons", multiple=True, help="Only this reason; again for more."),
        click.option("--since", callback=moment, metavar="TIME", help="Died since: 90s, 15m, 2h, 3d, 1w, or ISO."),
        click.option("--limit", type=click.IntRange(1), help="At most so many."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group("dead-letters", context_settings={"help_option_names": ["-h", "--help"]})
def dead_letters() -> None:
    """Messages that failed for good: what they were, why, and what becomes of them."""


@dead_letters.command("list")
@queues_argument
@filtered
@click.option("--oldest", is_flag=True, help="The oldest first.")
@as_json
def list_(queues: tuple[str, ...], limit: int | None, *, oldest: bool, as_json: bool, **parts: Any) -> None:
    """Dead letters of QUEUE, by default of all queues, the newest first, and their number by reason.

    A person is shown 100 of them, a program all, where --limit says nothing else.
    """
    app = session.app(OPERATOR)
    found = [letter for queue in queues or QUEUES.names for letter in matching(app, queue, Filter(**parts))]
    found.sort(key=lambda letter: letter.at or 0, reverse=not oldest)
    shown = found[: limit or (None if as_json else SHOWN)]
    if as_json:
        letters = [letter.as_dict() | {"error": error} for letter, error in with_errors(app, shown)]
        click.echo(json.dumps({"matching": len(found), "reasons": deadletter.reasons(found), "letters": letters}))
        return
    if not found:
        click.echo("no dead letters")
        return
    table(with_errors(app, shown))
    for reason, number in deadletter.reasons(found).items():
        click.echo(f"{number:>7}  {printable(reason)}")
    if len(shown) < len(found):
        click.echo(f"{len(shown)} of {len(found)} shown: --limit shows more")


@dead_letters.command()
@queue_argument
@click.argument("ref", metavar="ID")
@as_json
def show(queue: str, ref: str, *, as_json: bool) -> None:
    """Everything that the dead letter ID (or ~name, as the list has it) of QUEUE holds."""
    app = session.app(OPERATOR)
    letters = matching(app, queue, Filter(ids=(ref,)))
    if not letters:
        raise OpsError(f"{queue} has no dead letter {ref!r}: look at `warren dead-letters list {queue}`")
    errors = {letter.key: error for letter, error in with_errors(app, letters)}
    for letter, item in replay.records(app, queue, letters):
        item["error"] = errors.get(letter.key)
        click.echo(json.dumps(item) if as_json else described(item))


@dead_letters.command("replay")
@queue_argument
@filtered
@click.option("--done", "verdict", flag_value="done", help="Tasks in doubt were done: answer, and do not run them.")
@click.option("--not-done", "verdict", flag_value="not-done", help="Tasks in doubt were not done: run them.")
@dry_run
@as_json
def replay_(queue: str, limit: int | None, *, verdict: str | None, dry_run: bool, as_json: bool, **parts: Any) -> None:
    """Send dead letters to QUEUE again, the oldest first; each keeps its id.

    Each is confirmed in its queue before it leaves the dead letters. Ctrl-C finishes the one at hand. A task that must
    not run twice, and may have been done, needs --done or --not-done.
    """
    app = session.app(OPERATOR)
    letters = matching(app, queue, Filter(**parts))[:limit]
    if dry_run:
        rehearse(app, queue, letters, "replayed", as_json=as_json)
        return
    with stoppable() as stopped, progress(f"replaying {queue}", len(letters)) as advance:
        report = replay.replay(app, queue, letters, verdict=verdict, stopped=stopped, progress=advance)
    conclude(queue, report, "moved", as_json=as_json)


@dead_letters.command()
@queue_argument
@filtered
@dry_run
@click.option("--all", "everything", is_flag=True, help="Without any filter: all of them.")
@click.option("--yes", is_flag=True, help="Do not ask; needed where nobody can be asked.")
@as_json
def drop(
    queue: str, limit: int | None, *, dry_run: bool, everything: bool, yes: bool, as_json: bool, **parts: Any
) -> None:
    """Delete dead letters of QUEUE for good, the oldest first."""
    wanted = Filter(**parts)
    if wanted.is_empty and not everything:
        raise click.UsageError("say which: --id, --task, --reason or --since, or --all")
    if not (yes or dry_run or sys.stdin.isatty()):
        raise click.UsageError("nobody can be asked here: give --yes, or look first with --dry-run")
    app = session.app(OPERATOR)
    letters = matching(app, queue, wanted)[:limit]
    if dry_run:
        rehearse(app, queue, letters, "dropped", as_json=as_json)
        return
    if letters and not yes:
        click.confirm(f"Delete {len(letters)} dead letters of {queue} for good?", abort=True, err=True)
    with stoppable() as stopped, progress(f"dropping from {queue}", len(letters)) as advance:
        report = replay.drop(app, queue, letters, stopped=stopped, progress=advance)
    conclude(queue, report, "dropped", as_json=as_json)


@dead_letters.command()
@queues_argument
@filtered
@click.option("--output", "-o", type=click.Path(path_type=Path), help="A new file; standard output by default.")
def export(queues: tuple[str, ...], limit: int | None, output: Path | None, **parts: Any) -> None:
    """Write dead letters of QUEUE, by default of all queues, as JSON lines; they stay where they are."""
    app = session.app(OPERATOR)
    written = 0
    with new_file(output) as file:
        for queue in queues or QUEUES.names:
            letters = matching(app, queue, Filter(**parts))[: limit - written if limit else None]
            if not letters:
                continue
            with progress(f"exporting {queue}", len(letters)) as advance:
                for number, (_, item) in enumerate(replay.records(app, queue, letters), 1):
                    file.write(json.dumps(item) + "\n")
                    written += 1
                    advance(number)
    if output:
        click.echo(f"{written} dead letters written to {output}", err=True)


def matching(app: WarrenCelery, queue: str, wanted: Filter) -> list[DeadLetter]:
    """The letters of a queue that are meant, the oldest first."""
    with progress(f"reading {queue}.dead", None) as advance:
        return [letter for letter in deadletter.read(app, queue, advance) if wanted.matches(letter)]


def with_errors(app: WarrenCelery, letters: Sequence[DeadLetter]) -> Iterator[tuple[DeadLetter, str | None]]:
    """Letters with their errors; the result store knows those of letters that the broker made."""
    from ops.inspection import task_state

    answers = True
    for letter in letters:
        error = letter.error
        if error is None and letter.id is not None and answers:
            try:
                state = task_state(app, letter.id)
                error = str(state["result"]) if state["state"] == "FAILURE" else None
            except OpsError:
                answers = False
        yield letter, error


def rehearse(app: WarrenCelery, queue: str, letters: list[DeadLetter], verb: str, *, as_json: bool) -> None:
    """What a command would do."""
    if as_json:
        items = [letter.as_dict() for letter in letters]
        click.echo(json.dumps({"queue": queue, "dry_run": True, "matching": len(letters), "letters": items}))
        return
    if letters:
        table(with_errors(app, letters[:SHOWN]))
    click.echo(f"{len(letters)} dead letters of {queue} would be {verb}; nothing was changed")


def conclude(queue: str, report: Report, verb: str, *, as_json: bool) -> None:
    """Report, and leave with 0 only where everything meant is done."""
    if as_json:
        failed = [{"ref": ref, "error": why} for ref, why in report.failed]
        error = str(report.error) if report.error else None
        counts = {"matching": report.matching, verb: report.done, "failed": failed, "left": report.left}
        click.echo(json.dumps({"queue": queue} | counts | {"interrupted": report.interrupted, "error": error}))
    else:
        click.echo(f"{queue}: {report.done} {verb}, {len(report.failed)} failed, {report.left} left")
        for ref, why in report.failed[:SHOWN]:
            click.echo(f"  {ref}: {printable(why)}", err=True)
        if report.interrupted:
            click.echo("interrupted: what is left stays where it is", err=True)
        if report.error:
            click.echo(str(report.error), err=True)
    if report.interrupted:
        raise SystemExit(INTERRUPTED)
    if report.error:
        raise SystemExit(report.error.exit_code if isinstance(report.error, OpsError) else 1)
    raise SystemExit(1 if report.failed or report.left else 0)


def table(rows: Iterator[tuple[DeadLetter, str | None]]) -> None:
    """Letters for a person."""
    shown = Table(header_style="bold", box=SIMPLE, padding=(0, 1, 0, 0))
    for name, least in (("died (UTC)", 10), ("queue", 5), ("id", 18), ("task", 8), ("reason", 6), ("error", 8)):
        shown.add_column(name, overflow="fold", min_width=least)
    shown.add_column("retries")
    for letter, error in rows:
        when = (deadletter.iso(letter.at) or "-")[:19].replace("T", " ")
        tries = f"{letter.retries}" + (f", replayed {letter.replays}" if letter.replays else "")
        cells = (when, letter.queue, letter.ref, letter.task or "-", letter.reason, error or "-", tries)
        # As text: what a stranger sent is neither markup nor a terminal's command.
        shown.add_row(*(Text(printable(cell[:CELL])) for cell in cells))
    Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH).print(shown)


def described(item: dict[str, Any]) -> str:
    """A letter in full, for a person."""
    apart = ("properties", "headers", "body")
    lines = [
        f"{name + ':':<14} {printable(str(value))}"
        for name, value in item.items()
        if name not in apart and value is not None
    ]
    for name in ("properties", "headers"):
        lines += [f"{name}:", *(f"  {printable(key)}: {json.dumps(value)}" for key, value in item[name].items())]
    body = item["body"]
    lines += ["body:", "\n".join("  " + printable(line) for line in body[:BODY_SHOWN].splitlines())]
    if len(body) > BODY_SHOWN:
        lines.append(f"  ... {len(body) - BODY_SHOWN} more characters: --json shows all")
    return "\n".join(lines) + "\n"


def printable(text: str) -> str:
    """A text without what would steer a terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


@contextlib.contextmanager
def progress(title: str, total: int | None) -> Iterator[Callable[..., None]]:
    """A progress bar on a terminal's standard error; yields what is told how many are done, and of how many."""
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty() or total == 0
    ) as bar:
        task = bar.add_task(title, total=total)

        def advance(done: int, of: int | None = total) -> None:
            bar.update(task, completed=done, total=of)

        yield advance


@contextlib.contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM ask to stop after the letter at hand; a second one stops at once, which loses nothing."""
    asked: list[int] = []

    def ask(number: int, _frame: object) -> None:
        asked.append(number)
        if len(asked) > 1:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def new_file(path: Path | None) -> Iterator[IO[str]]:
    """A new file that only its owner can read, since messages hold addresses; without a path, standard output.

    What was not written to its end is removed.

    Raises:
        OpsError: it exists, or cannot be written.
    """
    if path is None:
        yield sys.stdout
        return
    try:
        file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8")
    except OSError as exc:
        raise OpsError(f"{path} cannot be written ({exc.strerror}): give the path of a new file") from exc
    try:
        with file:
            yield file
    except BaseException as exc:
        path.unlink(missing_ok=True)
        if isinstance(exc, OSError):
            raise OpsError(f"{path} cannot be written ({exc.strerror}): make room, or give another path") from exc
        raise
