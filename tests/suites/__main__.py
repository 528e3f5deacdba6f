"""`python -m tests.suites`: Celery's own tests on Warren's worker, beside stock Celery on the same broker.

Celery's `t/integration` is run with Warren's apps, consumer, pool, requests and results, and its unit tests of requests
and strategy with Warren's request. What ends otherwise than on stock Celery stands in `expected.tsv`, or is a fault.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.faults.deployment import PROJECT
from tests.suites import expected, fetching, table
from tests.suites.expected import Difference, Outcome
from tests.suites.lab import SIDES, SuiteLab
from tests.suites.sides import Side, files

UNIT = ("t/unit/worker/test_request.py", "t/unit/worker/test_strategy.py")
#: How often what is not as listed is tried again, alone: many of these tests have limits of a few seconds.
AGAIN = 2
#: More than this is no accident.
MANY = 40
#: Celery's own, but for what `tests.suites.fixtures` has otherwise.
CONFTEST = """\
from t.integration import stock_conftest

globals().update({name: value for name, value in vars(stock_conftest).items() if not name.startswith("__")})
from tests.suites.fixtures import *
"""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.suites", description="Run Celery's own tests on Warren.")
    parser.add_argument("files", nargs="*", metavar="FILE", help="a part of the name of some of Celery's files")
    parser.add_argument("--keep", type=Path, help="keep all logs in this folder")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def prepare(folder: Path) -> tuple[str, Path]:
    """All that a run needs; gives a Python and the project's copy."""
    tests = fetching.fetch(folder)
    python = fetching.environment(folder / "venv")
    root = table.make(PROJECT, folder / "project", table.names(python, tests.parent))
    for side in SIDES:
        shutil.copytree(tests, folder / f"tests-{side}" / "t")
    conftest = folder / "tests-warren" / "t" / "integration" / "conftest.py"
    conftest.rename(conftest.with_name("stock_conftest.py"))
    conftest.write_text(CONFTEST)
    return python, root


def outside(options: argparse.Namespace) -> int:
    """Prepare, and run this again in the copy of the project."""
    folder = options.keep or Path(tempfile.mkdtemp(prefix="warren-suites-"))
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    process = None
    try:
        python, root = prepare(folder)
        environment = {**os.environ, "PYTHONPATH": str(root)}
        command = [python, "-m", "tests.suites", "--inside", str(folder), *options.files]
        process = subprocess.Popen(command, cwd=root, env=environment)
        return process.wait()
    except KeyboardInterrupt:
        if process is not None:
            process.send_signal(signal.SIGINT)
            process.wait(120)
        return 130
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)


class Run:
    """All files on both sides."""

    def __init__(self, folder: Path, lab: SuiteLab, wanted: list[str]) -> None:
        self.lab = lab
        self.sides = {name: Side(name, sys.executable, folder / f"tests-{name}", folder / "project") for name in SIDES}
        self.outcomes: dict[str, dict[str, Outcome]] = {name: {} for name in SIDES}
        self.listed = expected.read()
        self.files = files(folder / "tests-stock", wanted, UNIT)

    def run(self, name: str, file: str, tests: list[str]) -> None:
        """Some tests of a file on one side."""
        unit, begun = file in UNIT, time.monotonic()
        settings = {"SUITE_REQUEST": name} if unit else self.lab.side(name)
        found = self.sides[name].run(tests, settings, self.listed if name == "warren" else ())
        self.outcomes[name].update(found)
        if not unit:
            self.lab.purge(name)
        counts = ", ".join(f"{count} {word}" for word, count in sorted(Counter(o.word for o in found.values()).items()))
        print(f"{name:6} {file}: {counts or 'nothing'} in {time.monotonic() - begun:.0f} s", flush=True)

    def all(self) -> None:
        """Both sides side by side: most of it is waiting."""
        with ThreadPoolExecutor(len(SIDES)) as pool:
            work = [pool.submit(self.one_side, name) for name in SIDES]
            try:
                for each in work:
                    each.result()
            except BaseException:
                self.stop()
                raise

    def one_side(self, name: str) -> None:
        """Each file after the other."""
        for file in self.files:
            self.run(name, file, [file])

    def again(self) -> None:
        """Try alone what is not as listed."""
        for _ in range(AGAIN):
            odd = [each.test for each in self.compared() if each.mark != "listed"]
            if not 0 < len(odd) <= MANY:
                return
            for name in SIDES:
                for file in self.files:
                    if tests := [test for test in odd if test.startswith(f"{file}::")]:
                        self.run(name, file, tests)

    def compared(self) -> list[Difference]:
        """What differs, or should."""
        return expected.compared(self.outcomes["stock"], self.outcomes["warren"], self.listed, self.files)

    def stop(self) -> None:
        """End everything."""
        for side in self.sides.values():
            side.stop()


def inside(folder: Path, wanted: list[str]) -> int:
    """Run the tests, in the copy of the project."""
    # A default handler of Ctrl-C, and SIGTERM as Ctrl-C: everything is stopped.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    begun = time.monotonic()
    with SuiteLab(folder / "lab") as lab:
        run = Run(folder, lab, wanted)
        if not run.files:
            sys.exit(f"Celery has no test file called {' or '.join(wanted)}")
        try:
            run.all()
            run.again()
        except KeyboardInterrupt:
            return 130
        finally:
            run.stop()
        title = f"Celery {fetching.locked()[0]}, RabbitMQ {lab.version}: {time.monotonic() - begun:.0f} s"
    return show(run, title)


def show(run: Run, title: str) -> int:
    """One row for each difference; 1 where one is not listed, or where one that is listed is none."""
    grid = Table(title=title, title_justify="left", pad_edge=False)
    for head in ("test", "stock", "Warren", "class", "reason"):
        grid.add_column(head, overflow="fold")
    rows = run.compared()
    for row in rows:
        if row.mark == "listed":
            grid.add_row(row.test, row.stock.word, row.warren.word, row.kind, row.reason)
        else:
            seen = row.warren.text or row.stock.text
            grid.add_row(row.test, row.stock.word, row.warren.word, row.mark, seen, style="bold red")
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(grid, markup=False)
    tests = {*run.outcomes["stock"], *run.outcomes["warren"]}
    counts = Counter(row.kind if row.mark == "listed" else row.mark for row in rows)
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    print(
        f"{len(tests)} tests: {len(tests) - sum(row.differs for row in rows)} as on stock Celery; {told or 'no other'}"
    )
    return int(any(row.mark != "listed" for row in rows) or not tests)


def main() -> int:
    """Run them."""
    options = arguments()
    if options.inside:
        return inside(options.inside, options.files)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return outside(options)


if __name__ == "__main__":
    sys.exit(main())
