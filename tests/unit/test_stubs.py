from __future__ import annotations

from typing import Any

import pytest

from queues import tasks
from queues.app import create_app
from queues.errors import (
    BrokerUnavailableError,
    ConfigurationError,
    InvalidArgumentsError,
    UnknownQueueError,
    UnknownTaskError,
)
from queues.publish import MAX_DELAY, refuse_constants, whole_delay
from queues.settings import BrokerSettings, Settings
from queues.topology import QUEUES


@pytest.fixture
def app() -> Any:
    return create_app(Settings(broker=BrokerSettings(hosts=(("127.0.0.1", 1),), tls=False), publish_timeout=1))


def test_every_task_of_the_table_has_a_stub_and_no_other() -> None:
    assert set(tasks.STUBS) == set(QUEUES.task_names)


@pytest.mark.parametrize(
    ("call", "parameters"),
    [
        (lambda: tasks.add(1), "x: float, y: float"),  # type: ignore[call-arg]
        (lambda: tasks.add(1, 2, 3), "x: float, y: float"),  # type: ignore[call-arg]
        (lambda: tasks.add.si(1), "x: float, y: float"),  # type: ignore[call-arg]
        (lambda: tasks.process_image("a.jpg", 10, wide=True), "mode: str"),  # type: ignore[call-arg]
    ],
)
def test_wrong_arguments_raise_before_anything_is_read_or_sent(call: Any, parameters: str) -> None:
    with pytest.raises(InvalidArgumentsError, match=parameters):
        call()


@pytest.mark.parametrize("name", ["math.ad", "add", "", "image.process"])
def test_a_misspelt_task_raises_at_once(app: Any, name: str) -> None:
    with pytest.raises(UnknownTaskError, match=r"math\.add"):
        app.send_task(name, [1, 2])


@pytest.mark.parametrize(("queue", "reason"), [("maths", "not in the table"), ("image", "runs another queue's tasks")])
def test_a_wrong_queue_raises_at_once(app: Any, queue: str, reason: str) -> None:
    with pytest.raises(UnknownQueueError, match=reason):
        app.send_task("math.add", [1, 2], queue=queue)


def test_celerys_own_tasks_go_to_the_housekeeping_queue_and_maps_to_their_inner_tasks(app: Any) -> None:
    for name in ("celery.chord_unlock", "celery.backend_cleanup", "celery.accumulate", "celery.group"):
        assert app.destination(name, {}, {"queue": "math"}) == "monitor"
    for name in ("celery.map", "celery.starmap"):
        assert app.destination(name, {}, {"route_name": "image.process_image"}) == "image"
        assert app.destination(name, {"task": {"task": "image.process_image"}}, {}) == "image"
    assert app.amqp.router.route({}, "celery.chord_unlock")["queue"].name == "monitor"
    assert app.amqp.router.route({}, "image.process_image")["queue"].name == "image"


@pytest.mark.parametrize(
    ("seconds", "whole"), [(0.01, 1), (0.5, 1), (1, 1), (1.01, 2), (59.2, 60), (MAX_DELAY, MAX_DELAY)]
)
def test_a_delay_is_rounded_up_to_whole_seconds(seconds: float, whole: int) -> None:
    assert whole_delay(seconds) == whole


@pytest.mark.parametrize("seconds", [MAX_DELAY + 1, float("inf"), float("nan")])
def test_a_delay_beyond_the_delay_queues_is_refused(seconds: float) -> None:
    with pytest.raises(InvalidArgumentsError, match="beyond"):
        whole_delay(seconds)


def test_a_producer_without_a_broker_gets_a_sentence(app: Any) -> None:
    with pytest.raises(
        BrokerUnavailableError,
        match=r"no broker answers at 127\.0\.0\.1:1 \(Connection refused\): start it.*nothing was sent$",
    ) as caught:
        app.send_task("math.add", [1, 2], task_id="known")
    assert caught.value.task_id == "known"


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, float("nan"), float("-inf"), {(1, 2): 3}, pytest.param(10**5000, id="huge")]
)
def test_arguments_that_json_cannot_carry_are_named_before_connecting(app: Any, value: Any) -> None:
    with pytest.raises(InvalidArgumentsError, match="not JSON"):
        app.send_task("math.add", [value, 2])


def test_a_text_that_only_looks_like_no_number_is_taken() -> None:
    refuse_constants('["NaN", "-Infinity", {"NaN": 1}]')


def test_results_are_read_only_where_they_are_stored(monkeypatch: pytest.MonkeyPatch, app: Any) -> None:
    monkeypatch.setattr(tasks, "default_app", lambda: app)
    for read in (tasks.status, tasks.result):
        with pytest.raises(ConfigurationError, match="RESULT_BACKEND is missing"):
            read("an id")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"serializer": "pickle"}, "plain JSON only"),
        ({"compression": "gzip"}, "plain JSON only"),
        ({"countdown": "soon"}, "countdown is a number"),
        ({"eta": "tomorrow"}, "eta a date"),
        ({"expires": "never"}, "expires is a number"),
        ({"expires": object()}, "expires is a number"),
        ({"priority": 300}, "priority is a whole number"),
        ({"task_id": "x" * 300}, "task_id is a text"),
    ],
)
def test_an_option_that_cannot_be_carried_is_named_before_connecting(
    app: Any, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidArgumentsError, match=words):
        app.send_task("math.add", [1, 2], **options)
