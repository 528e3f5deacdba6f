"""A chord whose members are waited for is looked at less and less often, and not for ever."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from queues.errors import PermanentError
from queues.headers import CHORD
from queues.publish import FIRST_PUBLISHED_AT
from workers import chords

DAY = 86400.0


class Unlock:
    """Celery's task at a look, with members of which some have a result."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, age: float, done: int = 0, header: object = None) -> None:
        self.counted = 0
        self.app = SimpleNamespace(conf=SimpleNamespace(result_expires=3600))
        headers = {FIRST_PUBLISHED_AT: time.time() - age, **({} if header is None else {CHORD: header})}
        self.request = SimpleNamespace(headers=headers, kwargs={"result": list(range(3))})

        def member(number: int) -> Any:
            def is_ready() -> bool:
                self.counted += 1
                return number < done

            return SimpleNamespace(ready=is_ready)

        monkeypatch.setattr(chords, "members", lambda *_: [member(number) for number in range(3)])


@pytest.mark.parametrize(
    ("age", "wait"), [(0, 1), (1, 1), (8, 1), (16, 2), (80, 10), (600, 75), (2400, 300), (DAY, 300)]
)
def test_the_looks_are_an_eighth_of_the_chords_age_apart(
    monkeypatch: pytest.MonkeyPatch, age: float, wait: int
) -> None:
    task: Any = Unlock(monkeypatch, age=age)
    assert chords.next_look(task) == wait
    assert bool(task.counted) is (age > 900), "young chords are not slowed down"


def test_a_chord_ends_when_its_members_results_have_expired(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    for done, header in ((1, f"1 {now - 3700:.0f}"), (1, f"2 {now:.0f}"), (0, f"1 {now:.0f}")):
        task: Any = Unlock(monkeypatch, age=DAY, done=done, header=header)
        with pytest.raises(PermanentError, match="never sent, or its result has expired") as raised:
            chords.next_look(task)
        assert raised.value.code == "chord-lapsed"
    with pytest.raises(PermanentError, match="has waited for"):
        chords.next_look(Unlock(monkeypatch, age=40 * DAY))


@pytest.mark.parametrize(
    ("done", "header"),
    [(0, None), (1, None), (2, "1 0"), (1, "1 LATELY"), (0, "x"), (0, 5), (0, "nan nan")],
)
def test_a_chord_that_gets_on_or_has_not_begun_goes_on(
    monkeypatch: pytest.MonkeyPatch, done: int, header: object
) -> None:
    if isinstance(header, str):
        header = header.replace("LATELY", f"{time.time() - 3000:.0f}")
    task: Any = Unlock(monkeypatch, age=DAY, done=done, header=header)
    assert chords.next_look(task) == 300
    assert (CHORD in task.request.headers) is (done > 0 or header is not None)


def test_what_another_wrote_as_a_time_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    task: Any = Unlock(monkeypatch, age=0)
    for stamp in (None, "yesterday", time.time() + DAY):
        task.request.headers = {FIRST_PUBLISHED_AT: stamp}
        assert chords.next_look(task) == 1
    task.request.headers = None
    assert chords.next_look(task) == 1
