"""docs/reliability.md against the cases and their raw results."""

from __future__ import annotations

import re
from pathlib import Path

from tests.faults import document
from tests.faults.cases import CASES

RESULTS = Path(__file__).parent / "results"


def test_the_tables_are_those_of_the_raw_results(project: Path) -> None:
    text = (project / "docs" / "reliability.md").read_text()
    shown = text.partition(document.BEGIN)[2].partition(document.END)[0]
    assert shown.strip() == document.tables(RESULTS), "run `python -m tests.faults --write-docs`"
    shown = text.partition(document.UPGRADE_BEGIN)[2].partition(document.UPGRADE_END)[0]
    assert shown.strip() == document.upgrade(RESULTS / "upgrade.jsonl"), "run `python -m tests.faults --write-docs`"


def test_every_case_is_described(project: Path) -> None:
    text = (project / "docs" / "reliability.md").read_text()
    described = text.partition("## The cases")[2].partition("## The figures")[0]
    rows = [line.split(" | ")[0] for line in described.splitlines() if line.startswith("|")]
    names = [name for row in rows for name in re.findall(r"`([a-z-]+)`", row)]
    assert sorted(names) == sorted(CASES)


def test_one_raw_line_makes_one_row() -> None:
    line = {
        "case": "broker-kill",
        "side": "stock",
        **dict.fromkeys(("sent", "confirmed", "unknown", "executed", "lost", "duplicated", "dead"), 7),
        "recovered": -1,
        "note": "a note",
        "restarts": 2,
        "failures": [],
        "figures": {"queued": 3},
    }
    shown = document.line({**line, "executed": 6}, first=True)
    assert shown.startswith("| `broker-kill` | stock | 7 | 7 | 7 | 6 | 7 | 7 | 7 | never |")
    assert shown.endswith("| a note; worker ended 2 times; 3 left in the queue |")
    assert "| 7 | - |" in document.line(line, first=True), "all had been done: there was nothing to recover"
