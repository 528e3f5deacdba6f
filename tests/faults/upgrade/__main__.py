"""`python -m tests.faults --case upgrade`: a version of the clone's history is taken to this one, and back again."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tests.faults.upgrade import report, versions
from tests.faults.upgrade.trip import Trip
from tests.faults.upgrade.verdict import Verdict

if TYPE_CHECKING:
    from tests.faults.upgrade.account import Row

#: Seconds after which it has failed, however busy the machine is.
BOUND = 1200


def main(words: list[str] | None = None) -> int:
    """Run it; 1 where a figure is missed, 2 where the old version cannot be had."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.upgrade", description=__doc__)
    parser.add_argument("--base", default=versions.BASE, help="the version to begin with")
    parser.add_argument("--results", type=Path, help="where raw results go, in place of the project's")
    parser.add_argument("--keep", type=Path, help="keep journals, logs and the stack's folder in this one")
    options = parser.parse_args(words)
    folder, code = options.keep or Path(tempfile.mkdtemp(prefix="warren-upgrade-")), 2
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, ended)
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(BOUND)
    try:
        code = run(folder.resolve(), options)
    except versions.VersionError as exc:
        print(exc, file=sys.stderr)
    except KeyboardInterrupt:
        code = 130
    finally:
        signal.alarm(0)
        if code == 1:
            print(f"journals and logs are kept in {folder}")
        elif not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    return code


def run(folder: Path, options: argparse.Namespace) -> int:
    """There and back, and the table."""
    begun = time.monotonic()
    base = versions.base(folder, options.base)
    trip = Trip(base, versions.head(folder), folder)
    header = about(trip)
    rows: list[Row] = []
    error = ""
    try:
        trip.go()
        rows = Verdict(trip).rows()
    except Exception as exc:  # noqa: BLE001 - what has been seen until then is shown
        error = f"{type(exc).__name__}: {exc}"[:1000]
        traceback.print_exc()
    finally:
        trip.close()
    header |= {"seconds": round(time.monotonic() - begun), "error": error}
    report.show(header, rows)
    if options.results is not None:
        report.write(options.results, header, rows)
    elif not error and options.base == versions.BASE:
        report.publish(header, rows)
    return int(bool(error) or any(row.failures for row in rows))


def about(trip: Trip) -> dict[str, Any]:
    """What a run ran on."""
    return {
        "base": trip.base.commit,
        "head": trip.head.commit,
        "celery": version("celery"),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def ended(_number: int, _frame: object) -> NoReturn:
    """SIGTERM ends it as Ctrl-C does, everything stopped."""
    raise KeyboardInterrupt


def too_long(_number: int, _frame: object) -> NoReturn:
    """The alarm clock."""
    raise TimeoutError(f"not over after {BOUND} s")


if __name__ == "__main__":
    sys.exit(main())
