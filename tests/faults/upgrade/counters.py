"""What the exporter shows, looked at every second: sums of what workers did must never go back, nor be gone."""

from __future__ import annotations

import re
import threading
import urllib.request
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: Sums of tasks. The broker's own begin anew with its node, and the exporter's with its process.
SUM = re.compile(r"celery_(?:task|dead_letters)_\w+_(?:total|bucket|count|sum)(?=[{ ])")
#: Messages of workers that an exporter does not understand.
MALFORMED = re.compile(r"^celery_exporter_snapshots_malformed_total ([1-9]\S*)$", re.MULTILINE)
#: Series that a complaint names.
SHOWN = 3


def sums(text: str) -> dict[str, float]:
    """The sums in an answer, by series."""
    found = (line.rpartition(" ") for line in text.splitlines() if SUM.match(line))
    return {series: float(value) for series, _, value in found}


class Counters:
    """Compares each answer with the one before."""

    def __init__(self) -> None:
        self.last: dict[str, float] = {}
        self.scrapes = 0
        #: What went back or vanished, and when it was first seen to.
        self.wrong: dict[str, str] = {}
        #: How many messages of workers an exporter did not understand, and when.
        self.malformed: dict[str, float] = {}

    def take(self, text: str, when: str) -> None:
        """Take an answer of an exporter that counts."""
        now = sums(text)
        self.scrapes += 1
        if found := MALFORMED.search(text):
            self.malformed[when] = float(found[1])
        for series, before in self.last.items():
            value = now.get(series)
            if value is None:
                self.wrong.setdefault(series, f"{when}: gone, it was {before:g}")
            elif value < before:
                self.wrong.setdefault(series, f"{when}: from {before:g} back to {value:g}")
        # What is gone is remembered: it may come back as zero.
        self.last |= {series: max(value, self.last.get(series, value)) for series, value in now.items()}

    def of(self, name: str, **labels: str) -> float:
        """The sum of all series of that name and these labels."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(
            value
            for series, value in self.last.items()
            if series.partition("{")[0] == name and all(part in series for part in wanted)
        )

    @property
    def complaint(self) -> str:
        """The first of what is wrong, and how many there are."""
        first = [f"{series} {what}" for series, what in list(self.wrong.items())[:SHOWN]]
        return f"{len(self.wrong)} sums went back: " + "; ".join(first) if self.wrong else ""


class Scraper:
    """Asks an exporter every second, while there is one."""

    def __init__(self, address: Callable[[], str], ready: Callable[[], bool]) -> None:
        self.counters = Counters()
        #: Where the case is.
        self.stage = ""
        self._address, self._ready = address, ready
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask no more."""
        self._ending.set()
        self._thread.join(5)

    def _run(self) -> None:
        while not self._ending.wait(1):
            # Before it has read its sums, an exporter knows none.
            if not self._ready():
                continue
            try:
                with urllib.request.urlopen(f"{self._address()}/metrics", timeout=10) as answer:
                    text = answer.read().decode()
            except OSError:
                continue
            self.counters.take(text, self.stage)
