from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from workers.validation import problem


def header(x: int, y: int = 0) -> None:
    """What `task.__header__` is to Celery: the parameters, no body."""


TASKS = {"math.add": SimpleNamespace(name="math.add", __header__=header)}


def message(body: Any = None, content_type: str = "application/json", **headers: Any) -> Any:
    class Message:
        def __init__(self) -> None:
            self.headers: Any = {"task": "math.add", "id": "1", **headers}
            self.content_type = content_type

        @property
        def payload(self) -> Any:
            return json.loads(json.dumps([[1, 2], {}, {}] if body is None else body))

    return Message()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id": None}, "malformed"),
        ({"id": ""}, "malformed"),
        ({"task": ["math.add"]}, "malformed"),
        ({"task": "math.newer"}, "unknown-task"),
        ({"compression": ""}, "compressed"),
        ({"timelimit": [1, 2, 3]}, "malformed"),
        ({"timelimit": [True, None]}, "malformed"),
        ({"timelimit": [float("inf"), None]}, "malformed"),
        ({"retries": True}, "malformed"),
        ({"retries": -1}, "malformed"),
        ({"content_type": "application/x-python-serialize"}, "content-type"),
        ({"body": [[1, 2], {}]}, "malformed"),
        ({"body": [[1, 2, 3], {}, {}]}, "wrong-arguments"),
        ({"body": [[], {"y": 1}, None]}, "wrong-arguments"),
    ],
)
def test_what_cannot_be_run_has_a_reason(changes: dict[str, Any], reason: str) -> None:
    found = problem(message(**changes), TASKS)
    assert found is not None
    assert found.reason == reason


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"timelimit": [None, None]},
        {"timelimit": [10, 5.5]},
        {"timelimit": None, "retries": None},
        {"body": [[1], {}, None]},
        {"body": [[], {"x": 1, "y": 2}, {"chain": None}]},
    ],
)
def test_what_can_be_run_has_none(changes: dict[str, Any]) -> None:
    assert problem(message(**changes), TASKS) is None


def test_a_message_without_headers_is_malformed() -> None:
    found = message()
    found.headers = None
    assert problem(found, TASKS) is not None
