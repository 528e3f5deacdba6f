"""Alerts, their runbook and their tests belong together."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from ops import dashboards, scraping

if TYPE_CHECKING:
    from pathlib import Path


@functools.cache
def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


ALERTS = [rule for group in load(scraping.RULES / "alerts.yml")["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_is_explained_and_tested(alert: dict[str, Any], project: Path) -> None:
    name = alert["alert"]
    assert alert["labels"]["severity"] in ("warning", "critical")
    page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert anchor == name.lower()
    assert f"\n## {name}\n" in (project / page).read_text(encoding="utf-8"), f"{page} has no section {name}"
    tests = [
        test
        for case in load(scraping.RULES / "tests" / "alerts.yml")["tests"]
        for test in case["alert_rule_test"]
        if test["alertname"] == name
    ]
    assert any(test["exp_alerts"] for test in tests), f"ops/prometheus/tests/alerts.yml never lets {name} fire"
    assert any(not test["exp_alerts"] for test in tests), f"ops/prometheus/tests/alerts.yml never keeps {name} silent"


def test_the_runbook_has_no_section_of_an_alert_that_is_gone(project: Path) -> None:
    sections = re.findall(r"^## (Warren\w+)$", (project / "docs" / "runbook.md").read_text(), re.MULTILINE)
    assert sorted(sections) == sorted(alert["alert"] for alert in ALERTS)


def test_metrics_that_rules_and_dashboards_name_are_documented(project: Path) -> None:
    """A misspelt name is an alert that never fires."""
    text = "".join((scraping.RULES / name).read_text() for name in ("rules.yml", "alerts.yml"))
    text += "".join(dashboards.files().values())
    named = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"(?<![:\w])celery_\w+", text)}
    named -= {
        "celery_queue_messages_acknowledged_total",
        "celery_queue_messages_redelivered_total",
    }  # as `_acknowledged_`
    documented = set(re.findall(r"celery_\w+", (project / "docs" / "metrics.md").read_text()))
    short = {f"celery_exporter_snapshots_{kind}_total" for kind in ("repeated", "malformed")}
    assert named - documented - short == set()


def test_dashboards_are_complete() -> None:
    for board in dashboards.dashboards():
        found = board.as_dict()
        panels = found["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        places = {
            (x, y)
            for panel in panels
            for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
            for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
        }
        assert len(places) == sum(panel["gridPos"]["w"] * panel["gridPos"]["h"] for panel in panels), "panels overlap"
        assert max(x for x, _ in places) < 24
