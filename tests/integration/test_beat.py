"""Two beats: one sends, the other stands by and takes over; every tick has one id, and is run once."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ops.local import Stack
from queues.topology import BEAT_STATE
from tests.conftest import embedded
from tests.integration.helpers import acting_as, awaited, messages

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet

pytestmark = pytest.mark.integration

PATIENCE = 120.0
SENDS, STANDS_BY = "this beat sends", "another beat sends: this one stands by"


@pytest.fixture(scope="module")
def monitored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack of its own in which only the monitor worker runs."""
    with embedded(tmp_path_factory.mktemp("beats") / "home", only=("worker-monitor",)) as stack:
        yield stack


class Beat:
    """A beat as a process."""

    def __init__(self, stack: Stack, folder: Path, name: str) -> None:
        self.log, self.alive = folder / f"{name}.log", folder / f"{name}.alive"
        environment = {**os.environ, **stack.environment("beat"), "BROKER_HEARTBEAT": "5"}
        command = ("-m", "celery", "-A", "tests.integration.quickbeat", "beat", "--loglevel", "INFO", "--pidfile=")
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, *command, "--schedule", str(self.alive)],
                env=environment,
                cwd=Path(__file__).parents[2],
                stdout=output,
                stderr=output,
            )

    def said(self, words: str) -> int:
        return self.log.read_text().count(words)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                assert self.process.wait(PATIENCE) == 0, self.log.read_text()
            finally:
                self.process.kill()
                self.process.wait()


@pytest.fixture
def beats(monitored: Stack, tmp_path: Path) -> Iterator[tuple[Beat, Beat]]:
    """Two of them, the first of which sends."""
    with contextlib.ExitStack() as stopping:
        first = Beat(monitored, tmp_path, "first")
        stopping.callback(first.stop)
        assert awaited(lambda: first.said(SENDS), PATIENCE), first.log.read_text()
        second = Beat(monitored, tmp_path, "second")
        stopping.callback(second.stop)
        assert awaited(lambda: second.said(STANDS_BY), PATIENCE), second.log.read_text()
        yield first, second


def ticks(path: Path, words: str) -> list[float]:
    """Ticks in a log's lines that hold certain words, in seconds since the epoch."""
    lines = (line for line in path.read_text().splitlines() if words in line)
    found = (re.search(r"tick:([0-9T:-]+)Z", line) for line in lines)
    return [datetime.datetime.fromisoformat(f"{match[1]}+00:00").timestamp() for match in found if match]


def sent(*beats: Beat) -> list[float]:
    return [tick for beat in beats for tick in ticks(beat.log, "sent tick:")]


def missed(*beats: Beat) -> list[float]:
    return [tick for beat in beats for tick in ticks(beat.log, "missed tick:")]


def handover(first: Beat, second: Beat) -> set[float]:
    """What a beat that was killed or stopped may have sent and not noted: the next one sends it too, under one id."""
    return {max(sent(first)), min(sent(second))}


def run(stack: Stack) -> list[float]:
    return ticks(stack.folder / "log" / "worker-monitor.log", "task started")


def each_once(stack: Stack, *beats: Beat, cuts: int = 0, unnoted: AbstractSet[float] = frozenset()) -> None:
    """Every moment between the first and the last tick was sent and run once, or was counted as missed.

    What the one process of the worker runs while its connection is cut is delivered, and run, again.
    """
    assert {tick for tick, count in Counter(sent(*beats)).items() if count > 1} <= unnoted, "sent twice"
    out = sorted(set(sent(*beats)))
    # Before the first are those of the time since the test before.
    away = [tick for tick in missed(*beats) if tick > out[0]]
    assert set(out) & set(away) == set()
    expected = [float(moment) for moment in range(int(out[0]), int(out[-1]) + 1)]
    assert sorted(out + away) == expected, "neither sent nor counted as missed"
    assert awaited(lambda: set(out) <= set(run(stack)), PATIENCE), set(out) - set(run(stack))
    twice = [tick for tick, count in Counter(run(stack)).items() if count > 1 and tick in out]
    assert len(set(twice) - unnoted) <= cuts, f"run twice: {twice}"


def test_the_stand_by_takes_over_when_the_other_is_killed(monitored: Stack, beats: tuple[Beat, Beat]) -> None:
    first, second = beats
    assert awaited(lambda: len(sent(first)) >= 4, PATIENCE)
    assert sent(second) == []
    first.process.kill()
    assert awaited(lambda: len(sent(second)) >= 4, PATIENCE), second.log.read_text()
    each_once(monitored, first, second, unnoted=handover(first, second))
    assert second.alive.exists()


def test_a_beat_that_ends_hands_over_at_once_and_one_that_starts_again_knows_what_was_sent(
    monitored: Stack, beats: tuple[Beat, Beat], tmp_path: Path
) -> None:
    first, second = beats
    assert awaited(lambda: len(sent(first)) >= 3, PATIENCE)
    first.stop()
    assert awaited(lambda: len(sent(second)) >= 3, PATIENCE)
    second.stop()
    # No beat for a few ticks: only the last of them is worth sending, the others are counted.
    last = max(sent(second))
    assert awaited(lambda: datetime.datetime.now(datetime.UTC).timestamp() > last + 4.2)
    third = Beat(monitored, tmp_path, "third")
    try:
        assert awaited(lambda: len(sent(third)) >= 3, PATIENCE), third.log.read_text()
    finally:
        third.stop()
    assert len(missed(third)) >= 3
    each_once(monitored, first, second, third)
    (state,) = messages(acting_as(monitored, "operator"), BEAT_STATE)
    assert json.loads(state.body)["sent"]["tick"] == max(sent(third))
    assert json.loads(state.body)["missed"]["tick"] >= len(missed(third))


def test_a_beat_that_lost_its_lock_stops_sending(monitored: Stack, beats: tuple[Beat, Beat]) -> None:
    """It is stopped for so long that the broker gives its connection up: another sends, and it must notice."""
    first, second = beats
    assert awaited(lambda: len(sent(first)) >= 3, PATIENCE)
    first.process.send_signal(signal.SIGSTOP)
    assert awaited(lambda: len(sent(second)) >= 3, PATIENCE), second.log.read_text()
    before, unnoted = len(sent(first)), handover(first, second)
    first.process.send_signal(signal.SIGCONT)
    assert awaited(lambda: first.said(STANDS_BY), PATIENCE), first.log.read_text()
    assert len(sent(first)) <= before + 1
    first.stop()
    each_once(monitored, first, second, unnoted=unnoted)


def test_beats_outlive_the_broker(monitored: Stack, beats: tuple[Beat, Beat]) -> None:
    first, second = beats
    assert awaited(lambda: len(sent(first)) >= 3, PATIENCE)
    monitored.processes.restart("broker")
    before = len(sent(*beats))
    assert awaited(lambda: len(sent(*beats)) >= before + 4, PATIENCE), first.log.read_text()
    each_once(monitored, first, second, cuts=1)
    assert "Traceback" not in first.log.read_text() + second.log.read_text()


def test_a_tick_that_cannot_be_sent_is_sent_later(monitored: Stack, beats: tuple[Beat, Beat]) -> None:
    first, second = beats
    assert awaited(lambda: len(sent(first)) >= 2, PATIENCE)
    with acting_as(monitored, "operator").connection_for_write() as connection, connection.channel() as channel:
        channel.queue_unbind("monitor", "tasks.monitor", "monitor")
    try:
        assert awaited(lambda: first.said("a tick waits: no queue takes tasks.monitor/monitor"), PATIENCE)
        before = len(sent(first))
    finally:
        with acting_as(monitored, "operator").connection_for_write() as connection, connection.channel() as channel:
            channel.queue_bind("monitor", "tasks.monitor", "monitor")
    assert awaited(lambda: len(sent(first)) >= before + 2, PATIENCE)
    each_once(monitored, first, second)
    pairs = itertools.pairwise(sorted(sent(first)))
    assert all(later > earlier for earlier, later in pairs)
