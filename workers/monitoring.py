"""What the monitor queue looks at and reports; no Celery import."""

from __future__ import annotations

import json
import os
import tempfile
import urllib.request
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client.parser import text_string_to_metric_families

from queues.errors import PermanentError
from queues.headers import ERROR, REASON
from queues.topology import HOUSEKEEPING_QUEUE, Topology

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: Samples of the exporter that a daily report adds up, by the report's column.
COLUMNS = {
    "celery_task_started_total": "started",
    "celery_task_completions_total": "completed",
    "celery_task_failures_total": "failed",
    "celery_task_retries_total": "retried",
}
EXPORTER_TIMEOUT = 10
#: What the code of a failure is, by the reason that the broker gives for a dead letter of its own.
BROKER_REASONS = {"delivery_limit": "delivery-limit", "expired": "expired", "maxlen": "maxlen", "rejected": "rejected"}


@dataclass(frozen=True, slots=True)
class QueueState:
    """One queue as the broker answers a passive declare: ready messages and consumers."""

    ready: int
    consumers: int


@dataclass(slots=True)
class Status:
    """The outcome of one look: `ok`, `degraded` (reasons say why) or `down` (the broker did not answer)."""

    checks: dict[str, Any] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    down: bool = False

    @property
    def results_answer(self) -> bool:
        """Whether the result store did."""
        return "results_seconds" in self.checks

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable."""
        status = "down" if self.down else ("degraded" if self.reasons else "ok")
        return {"status": status, "reasons": self.reasons, "checks": self.checks}


def check(
    topology: Topology,
    look: Callable[[str], QueueState | None],
    ping_results: Callable[[], float],
) -> Status:
    """Look at every queue of the table, its dead letters, and the result store.

    Args:
        topology: the table.
        look: answers for a queue's name, None where the queue is missing; OSError where the broker is away.
        ping_results: seconds of one round trip to the result store; raises where it is away.
    """
    status = Status()
    queues: dict[str, Any] = {}
    try:
        for queue in topology:
            state, dead = look(queue.name), look(queue.dead_letter)
            if state is None or dead is None:
                status.reasons.append(f"queue {queue.name} or its dead-letter queue is missing: run `warren check`")
                continue
            queues[queue.name] = {"ready": state.ready, "consumers": state.consumers, "dead_letters": dead.ready}
            if state.consumers == 0 and queue.name != HOUSEKEEPING_QUEUE:
                status.reasons.append(f"queue {queue.name} has no consumer: start {queue.user}")
            if dead.ready:
                status.reasons.append(f"queue {queue.dead_letter} holds {dead.ready} dead letters: look at them")
    except OSError as exc:
        status.down = True
        status.reasons.append(f"the broker does not answer ({type(exc).__name__}): look at its log")
    status.checks["queues"] = queues
    try:
        status.checks["results_seconds"] = round(ping_results(), 4)
    except Exception as exc:  # noqa: BLE001 - whatever a result store raises means the same here
        status.reasons.append(f"the result store does not answer ({type(exc).__name__}): look at its log")
    return status


def ending(headers: Any) -> PermanentError | None:
    """How a dead letter's task ended; None where nobody waits to hear it, or has heard it.

    A worker that buries a task says why in a header; what the broker ended has its reason in `x-death`.
    """
    if not isinstance(headers, dict):
        return None
    unrecorded = headers.get("ignore_result") is True
    reason = headers.get(REASON)
    if isinstance(reason, str) and reason:
        # The worker has told whoever waits; where there is no record, nobody could see that.
        return None if unrecorded else PermanentError(reason, str(headers.get(ERROR) or reason))
    deaths = headers.get("x-death")
    if not isinstance(deaths, list) or not deaths or not isinstance(deaths[0], dict):
        return None
    how, queue = deaths[0].get("reason", "rejected"), deaths[0].get("queue", "its queue")
    if unrecorded and how == "rejected":
        return None  # by a worker
    code = BROKER_REASONS.get(how, "rejected") if isinstance(how, str) else "rejected"
    return PermanentError(code, f"the broker ended it in {queue} ({how}): look at the dead letter")


def totals(exposition: str) -> dict[str, dict[str, float]]:
    """The exporter's counters by task: `{"math.add": {"started": 3.0, ...}}`."""
    found: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(COLUMNS.values(), 0.0))
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            if sample.name in COLUMNS and "task" in sample.labels:
                found[sample.labels["task"]][COLUMNS[sample.name]] += sample.value
    return dict(found)


def scrape(url: str) -> dict[str, dict[str, float]]:
    """The exporter's counters now.

    Raises:
        OSError: the exporter does not answer.
    """
    with urllib.request.urlopen(url, timeout=EXPORTER_TIMEOUT) as answer:
        return totals(answer.read().decode())


def difference(
    now: Mapping[str, Mapping[str, float]], before: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, int]]:
    """What a day added; a counter that fell has started again from zero."""
    result = {}
    for task, counts in sorted(now.items()):
        old = before.get(task, {})
        result[task] = {
            column: int(value - old.get(column, 0.0) if value >= old.get(column, 0.0) else value)
            for column, value in counts.items()
        }
    return result


def text_report(day: str, table: Mapping[str, Mapping[str, int]]) -> str:
    """The report as a mail's body."""
    lines = [f"Tasks of {day}", "", f"{'task':32}" + "".join(f"{column:>11}" for column in COLUMNS.values())]
    for task, counts in table.items():
        lines.append(f"{task:32}" + "".join(f"{counts.get(column, 0):>11}" for column in COLUMNS.values()))
    if not table:
        lines.append("No task ran.")
    return "\n".join(lines) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=1, sort_keys=True)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_json(path: Path) -> Any:
    """A file's content, or None where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
