from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, Signature
from celery.app.amqp import AMQP
from kombu.utils.json import dumps

from queues.publish import MAX_MESSAGE_BYTES
from workers.validation import KINDS, problem


def header(x: int, y: int = 0) -> None:
    """What `task.__header__` is to Celery: the parameters, no body."""


TASKS = {"math.add": SimpleNamespace(name="math.add", __header__=header)}


SIGNATURE = json.loads(dumps(Signature("math.add", args=[1], immutable=True)))


def message(body: Any = None, content_type: str = "application/json", **headers: Any) -> Any:
    class Message:
        def __init__(self) -> None:
            self.headers: Any = {"task": "math.add", "id": "1", **headers}
            self.body = b""
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
        ({"retries": 2**63 - 1}, "malformed"),
        ({"id": "\ud800"}, "malformed"),
        ({"id": "é" * 200}, "malformed"),
        ({"stamped_headers": 5}, "malformed"),
        ({"stamped_headers": [5]}, "malformed"),
        ({"stamps": [1]}, "malformed"),
        ({"shadow": [1]}, "malformed"),
        ({"eta": 5}, "malformed"),
        ({"eta": ""}, "malformed"),
        ({"eta": "tomorrow"}, "malformed"),
        ({"expires": "0000-01-01T00:00:00"}, "malformed"),
        ({"root_id": {"a": 1}}, "malformed"),
        ({"group_index": -1}, "malformed"),
        ({"ignore_result": "yes"}, "malformed"),
        ({"called_directly": True}, "malformed"),
        ({"chord": 5}, "malformed"),
        ({"x-death": [5]}, "malformed"),
        ({"x-death": [{"queue": "math", "reason": "rejected", "count": "1"}]}, "malformed"),
        ({"body": [[1, 2], {}]}, "malformed"),
        ({"body": [[1, 2], {}, {"callbacks": 5}]}, "malformed"),
        ({"body": [[1, 2], {}, {"callbacks": {"task": "math.add"}}]}, "malformed"),
        ({"body": [[1, 2], {}, {"errbacks": ["math.add"]}]}, "malformed"),
        ({"body": [[1, 2], {}, {"errbacks": [{"task": "math.add", "options": 7}]}]}, "malformed"),
        ({"body": [[1, 2], {}, {"chain": [None]}]}, "malformed"),
        ({"body": [[1, 2], {}, {"chord": [{"task": "math.add"}]}]}, "malformed"),
        ({"body": [[1, 2], {}, {"id": "another's"}]}, "malformed"),
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
        {"x-death": [{"queue": "celery_delayed_1", "reason": "expired", "count": 1, "exchange": "celery_delayed_1"}]},
        {"eta": "2026-01-31T12:00:00+01:00", "expires": "9999-12-31T23:59:59-23:59"},
        {"body": [[1], {}, None]},
        {"body": [[], {"x": 1, "y": 2}, {"chain": None}]},
        {"stamped_headers": ["tenant"], "stamps": {"tenant": ["a"]}, "ignore_result": False, "group_index": 0},
        {"body": [[1], {}, {"callbacks": [SIGNATURE], "errbacks": [], "chain": [SIGNATURE], "chord": SIGNATURE}]},
    ],
)
def test_what_can_be_run_has_none(changes: dict[str, Any]) -> None:
    assert problem(message(**changes), TASKS) is None


def test_a_message_without_headers_is_malformed() -> None:
    found = message()
    found.headers = None
    assert problem(found, TASKS) is not None


def test_a_body_that_no_dead_letter_could_hold_is_not_decoded() -> None:
    found = message()
    found.body = bytes(MAX_MESSAGE_BYTES + 1)
    answer = problem(found, TASKS)
    assert answer is not None
    assert answer.reason == "too-large"


def test_every_header_that_celery_sends_is_known_and_may_be_empty() -> None:
    sent = AMQP(Celery(set_as_current=False)).as_task_v2("1", "math.add", args=[1]).headers
    found = message(**sent)
    assert problem(found, TASKS) is None
    found.headers.update(dict.fromkeys(sent.keys() - {"id", "task"}))
    assert problem(found, TASKS) is None
    assert sent.keys() - {"id", "task", "timelimit"} == KINDS.keys() - {"x-death"}


@pytest.mark.parametrize("name", ["argsrepr", "kwargsrepr"])
def test_an_argument_is_in_no_reason(name: str) -> None:
    told: dict[str, Any] = {name: ["ada@example.com"]}
    found = problem(message(**told), TASKS)
    assert found is not None
    assert found == ("malformed", f"the header `{name}` is something else, not a text")


def test_a_task_without_celerys_header_is_not_looked_at_for_arguments() -> None:
    assert problem(message([[1], {}, {}]), {"math.add": SimpleNamespace(name="math.add")}) is None
