"""What a dead letter says, which are meant, and what a replay makes of one."""

from __future__ import annotations

import datetime
import json
from dataclasses import replace
from decimal import Decimal
from struct import pack
from typing import Any

import amqp
import pytest
from amqp.method_framing import frame_handler
from click.testing import CliRunner, Result

from ops import deadletter, definitions, replay
from ops.cli import cli
from ops.deadletter import DeadLetter, Filter, merge, parse, since
from ops.deadletter_cli import printable
from queues import transport

NOW = 1_800_000_000.0
DEATH: dict[str, Any] = {
    "queue": "math",
    "reason": "delivery_limit",
    "count": 1,
    "exchange": "tasks.math",
    "routing-keys": ["math"],
    "time": datetime.datetime.fromtimestamp(NOW - 60, datetime.UTC).replace(tzinfo=None),
}
DELAY = DEATH | {"queue": "celery_delayed_3", "reason": "expired"}


def message(body: bytes = b"[[1, 2], {}, {}]", *, timestamp: int | None = None, **headers: Any) -> amqp.Message:
    named = {name.replace("_", "-") if name.startswith("x_") else name: value for name, value in headers.items()}
    properties = {} if timestamp is None else {"timestamp": timestamp}
    return amqp.Message(body, application_headers=named or None, content_type="application/json", **properties)


def by_worker(**headers: Any) -> amqp.Message:
    defaults = {"id": "a", "task": "math.add", "retries": 2, "x_dead_reason": "time-limit", "x_dead_error": "too long"}
    return message(**{**defaults, "x_dead_worker": "math@one", "x_dead_at": NOW, "x_dead_queue": "math", **headers})


def by_broker(**headers: Any) -> amqp.Message:
    return message(**{"id": "a", "task": "math.add", "x_death": [DEATH], **headers})


def letter(**changes: Any) -> DeadLetter:
    return replace(parse("math", by_worker()), **changes)


def test_a_workers_copy_says_everything() -> None:
    found = parse("math", by_worker(x_replays=3, x_death=[DELAY]))
    assert (found.id, found.task, found.reason, found.error) == ("a", "math.add", "time-limit", "too long")
    assert (found.worker, found.at, found.retries, found.replays, found.size) == ("math@one", NOW, 2, 3, 16)
    assert found.ref == "a"
    assert not found.by_broker


def test_the_brokers_letter_has_its_reason_in_the_death_of_its_queue() -> None:
    found = parse("math", by_broker(x_death=[DELAY, DEATH]))
    assert (found.reason, found.error, found.worker, found.at) == ("delivery_limit", None, None, NOW - 60)
    assert found.by_broker


def test_a_death_elsewhere_is_better_than_none() -> None:
    assert parse("math", by_broker(x_death=[DELAY])).reason == "expired"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"id": 5, "task": b"\xff", "retries": True, "x_replays": -4, "x_dead_at": float("nan")},
        {"id": None, "task": {"a": 1}, "retries": "2", "x_dead_at": 1e300, "x_death": "nonsense"},
        {"id": "", "x_death": [], "x_dead_reason": 7, "x_dead_at": -1},
        {"id": [1], "x_death": [1, None, {"queue": 4}], "x_dead_at": True},
        {"id": "\udcff\x1b[31m", "x_death": [{"queue": "math", "reason": 3, "time": "today"}]},
        {"x_dead_reason": "r" * 100_000, "x_dead_at": datetime.datetime.max.replace(tzinfo=datetime.UTC), b"\xff": 1},
    ],
)
def test_nothing_in_a_letter_is_taken_on_trust(headers: dict[Any, Any]) -> None:
    found = parse("math", amqp.Message(b"\x00\xff", application_headers=headers or None))
    assert (found.retries, found.replays) == (0, 0)
    json.dumps(found.as_dict() | deadletter.record(found, amqp.Message(b"\x00\xff", application_headers=headers)))
    assert found.ref.startswith("~")


def test_the_time_of_a_letter_that_names_none_is_that_of_its_publish() -> None:
    assert parse("math", message(id="a", x_published_at=NOW)).at == NOW
    assert parse("math", message(id="a", timestamp=int(NOW))).at == NOW
    assert parse("math", message(id="a")).at is None


def test_both_copies_of_an_id_count_once_and_the_workers_speaks() -> None:
    for order in ([by_worker(), by_broker()], [by_broker(), by_worker()]):
        [one] = merge(parse("math", item) for item in order)
        assert (one.reason, one.copies) == ("time-limit", 2)


def test_a_letter_that_was_replayed_and_failed_again_counts_once() -> None:
    [one] = merge(parse("math", item) for item in (by_worker(x_replays=1), by_worker()))
    assert (one.replays, one.copies) == (1, 2)


def test_what_is_no_copy_counts_for_itself() -> None:
    others = [by_worker(), by_worker(id="b"), message(b"other", id="a", task="math.add"), message(id="a", task="x.y")]
    assert len(merge(parse("math", item) for item in others)) == 4
    nameless = [message(b"same"), message(b"same")]
    assert len(merge(parse("math", item) for item in nameless)) == 2


def test_a_nameless_letter_keeps_its_name_when_it_is_read_again() -> None:
    first, again = parse("math", message(b"x")), parse("math", message(b"x", **{"x-delivery-count": 1}))
    assert first.ref == again.ref


def test_a_filter_needs_every_part_to_fit() -> None:
    assert Filter().is_empty
    assert Filter().matches(letter())
    assert Filter(ids=("b", "a"), tasks=("math.add",), reasons=("time-limit",), since=NOW).matches(letter())
    for wrong in (Filter(ids=("b",)), Filter(tasks=("math.x",)), Filter(reasons=("memory",)), Filter(since=NOW + 1)):
        assert not wrong.is_empty
        assert not wrong.matches(letter())
    assert not Filter(since=0).matches(letter(at=None)), "a letter without a time was never since"
    assert Filter(ids=(letter(id=None).ref,)).matches(letter(id=None))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("90s", NOW - 90),
        ("15m", NOW - 900),
        ("2h", NOW - 7200),
        (" 1.5 H ", NOW - 5400),
        ("3d", NOW - 3 * 86400),
        ("1w", NOW - 7 * 86400),
        ("2026-01-31", 1769817600),
        ("2026-01-31T12:00", 1769860800),
        ("2026-01-31T12:00Z", 1769860800),
        ("2026-01-31T21:00+09:00", 1769860800),
    ],
)
def test_since_is_an_age_or_a_time(value: str, expected: float) -> None:
    assert since(value, NOW) == expected


@pytest.mark.parametrize("value", ["", "h", "2 hours", "yesterday", "-2h", "2026-13-01"])
def test_since_refuses_what_is_no_time(value: str) -> None:
    with pytest.raises(ValueError, match="is no time: write"):
        since(value, NOW)


def test_reasons_are_counted_the_most_frequent_first() -> None:
    found = deadletter.reasons([letter(reason="b"), letter(reason="a"), letter(reason="a")])
    assert list(found.items()) == [("a", 2), ("b", 1)]


def test_a_record_brings_the_body_back() -> None:
    for body, kind in (("héllo\x00".encode(), "text"), (b"\xff\x00", "base64"), (b"", "text")):
        written = json.loads(json.dumps(deadletter.record(letter(), message(body, id="a"))))
        assert written["body_encoding"] == kind
    values = {
        "bytes": b"\xff",
        "when": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
        "d": Decimal("1.5"),
        "n": float("inf"),
        "l": [{}],
    }
    assert deadletter.plain(values) == {
        "bytes": {"base64": "/w=="},
        "when": "2026-01-02T00:00:00+00:00",
        "d": "1.5",
        "n": "inf",
        "l": [{}],
    }


def test_a_replay_keeps_what_the_task_needs_and_nothing_of_its_death() -> None:
    kept = {"id": "a", "task": "math.add", "retries": 2, "origin": "me", "x-first-published-at": 1.0, b"\xff": 1}
    gone = {
        "x-death": [DEATH],
        "x-first-death-queue": "math",
        "x-last-death-reason": "rejected",
        "x-delivery-count": 5,
        "x-acquired-count": 5,
        "x-child-deaths": 3,
        "x-dead-reason": "exception",
        "x-dead-anything": 1,
        "x-replays": 1,
    }
    assert replay.revived(kept | gone, 2) == kept | {"x-replays": 2}


def test_an_expiry_that_has_passed_does_not_end_the_replay_too() -> None:
    tomorrow = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)).isoformat()
    assert replay.revived({"expires": "2020-01-01T00:00:00+00:00"}, 1)["expires"] is None
    assert replay.revived({"expires": "2020-01-01T00:00:00"}, 1)["expires"] is None
    for other in (tomorrow, None, 5, "never"):
        assert replay.revived({"expires": other}, 1)["expires"] == other


def test_letters_are_met_again_when_their_last_copy_is() -> None:
    queue: list[Any] = [message(b"new"), by_broker(), message(b"same"), message(b"same"), by_worker()]
    letters = merge(parse("math", item) for item in queue[1:])
    met = list(replay.meet(queue, "math", letters))  # type: ignore[arg-type]
    assert [len(held) for _, held in met] == [1, 1, 2]
    assert replay.best(met[2][1]) is queue[4]
    again = list(replay.meet(queue[:4], "math", letters))  # type: ignore[arg-type]
    assert len(again) == 2, "a letter of which one copy is missing is left alone"


def test_a_replay_that_failed_again_is_not_taken_for_a_letter_that_came_back() -> None:
    assert replay.fingerprint("math", by_worker()) != replay.fingerprint("math", by_worker(x_replays=1))


class FakeConnection:
    """What py-amqp's frame handler needs of a connection."""

    bytes_recv = 0

    def __init__(self) -> None:
        self.received: list[Any] = []
        self.on_inbound_frame = frame_handler(
            self, lambda _channel, _method, _arguments, held: self.received.append(held)
        )


def entry(name: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + value


def table(content: bytes) -> bytes:
    return pack(">HI", 0x2000, len(content)) + content


def nested(depth: int) -> bytes:
    content = b""
    for _ in range(depth):
        content = entry(b"a", b"F" + pack(">I", len(content)) + content)
    return content


@pytest.mark.parametrize(
    "properties",
    [
        pack(">H", 0x0400) + b"\x02\xff\xfe",
        table(entry(b"t", b"T" + pack(">Q", 2**62))),
        table(entry(b"z", b"?")),
        table(nested(3000)),
        b"",
    ],
    ids=["not-utf8", "date", "type", "deep", "none"],
)
def test_properties_that_cannot_be_decoded_arrive_as_bytes(properties: bytes) -> None:
    connection = FakeConnection()
    transport.tolerate(connection)
    for size in (3, 0):
        connection.on_inbound_frame((1, 1, pack(">HH", 60, 60)))
        connection.on_inbound_frame((2, 1, pack(">HHQ", 60, 0, size) + properties))
        if size:
            connection.on_inbound_frame((3, 1, b"abc"))
    first, second = connection.received
    assert (bytes(first.body), second.body) == (b"abc", "")
    for held in (first, second):
        found = parse("math", held)
        assert (found.id, found.reason) == (None, "undecodable")
        assert deadletter.headers_of(held)[transport.UNDECODABLE] == properties


def test_other_frames_are_not_mended() -> None:
    connection = FakeConnection()
    transport.tolerate(connection)
    with pytest.raises(amqp.exceptions.UnexpectedFrame):
        connection.on_inbound_frame((3, 1, b"abc"))


def test_reading_a_dead_letter_never_costs_it() -> None:
    """RabbitMQ 4 deletes a letter at its 21st delivery, and to read is to be delivered; 3.10 refuses the value."""
    for version, limit in (((3, 10), None), ((3, 13), None), ((4, 0), -1), ((4, 3), -1)):
        policies = definitions.objects(rabbitmq=version)["policies"]
        found = {item["name"]: item["definition"].get("delivery-limit") for item in policies}
        assert (found["math.dead"], found["undeliverable"], found["math"]) == (limit, limit, 20)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["dead-letters", *arguments])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("drop", "math"), "say which"),
        (("drop", "math", "--limit", "5", "--yes"), "say which"),
        (("drop", "math", "--all"), "nobody can be asked here"),
        (("drop", "--all", "--yes"), "Missing argument"),
        (("replay",), "Missing argument"),
        (("replay", "nosuch"), "is not one of"),
        (("list", "--since", "tomorrow"), "is no time: write"),
        (("list", "--limit", "0"), "x>=1"),
    ],
)
def test_a_wrong_command_line_says_what_to_do(arguments: tuple[str, ...], words: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert words in done.output


def test_what_a_stranger_wrote_does_not_steer_the_terminal() -> None:
    assert printable("a\x1b[31mb\r\n\udcff\u202e") == "a\ufffd[31mb\ufffd\ufffd\ufffd\ufffd"
    assert printable("한국어 ü") == "한국어 ü"
