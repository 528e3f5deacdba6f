"""Remote control and Celery's own commands."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

from ops.errors import OpsError
from tests.cases.bench import case
from tests.integration.helpers import awaited, consumers

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cases.bench import Bench
    from tests.faults.worker import Worker


#: Seconds that an answer may take on a busy machine.
ANSWER = 15


def ordered(bench: Bench, *options: str) -> Worker:
    """A worker that takes orders, as soon as it does."""
    worker = bench.start("cases", *options, REMOTE_CONTROL="full")
    bench.consuming("cases")
    awaited(lambda: call(bench, "ping") == "ok")
    return worker


def call(bench: Bench, name: str, **arguments: Any) -> str:
    """Give a command to the worker; its answer, `ok` or `error` first."""
    node = bench.nodes["cases"]
    found = bench.operator.control.broadcast(name, arguments=arguments, destination=[node], reply=True, timeout=ANSWER)
    answers = [answer[node] for answer in found or [] if node in answer]
    if not answers:
        return "no answer"
    first = answers[0]
    return f"error: {first['error']}" if isinstance(first, dict) and "error" in first else "ok"


def refused(answer: str) -> str:
    return "refused" if answer.startswith("error") else answer


@case("limits", "control time_limit with one limit, none, and too long ones")
def limits(bench: Bench) -> None:
    ordered(bench)
    for soft, hard in ((None, 20), (10, None), (5, 10), (None, None)):
        answer = call(bench, "time_limit", task_name="cases.echo", soft=soft, hard=hard)
        bench.expect(f"soft {soft}, hard {hard}", "an answer", "none" if answer == "no answer" else "an answer")
        bench.expect(f"soft {soft}, hard {hard}: a task", "'works'", bench.works())
    answer = call(bench, "time_limit", task_name="cases.echo", soft=5000, hard=6000)
    bench.expect("beyond the consumer timeout", "refused", refused(answer))
    bench.expect("and a task", "'works'", bench.works())
    slow = bench.send("cases.echo", 1, 30.0, time_limit=2)
    bench.expect("a message's own limit", "TimeLimitExceeded", bench.ended(slow).partition(":")[0].replace("Soft", ""))


@case("consumers", "control add_consumer and cancel_consumer, and a lost connection after them")
def consuming(bench: Bench) -> None:
    ordered(bench)
    for queue in ("math", "nowhere"):
        bench.expect(f"add_consumer {queue}", "refused", refused(call(bench, "add_consumer", queue=queue)))
        bench.expect("and a task", "'works'", bench.works())
    bench.expect("cancel_consumer", "ok", call(bench, "cancel_consumer", queue="cases"))
    awaited(lambda: not consumers(bench.operator, "cases"), 10)
    with contextlib.suppress(OpsError):  # one that ended meanwhile is an error of its own
        bench.lab.broker.ctl("close_all_user_connections", "worker-cases", "a case")
    answers = awaited(lambda: call(bench, "ping") == "ok" and "ok", 30)
    bench.expect("after a lost connection it answers", "ok", answers or "no")
    time.sleep(3)
    bench.expect("and stays idle", 0, consumers(bench.operator, "cases"))
    bench.expect("add_consumer of its own queue", "ok", call(bench, "add_consumer", queue="cases"))
    bench.expect("and a task", "'works'", bench.works())


@case("orders", "the other orders, with REMOTE_CONTROL=full")
def orders(bench: Bench) -> None:
    worker = ordered(bench)
    busy = [bench.send("cases.echo", n, 4.0) for n in range(2)]
    time.sleep(1)
    waiting = bench.send("cases.echo", 1)
    bench.expect("revoke", "ok", call(bench, "revoke", task_id=waiting.id))
    bench.expect("the tasks that ran", ["0", "1"], [bench.ended(result) for result in busy])
    bench.expect("the one that waited", "TaskRevokedError: revoked", bench.ended(waiting))
    for name in ("TERM", "KILL"):
        running = bench.send("cases.echo", 1, 20.0)
        awaited(lambda running=running: bench.app.AsyncResult(running.id).state == "STARTED", 10)  # type: ignore[misc]
        call(bench, "revoke", task_id=running.id, terminate=True, signal=name)
        bench.expect(f"terminate by {name}", "TaskRevokedError: terminated", bench.ended(running))
        bench.expect("its dead letter", "none", bench.letter(running.id))
        bench.expect("and a task", "'works'", bench.works())
    bench.expect(
        "a rate that is none", "refused", refused(call(bench, "rate_limit", task_name="cases.echo", rate_limit="x"))
    )
    for name in ("election", "nonsense", "pool_restart", "autoscale"):
        bench.expect(
            name,
            "refused or no answer",
            call(bench, name).replace("no answer", "error").partition(":")[0].replace("error", "refused or no answer"),
        )
    bench.expect("and a task", "'works'", bench.works())
    call(bench, "shutdown")
    awaited(lambda: worker.exits, 20)
    bench.expect("shutdown: exit codes", [0], worker.exits[:1])
    worker.exits.clear()


@case("questions", "without REMOTE_CONTROL=full no order is taken", "cases")
def questions(bench: Bench) -> None:
    awaited(lambda: call(bench, "ping") == "ok")
    running = bench.send("cases.echo", 1, 3.0)
    for name, arguments in {
        "revoke": {"task_id": running.id, "terminate": True},
        "rate_limit": {"task_name": "cases.echo", "rate_limit": "1/h"},
        "time_limit": {"task_name": "cases.echo", "hard": 1},
        "pool_shrink": {"n": 2},
        "shutdown": {},
        "add_consumer": {"queue": "math"},
        "cancel_consumer": {"queue": "cases"},
        "enable_events": {},
        "conf": {},
        "query_task": {"ids": [running.id]},
    }.items():
        bench.expect(name, "refused", refused(call(bench, name, **arguments)))
    for name in ("ping", "stats", "active", "active_queues", "registered"):
        bench.expect(name, "ok", call(bench, name))
    bench.expect("the task that ran", 1, bench.ended(running))


@case("events", "the end of a task whose process died is told to whoever watches")
def events(bench: Bench) -> None:
    ordered(bench, "-E")
    found: list[tuple[str, str]] = []

    def hear(event: dict[str, Any]) -> None:
        found.append((event.get("uuid", ""), event["type"]))

    operator: Any = bench.operator
    with operator.connection_for_read() as connection:
        receiver = operator.events.Receiver(connection, handlers={"*": hear})
        sent: list[Any] = []
        timer = threading.Timer(2.0, lambda: sent.extend((bench.send("cases.die"), bench.send("cases.echo", 1))))
        timer.start()
        limit = time.monotonic() + 30
        for _ in receiver.itercapture(limit=None, timeout=10, wakeup=False):
            if time.monotonic() > limit or {"task-failed", "task-succeeded"} <= {kind for _, kind in found}:
                break
        timer.join()
    died, good = sent[0].id, sent[1].id
    for what, task_id, should in (("it died", died, "task-failed"), ("it ran", good, "task-succeeded")):
        bench.expect(what, should, next((kind for name, kind in found[::-1] if name == task_id), "nothing"))


@case("nobody", "no worker runs: the tools say so, and not that the broker is wrong")
def nobody(bench: Bench) -> None:
    control: Any = bench.operator.control
    looks: dict[str, Callable[[], Any]] = {
        "control.ping": lambda: control.ping(timeout=1),
        "inspect.active": lambda: control.inspect(timeout=1).active(),
        "revoke": lambda: control.revoke("none"),
    }
    for what, look in looks.items():
        try:
            came = repr(look())
        except Exception as exc:  # noqa: BLE001
            came = f"{type(exc).__name__}: {exc}"
        bench.expect(what, "[]" if what == "control.ping" else "None", came)
    done = bench.celery("status")
    text = f"{done.stdout} {done.stderr}"
    bench.expect("celery status", "No nodes replied", "No nodes replied" if "No nodes replied" in text else text[-200:])


COMMANDS = (
    "report",
    "status",
    "inspect ping",
    "inspect active",
    "inspect registered",
    "inspect stats",
    "inspect active_queues",
    "inspect scheduled",
    "call cases.echo -a [5]",
    "call cases.none",
    "call nowhere.echo",
    "control shutdown",
    "control add_consumer math",
    "graph bootsteps",
    "worker",
    "worker -Q nowhere",
    "worker -Q cases,math",
    "worker -Q cases -P solo",
)
#: Commands that differ from Celery's, and why; those that end in a sentence and another exit code than 0.
DESIGN = {"graph bootsteps": "by design: it makes a worker without a queue, which is none"}
SENTENCES = ("call cases.none", "call nowhere.echo", "worker")


@case("tools", "Celery's commands: an answer or a sentence, no traceback, no secret", "cases")
def tools(bench: Bench) -> None:
    secrets = {(bench.lab.stack.folder / "secrets" / role).read_text().strip() for role in ("operator", "worker-cases")}
    for command in COMMANDS:
        done = bench.celery(*command.split(), role="worker-cases" if command.startswith("worker") else "operator")
        text = done.stdout + done.stderr
        fails = command.startswith(SENTENCES)
        flaws = [
            *(["a traceback"] if "Traceback" in text else []),
            *(["a secret"] if any(secret in text for secret in secrets) else []),
            *([f"exit {done.returncode}: {text[-150:]}"] if (done.returncode != 0) is not fails else []),
        ]
        bench.expect(
            f"celery {command}", "as it should be", ", ".join(flaws) or "as it should be", DESIGN.get(command, "")
        )
