"""Every alert and recording rule by Prometheus' own checker: it fires, it is silent, and not before its time."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from ops import scraping
from tests.drift.test_alerts import ALERTS
from tests.integration.prometheus import find

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", ["alerts.yml", "rules.yml"])
def test_promtool_agrees(name: str) -> None:
    promtool = find("promtool")
    done = subprocess.run(
        [promtool, "test", "rules", str(scraping.RULES / "tests" / name)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_alert_fires_before_its_time(tmp_path: Path) -> None:
    """Without `for`, the tests of every alert that has one fail."""
    rules = shutil.copytree(scraping.RULES, tmp_path / "rules")
    text = (rules / "alerts.yml").read_text(encoding="utf-8")
    (rules / "alerts.yml").write_text(re.sub(r"(?m)^ +for: .+\n", "", text), encoding="utf-8")
    promtool = find("promtool")
    done = subprocess.run(
        [promtool, "test", "rules", str(rules / "tests" / "alerts.yml")], capture_output=True, text=True, timeout=120
    )
    early = set(re.findall(r"alertname: ?(\w+)", done.stdout + done.stderr))
    assert early == {alert["alert"] for alert in ALERTS if "for" in alert}
