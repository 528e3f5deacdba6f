"""Metrics as text, for thousands of series: the lines of one are kept until it changes.

prometheus_client needs 15 µs a sample, whether it changed or not: 140 ms for 100 tasks. What is written here is the
same to the byte.
"""

from __future__ import annotations

import gzip
import threading
from itertools import accumulate
from typing import TYPE_CHECKING, Self

from prometheus_client import exposition, generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from prometheus_client.registry import Collector

_EOF = b"# EOF\n"
#: The fastest: an exposition shrinks to a fifteenth all the same.
_LEVEL = 1
#: From here on Go writes an exponent.
_PLAIN = 1_000_000


class Rendering:
    """A scrape that is being written: whatever can wait gives it the interpreter, so that it takes no longer."""

    #: Seconds that nobody waits beyond.
    PATIENCE = 0.1

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._scrapes = 0
        self._idle = threading.Event()
        self._idle.set()

    def __enter__(self) -> Self:
        with self._lock:
            self._scrapes += 1
            self._idle.clear()
        return self

    def __exit__(self, *_details: object) -> None:
        with self._lock:
            self._scrapes -= 1
            if not self._scrapes:
                self._idle.set()

    def give_way(self) -> None:
        """Wait while there is one."""
        if not self._idle.is_set():
            self._idle.wait(self.PATIENCE)


#: Of this process.
rendering = Rendering()


class Series:
    """One series as it was at a moment: a count, or a histogram's sum and buckets. It does not change."""

    __slots__ = ("_text", "edges", "frame", "labels", "name", "value")

    def __init__(
        self,
        name: str,
        labels: Sequence[tuple[str, str]],
        value: Sequence[float],
        edges: Sequence[str] | None,
        frame: str = "",
    ) -> None:
        """Describe it.

        Args:
            name: the family's, for a counter without `_total`.
            labels: names and values, sorted.
            value: the count alone; or the sum, then a count for each bucket.
            edges: the buckets' upper bounds as text, the last `+Inf`; None for a counter.
            frame: that of the same series at an earlier moment: only numbers change.
        """
        self.name, self.labels, self.value, self.edges = name, labels, value, edges
        #: Its lines with a place for each number.
        self.frame = frame or "".join(f"{head.replace('%', '%%')} %s\n" for head in self._heads())
        self._text: bytes | None = None

    @property
    def text(self) -> bytes:
        """Its lines."""
        if self._text is None:
            numbers = [
                f"{number}.0" if type(number) is int and number < _PLAIN else text_of(number)
                for number in self._numbers()
            ]
            self._text = (self.frame % tuple(numbers)).encode()
        return self._text

    def samples(self) -> Iterator[Sample]:
        """The same as `text`, as prometheus_client has it."""
        labels = dict(self.labels)
        if self.edges is None:
            yield Sample(f"{self.name}_total", labels, self.value[0])
            return
        *counts, count, total = self._numbers()
        for edge, below in zip(self.edges, counts, strict=True):
            yield Sample(f"{self.name}_bucket", {**labels, "le": edge}, below)
        yield Sample(f"{self.name}_count", labels, count)
        yield Sample(f"{self.name}_sum", labels, total)

    def _numbers(self) -> list[float]:
        """The numbers in the order of the lines."""
        if self.edges is None:
            return [self.value[0]]
        counts = [*accumulate(self.value[1:])]
        return [*counts, counts[-1], self.value[0]]

    def _heads(self) -> Iterator[str]:
        """The lines without their numbers."""
        pairs = [(name, f'{name}="{escaped(value)}"') for name, value in self.labels]
        labels = ",".join(text for _, text in pairs)
        if self.edges is None:
            yield f"{self.name}_total{{{labels}}}"
            return
        before = "".join(f"{text}," for name, text in pairs if name < "le")
        after = "".join(f",{text}" for name, text in pairs if name > "le")
        for edge in self.edges:
            yield f'{self.name}_bucket{{{before}le="{edge}"{after}}}'
        yield f"{self.name}_count{{{labels}}}"
        yield f"{self.name}_sum{{{labels}}}"


class KeptFamily(Family):
    """A family of such series; for prometheus_client a family like any other."""

    def __init__(self, name: str, documentation: str, kind: str, series: Sequence[Series]) -> None:
        self._series: Sequence[Series] = ()
        super().__init__(name, documentation, kind)
        self._series = series

    @property
    def samples(self) -> list[Sample]:
        """All samples, made anew."""
        return [sample for series in self._series for sample in series.samples()]

    @samples.setter
    def samples(self, _samples: list[Sample]) -> None:
        """The base class begins with none."""

    def parts(self, *, modern: bool) -> Iterator[bytes]:
        """Its text, in OpenMetrics' or in Prometheus' own format."""
        name = self.name if modern or self.type != "counter" else f"{self.name}_total"
        yield f"# HELP {name} {self.documentation}\n# TYPE {name} {self.type}\n".encode()
        for series in self._series:
            yield series.text


class _Given:
    """A collector of what there is already."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterable[Family]:
        return self._families


def text_of(value: float) -> str:
    """A number as Go writes it."""
    return str(floatToGoString(value))  # type: ignore[no-untyped-call]


def escaped(value: str) -> str:
    """A label's value between its quotation marks."""
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def expose(families: Iterable[Family], *, modern: bool) -> bytes:
    """All families as text, in OpenMetrics' format where `modern`, else in Prometheus' own."""
    given = list(families)
    kept = [family for family in given if isinstance(family, KeptFamily)]
    others = [family for family in given if not isinstance(family, KeptFamily)]
    head = (openmetrics.generate_latest if modern else generate_latest)(_Given(others))
    body = (part for family in kept for part in family.parts(modern=modern))
    return b"".join((head.removesuffix(_EOF), *body, _EOF if modern else b""))


def answer(collector: Collector, accept: str, accept_encoding: str) -> tuple[list[tuple[str, str]], bytes]:
    """Headers and body for a scrape that takes these formats and encodings."""
    _, content_type = exposition.choose_encoder(accept)
    families = [*collector.collect()]
    headers = [("Content-Type", content_type)]
    with rendering:
        body = expose(families, modern=content_type.startswith("application/openmetrics-text"))
        if exposition.gzip_accepted(accept_encoding):
            body = gzip.compress(body, _LEVEL, mtime=0)
            headers.append(("Content-Encoding", "gzip"))
    return [*headers, ("Content-Length", str(len(body)))], body
