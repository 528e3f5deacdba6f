"""What a task prints and logs, and what others print of it."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING

from tests.cases.bench import case
from tests.integration.helpers import awaited

if TYPE_CHECKING:
    from tests.cases.bench import Bench


@case("logs", "printed and logged lines: once, in time, one line each, with the task's id", "cases")
def logs(bench: Bench) -> None:
    text = f"café-🦊-{uuid.uuid4().hex[:8]}"
    result = bench.send("cases.say", text)
    bench.expect("the task", "None", bench.ended(result))
    awaited(lambda: f"billiard of {text}" in bench.log("cases"), 10)
    lines = bench.log("cases").splitlines()
    for what in ("printed", "complained", "logged"):
        bench.expect(what, "1 line", f"{sum(f'{what} {text}' in line for line in lines)} line")
    for what in ("warned", "logged", "billiard"):
        found = [line for line in lines if what in line and text in line]
        ids = [json.loads(line).get("task_id") for line in found if line.startswith("{")]
        bench.expect(f"{what}: JSON with the task's id", [result.id], ids)
