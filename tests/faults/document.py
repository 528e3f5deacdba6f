"""The tables of docs/reliability.md, from the raw results."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.faults.table import HEADS, cells, remark

if TYPE_CHECKING:
    from pathlib import Path

BEGIN, END = "<!-- results: begin, by `python -m tests.faults --write-docs` -->", "<!-- results: end -->"


def write(page: Path, results: Path) -> None:
    """Put the tables of all raw results between the page's markers."""
    text = page.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    page.write_text(f"{head}{BEGIN}\n{tables(results)}\n{END}{tail}", encoding="utf-8")


def tables(results: Path) -> str:
    """One table for each file of raw results, those of families last."""
    paths = sorted(results.glob("*.jsonl"), key=lambda path: (not path.name.startswith("rabbitmq-"), path.name))
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
