"""One rate for all: many processes on one store, with clocks that agree about nothing."""

from __future__ import annotations

import heapq
import itertools
import random
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from workers.rate import FRESH, LONGEST, Pace, interval

SECONDS = 6.0
MINUTE = 60.0


@dataclass
class Shelf:
    """A store of one process's memory."""

    value: str | None = None

    def read(self, _key: str) -> str | None:
        return self.value

    def swap(self, _key: str, old: str | None, new: str) -> bool:
        if self.value != old:
            return False
        self.value = new
        return True


@dataclass
class Clock:
    now: float = 0.0
    slept: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def pace(shelf: Shelf, clock: Clock) -> Pace:
    made = Pace(shelf, "email", SECONDS, clock=clock, sleep=clock.sleep)
    made.look()
    return made


@pytest.mark.parametrize(
    ("rate", "seconds"), [("10/m", 6), ("1/m", 60), ("0", 0), ("0/m", 0), ("2/s", 0.5), ("120/h", 30), (" 2.5/s ", 0.4)]
)
def test_a_rate_is_an_interval(rate: str, seconds: float) -> None:
    assert interval(rate) == pytest.approx(seconds)


@pytest.mark.parametrize("rate", ["", "10", "10/d", "-1/m", "ten/m", "10/m/m", "1/h", "0.5/m", "inf/m", "1e3/s"])
def test_what_is_no_rate_or_too_slow_is_refused(rate: str) -> None:
    with pytest.raises(ValueError, match=r"10/m|one a minute"):
        interval(rate)
    assert LONGEST == 60


def test_the_first_turn_after_a_start_is_waited_for_and_later_ones_from_the_end_of_the_last() -> None:
    clock = Clock()
    mine = pace(Shelf(), clock)
    clock.now += 1
    mine.wait()
    assert clock.slept == [SECONDS + FRESH - 1]
    clock.now += 2
    mine.done()
    mine.wait()
    assert clock.slept[1:] == [SECONDS]
    mine.done()
    clock.now += 100
    mine.wait()
    assert clock.slept[2:] == [], "who was idle need not wait"


def test_who_takes_over_waits_the_whole_interval() -> None:
    shelf = Shelf()
    one, two = Clock(), Clock(5000)
    first, second = pace(shelf, one), pace(shelf, two)
    two.now += 100
    first.wait()
    first.done()
    second.wait()
    assert two.slept == [SECONDS + FRESH]


def test_a_turn_gets_stale_and_is_renewed_or_lost() -> None:
    shelf, clock, other = Shelf(), Clock(100), Clock()
    mine = pace(shelf, clock)
    clock.now += 100
    mine.wait()
    assert mine.still()
    before = shelf.value
    clock.now += FRESH
    assert mine.still()
    assert shelf.value != before, "whoever watches begins anew"
    rival = pace(shelf, other)
    clock.now += 30
    rival.wait()
    assert not mine.still(), "stopped for so long, it is another's turn"


def test_of_two_that_wait_one_begins_anew() -> None:
    shelf = Shelf()
    clock = Clock()
    mine = pace(shelf, clock)
    thief = iter(["stolen"])

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        shelf.value = next(thief, shelf.value)

    mine._sleep = sleep
    mine.wait()
    assert clock.slept == [SECONDS + FRESH, SECONDS + FRESH]


@pytest.mark.parametrize("seed", range(3))
def test_no_minute_ever_holds_more_whoever_dies_stops_or_comes(seed: int) -> None:
    """Simulated: processes wake in any order, pause anywhere between two steps, and new ones take their places."""
    chance = random.Random(seed)
    shelf = Shelf()
    now = [0.0]
    sent: list[float] = []

    def sender() -> Iterator[float]:
        """A process: it yields the seconds that pass until its next step."""
        offset = chance.uniform(0, 1e6)
        mine = Pace(shelf, "email", SECONDS, clock=lambda: now[0] + offset)
        while True:
            left = mine.left()
            if left > 0:
                yield left
            if not mine.take():
                continue
            yield chance.choice([0.001, 0.01, 0.2, 3.0])  # the envelope
            if chance.random() < 0.05:
                yield chance.uniform(5, 90)  # stopped
            if not mine.still():
                continue
            sent.append(now[0])
            yield chance.choice([0.001, 0.01, 0.5, 2.0])  # the answer
            mine.done()

    queue = [(0.0, number, sender()) for number in range(4)]
    while now[0] < 3600:
        now[0], number, process = heapq.heappop(queue)
        if chance.random() < 0.01:
            process = sender()  # killed, and replaced
        heapq.heappush(queue, (now[0] + next(process), number, process))
    assert len(sent) > 300
    busiest = max(bisect_left(sent, start + MINUTE) - place for place, start in enumerate(sent))
    assert busiest <= MINUTE / SECONDS
    assert min(later - earlier for earlier, later in itertools.pairwise(sent)) >= SECONDS - 1e-6
