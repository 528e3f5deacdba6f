"""What Prometheus reads of us: where it scrapes, and the limits of the table as series that rules compare with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from queues.topology import QUEUES, Topology

if TYPE_CHECKING:
    from collections.abc import Callable

    from queues.topology import QueueSpec

#: Rules, alerts and limits; beside this module.
RULES = Path(__file__).parent / "prometheus"
RULE_FILES = ("limits.yml", "rules.yml", "alerts.yml")

_CONFIG = """\
# {origin}
# One target for all workers: scaling a service changes nothing here. RabbitMQ's own endpoint stands beside it.
global:
  scrape_interval: {interval}
  evaluation_interval: {interval}

rule_files: {rules}

scrape_configs:
  - job_name: warren
    static_configs:
      - targets: [{exporter}]
  - job_name: rabbitmq
    scheme: https
    tls_config:
      ca_file: {ca}
    static_configs:
      - targets: [{broker}]
"""
_LIMIT = """\
      - record: {record}
        expr: vector({value})
        labels: {{queue: {queue}}}
"""


def config(origin: str, *, exporter: str, broker: str, ca: str, rules: str, interval: str = "15s") -> str:
    """Prometheus' configuration.

    Args:
        origin: who wrote it, for the first line.
        exporter: the exporter's host:port.
        broker: host:port of RabbitMQ's own metrics, over TLS.
        ca: file of the authority that signed its certificate.
        rules: the folder of the rule files; empty for the configuration's own.
        interval: between two scrapes, and two evaluations of the rules.
    """
    files = [str(Path(rules) / name) for name in RULE_FILES]
    return _CONFIG.format(
        origin=origin,
        exporter=json.dumps(exporter),
        broker=json.dumps(broker),
        ca=json.dumps(ca),
        rules=json.dumps(files),
        interval=interval,
    )


def limits(topology: Topology = QUEUES) -> str:
    """The rule file that holds the table's limits."""
    columns: tuple[tuple[str, Callable[[QueueSpec], int]], ...] = (
        ("queue:celery_queue_backlog_seconds:limit", lambda queue: queue.backlog_seconds),
        ("queue:celery_dead_letter_bytes:limit", lambda queue: queue.dead_letter_bytes),
    )
    rules = "".join(
        _LIMIT.format(record=record, value=value(queue), queue=queue.name)
        for record, value in columns
        for queue in topology
    )
    return f"# Written by `make render` from queues/topology.py.\ngroups:\n  - name: warren-limits\n    rules:\n{rules}"
