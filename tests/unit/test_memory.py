"""`TRACE_MEMORY`: what a task held and kept, by line; run by Celery itself, in this process."""

from __future__ import annotations

import logging
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery, signals

from workers import memory
from workers.settings import memory_is_traced

KEPT: list[bytes] = []


@pytest.fixture
def watched() -> Iterator[None]:
    memory.watch()
    yield
    signals.task_prerun.disconnect(memory.begin)
    signals.task_postrun.disconnect(memory.tell)
    tracemalloc.stop()
    KEPT.clear()


def said(caplog: pytest.LogCaptureFixture, *, keep: int, use: int) -> tuple[float, float, str]:
    """KiB at the peak, KiB kept, and the lines named, of a task that does so."""
    with Celery("memory", set_as_current=False) as app:

        @app.task(name="hold", shared=False)
        def hold() -> None:
            passing = bytes(use)
            KEPT.append(bytes(keep))
            del passing

        with caplog.at_level(logging.INFO, "workers.memory"):
            hold.apply()
    found = re.fullmatch(
        r"memory: (\d+) KiB at the peak, (-?\d+) KiB kept \(most by (.*)\), \d+ MiB resident", caplog.messages[-1]
    )
    assert found, caplog.messages
    return float(found[1]), float(found[2]), found[3]


@pytest.mark.usefixtures("watched")
def test_the_line_that_keeps_memory_is_named_and_what_was_given_back_is_not(caplog: pytest.LogCaptureFixture) -> None:
    said(caplog, keep=0, use=0)  # what is loaded by the first task is not the second one's
    peak, kept, lines = said(caplog, keep=3_000_000, use=20_000_000)
    assert 22_000 < peak < 24_000
    assert 2_900 < kept < 3_500
    assert lines.startswith(f"{Path(__file__).name}:")


def test_it_is_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert not memory_is_traced()
    monkeypatch.setenv("TRACE_MEMORY", "1")
    assert memory_is_traced()
    monkeypatch.setenv("TRACE_MEMORY", "yes")
    with pytest.raises(SystemExit):
        memory_is_traced()
    assert capsys.readouterr().err == "TRACE_MEMORY='yes' is unknown: set it to one of 0, 1\n"
