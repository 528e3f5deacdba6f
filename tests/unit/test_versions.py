"""What a worker and beat say of the libraries that they run with."""

from __future__ import annotations

import pytest

from workers import versions
from workers.hooks import TESTED

INSTALLED = {"celery": "5.7.9", "kombu": "5.7.0rc1", "billiard": "4.3.2", "amqp": "5.4.2"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"celery": "5.8.0"}, "untested versions: celery 5.8.0, where Warren was tested with celery 5.7;"),
        ({"celery": "6.7.0"}, "untested versions: celery 6.7.0, where Warren was tested with celery 5.7;"),
        (
            {"kombu": "5.70.1", "amqp": "5.5.0b1"},
            "untested versions: kombu 5.70.1, amqp 5.5.0b1, where Warren was tested with kombu 5.7, amqp 5.4;",
        ),
    ],
)
def test_other_minors_are_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, changes: dict[str, str], said: str
) -> None:
    monkeypatch.setattr(
        versions, "TESTED", {**TESTED, "celery": "5.7", "kombu": "5.7", "billiard": "4.3", "amqp": "5.4"}
    )
    monkeypatch.setattr(versions, "version", {**INSTALLED, **changes}.__getitem__)
    versions.check()
    assert [record.getMessage()[: len(said)] for record in caplog.records] == ([said] if said else [])
