"""What is published for remote control, and what its refusals say."""

from __future__ import annotations

import sys
from typing import Any

import amqp.exceptions
import click
import pytest
from kombu import Exchange, Queue

from queues.errors import ControlRefusedError, PublishRefusedError, UnknownTaskError, WarrenError
from queues.publish import Producer, outcome
from workers import command


class Recording(Producer):
    """A producer whose broker takes everything."""

    def __init__(self) -> None:
        self.timeout = 1.0
        self.sent: list[dict[str, Any]] = []

    def _serialized(self, body: Any, _options: dict[str, Any]) -> bytes:
        return bytes(body)

    def _connected(self) -> Any:
        return None

    def _confirmed(self, _connection: Any, _body: Any, options: dict[str, Any]) -> None:
        self.sent.append(options)


@pytest.mark.parametrize(
    ("declared", "mandatory"),
    [
        ([Exchange("celery.pidbox", type="fanout")], False),
        ([Exchange("tasks.math", type="topic")], True),
        ([Queue("math")], True),
        ([], True),
        (None, True),
    ],
)
def test_only_a_command_may_reach_nobody(declared: Any, mandatory: bool) -> None:
    producer = Recording()
    producer.publish(b"x", exchange="any", declare=declared)
    (options,) = producer.sent
    assert (options["mandatory"], options["declare"]) == (mandatory, [])


def test_a_right_that_is_missing_names_the_user_to_use() -> None:
    refused = amqp.exceptions.AccessRefused("no")
    task = outcome(refused, {"mandatory": True, "exchange": "tasks.math", "routing_key": "math"})
    assert isinstance(task, PublishRefusedError)
    assert "use the producer's user" in str(task)
    order = outcome(refused, {"mandatory": False, "exchange": "celery.pidbox", "routing_key": None})
    assert isinstance(order, ControlRefusedError)
    assert not isinstance(order, PublishRefusedError), "Celery's commands would blame the connection"
    assert "use the operator's settings" in str(order)


@pytest.mark.parametrize(
    ("error", "said"), [(UnknownTaskError("use another"), "Error: use another\n"), (KeyError("x"), "Traceback")]
)
def test_in_a_command_our_errors_are_their_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, said: str
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    command.tell_errors()
    assert sys.excepthook is sys.__excepthook__, "a program that imports the app has its own"
    with click.Context(click.Command("celery")):
        command.tell_errors()
    try:
        raise error
    except (KeyError, WarrenError) as exc:
        sys.excepthook(type(exc), exc, exc.__traceback__)
    assert capsys.readouterr().err.startswith(said)
