"""Do the hooks hold in the newest releases, those before a release among them? In an environment that is thrown away.

`python -m tests.drift.newest [REQUIREMENT ...]`: `celery==5.6.3`, for one, instead of the newest. It begins with what
requirements.txt pins, takes the family's newest, and runs the register's drift test and the short faults.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
FAMILY = ("celery", "kombu", "billiard", "amqp", "vine")
#: Seconds for each step.
INSTALLING, LOOKING, RUNNING = 900, 120, 1500


def run(command: list[str], seconds: float) -> int:
    """A step in a session of its own, which ends with it and in time."""
    print("$", *command[1:], flush=True)
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        print(f"not done after {seconds:.0f} s", flush=True)
        return 1
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def main(wanted: list[str]) -> int:
    """Install, look, run; the number of steps that failed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that all is cleaned up
    with tempfile.TemporaryDirectory(prefix="warren-newest-") as folder:
        python = str(Path(folder) / "bin" / "python")
        pip = [python, "-m", "pip", "--quiet", "--quiet", "--no-input", "--disable-pip-version-check", "install"]
        newest = ["--upgrade", "--pre", *(wanted or FAMILY)]
        steps: list[list[str]] = [
            [sys.executable, "-m", "venv", folder],
            [*pip, "--require-hashes", "--requirement", "requirements.txt"],
            [*pip, *newest],
            [*pip, "--no-deps", "--no-build-isolation", "--editable", "."],
        ]
        for step in steps:
            if run(step, INSTALLING):
                return 1
        shown = "import importlib.metadata as m, sys; print(*(f'{n} {m.version(n)}' for n in sys.argv[1:]), sep=', ')"
        run([python, "-c", shown, *FAMILY], LOOKING)
        pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line"]
        looked = run([*pytest, "tests/drift/test_hooks.py"], LOOKING)
        ran = run([*pytest, "tests/faults/test_smoke.py"], RUNNING)
    print(f"drift test: {'failed' if looked else 'passed'}; smoke: {'failed' if ran else 'passed'}")
    return bool(looked) + bool(ran)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
