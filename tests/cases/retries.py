"""Retries as Celery's documentation has them, and what is written of them."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING

from tests.cases.bench import case
from tests.integration.helpers import awaited

if TYPE_CHECKING:
    from tests.cases.bench import Bench

#: An argument, to be in no text.
SECRET = "a-secret-argument"


@case("retries", "each way to retry, used up and not; the reason is in the log, the arguments nowhere", "cases")
def retries(bench: Bench) -> None:
    sent = {
        how: bench.send("cases.again", SECRET, kwargs={"how": how})
        for how in ("plain", "error", "lock", "at once", "arguments", "eta", "transient")
    }
    used_up = {
        how: bench.send("cases.again", SECRET, kwargs={"how": how, "times": 9})
        for how in ("plain", "error", "lock", "transient")
    }
    for how, result in sent.items():
        bench.expect(f"retried twice, {how}", repr(SECRET), bench.ended(result))
    reasons = {"transient": "retries-exhausted", "plain": "retries-exhausted"}
    for how, result in used_up.items():
        came = bench.ended(result, 40)
        letter = awaited(lambda task_id=result.id: (bench.letter(task_id) + " ").replace("none ", ""), 10).strip()  # type: ignore[misc]
        state = bench.app.AsyncResult(result.id).state
        bench.expect(f"used up, {how}", f"FAILURE, {reasons.get(how, 'exception')}", f"{state}, {letter}")
        bench.expect(f"used up, {how}: what the caller reads", "no argument", came if SECRET in came else "no argument")
    lines = [json.loads(line) for line in bench.log("cases").splitlines() if line.startswith("{")]
    of_retry = [line for line in lines if line.get("task_id") == sent["error"].id and "retr" in line["message"]]
    told = [line for line in of_retry if "the gateway answered" in line["message"]]
    bench.expect("the reason of each retry in the log", "2 of 2", f"{len(told)} of {len(of_retry)}")
    bench.expect(
        "arguments in the log",
        "none",
        next((line for line in bench.log("cases").splitlines() if SECRET in line), "none"),
    )
    late = bench.send("cases.again", 1, expires=1.5, task_id=str(uuid.uuid4()))
    awaited(lambda: bench.letter(late.id) != "none", 15)
    bench.expect("a retry that comes too late", "expired", bench.letter(late.id))
