"""Everything that is generated from the table, and whether it is up to date."""

from __future__ import annotations

import json
from pathlib import Path

from ops import dashboards, definitions, scraping
from queues.topology import QUEUES, Topology

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- queues: begin, by `make render` -->", "<!-- queues: end -->"


def topology_json(topology: Topology = QUEUES) -> str:
    """RabbitMQ's definitions without users: what `ops/rabbitmq/topology.json` holds."""
    return json.dumps(definitions.objects(rabbitmq=(4, 3), topology=topology), indent=1) + "\n"


def queue_table(topology: Topology = QUEUES) -> str:
    """The README's table of queues."""
    lines = [
        "| queue | worker service | tasks | processes | hard limit | dead letters in |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for queue in topology:
        names = ", ".join(f"`{task.name}`" for task in queue.tasks)
        active = ", one replica active" if queue.single_active_consumer else ""
        lines.append(
            f"| `{queue.name}` | `{queue.user}` | {names} | {queue.concurrency}{active} "
            f"| {queue.time_limit} s | `{queue.dead_letter}` |"
        )
    return "\n".join(lines)


def with_table(text: str, table: str) -> str:
    """A document with the generated table between its markers; unchanged where it has none."""
    if BEGIN not in text or END not in text:
        return text
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{table}\n{END}{tail}"


def files() -> dict[Path, str]:
    """Every generated file with the content that it should have."""
    readme = ROOT / "README.md"
    boards = {ROOT / "ops" / "grafana" / "dashboards" / name: text for name, text in dashboards.files().items()}
    return {
        ROOT / "ops" / "rabbitmq" / "topology.json": topology_json(),
        scraping.RULES / "limits.yml": scraping.limits(),
        scraping.RULES / "prometheus.yml": scraping.config(
            "Written by `make render`: Prometheus in docker-compose.rabbitmq.yml.",
            exporter="exporter:9808",
            broker="rabbitmq:15691",
            ca="/run/secrets/ca.crt",
            rules="",
        ),
        **boards,
        readme: with_table(readme.read_text(encoding="utf-8"), queue_table()),
    }


def render_all(*, write: bool) -> list[str]:
    """Compare, and write where asked to.

    Returns:
        The files that were not up to date, relative to the project.
    """
    stale = []
    for path, content in files().items():
        if not path.exists() or path.read_text(encoding="utf-8") != content:
            stale.append(str(path.relative_to(ROOT)))
            if write:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content, encoding="utf-8")
    return stale
