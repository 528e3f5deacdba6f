"""Producers: what is open there is another issue's, and told as such."""

from __future__ import annotations

import datetime
import decimal
import json
import math
import uuid
from typing import TYPE_CHECKING, Any

from queues.errors import WarrenError
from tests.cases.bench import PRODUCERS, case
from tests.faults.kinds_errors import nested

if TYPE_CHECKING:
    from tests.cases.bench import Bench

SAME: dict[str, Any] = {
    "emoji": "🦊 ünï ☃",
    "nul": "a\0b",
    "surrogate": "\udce9",
    "1 MB": "x" * 1_000_000,
    "datetime": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
    "date": datetime.date(2026, 1, 2),
    "decimal": decimal.Decimal("1.10"),
    "uuid": uuid.UUID(int=7),
    "bytes": b"\xff\0",
    "a large number": 10**400,
    "nested 400": json.loads("[" * 400 + "]" * 400),
    "an empty key": {"": 1},
}
#: What cannot be carried: refused by an error of ours before it is sent.
ODD: dict[str, Any] = {
    "nan": math.nan,
    "set": {1},
    "object": object(),
    "function": len,
    "nested 3000": nested(3000),
    "nested 950": nested(950),
    "10**5000": 10**5000,
    "typed": {"__type__": "thing", "__value__": 1},
    "typed wrongly": {"__type__": "datetime", "__value__": "tomorrow"},
    "tuple keys": {(1, 2): 3},
    "an error": ValueError("x"),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "countdown nan": {"countdown": math.nan},
    "countdown text": {"countdown": "1"},
    "countdown 1e9": {"countdown": 1e9},
    "eta date": {"eta": datetime.date(2020, 1, 1)},
    "eta text": {"eta": "now"},
    "expires nan": {"expires": math.nan},
    "expires inf": {"expires": math.inf},
    "expires 1e12": {"expires": 1e12},
    "headers of numbers": {"headers": {1: 2}},
    "headers object": {"headers": {"a": object()}},
    "headers headers": {"headers": {"headers": {}}},
    "headers retries": {"headers": {"retries": "x"}},
    "headers 200 KB": {"headers": {"a": "x" * 200_000}},
    "headers nan": {"headers": {"a": math.nan}},
    "task_id number": {"task_id": 5},
    "time_limit -1": {"time_limit": -1},
    "time_limit text": {"time_limit": "5"},
    "soft_time_limit 0": {"soft_time_limit": 0},
    "link text": {"link": "x"},
    "chord number": {"chord": 5},
    "serializer pickle": {"serializer": "pickle"},
    "misspelt": {"count_down": 5},
    "root_id number": {"root_id": 5},
    "argsrepr number": {"argsrepr": 5},
}


def tried(bench: Bench, value: Any, **options: Any) -> str:
    """Send it: refused by an error of ours, or run; anything else is told."""
    try:
        result = bench.app.send_task("cases.echo", [value], **{"task_id": str(uuid.uuid4()), **options})
    except WarrenError:
        return "refused, or run"
    except Exception as exc:  # noqa: BLE001
        return f"{type(exc).__name__}: {exc}"
    ended = bench.ended(result, 8)
    return "refused, or run" if ended == repr(value) else f"{ended}; dead letter {bench.letter(str(result.id))}"


@case("arguments", "arguments and options that no worker can take are refused before they are sent", "cases")
def arguments(bench: Bench) -> None:
    for name, value in SAME.items():
        result = bench.send("cases.echo", value)
        same = bench.app.AsyncResult(result.id).get(timeout=20) == value
        bench.expect(name, "as it was", "as it was" if same else "another")
    for name, value in ODD.items():
        bench.expect(name, "refused, or run", tried(bench, value), PRODUCERS)
    for name, options in OPTIONS.items():
        bench.expect(name, "refused, or run", tried(bench, "v", **options), PRODUCERS)


FORKED = """
import os
from queues.app import default_app
app = default_app()
send = lambda: app.send_task("cases.echo", [1]).id
confirmed, refused = [], 0
for _ in range(30):
    send()
    read, write = os.pipe()
    for _ in range(2):
        if os.fork() == 0:
            try:
                os.write(write, (send() + "\\n").encode())
            except BaseException:
                os.write(write, b"-\\n")
            os._exit(0)
    os.close(write)
    [os.wait() for _ in range(2)]
    words = os.fdopen(read).read().split()
    confirmed += [word for word in words if word != "-"]
    refused += words.count("-")
import time
time.sleep(5)
lost = sum(app.AsyncResult(task_id).state == "PENDING" for task_id in confirmed)
print(f"lost {lost}, not confirmed {refused}")
"""
CLASHING = """
from queues.app import default_app
print(default_app().send_task("cases.echo", ["works"]).get(timeout=8))
"""
NAIVE = """
import datetime, time
from queues.app import default_app
app = default_app()
now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
try:
    begun = time.time()
    app.send_task("cases.echo", [1], eta=now + datetime.timedelta(seconds=4)).get(timeout=12)
    took = time.time() - begun
except Exception as exc:
    took = 4 if "naive" in str(exc) else 0
print("in time, or refused" if took > 3 else f"after {took:.0f} s")
"""
PICKLED = """
import pickle, uuid
from queues.app import default_app
class Payload:
    def __reduce__(self):
        return print, ("code ran",)
app, name = default_app(), str(uuid.uuid4())
from sqlalchemy import text
session = app.backend.ResultSession()
session.execute(text("INSERT INTO celery_taskmeta (task_id, status, result) VALUES (:id, 'SUCCESS', :result)"),
                {"id": name, "result": pickle.dumps(Payload(), protocol=2)})
session.commit()
try:
    app.AsyncResult(name).result
except Exception:
    pass
print(end="nothing ran\\n")
"""


@case("programs", "producers in other programs: forked, with settings of a Celery of their own, naive times", "cases")
def programs(bench: Bench) -> None:
    bench.expect("30 forks after a publish", "lost 0, not confirmed 0", bench.script(FORKED), PRODUCERS)
    for name, value in {
        "CELERY_BROKER_URL": "amqp://guest:guest@127.0.0.1:9//",
        "CELERY_RESULT_BACKEND": "redis://127.0.0.1:9/5",
    }.items():
        bench.expect(f"{name} set", "works", bench.script(CLASHING, **{name: value}), PRODUCERS)
    bench.expect("a naive eta", "in time, or refused", bench.script(NAIVE, TZ="UTC"), PRODUCERS)
    for what, code in {
        "AsyncResult(id), as Celery's documents have it": "from celery.result import AsyncResult\nimport queues.tasks\n"
        "print(AsyncResult('x').state)",
        "a group saved and restored": "from celery import group\nfrom queues.app import default_app as d\n"
        "s = group([d().signature('cases.echo', args=[n], app=d()) for n in range(2)], app=d()).apply_async()\n"
        "s.save()\nprint(d().GroupResult.restore(s.id).get(timeout=10))",
    }.items():
        should = "PENDING" if "AsyncResult" in what else "[0, 1]"
        bench.expect(what, should, bench.script(code), PRODUCERS)
    if bench.lab.store != "redis":
        done = bench.run("-c", PICKLED, role="producer")
        bench.expect("a pickle in the result store", "nothing ran", " ".join(done.stdout.split()), PRODUCERS)
