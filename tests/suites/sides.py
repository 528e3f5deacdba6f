"""One side of the comparison: Celery's test files run one after the other, each in a pytest of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tests.suites.expected import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Seconds for one file.
LONGEST = 2400
#: Worse things hide better ones: a test of several parts is as its worst.
_ORDER = ("passed", "skipped", "failed")
_INI = """\
[pytest]
python_classes = test_*
xfail_strict = true
addopts = -p celery.contrib.pytest -p tests.suites.plug -p no:cacheprovider -p no:xdist -q --tb=short --disable-warnings
"""


class Side:
    """Stock Celery, or Warren."""

    def __init__(self, name: str, python: str, folder: Path, project: Path) -> None:
        self.name, self.python, self.folder = name, python, folder
        (self.folder / "pytest.ini").write_text(_INI)
        self.path = f"{self.folder}:{project}"
        self.running: subprocess.Popen[bytes] | None = None
        self.stopped = False

    def run(self, words: Iterable[str], settings: dict[str, str], short: Iterable[str] = ()) -> dict[str, Outcome]:
        """Run some tests, and give what came of each."""
        outcomes = self.folder / "outcomes"
        outcomes.unlink(missing_ok=True)
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST")},
            **settings,
            "PATH": f"{Path(self.python).parent}:{os.environ['PATH']}",
            "PYTHONPATH": self.path,
            "PYTHONDONTWRITEBYTECODE": "1",
            "SUITE_OUTCOMES": str(outcomes),
            "SUITE_SHORT": json.dumps([*short]),
        }
        command = [self.python, "-m", "pytest", "-c", "pytest.ini", "--rootdir", ".", *words]
        with (self.folder / "log.txt").open("ab") as log:
            if not self.stopped:
                self.running = subprocess.Popen(
                    command,
                    cwd=self.folder,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.running.wait(LONGEST)
                self.end()
        return read(outcomes)

    def end(self) -> None:
        """End what runs, with all that it has started."""
        if self.running is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.running.pid, signal.SIGKILL)
            self.running.wait()

    def stop(self) -> None:
        """End what runs, and begin nothing more."""
        self.stopped = True
        self.end()


def read(path: Path) -> dict[str, Outcome]:
    """What the plugin has written."""
    found: dict[str, Outcome] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        test, word, text = json.loads(line)
        before = found.get(test)
        if before is None or _ORDER.index(word) > _ORDER.index(before.word):
            found[test] = Outcome(word, text)
    return found


def files(folder: Path, wanted: list[str], more: Iterable[str]) -> list[str]:
    """Celery's integration tests, the longest first, and others; all, or those whose name holds one of the words."""
    found = sorted((folder / "t" / "integration").glob("test_*.py"), key=lambda path: -path.stat().st_size)
    names = [*(f"t/integration/{path.name}" for path in found), *more]
    return [name for name in names if not wanted or any(word in name for word in wanted)]
