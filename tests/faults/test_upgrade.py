"""How the case `upgrade` counts, and what it says where the old version cannot be had."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.faults.upgrade import versions
from tests.faults.upgrade.account import Ran, Sent, Tail, Window, lateness, latest, missing_ticks
from tests.faults.upgrade.counters import Counters

if TYPE_CHECKING:
    from pathlib import Path

SUMS = """\
# TYPE celery_task_started_total counter
celery_task_started_total{queue="math",task="math.add"} %s
celery_task_runtime_seconds_bucket{le="0.5",queue="math",task="math.add"} 3.0
celery_queue_messages_ready{queue="math"} 7.0
celery_exporter_snapshots_total 9.0
celery_exporter_snapshots_malformed_total 0.0
"""
STARTED = 'celery_task_started_total{queue="math",task="math.add"}'


def written(path: Path, *events: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return path


def test_a_sum_that_goes_back_is_seen_and_only_sums_are_looked_at() -> None:
    counters = Counters()
    counters.take(SUMS % "5.0", "before")
    counters.take(SUMS % "5.0", "after")
    assert counters.wrong == {}
    assert counters.of("celery_task_started_total", task="math.add") == 5
    assert not any("ready" in series or "snapshots" in series for series in counters.last)
    counters.take(SUMS % "4.0", "later")
    assert counters.wrong == {STARTED: "later: from 5 back to 4"}
    assert counters.malformed == {}
    counters.take((SUMS % "5.0").replace("malformed_total 0.0", "malformed_total 2.0"), "at last")
    assert counters.malformed == {"at last": 2}


def test_a_sum_under_another_name_is_gone() -> None:
    counters = Counters()
    counters.take(SUMS % "5.0", "before")
    counters.take((SUMS % "6.0").replace("celery_task_started", "celery_task_begun"), "after")
    assert counters.wrong == {STARTED: "after: gone, it was 5"}
    counters.take(SUMS % "1.0", "back")
    assert counters.of("celery_task_started_total", task="math.add") == 5, "what came back as less is no new beginning"


def test_an_id_that_was_confirmed_once_stays_so(tmp_path: Path) -> None:
    first = written(
        tmp_path / "sent-base",
        {"id": "a", "kind": "run", "outcome": "sending", "t": 1.0},
        {"id": "a", "outcome": "confirmed", "t": 2.0},
        {"id": "b", "kind": "run", "outcome": "sending", "t": 3.0},
        {"id": "c", "kind": "once", "outcome": "sending", "t": 3.5},
        {"id": "c", "outcome": "refused", "t": 3.6},
    )
    second = written(
        tmp_path / "sent-head1",
        {"id": "a", "kind": "again", "outcome": "sending", "t": 4.0},
        {"id": "a", "outcome": "unknown", "t": 5.0},
    )
    sent = Sent([second, first])
    assert sent.confirmed("run") == {"a"}
    assert sent.outcome["b"] == "unknown", "its producer ended before the answer"
    assert sent.refused("once") == {"c"}
    assert sent.again == {"a"}


def test_runs_are_told_by_version_and_what_a_process_began_last_may_run_again(tmp_path: Path) -> None:
    def event(name: str, what: str, at: float, pid: int, attempt: int = 0) -> dict[str, object]:
        return {"id": name, "event": what, "t": at, "pid": pid, "attempt": attempt}

    old = written(
        tmp_path / "ran-base",
        event("a", "start", 1, 10),
        event("a", "end", 2, 10),
        event("b", "start", 3, 10),
        event("c", "start", 1, 11),
    )
    new = written(
        tmp_path / "ran-head", event("b", "start", 5, 20), event("b", "end", 6, 20), event("c", "start", 7, 20, 1)
    )
    ran = Ran({"base": old, "head": new})
    assert ran.by(["a", "b", "c"]) == {"base": 1, "head": 1}
    assert ran.running([10], 3.5) == {"b"}
    assert ran.running([10], 2.5) == {"a", "b"}, "the acknowledgement of `a` may be under way"
    assert ran.doubled(["a", "b", "c"]) == 1, "a second attempt is none"
    assert [one["by"] for one in ran.attempts("c")] == ["base", "head"]


def test_a_log_is_read_as_far_as_its_lines_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "log"
    tail = Tail(path)
    assert tail.new() == []
    path.write_text('{"id": 1}\n{"id"')
    assert tail.new() == [{"id": 1}]
    path.write_text('{"id": 1}\n{"id": 2}\n')
    assert tail.new() == [{"id": 2}]


def test_lateness_begins_when_somebody_could_run_it() -> None:
    away = [Window(100, 120)]
    assert lateness(90, 95, away) == 5
    assert lateness(110, 123, away) == 3
    assert lateness(110, 105, away) == -5
    assert lateness(110, 119, away) == 0, "workers that came back before all were there"


def test_a_delay_stands_still_while_the_broker_is_away() -> None:
    away = [Window(100, 120)]
    assert latest(80, 90, away) == 90
    assert latest(80, 110, away) == 130
    assert latest(110, 125, away) == 135
    assert latest(121, 125, away) == 125


def test_missing_ticks_are_those_between_the_first_and_the_last() -> None:
    ids = [f"faults.tick:2026-11-28T08:00:0{second}Z" for second in (0, 2, 8)]
    missed = missing_ticks(2, ids)
    assert [moment % 60 for moment in missed] == [4, 6]
    assert missing_ticks(2, []) == []


def test_pins_that_the_interpreter_has_ask_for_no_environment(project: Path) -> None:
    assert versions.missing((project / "requirements.txt").read_text()) == []
    assert versions.missing("celery==4.0.0 \\\n    --hash=sha256:00\nnothing-of-that-name==1.0\n") == [
        "celery==4.0.0",
        "nothing-of-that-name==1.0",
    ]
    assert versions.missing("celery==4.0.0 ; python_version < '3'\n") == []


@pytest.mark.parametrize("commit", ["0123456789", "--help"])
def test_a_clone_without_the_old_version_is_told_what_to_do(commit: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--case", "upgrade", f"--base={commit}"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.strip().endswith("or name another commit by BASE=")
    assert f"{commit}, is not in this clone" in done.stderr
