"""What an operator asks of a running deployment."""

from __future__ import annotations

import contextlib
import datetime
import time
from typing import TYPE_CHECKING, Any

from celery.exceptions import ImproperlyConfigured

from ops.errors import OpsError, UnreachableError
from ops.management import Management
from queues.errors import ControlRefusedError
from queues.publish import connect
from queues.remedies import explain
from queues.topology import QUEUES, UNDELIVERABLE
from queues.transport import deadline

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from queues.app import WarrenCelery

#: Seconds that RabbitMQ's own numbers may lag behind (5, and 10 after its start): for so long a queue that seems to
#: have no consumer is looked at again.
STATISTICS_AGE = 12.0
#: Seconds that workers are given to answer.
ANSWER_TIMEOUT = 2.0


def queue_table(environ: Mapping[str, str]) -> list[dict[str, Any]]:
    """Every queue of the table, and the undeliverable messages; None where the broker does not know.

    Raises:
        OpsError: the management API does not answer.
    """
    management = Management.from_env(environ)
    limit = time.monotonic() + STATISTICS_AGE
    while True:
        found = {queue["name"]: queue for queue in management.queues()}
        rows = [row(queue.name, found, dead=queue.dead_letter) for queue in QUEUES]
        if all(item["consumers"] for item in rows) or time.monotonic() > limit:
            return [*rows, row(UNDELIVERABLE, found, kind="sink")]
        time.sleep(0.5)


def row(name: str, found: Mapping[str, Any], *, dead: str | None = None, kind: str = "work") -> dict[str, Any]:
    """One line of the table."""
    queue, letters = found.get(name, {}), found.get(dead or "", {})
    return {
        "queue": name,
        "kind": kind,
        "ready": queue.get("messages_ready"),
        "unacknowledged": queue.get("messages_unacknowledged"),
        "consumers": queue.get("consumers"),
        "dead_letters": letters.get("messages") if dead else None,
    }


def task_state(app: WarrenCelery, task_id: str) -> dict[str, Any]:
    """The state and result of a task.

    A task that waits has left no trace in the result store, and neither has an id that never was: both are `unknown`.

    Raises:
        OpsError: the result store does not answer, or none is configured.
    """
    try:
        meta = app.backend.get_task_meta(task_id, cache=False)
    except (NotImplementedError, AttributeError) as exc:
        raise OpsError("no result store is configured: set RESULT_BACKEND as the workers have it") from exc
    except ImproperlyConfigured as exc:
        raise OpsError(f"the result store cannot be used ({exc}): install the extra, pip install '.[results]'") from exc
    except Exception as exc:
        raise UnreachableError(
            f"the result store does not answer ({type(exc).__name__}): check RESULT_BACKEND"
        ) from exc
    state, value = meta["status"], meta.get("result")
    if state == "PENDING":
        return {"id": task_id, "state": "unknown", "result": "no trace of it: it waits, has expired, or never was"}
    return {"id": task_id, "state": state, "result": str(value) if isinstance(value, Exception) else value}


def worker_tasks(app: WarrenCelery, what: str) -> list[dict[str, Any]]:
    """Tasks that workers run, hold for later or have taken; without their arguments.

    Args:
        app: an app that may use remote control.
        what: active, scheduled or reserved.

    Raises:
        OpsError: no broker answers, or this user may not ask.
    """
    reach(app)
    inspect = app.control.inspect(timeout=ANSWER_TIMEOUT)
    with asking():
        answers = inspect.active(safe=True) if what == "active" else getattr(inspect, what)()
    if not answers:
        raise OpsError("no worker answered: start one, and look at `warren status`")
    rows = []
    for worker, tasks in sorted(answers.items()):
        for task in tasks:
            request = task.get("request", task)
            since = task.get("eta") or request.get("time_start")
            if isinstance(since, int | float):
                since = datetime.datetime.fromtimestamp(since, datetime.UTC).isoformat(timespec="seconds")
            rows.append({"worker": worker, "task": request["name"], "id": request["id"], "since": since})
    return rows


def answering(app: WarrenCelery) -> dict[str, Any]:
    """The broker's answer time and version, and the workers that answer.

    Raises:
        OpsError: no broker answers, or this user may not ask.
    """
    began = time.monotonic()
    version = reach(app)
    seconds = time.monotonic() - began
    with asking():
        replies = app.control.ping(timeout=ANSWER_TIMEOUT) or []
    workers = sorted(name for reply in replies for name in reply)
    where = app.connection_for_write().as_uri().partition("@")[2].rstrip("/")
    return {"broker": where, "seconds": round(seconds, 4), "version": version, "workers": workers}


@contextlib.contextmanager
def asking() -> Iterator[None]:
    """A refusal of remote control as a sentence: only the operator has the right."""
    try:
        yield
    except ControlRefusedError as exc:
        raise OpsError(str(exc)) from exc


def reach(app: WarrenCelery) -> str:
    """Connect once, so that an unreachable broker is one sentence.

    Returns:
        RabbitMQ's version.

    Raises:
        UnreachableError: no broker answers, or it refuses us.
    """
    timeout: float = app.conf.publish_timeout
    with app.connection_for_write() as connection:
        try:
            with deadline(timeout):
                connect(connection)
            return str(connection.connection.server_properties.get("version", "?"))
        except Exception as exc:
            raise UnreachableError(explain(connection, exc)) from exc
