"""The table of a run: for a terminal, as JSON lines, and as the one in docs/reliability.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.faults.trial import Line

COLUMNS = ("sent", "confirmed", "unknown", "executed", "lost", "duplicated", "dead", "recovered")
HEADS = ("sent", "confirmed", "unknown", "executed", "lost", "duplicated", "dead letters", "recovered in s")


def shown(name: str, value: Any) -> str:
    """A figure as a person reads it."""
    if value is None:
        return "-"
    if name == "recovered":
        return "never" if value < 0 or value == float("inf") else f"{value:.1f}"
    return str(value)


def cells(line: dict[str, Any]) -> list[str]:
    """The figures of one line."""
    if line["recovered"] is not None and line["recovered"] < 0 and line["executed"] >= line["confirmed"]:
        line = {**line, "recovered": None}  # the fault outlived the work: nothing was left to recover
    return [shown(name, line[name]) for name in COLUMNS]


def remark(line: dict[str, Any]) -> str:
    """What else is to be said of a line."""
    parts = [line["note"]] if line["note"] else []
    if line["restarts"]:
        parts.append(f"worker ended {line['restarts']} times")
    if line["side"] == "stock" and line["figures"].get("queued"):
        parts.append(f"{line['figures']['queued']} left in the queue")
    if line["failures"]:
        parts.append("MISSED: " + "; ".join(line["failures"]))
    return "; ".join(parts)


def one_line(line: Line) -> str:
    """The line of one side, as it is printed while the suite runs."""
    found = line.as_dict()
    figures = " | ".join(f"{head} {cell}" for head, cell in zip(HEADS, cells(found), strict=True))
    return f"{line.case} {line.side}: {figures}" + (f"  ({remark(found)})" if remark(found) else "")


def show(lines: Iterable[Line], title: str) -> None:
    """Print the whole table."""
    table = Table(title=title, title_justify="left", show_lines=False, pad_edge=False)
    table.add_column("case", no_wrap=True)
    table.add_column("side")
    for head in HEADS:
        table.add_column(head, justify="right")
    table.add_column("remark", overflow="fold")
    before = ""
    for line in lines:
        found = line.as_dict()
        style = "bold red" if line.failures else ("" if line.side == "ours" else "dim")
        name = line.case if line.case != before else ""
        if before and name:
            table.add_section()
        before = line.case
        table.add_row(name, line.side, *cells(found), remark(found), style=style)
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)


def write(path: Path, header: dict[str, Any], lines: Iterable[Line]) -> None:
    """Write raw results: what was run on, then a line each."""
    rows = [json.dumps(header), *(json.dumps(line.as_dict(), default=str) for line in lines)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
