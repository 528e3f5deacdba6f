"""What a message says of who waits for its task, and that each is told once."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import Any

import pytest
from celery.states import FAILURE, STARTED
from kombu.message import Message

from queues.errors import BrokerUnavailableError, PermanentError, PublishRefusedError
from queues.publish import MAX_MESSAGE_BYTES
from workers import ending, monitoring

SIGNATURE = {"task": "math.add", "args": [], "kwargs": {}, "options": {"task_id": "later"}}
EMBED = {"callbacks": None, "errbacks": [SIGNATURE], "chain": [SIGNATURE], "chord": SIGNATURE}
ERROR = PermanentError("wrong-arguments", "x")


def message(embed: Any = None, body: bytes | None = None, **headers: Any) -> Any:
    return Message(
        json.dumps([[1], {}, EMBED if embed is None else embed]).encode() if body is None else body,
        content_type=headers.pop("content_type", "application/json"),
        content_encoding="utf-8",
        headers={"id": "a", "task": "math.add", **headers},
    )


def test_all_that_a_message_says_is_known() -> None:
    found = ending.context(message(group="g", group_index=1, root_id="r", parent_id="p", ignore_result=True))
    assert found is not None
    assert (found.id, found.task, found.group, found.group_index) == ("a", "math.add", "g", 1)
    assert (found.root_id, found.parent_id, found.ignore_result) == ("r", "p", True)
    assert (found.errbacks, found.chain, found.chord, found.delivery_info) == ([SIGNATURE], [SIGNATURE], SIGNATURE, {})


@pytest.mark.parametrize(
    "hostile",
    [
        message(body=b"[[1], {}, "),
        message(body=b"null"),
        message(body=b"[1, 2, 3]"),
        message(body=b"[" * 100_000),
        message(body=b" " * (MAX_MESSAGE_BYTES + 1)),
        message(content_type="application/x-python-serialize"),
        message(compression="application/x-gzip"),
        message(embed={"errbacks": 5}),
        message(embed={"errbacks": [5], "chain": "x", "chord": 7}, group=5, group_index="x", root_id=[1], task=None),
    ],
)
def test_what_does_not_fit_is_left_out(hostile: Any) -> None:
    found = ending.context(hostile)
    assert found is not None
    assert not found.errbacks
    assert not found.chain
    assert found.chord is found.group is found.root_id is None


def test_an_id_that_no_result_can_have_is_nobodys() -> None:
    for task_id in (None, 5, "", "a\0b", "\ud800"):
        assert ending.context(message(id=task_id)) is None
    assert ending.context(SimpleNamespace(headers=None, body=b"")) is None


class Store:
    """A result store, and what it and its errbacks were told."""

    def __init__(
        self, *, stores: bool = True, errback: Exception | None = None, member: Exception | None = None
    ) -> None:
        self.stores, self.errback, self.member = stores, errback, member
        self.state = "PENDING"
        self.told: list[str] = []

    def mark_as_failure(self, task_id: str, exc: BaseException) -> None:
        self.state = FAILURE if self.stores else self.state

    def get_task_meta(self, task_id: str, *, cache: bool) -> dict[str, str]:
        return {"status": self.state}

    def store_result(self, task_id: str, result: Any, state: str, **_: Any) -> None:
        self.state = state

    def on_chord_part_return(self, request: Any, state: str, exc: BaseException) -> None:
        self.told.append("chord")
        if self.member is not None:
            raise self.member

    def _fail_chain(self, chain: Any, exc: BaseException, *, state: str) -> None:
        self.told += ["step" for _ in chain]

    def _call_task_errbacks(self, request: Any, exc: BaseException, _traceback: object) -> None:
        self.told.append("errback")
        if self.errback is not None:
            raise self.errback

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        return isinstance(exc, ConnectionError)


def ended(store: Store, **headers: Any) -> bool:
    request = ending.context(message(**headers))
    assert request is not None
    return ending.end(store, request, ERROR)


def test_everybody_is_told_once_the_failure_is_recorded() -> None:
    store = Store()
    assert ended(store)
    assert (store.state, store.told) == (FAILURE, ["chord", "step", "errback"])
    unrecorded = Store()
    assert ended(unrecorded, ignore_result=True)
    assert (unrecorded.state, unrecorded.told) == ("PENDING", ["chord", "step", "errback"])


def test_nobody_is_told_where_the_failure_cannot_be_recorded() -> None:
    """The monitor does all of it later, and would tell them again."""
    store = Store(stores=False)
    assert not ended(store)
    assert (store.state, store.told) == ("PENDING", [])


@pytest.mark.parametrize(
    "store", [Store(errback=BrokerUnavailableError("an alarm")), Store(member=ConnectionError("away"))]
)
def test_a_record_is_opened_again_for_the_monitor_where_telling_must_wait(store: Store) -> None:
    assert not ended(store)
    assert store.state == STARTED
    assert "errback" not in store.told or store.errback is not None


def half_sent() -> BrokerUnavailableError:
    """Two errbacks, of which the broker has one."""
    error = BrokerUnavailableError("an alarm")
    error.states = {"a": "confirmed", "b": "refused"}
    return error


@pytest.mark.parametrize("error", [PublishRefusedError("never"), half_sent(), KeyError("task"), RecursionError()])
def test_what_cannot_be_told_is_no_reason_to_try_for_ever(error: Exception) -> None:
    store = Store(errback=error, member=KeyError("group"))
    assert ended(store)
    assert (store.state, store.told) == (FAILURE, ["chord", "step", "errback"])


def test_an_errback_that_does_not_come_back_is_interrupted() -> None:
    with pytest.raises(ending.TooLongError), ending.alarm(0.05):
        time.sleep(5)
    with ending.alarm(0.05):
        pass
    time.sleep(0.1)


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("delivery_limit", "delivery-limit"),
        ("expired", "expired"),
        ("maxlen", "maxlen"),
        ("rejected", "rejected"),
        (["x"], "rejected"),
        (None, "rejected"),
    ],
)
def test_each_end_by_the_broker_has_its_code(reason: object, code: str) -> None:
    death = {"queue": "math", "count": 1, **({} if reason is None else {"reason": reason})}
    found = monitoring.ending({"id": "a", "x-death": [death]})
    assert found is not None
    assert found.code == code


def test_an_end_without_a_record_is_told_by_who_saw_it() -> None:
    ignored = {"id": "a", "ignore_result": True}
    assert monitoring.ending({**ignored, "x-dead-reason": "time-limit"}) is None
    assert monitoring.ending({**ignored, "x-death": [{"reason": "rejected"}]}) is None, "by a worker, which has told"
    assert monitoring.ending({**ignored, "x-death": [{"reason": "delivery_limit"}]}) is not None
    assert monitoring.ending({"id": "a"}) is monitoring.ending(None) is None
