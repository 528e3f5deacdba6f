"""The table of an update: for a terminal, as JSON lines, and as the one in docs/reliability.md."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tests.faults import document
from tests.faults.upgrade.versions import PROJECT

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.faults.upgrade.account import Row

RESULTS = PROJECT / "tests" / "faults" / "results"


def show(header: dict[str, Any], rows: Iterable[Row]) -> None:
    """Print the whole table."""
    title = f"{header['base']} to {header['head']} and back, {header['seconds']} s"
    table = Table(title=title, title_justify="left", show_lines=False, pad_edge=False)
    table.add_column("what")
    for head in document.UPGRADE_HEADS:
        table.add_column(head, justify="right")
    table.add_column("remark", overflow="fold")
    for row in rows:
        found = row.as_dict()
        remark = Text(document.upgrade_remark(found))
        table.add_row(row.what, *document.upgrade_cells(found), remark, style="bold red" if row.failures else "")
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)
    if header["error"]:
        console.print(f"it ended early: {header['error']}", markup=False)


def write(path: Path, header: dict[str, Any], rows: Iterable[Row]) -> None:
    """Write raw results: what was run on, then a line each."""
    lines = [json.dumps(header), *(json.dumps(row.as_dict()) for row in rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def publish(header: dict[str, Any], rows: Iterable[Row]) -> None:
    """Keep a run's raw results with the project, and show them in its page."""
    write(RESULTS / "upgrade.jsonl", header, rows)
    document.write(PROJECT / "docs" / "reliability.md", RESULTS)
