"""Grafana's dashboards, from the table: overview, queue, task, workers. `make render` writes them.

Quantities of tasks are read through the recording rules of `ops/prometheus/rules.yml`, so that two exporters show once.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ops.panels import Dashboard, Panel
from queues.topology import QUEUES, Topology

if TYPE_CHECKING:
    from collections.abc import Iterable

#: The recorded rates of histograms by what they observe.
WAIT = "queue_task_le:celery_task_queue_wait_seconds_bucket:rate5m"
RUNTIME = "queue_task_outcome_le:celery_task_runtime_seconds_bucket:rate5m"
END_TO_END = "queue_task_le:celery_task_end_to_end_seconds_bucket:rate5m"


def quantiles(bucket: str, keep: str, selector: str = "") -> dict[str, str]:
    """The median and two tails of a recorded histogram, by the labels to keep."""
    return {
        f"p{percent} {' '.join(f'{{{{{label}}}}}' for label in keep.split(', '))}": (
            f"histogram_quantile({percent / 100:g}, sum by (le, {keep}) ({bucket}{selector}))"
        )
        for percent in (50, 95, 99)
    }


def overview(topology: Topology = QUEUES) -> Dashboard:
    """Whether everything is well, queue by queue."""

    def stat(title: str, query: str, **more: Any) -> Panel:
        return Panel(title=title, queries={"": query}, kind="stat", width=4, **more)

    backlogs = [
        stat(
            f"{queue.name}: backlog",
            f'queue:celery_queue_backlog:seconds{{queue="{queue.name}"}}',
            unit="s",
            warn=queue.backlog_seconds / 2,
            alarm=queue.backlog_seconds,
        )
        for queue in topology
    ]
    return Dashboard(
        uid="warren-overview",
        title="Warren: overview",
        rows={
            "Broker": (
                stat("Broker answers", "max(celery_broker_up)", warn=1, alarm=1, low=True),
                stat("Alarms", "sum(max without (instance) (celery_broker_alarm))", warn=1, alarm=1),
                stat("Dead letters", "sum(queue:celery_dead_letter_messages:max)", warn=1, alarm=100),
                stat("Delayed", "max(celery_delayed_messages)"),
                stat("Delays blocked", "max(celery_delayed_blocked_messages)", warn=1, alarm=1),
                stat("Undeliverable", "max(celery_undeliverable_messages)", warn=1, alarm=1),
            ),
            "Seconds of backlog": tuple(backlogs),
            "Queues": (
                Panel(
                    title="Waiting",
                    queries={"{{queue}}": "queue:celery_queue_messages_ready:max"},
                ),
                Panel(
                    title="Started per second",
                    queries={"{{queue}}": "queue:celery_task_started:rate5m"},
                    unit="ops",
                ),
                Panel(
                    title="Wait, 95 %",
                    queries={"{{queue}}": f"histogram_quantile(0.95, sum by (le, queue) ({WAIT}))"},
                    unit="s",
                ),
                Panel(
                    title="Failures per finished task, 10 min",
                    queries={"{{task}}": "queue_task:celery_task_failures:ratio10m"},
                    unit="percentunit",
                    warn=0.02,
                    alarm=0.05,
                ),
                Panel(
                    title="Workers that consume",
                    queries={"{{queue}}": "queue:celery_queue_consumers:max"},
                ),
                Panel(
                    title="Dead letters",
                    queries={"{{queue}}": "queue:celery_dead_letter_messages:max"},
                ),
            ),
            "Exporter": (
                stat("Exporters that answer", 'count(up{job="warren"} == 1)', warn=1, alarm=1, low=True),
                stat("Receives snapshots", "max(celery_exporter_consuming)", warn=1, alarm=1, low=True),
                stat(
                    "Last snapshot",
                    "time() - max(celery_exporter_last_snapshot_timestamp_seconds)",
                    unit="s",
                    warn=400,
                    alarm=900,
                ),
                stat("Samples of tasks", "max(celery_exporter_series)"),
                stat("Left out", "max(celery_exporter_series_dropped_total)", warn=1, alarm=1),
                stat(
                    "Certificates end in",
                    "min(certificate:celery_certificate:days_left)",
                    unit="d",
                    warn=30,
                    alarm=14,
                    low=True,
                ),
            ),
        },
    )


def queue(topology: Topology = QUEUES) -> Dashboard:
    """One queue, or several beside each other."""
    here = '{queue=~"$queue"}'

    def broker(metric: str) -> str:
        return f"max without (instance) ({metric}{here})"

    def rate(metric: str) -> str:
        return f"max without (instance) (rate({metric}{here}[5m]))"

    return Dashboard(
        uid="warren-queue",
        title="Warren: queue",
        variables={"queue": topology.names},
        rows={
            "Depth": (
                Panel(
                    title="Waiting and held",
                    queries={
                        "{{queue}} waiting": broker("celery_queue_messages_ready"),
                        "{{queue}} held": broker("celery_queue_messages_unacknowledged"),
                        "{{queue}} leaving": broker("celery_queue_messages_dead_lettering"),
                    },
                ),
                Panel(
                    title="Seconds of backlog, and its limit",
                    queries={
                        "{{queue}}": f"queue:celery_queue_backlog:seconds{here}",
                        "{{queue}} limit": f"queue:celery_queue_backlog_seconds:limit{here}",
                    },
                    unit="s",
                ),
                Panel(
                    title="Oldest message, at most",
                    queries={
                        "{{queue}}": f"queue:celery_queue_oldest_message:age_seconds{here} or "
                        f"(queue:celery_queue_messages_ready:max{here} == 0)"
                    },
                    unit="s",
                ),
                Panel(
                    title="In and out per second",
                    queries={
                        "{{queue}} published": rate("celery_queue_messages_published_total"),
                        "{{queue}} acknowledged": rate("celery_queue_messages_acknowledged_total"),
                        "{{queue}} redelivered": rate("celery_queue_messages_redelivered_total"),
                    },
                    unit="ops",
                ),
                Panel(
                    title="Workers that consume",
                    queries={"{{queue}}": f"queue:celery_queue_consumers:max{here}"},
                ),
                Panel(
                    title="Processes, and those that run a task",
                    queries={
                        "{{queue}} processes": f"sum by (queue) ({broker('celery_worker_concurrency')})",
                        "{{queue}} busy": f"sum by (queue) ({broker('celery_worker_busy_processes')})",
                    },
                ),
            ),
            "Time": (
                Panel(title="Wait", queries=quantiles(WAIT, "queue", here), unit="s"),
                Panel(title="Runtime", queries=quantiles(RUNTIME, "queue", here), unit="s"),
                Panel(title="From first publish to the end", queries=quantiles(END_TO_END, "queue", here), unit="s"),
            ),
            "Trouble": (
                Panel(title="Dead letters", queries={"{{queue}}": f"queue:celery_dead_letter_messages:max{here}"}),
                Panel(
                    title="Room that dead letters take",
                    queries={"{{queue}}": f"queue:celery_dead_letter_bytes:ratio{here}"},
                    unit="percentunit",
                    warn=0.5,
                    alarm=0.8,
                ),
                Panel(
                    title="Messages that could not be run, per second",
                    queries={
                        "{{queue}} {{reason}}": f"sum by (queue, reason) ({rate('celery_task_rejections_total')})"
                    },
                    unit="ops",
                ),
            ),
        },
    )


def task(topology: Topology = QUEUES) -> Dashboard:
    """One task, or several beside each other."""
    here = '{task=~"$task"}'

    def rate(metric: str, *labels: str) -> str:
        return f"sum by ({', '.join(('task', *labels))}) (max without (instance) (rate({metric}{here}[5m])))"

    return Dashboard(
        uid="warren-task",
        title="Warren: task",
        variables={"task": topology.task_names},
        rows={
            "Number": (
                Panel(
                    title="Per second",
                    queries={
                        "{{task}} started": f"sum by (task) (queue_task:celery_task_started:rate5m{here})",
                        "{{task}} finished": f"sum by (task) (queue_task:celery_task_completions:rate5m{here})",
                        "{{task}} retried": f"sum by (task) (queue_task:celery_task_retries:rate5m{here})",
                    },
                    unit="ops",
                ),
                Panel(
                    title="Failures per second, by exception",
                    queries={
                        "{{task}} {{exception}}": (
                            f"sum by (task, exception) (queue_task_exception:celery_task_failures:rate5m{here})"
                        )
                    },
                    unit="ops",
                ),
                Panel(
                    title="Failures per finished task, 10 min",
                    queries={"{{task}}": f"queue_task:celery_task_failures:ratio10m{here}"},
                    unit="percentunit",
                    warn=0.02,
                    alarm=0.05,
                ),
            ),
            "Time": (
                Panel(title="Wait", queries=quantiles(WAIT, "task", here), unit="s"),
                Panel(title="Runtime by outcome", queries=quantiles(RUNTIME, "task, outcome", here), unit="s"),
                Panel(title="From first publish to the end", queries=quantiles(END_TO_END, "task", here), unit="s"),
                Panel(
                    title="Later than its ETA, 95 %",
                    queries={
                        "{{task}}": "histogram_quantile(0.95, sum by (le, task) (max without (instance) "
                        f"(rate(celery_task_eta_lateness_seconds_bucket{here}[5m]))))"
                    },
                    unit="s",
                ),
                Panel(
                    title="Processes kept busy",
                    queries={"{{task}}": rate("celery_task_runtime_seconds_sum")},
                    unit="short",
                ),
            ),
            "Trouble": (
                Panel(
                    title="Time limits per second",
                    queries={"{{task}} {{kind}}": rate("celery_task_timeouts_total", "kind")},
                    unit="ops",
                ),
                Panel(
                    title="Not run, per second",
                    queries={"{{task}} {{reason}}": rate("celery_task_revocations_total", "reason")},
                    unit="ops",
                ),
                Panel(
                    title="Run again, per second",
                    queries={
                        "{{task}} redelivered": rate("celery_task_redeliveries_total"),
                        "{{task}} process lost": rate("celery_task_worker_lost_total"),
                    },
                    unit="ops",
                ),
                Panel(
                    title="Repeats of what runs once, per second",
                    queries={
                        "{{task}} recognised": rate("celery_task_deduplicated_total"),
                        "{{task}} in doubt": rate("celery_task_in_doubt_total"),
                    },
                    unit="ops",
                ),
                Panel(
                    title="Waits that are not known, per second",
                    queries={
                        "{{task}} without a stamp": rate("celery_task_unstamped_total"),
                        "{{task}} clocks differ": rate("celery_task_clock_skew_total"),
                    },
                    unit="ops",
                ),
            ),
        },
    )


def workers(topology: Topology = QUEUES) -> Dashboard:
    """Each worker, and the exporter."""
    here = '{queue=~"$queue"}'

    def of(metric: str) -> str:
        return f"max without (instance) ({metric}{here})"

    name = "{{worker}}"
    return Dashboard(
        uid="warren-workers",
        title="Warren: workers",
        variables={"queue": topology.names},
        rows={
            "Workers": (
                Panel(
                    title="Share of processes that run a task",
                    queries={name: f"{of('celery_worker_busy_processes')} / ({of('celery_worker_concurrency')} > 0)"},
                    unit="percentunit",
                ),
                Panel(title="Processes", queries={name: of("celery_worker_concurrency")}),
                Panel(title="Tasks held", queries={name: of("celery_worker_reserved_tasks")}),
                Panel(
                    title="Longest running task",
                    queries={name: f"time() - {of('celery_worker_oldest_task_start_timestamp_seconds')}"},
                    unit="s",
                ),
                Panel(
                    title="Last heard",
                    queries={name: f"time() - {of('celery_worker_last_snapshot_timestamp_seconds')}"},
                    unit="s",
                    warn=400,
                    alarm=600,
                ),
                Panel(
                    title="Processes lost per second",
                    queries={
                        "{{queue}}": "sum by (queue) (max without (instance) "
                        f"(rate(celery_task_worker_lost_total{here}[5m])))"
                    },
                    unit="ops",
                ),
            ),
            "Exporter": (
                Panel(
                    title="Snapshots per second",
                    queries={
                        "{{instance}} counted": "rate(celery_exporter_snapshots_total[5m])",
                        "{{instance}} repeated": "rate(celery_exporter_snapshots_repeated_total[5m])",
                        "{{instance}} malformed": "rate(celery_exporter_snapshots_malformed_total[5m])",
                    },
                    unit="ops",
                ),
                Panel(
                    title="Time of a scrape",
                    queries={"{{instance}} {{collector}}": "celery_exporter_scrape_duration_seconds"},
                    unit="s",
                ),
                Panel(
                    title="Memory",
                    queries={"{{instance}}": 'process_resident_memory_bytes{job="warren"}'},
                    unit="bytes",
                ),
                Panel(
                    title="Processor",
                    queries={"{{instance}}": 'rate(process_cpu_seconds_total{job="warren"}[5m])'},
                    unit="percentunit",
                ),
                Panel(
                    title="Sums last written down",
                    queries={"{{instance}}": "time() - celery_exporter_last_checkpoint_timestamp_seconds"},
                    unit="s",
                ),
            ),
        },
    )


def dashboards(topology: Topology = QUEUES) -> Iterable[Dashboard]:
    """All of them."""
    return overview(topology), queue(topology), task(topology), workers(topology)


def files(topology: Topology = QUEUES) -> dict[str, str]:
    """The JSON files of `ops/grafana/dashboards`, by name."""
    return {
        f"{dashboard.uid.removeprefix('warren-')}.json": json.dumps(dashboard.as_dict(), indent=1) + "\n"
        for dashboard in dashboards(topology)
    }
