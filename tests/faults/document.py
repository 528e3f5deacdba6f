"""The tables of docs/reliability.md, from the raw results."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.faults.table import HEADS, cells, remark

if TYPE_CHECKING:
    from pathlib import Path

BEGIN, END = "<!-- results: begin, by `python -m tests.faults --write-docs` -->", "<!-- results: end -->"
UPGRADE_BEGIN, UPGRADE_END = "<!-- upgrade: begin, by the same -->", "<!-- upgrade: end -->"
UPGRADE_COLUMNS = ("sent", "confirmed", "done", "by_base", "by_head", "lost", "doubled")
UPGRADE_HEADS = ("sent", "confirmed", "done", "by the old", "by the new", "lost", "doubled")


def write(page: Path, results: Path) -> None:
    """Put the tables of all raw results between the page's markers."""
    text = page.read_text(encoding="utf-8")
    for begin, end, content in (
        (BEGIN, END, tables(results)),
        (UPGRADE_BEGIN, UPGRADE_END, upgrade(results / "upgrade.jsonl")),
    ):
        head, _, rest = text.partition(begin)
        _, _, tail = rest.partition(end)
        text = f"{head}{begin}\n{content}\n{end}{tail}"
    page.write_text(text, encoding="utf-8")


def tables(results: Path) -> str:
    """One table for each file of raw results, those of families last."""
    found = (path for path in results.glob("*.jsonl") if path.name != "upgrade.jsonl")
    paths = sorted(found, key=lambda path: (not path.name.startswith("rabbitmq-"), path.name))
    return "\n\n".join(table(path) for path in paths)


def table(path: Path) -> str:
    """A run as Markdown."""
    header, *rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    lines = [
        title(header),
        "",
        run(header, path.name),
        "",
        f"| case | side | {' | '.join(HEADS)} | remark |",
        f"| --- | --- | {' | '.join('---:' for _ in HEADS)} | --- |",
    ]
    before = ""
    for row in rows:
        lines.append(line(row, first=row["case"] != before))
        before = row["case"]
    return "\n".join(lines)


def title(header: dict[str, Any]) -> str:
    """A table's heading: a family is run with each kind of result store."""
    family = f", `{header['family']}`, results in {header['store']}" if header.get("family") else ""
    return f"### RabbitMQ {header['rabbitmq']}{family}"


def run(header: dict[str, Any], name: str) -> str:
    """What a run ran on."""
    parts = f" in {header['parts']} parts" if "parts" in header else ""
    return (
        f"Celery {header['celery']}, kombu {header['kombu']}, amqp {header['amqp']}, Python {header['python']}, "
        f"{header['cpus']} CPUs, {header['at']}, {header['seconds'] / 60:.0f} minutes{parts}; "
        f"raw: [{name}](../tests/faults/results/{name})."
    )


def line(row: dict[str, Any], *, first: bool) -> str:
    """One side of one case."""
    name = f"`{row['case']}`" if first else ""
    return f"| {name} | {row['side']} | {' | '.join(cells(row))} | {remark(row)} |"


def upgrade(path: Path) -> str:
    """An update and its way back as Markdown."""
    header, *rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    ran = (
        f"From {header['base']} to {header['head']} and back in {header['seconds']} s: "
        f"Celery {header['celery']}, Python {header['python']}, {header['cpus']} CPUs, {header['at']}; "
        f"raw: [{path.name}](../tests/faults/results/{path.name})."
    )
    lines = [
        ran,
        "",
        f"| what | {' | '.join(UPGRADE_HEADS)} | remark |",
        f"| --- | {' | '.join('---:' for _ in UPGRADE_HEADS)} | --- |",
    ]
    lines += [f"| {row['what']} | {' | '.join(upgrade_cells(row))} | {upgrade_remark(row)} |" for row in rows]
    return "\n".join(lines)


def upgrade_cells(row: dict[str, Any]) -> list[str]:
    """The figures of one line."""
    return ["-" if row[name] is None else str(row[name]) for name in UPGRADE_COLUMNS]


def upgrade_remark(row: dict[str, Any]) -> str:
    """What else is to be said of a line."""
    return "; ".join(
        [
            *([row["note"]] if row["note"] else []),
            *([f"MISSED: {'; '.join(row['failures'])}"] if row["failures"] else []),
        ]
    )
