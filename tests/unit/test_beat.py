"""When ticks are, and what beat knows of them."""

from __future__ import annotations

import datetime
import json
import time
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import pytest
from celery.schedules import crontab, schedule

from queues.app import create_app
from queues.settings import BrokerSettings, Settings
from workers.beat import Scheduler, moments, next_moment, stamp

if TYPE_CHECKING:
    from pathlib import Path


def at(text: str, zone: str = "UTC") -> float:
    return datetime.datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def daily(text: str, zone: str) -> crontab:
    found = crontab.from_string(text)
    found.app = create_app(Settings(broker=BrokerSettings(), timezone=zone))
    return found


def test_an_interval_counts_from_the_epoch_wherever_and_whenever_beat_was_started() -> None:
    half = schedule(30.0)
    assert next_moment(half, at("2026-11-24T10:00:07")) == at("2026-11-24T10:00:30")
    assert next_moment(half, at("2026-11-24T10:00:30")) == at("2026-11-24T10:01:00")
    assert moments(half, at("2026-11-24T10:00:00"), at("2026-11-24T10:01:00")) == [
        at("2026-11-24T10:00:30"),
        at("2026-11-24T10:01:00"),
    ]


def test_a_crontab_is_in_the_configured_zone() -> None:
    midnight = daily("0 0 * * *", "Asia/Seoul")
    assert next_moment(midnight, at("2026-11-24T23:59:59", "Asia/Seoul")) == at("2026-11-25T00:00:00", "Asia/Seoul")
    assert next_moment(midnight, at("2026-11-25T00:00:00", "Asia/Seoul")) == at("2026-11-26T00:00:00", "Asia/Seoul")


@pytest.mark.parametrize("line", ["30 * * * *", "30 1 * * *", "30 2 * * *", "*/10 * * * *", "0 0 * * 0"])
def test_moments_rise_through_both_changes_of_the_clock(line: str) -> None:
    found = daily(line, "America/New_York")
    for first in ("2026-03-07T12:00:00", "2026-10-31T12:00:00"):
        start = at(first, "America/New_York")
        seen = moments(found, start, start + 9 * 86400)
        assert seen == sorted(set(seen))
        assert len(seen) >= (1 if line.endswith("0") else 8)
        days = {datetime.datetime.fromtimestamp(moment, ZoneInfo("America/New_York")).date() for moment in seen}
        assert line.endswith("0") or len(days) >= 9


def test_an_id_names_the_moment() -> None:
    assert stamp(at("2026-11-24T10:00:30")) == "2026-11-24T10:00:30Z"
    assert stamp(at("2026-11-24T10:00:30") + 0.5) == "2026-11-24T10:00:30.500Z"


@pytest.fixture
def scheduler(tmp_path: Path) -> Scheduler:
    app = create_app(Settings(broker=BrokerSettings()))
    return Scheduler(app, schedule_filename=str(tmp_path / "alive"))


def test_every_periodic_task_of_the_table_and_celerys_own_have_an_entry(scheduler: Scheduler) -> None:
    assert {"monitor.check_status", "monitor.generate_report"} <= set(scheduler.schedule)


def test_the_latest_word_on_each_entry_counts(scheduler: Scheduler) -> None:
    name, other = "monitor.check_status", "monitor.generate_report"
    scheduler.merge(json.dumps({"sent": {name: 20.0, other: 5.0}, "missed": {name: 2}}))
    scheduler.merge(json.dumps({"sent": {name: 10.0, other: 7.0, "gone": 1.0}, "missed": {name: 1, "gone": 9}}))
    assert scheduler.sent == {name: 20.0, other: 7.0}
    assert scheduler.missed == {name: 2}


@pytest.mark.parametrize("body", ["", "[]", "{}", '{"sent": 1, "missed": {}}', b"\xff", '{"sent": {"a": "b"}}'])
def test_what_is_no_state_is_dropped(scheduler: Scheduler, body: str | bytes) -> None:
    scheduler.merge(body)
    assert scheduler.sent == {}


def test_a_tick_whose_time_is_over_is_given_up_and_counted(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[float] = []
    monkeypatch.setattr(scheduler, "save", lambda: saved.append(time.time()))
    entry = scheduler.schedule["monitor.check_status"]
    last = time.time() // 30 * 30
    # Three ticks ago; the last one, up to 30 s old, is beyond its 25 s in one case of six: ask for less.
    scheduler.sent[entry.name] = last - 90
    entry.options["expires"] = 0.0
    assert scheduler.attend(entry) == 0.0
    assert scheduler.missed == {entry.name: 3}
    assert scheduler.sent[entry.name] == last
    assert len(saved) == 1


def test_a_state_from_the_future_does_not_silence_beat(scheduler: Scheduler) -> None:
    entry = scheduler.schedule["monitor.check_status"]
    scheduler.sent[entry.name] = time.time() + 86400
    assert 0 < scheduler.attend(entry) <= 30
    assert scheduler.sent[entry.name] <= time.time()
    ahead = scheduler.sent[entry.name] = time.time() + 5
    scheduler.attend(entry)
    assert scheduler.sent[entry.name] == ahead, "a clock that is a little ahead"


def test_a_turn_that_is_the_last_ends_the_process(scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler.lock, "held", lambda: False)
    try:
        assert scheduler.tick() == 1
        scheduler.ending = True
        with pytest.raises(SystemExit):
            scheduler.tick()
    finally:
        scheduler.close()
