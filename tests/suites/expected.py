"""The committed list of differences to stock Celery, and what it makes of a run."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

PLACE = Path(__file__).parent / "expected.tsv"
#: By design of Warren; by how it is put under the tests; by design, where the test looks at the right moment.
CLASSES = ("design", "harness", "race")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a test on one side."""

    word: str = "missing"
    text: str = ""


@dataclass(frozen=True, slots=True)
class Difference:
    """A test that ends otherwise, or that should."""

    test: str
    stock: Outcome
    warren: Outcome
    kind: str = ""
    reason: str = ""

    @property
    def differs(self) -> bool:
        """Whether it ends otherwise."""
        return self.stock.word != self.warren.word

    @property
    def mark(self) -> str:
        """`listed`, or what is wrong with the list."""
        return ("listed" if self.kind else "NOT LISTED") if self.differs else "LISTED, BUT THE SAME"


def read(path: Path = PLACE) -> dict[str, tuple[str, str]]:
    """Class and sentence by test."""
    found = {}
    with path.open(encoding="utf-8", newline="") as file:
        for test, kind, reason in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            if kind not in CLASSES or not reason or test in found:
                raise ValueError(f"{path.name}: {test} needs one row, with one of {', '.join(CLASSES)} and a sentence")
            found[test] = (kind, reason)
    return found


def compared(
    stock: dict[str, Outcome], warren: dict[str, Outcome], listed: dict[str, tuple[str, str]], files: Iterable[str]
) -> list[Difference]:
    """Every test that ends otherwise, and every listed one of the files that were run, in order."""
    there = {test for test in listed if test.partition("::")[0] in {*files}}
    found = (
        Difference(test, stock.get(test, Outcome()), warren.get(test, Outcome()), *listed.get(test, ()))
        for test in sorted({*stock, *warren, *there})
    )
    return [each for each in found if each.differs or each.kind not in ("", "race")]
