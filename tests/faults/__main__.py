"""`python -m tests.faults`: inject every fault, count, and print what became of each task.

The suite runs in a copy of the project to which a queue `faults` was added, as docs/add-a-queue.md says.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

from queues.topology import QUEUES
from tests.faults import deployment, document, table
from tests.faults.cases import CASES, FAMILIES
from tests.faults.lab import STORES, Lab
from tests.faults.registry import Case
from tests.faults.side import SIDES, Side
from tests.faults.trial import Line, Trial
from tests.faults.upgrade import __main__ as upgrade

RESULTS = Path(__file__).parent / "results"
#: The case that runs two versions, and none of the others' lab.
UPGRADE = "upgrade"


class CaseTimeout(Exception):
    """A case took longer than its bound."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Inject faults and count.")
    parser.add_argument(
        "--case",
        action="append",
        choices=[*sorted(FAMILIES), *sorted(CASES), UPGRADE],
        help="only this one, or this family; may be repeated",
    )
    parser.add_argument("--only", choices=sorted(SIDES), help="only one side")
    parser.add_argument("--broker", choices=("embedded", "compose-4.3"), default="embedded")
    parser.add_argument("--store", choices=STORES, default=STORES[0], help="where results are stored")
    parser.add_argument("--smoke", action="store_true", help="the short form of the most telling cases, ours only")
    parser.add_argument("--results", type=Path, help="where raw results go, too")
    parser.add_argument("--write-docs", action="store_true", help="write docs/reliability.md from the raw results")
    parser.add_argument("--keep", type=Path, help="keep journals and logs in this folder")
    parser.add_argument("--base", help=f"the version that `{UPGRADE}` begins with")
    options = parser.parse_args()
    if (
        options.case
        and UPGRADE in options.case
        and (len(options.case) > 1 or options.broker != "embedded" or options.store != STORES[0])
    ):
        parser.error(f"{UPGRADE} is a run of its own, on the embedded broker and SQLite: leave other options out")
    return options


def main() -> int:
    """Run the suite, in a copy of the project."""
    options = arguments()
    if options.case == [UPGRADE]:
        given = {"--base": options.base, "--results": options.results, "--keep": options.keep}
        return upgrade.main([f"{name}={value}" for name, value in given.items() if value])
    if options.write_docs:
        document.write(deployment.PROJECT / "docs" / "reliability.md", RESULTS)
        return 0
    if deployment.QUEUE in QUEUES:
        try:
            return run(options)
        except KeyboardInterrupt:
            return 130
    return deployment.run("tests.faults", sys.argv[1:])


def run(options: argparse.Namespace) -> int:
    """Run the cases."""
    wanted = [case for case in CASES.values() if not options.case or {case.name, case.family} & {*options.case}]
    names = [options.only] if options.only else list(SIDES)
    if options.smoke:
        wanted, names = [case for case in wanted if case.smoke], ["ours"]
    signal.signal(signal.SIGALRM, too_long)
    signal.signal(signal.SIGTERM, ended)
    folder = options.keep or Path(tempfile.mkdtemp(prefix="warren-faults-run-"))
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[Line] = []
    begun = time.monotonic()
    try:
        with Lab(folder / "lab", options.broker, options.store) as lab:
            header = about(lab)
            print(
                f"RabbitMQ {lab.version}, Celery {header['celery']}, {lab.store}, Python {header['python']}", flush=True
            )
            sides = [SIDES[name](lab) for name in names]
            try:
                for case in wanted:
                    lines += play(case, lab, sides, folder, short=options.smoke)
                    if options.results:
                        table.write(options.results, {**header, "seconds": round(time.monotonic() - begun)}, lines)
            finally:
                for side in sides:
                    side.close()
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    if not (options.only or options.smoke):
        publish(lab, {**header, "seconds": round(time.monotonic() - begun)}, lines)
    table.show(lines, f"RabbitMQ {header['rabbitmq']}: {len(wanted)} cases in {time.monotonic() - begun:.0f} s")
    return int(any(line.failures for line in lines if line.side == "ours"))


def play(case: Case, lab: Lab, sides: list[Side], folder: Path, *, short: bool) -> list[Line]:
    """Run one case; whatever happens, there is a line for each side."""
    lines = []
    taking = [side for side in sides if not (case.control and side.name == "stock")]
    groups = [taking] if case.shared else [[side] for side in taking]
    for group in groups:
        lines += act(case, lab, group, folder, short=short)
    lines += [Line(case.name, side.name, note=case.control) for side in sides if side not in taking]
    for line in lines:
        print(table.one_line(line), flush=True)
    return lines


def act(case: Case, lab: Lab, sides: list[Side], folder: Path, *, short: bool) -> list[Line]:
    """One case with some sides."""
    trials: list[Trial] = []
    error = ""
    signal.alarm(int(case.bound))
    try:
        for side in sides:
            side.purge()
            trials.append(Trial(case.name, side, lab, folder / case.name / side.name, short=short))
        if case.shared:
            case.run(lab, trials)
        else:
            case.run(*trials)
    except CaseTimeout:
        error = f"not over after {case.bound:.0f} s"
    except Exception as exc:  # noqa: BLE001 - a failed case must not end the suite
        error = f"{type(exc).__name__}: {exc}"[:300]
    except KeyboardInterrupt:
        for trial in trials:
            trial.close()
        raise
    signal.alarm(300)  # what heals and counts is slow on a busy machine
    try:
        lab.heal()
        for trial in trials:
            trial.account()
    except (Exception, CaseTimeout) as exc:  # noqa: BLE001
        error = error or f"{type(exc).__name__}: {exc}"[:300]
    finally:
        signal.alarm(0)
        for trial in trials:
            trial.close()
    lines = [trial.line for trial in trials] or [Line(case.name, side.name) for side in sides]
    if error:
        for line in lines:
            line.failures.append(error)
    return lines


def about(lab: Lab) -> dict[str, Any]:
    """What a run ran on."""
    from importlib.metadata import version

    return {
        "rabbitmq": lab.version,
        "store": lab.store,
        "celery": version("celery"),
        "kombu": version("kombu"),
        "amqp": version("amqp"),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def publish(lab: Lab, header: dict[str, Any], lines: list[Line]) -> None:
    """Keep the raw results of what was run as a whole with the project, and show them in its page."""
    project = Path(os.environ["FAULTS_PROJECT"])
    results = project / RESULTS.relative_to(deployment.PROJECT)
    release = "{}.{}".format(*lab.release)
    for family in ("", *FAMILIES):
        names = {case.name for case in CASES.values() if case.family == family}
        found = [line for line in lines if line.case in names]
        if {line.case for line in found} == names and (family or lab.store == STORES[0]):
            name = f"{family}-{release}-{lab.store}.jsonl" if family else f"rabbitmq-{release}.jsonl"
            table.write(results / name, {**header, "family": family}, found)
    document.write(project / "docs" / "reliability.md", results)


def too_long(_number: int, _frame: object) -> NoReturn:
    """The alarm clock."""
    raise CaseTimeout


def ended(_number: int, _frame: object) -> NoReturn:
    """SIGTERM ends the suite as Ctrl-C does, everything stopped."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
