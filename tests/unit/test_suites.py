"""What the comparison with stock Celery on Celery's own tests says of a run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.suites import expected, fetching, sides, table
from tests.suites.expected import Outcome

if TYPE_CHECKING:
    from pathlib import Path

LISTED = {
    "a::listed": ("design", "because"),
    "a::mended": ("harness", "because"),
    "a::both": ("race", "because"),
    "a::gone": ("design", "because"),
    "b::not_run": ("design", "because"),
}


def test_every_difference_is_a_row_and_so_is_every_entry_that_differs_no_more() -> None:
    good, bad = Outcome("passed"), Outcome("failed", "E")
    stock = {"a::same": good, "a::listed": good, "a::mended": good, "a::new": good, "a::both": bad, "a::lost": good}
    warren = {"a::same": good, "a::listed": bad, "a::mended": good, "a::new": bad, "a::both": bad}
    found = {each.test: each.mark for each in expected.compared(stock, warren, LISTED, ["a"])}
    assert found == {
        "a::gone": "LISTED, BUT THE SAME",
        "a::listed": "listed",
        "a::lost": "NOT LISTED",
        "a::mended": "LISTED, BUT THE SAME",
        "a::new": "NOT LISTED",
    }


def test_the_list_is_in_order_and_each_row_has_its_reason(tmp_path: Path) -> None:
    assert [*expected.read()] == sorted(expected.read())
    wrong = tmp_path / "wrong.tsv"
    for text in ("a\tfault\tbecause\n", "a\tdesign\t\n", "a\tdesign\tbecause\na\tdesign\tbecause\n"):
        wrong.write_text(text)
        with pytest.raises(ValueError, match="a needs one row"):
            expected.read(wrong)


def test_a_test_of_several_parts_is_as_its_worst(tmp_path: Path) -> None:
    written = tmp_path / "outcomes"
    assert sides.read(written) == {}
    lines = [["a", "passed", ""], ["a", "failed", "E"], ["a", "passed", ""], ["b", "skipped", ""]]
    written.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert sides.read(written) == {"a": Outcome("failed", "E"), "b": Outcome("skipped")}


def test_the_rule_of_names_and_the_locked_release_are_found(project: Path) -> None:
    text = (project / "queues/topology.py").read_text()
    assert all(old in text for old in table.RULES)
    version, requirement = fetching.locked()
    assert requirement.startswith(f"celery=={version} ")
    assert requirement.count("--hash=sha256:") >= 2, "one of a wheel, one of the source"
