"""A chord, group or chain is sent whole or not at all; where the broker stops it half-way, everybody is told."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest
from celery import chain, chord, group

from ops.definitions import DELAY_EXIT
from queues import publish, tasks
from queues.app import default_app
from queues.errors import (
    InvalidArgumentsError,
    PublishError,
    PublishRefusedError,
    PublishUnknownError,
    UnknownTaskError,
)
from queues.topology import QUEUES
from tests.integration.helpers import acting_as, awaited, ready
from tests.resultserver import ResultServer, forget, installed, need_store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ops.local import Stack
    from queues.app import WarrenCelery

#: Apps leave the sockets of Redis' subscriptions to the garbage collector.
pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]

#: Members of a chord.
MANY = 1000


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def settings(
    idle: Stack, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """A producer's, with a result store."""
    if request.param == "sqlite":
        yield idle.environment("producer")
        return
    need_store(installed(), "redis")
    with ResultServer(tmp_path_factory.mktemp("store")) as store:
        yield {**idle.environment("producer"), **store.environment()}


@pytest.fixture
def producer(idle: Stack, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[WarrenCelery]:
    """A producer that reads results; nothing is left in the queues."""
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    default_app.cache_clear()
    empty(idle)
    yield default_app()
    forget(default_app())
    default_app().close()
    default_app.cache_clear()


def empty(idle: Stack) -> None:
    operator = acting_as(idle, "operator")
    with operator.connection_for_write() as connection, connection.channel() as channel:
        for queue in QUEUES:
            channel.queue_purge(queue.name)


def waiting(idle: Stack) -> dict[str, int]:
    """Messages in each queue and in the delays, but for empty ones."""
    operator = acting_as(idle, "operator")
    names = [*QUEUES.names, "celery_delayed_0", "celery_delayed_1", "undeliverable"]
    return {name: found for name in names if (found := ready(operator, name))}


def members(*others: Any) -> list[Any]:
    half = [tasks.add.si(number, 1) for number in range(MANY // 2)]
    return [*half, *others, *half[: MANY - len(half) - len(others)]]


@pytest.mark.parametrize(
    ("error", "made"),
    [
        (InvalidArgumentsError, lambda app: app.signature("math.add", args=(1, {2}), immutable=True)),
        (InvalidArgumentsError, lambda app: app.signature("math.add", args=(1, float("nan")), immutable=True)),
        (InvalidArgumentsError, lambda app: app.signature("math.add", args=(1,), immutable=True)),
        (InvalidArgumentsError, lambda _: tasks.add.si(1, 1).set(headers={"mine": object()})),
        (InvalidArgumentsError, lambda _: tasks.add.si(1, 1).set(priority=999)),
        (UnknownTaskError, lambda app: app.signature("math.nothing", immutable=True)),
        (UnknownTaskError, lambda app: tasks.add.si(1, 1) | app.signature("math.nothing") | tasks.add.si(1, 1)),
        (UnknownTaskError, lambda app: tasks.add.si(1, 1).on_error(app.signature("math.nothing"))),
        (InvalidArgumentsError, lambda app: chain(tasks.add.si(1, 1), app.signature("math.add", immutable=True))),
        (PublishRefusedError, lambda _: tasks.reliable_task.si("x" * publish.MAX_MESSAGE_BYTES)),
    ],
)
def test_a_member_that_cannot_be_sent_keeps_all_others(
    producer: WarrenCelery, idle: Stack, error: type[Exception], made: Any
) -> None:
    with pytest.raises(error):
        chord(members(made(producer)))(tasks.xsum.s())
    with pytest.raises(error):
        group(members(made(producer))).apply_async()
    assert waiting(idle) == {}


def test_a_member_that_this_user_may_not_send_keeps_all_others(producer: WarrenCelery, idle: Stack) -> None:
    beat = acting_as(idle, "beat")
    mixed = [beat.signature("monitor.check_status", immutable=True) for _ in range(MANY - 1)]
    with pytest.raises(PublishRefusedError, match=r"may not publish to tasks\.math") as raised:
        group([*mixed, beat.signature("math.add", args=(1, 1))], app=beat).apply_async()
    assert set(raised.value.states.values()) == {"not sent"}
    assert len(raised.value.states) == MANY
    assert waiting(idle) == {}


def test_a_queue_that_does_not_exist_keeps_all_others(producer: WarrenCelery, idle: Stack) -> None:
    operator = acting_as(idle, "operator")
    with operator.connection_for_write() as connection, connection.channel() as channel:
        channel.queue_delete("image")
        try:
            with pytest.raises(PublishRefusedError, match="image"):
                chord(members(tasks.inspect_image.si("a.jpg")))(tasks.xsum.s())
            left = {name: found for name in QUEUES.names if name != "image" and (found := ready(operator, name))}
            # RabbitMQ 4.3 tells producers nothing of a queue: there, each other queue has been sent one message.
            assert sum(left.values()) <= len(QUEUES.names) if producer.queues_are_hidden else left == {}
        finally:
            channel.queue_declare("image", durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"})
            channel.queue_bind("image", "tasks.image", "image")
            channel.queue_bind("image", DELAY_EXIT, "#.image")


def refusing_after(count: int, error: type[PublishError], monkeypatch: pytest.MonkeyPatch) -> None:
    """From some message on, the broker has one answer."""
    confirmed = publish.Producer._confirmed
    sent = []

    def answer(self: Any, connection: Any, body: Any, options: dict[str, Any]) -> Any:
        if "headers" in options:  # a probe has none
            sent.append(body)
        if len(sent) > count:
            raise error("as the broker says")
        return confirmed(self, connection, body, options)

    monkeypatch.setattr(publish.Producer, "_confirmed", answer)


@pytest.mark.parametrize(
    ("error", "state"), [(PublishRefusedError, "refused"), (PublishUnknownError, "unknown")], ids=["refused", "unknown"]
)
def test_half_a_chord_tells_what_became_of_each_member(
    producer: WarrenCelery, idle: Stack, monkeypatch: pytest.MonkeyPatch, error: type[PublishError], state: str
) -> None:
    body_id, later_id, last_id = (str(uuid.uuid4()) for _ in range(3))
    ids = [str(uuid.uuid4()) for _ in range(20)]
    later = tasks.add.si(1, 1).set(task_id=later_id)
    header = [tasks.add.si(1, 1).set(task_id=task_id) for task_id in ids]
    header[-1] = chain(tasks.add.si(1, 1).set(task_id=last_id), header[-1])
    confirmed = publish.Producer._confirmed
    refusing_after(10, error, monkeypatch)
    with pytest.raises(error) as raised:
        chain(chord(header, tasks.xsum.s().set(task_id=body_id)), later).apply_async()
    monkeypatch.setattr(publish.Producer, "_confirmed", confirmed)
    states = raised.value.states
    sent = 10 if "redis" in producer.conf.result_backend else 9  # and what unlocks the chord
    found = [list(states.values()).count(one) for one in ("confirmed", state, "not sent")]
    assert found == [sent, 1, 20 - 1 - sent]
    assert set(states) == {*ids[:-1], last_id}
    lost = [task_id for task_id, found in states.items() if found != "confirmed"]
    results = {task_id: producer.AsyncResult(task_id).state for task_id in [*lost, ids[-1], body_id, later_id]}
    assert set(results.values()) == {"FAILURE"}, results
    assert {producer.AsyncResult(task_id).state for task_id in set(states) - set(lost)} == {"PENDING"}


def test_a_chord_that_goes_through_is_whole(producer: WarrenCelery, idle: Stack) -> None:
    result = chord(members())(tasks.xsum.s())
    assert result.parent is not None
    assert ready(acting_as(idle, "operator"), "math") == MANY
    assert len({one.id for one in result.parent}) == MANY
    if not producer.conf.result_backend.startswith("redis"):
        assert awaited(lambda: waiting(idle).get("monitor")), "the unlock, after its second of delay"
