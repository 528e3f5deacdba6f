"""`python -m tests.cases`: what people reported of Celery and Warren, tried; a table of what should come and what came.

The cases run in a copy of the project with two queues more. What a task's own code does to its worker is shown by the
fault suite, family `own-code`, and is not repeated here.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from queues.topology import QUEUES
from tests.cases import canvas, commands, producers, retries, starts, texts  # noqa: F401 - each adds its cases
from tests.cases.bench import CASES, Bench, Row
from tests.cases.tables import ROWS
from tests.faults import deployment
from tests.faults.lab import STORES, Lab


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.cases", description="Try what people reported.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"one or more of {', '.join(CASES)}; all otherwise")
    parser.add_argument("--store", choices=STORES, default=STORES[0], help="where results are stored")
    parser.add_argument("--broker", choices=("embedded", "compose-4.3"), default="embedded")
    parser.add_argument("--keep", type=Path, help="keep the workers' logs in this folder")
    options = parser.parse_args()
    if unknown := {*options.cases} - {*CASES}:
        parser.error(f"no such case: {', '.join(sorted(unknown))}; give some of {', '.join(CASES)}")
    return options


def main() -> int:
    """Run the cases, in a copy of the project."""
    options = arguments()
    if "cases" not in QUEUES:
        return deployment.run("tests.cases", sys.argv[1:], ROWS)
    # A default handler of Ctrl-C, and SIGTERM as Ctrl-C: everything is stopped.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    folder = options.keep or Path(tempfile.mkdtemp(prefix="warren-cases-"))
    begun = time.monotonic()
    try:
        with Lab(folder / "lab", options.broker, options.store) as lab:
            bench = Bench(lab, folder / "logs")
            try:
                for name in options.cases or CASES:
                    play(bench, name)
            finally:
                bench.close()
            title = f"RabbitMQ {lab.version}, results in {lab.store}: {time.monotonic() - begun:.0f} s"
    except KeyboardInterrupt:
        return 130
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    return show(bench.rows, title)


def play(bench: Bench, name: str) -> None:
    """One case; whatever happens, there is a row."""
    found, before = CASES[name], len(bench.rows)
    bench.name = name
    bench.purge()
    try:
        for queue in found.queues:
            bench.start(queue)
        for queue in found.queues:
            if not bench.consuming(queue):
                bench.expect(f"a worker of {queue}", "consumes", "does not")
        found.run(bench)
        if "cases" in bench.workers:
            bench.expect("ends of the worker", "[]", bench.workers["cases"].exits)
    except Exception as exc:  # noqa: BLE001 - a failed case must not end the run
        bench.expect("the case", "ends", f"{type(exc).__name__}: {exc}")
    finally:
        bench.stop()
    for row in bench.rows[before:]:
        print(f"{row.mark} {row.case}: {row.what}: {row.came}", flush=True)


def show(rows: list[Row], title: str) -> int:
    """Print the table; 1 where something came that should not."""
    table = Table(title=title, title_justify="left", pad_edge=False)
    for head in ("case", "looked at", "should come", "came", ""):
        table.add_column(head, overflow="fold")
    before = ""
    for row in rows:
        if before and row.case != before:
            table.add_section()
        style = "" if row.fits else "dim" if row.reason else "bold red"
        table.add_row(row.case if row.case != before else "", row.what, row.should, row.came, row.mark, style=style)
        before = row.case
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(table)
    wrong = sum(not row.fits and not row.reason for row in rows)
    other = sum(not row.fits and bool(row.reason) for row in rows)
    right = len(rows) - wrong - other
    print(f"{len(rows)} looks: {right} as they should be, {other} otherwise for a reason, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
