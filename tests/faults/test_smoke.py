"""The most telling faults in short form, on a stack of their own, with Warren's workers only: lost 0, and more."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import need_rabbitmq
from tests.faults.cases import CASES

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

#: Seconds for all; they take 3 minutes on an idle machine.
PATIENCE = 900.0
SMOKE = [case.name for case in CASES.values() if case.smoke]


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """One line of the table for each case."""
    need_rabbitmq()
    folder: Path = tmp_path_factory.mktemp("faults")
    results = folder / "results.jsonl"
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--smoke", "--results", str(results)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert results.exists(), done.stdout + done.stderr
    _, *rows = (json.loads(row) for row in results.read_text().splitlines())
    return {row["case"]: row for row in rows}


@pytest.mark.parametrize("case", SMOKE)
def test_a_fault_loses_no_confirmed_task_and_ends_no_worker(lines: dict[str, dict[str, Any]], case: str) -> None:
    line = lines[case]
    assert line["failures"] == []
    assert line["lost"] == 0
    assert line["sent"] > 0
