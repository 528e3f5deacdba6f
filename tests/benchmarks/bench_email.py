"""The email worker's figures: `python -m tests.benchmarks.bench_email time|rate|crash`, or all of them."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.benchmarks import email_crash, email_rate, email_time
from tests.benchmarks.email_lab import lab

RESULTS = Path(__file__).parent / "results"


def keep(name: str, rows: list[dict[str, Any]]) -> None:
    """Write the raw figures down."""
    about: dict[str, Any] = {package: version(package) for package in ("celery", "aiosmtpd", "SQLAlchemy")}
    about |= {"python": platform.python_version(), "cores": os.cpu_count()}
    lines = ({"about": about}, *rows)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"email-{name}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def say(row: dict[str, Any]) -> dict[str, Any]:
    """Show a row as soon as there is one."""
    print(json.dumps({name: value for name, value in row.items() if name != "raw"}), flush=True)
    return row


def main() -> None:
    """Run what was asked for, and keep the raw figures; the exit code says whether all promises were kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=["time", "rate", "crash"])
    parser.add_argument("--mails", type=int, default=300, help="of each kind, for the time of one")
    parser.add_argument("--kills", type=int, default=50, help="at each point")
    parser.add_argument("--rate", default="60/m", help="limit of the short scenarios; the long one has 10/m")
    parser.add_argument("--long", action="store_true", help="the long scenario, 12 minutes at 10/m, too")
    options = parser.parse_args()
    kept = True
    if "time" in options.what:
        rows = [say(row) for row in email_time.measure(options.mails)]
        keep("time", rows)
        kept &= all(row["ratio"] <= email_time.ASKED for row in rows if row["relay"] == "postfix")
    if "rate" in options.what:
        with lab() as running:
            rows = [say(row) for row in email_rate.measure(running, options.rate, long=options.long)]
        keep("rate", rows)
        kept &= all(row["kept"] for row in rows)
    if "crash" in options.what:
        rows = []
        with lab() as running:
            for policy in ("resend", "hold"):
                for point in email_crash.POINTS:
                    who = "worker" if point == "recorded" else "child"
                    rows.append(say(email_crash.measure(running, point, who, policy, options.kills)))
            for point in email_crash.POINTS[:-1]:
                rows.append(say(email_crash.measure(running, point, "worker", "resend", max(1, options.kills // 5))))
        keep("crash", rows)
        kept &= all(row["kept"] for row in rows)
    sys.exit(not kept)


if __name__ == "__main__":
    main()
