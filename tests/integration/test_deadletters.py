"""Dead letters on a real broker: read without loss, replayed without loss, dropped only on purpose."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from struct import pack
from typing import TYPE_CHECKING, Any

import amqp
import pytest

from ops import browse, deadletter, definitions, replay
from ops.errors import OpsError, UnreachableError
from ops.management import Management
from queues.topology import DEAD_LETTER_EXCHANGE, DELETED_DEAD_LETTERS, QUEUES
from tests.integration.exporters import Metrics
from tests.integration.helpers import PATIENCE, Run, acting_as, awaited, messages, ready

if TYPE_CHECKING:
    from pathlib import Path

    from ops.local import Stack
    from queues.app import WarrenCelery

pytestmark = pytest.mark.integration

#: Everything that is published to the math queue, seen from the side.
SPY = "test.spy"


@pytest.fixture
def operator(stack: Stack) -> WarrenCelery:
    """The operator's app; no dead letters at the start."""
    app = acting_as(stack, "operator")
    with app.connection_for_write() as connection, connection.channel() as channel:
        for queue in QUEUES:
            channel.queue_purge(queue.dead_letter)
    return app


@pytest.fixture
def spy(operator: WarrenCelery) -> Iterator[None]:
    """A second queue takes what is published to the math queue."""
    with operator.connection_for_write() as connection, connection.channel() as channel:
        channel.queue_declare(SPY, durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"})
        channel.queue_bind(SPY, "tasks.math", "math")
        yield
        channel.queue_delete(SPY)


@pytest.fixture
def idle(operator: WarrenCelery, spy: None) -> Iterator[None]:
    """Only the spy takes what is published to the math queue: nothing is run."""
    with operator.connection_for_write() as connection, connection.channel() as channel:
        channel.queue_unbind("math", "tasks.math", "math")
        try:
            yield
        finally:
            channel.queue_bind("math", "tasks.math", "math")


@pytest.fixture
def run(stack: Stack, tmp_path: Path) -> Run:
    def command(*arguments: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
        program = ["-m", "ops"] if code is None else ["-c", code]
        done = subprocess.run(
            [sys.executable, *program, "dead-letters", *arguments],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "WARREN_HOME": str(stack.folder)},
            cwd=tmp_path,
            timeout=60,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return command


def bury(app: WarrenCelery, *letters: Any, queue: str = "math") -> None:
    """Publish letters as a worker's guard does."""
    with app.connection_for_write() as connection, connection.channel() as channel:
        for letter in letters:
            channel.basic_publish_confirm(letter, exchange=DEAD_LETTER_EXCHANGE, routing_key=queue, mandatory=True)


def letter(task_id: str | None = None, body: bytes | None = None, **headers: Any) -> amqp.Message:
    """A letter in a worker's form."""
    found = {
        "id": task_id or str(uuid.uuid4()),
        "task": "math.add",
        "lang": "py",
        "retries": 0,
        "x-dead-reason": "exception",
        "x-dead-error": "ValueError: no",
        "x-dead-worker": "math@test",
        "x-dead-at": time.time(),
        "x-dead-queue": "math",
    } | {name.replace("_", "-"): value for name, value in headers.items()}
    return amqp.Message(
        json.dumps([[1, 2], {}, {}]).encode() if body is None else body,
        application_headers=found,
        content_type="application/json",
        content_encoding="utf-8",
        delivery_mode=2,
    )


def numbered(count: int) -> list[amqp.Message]:
    return [letter(f"n-{number}", b"[[%d, 1], {}, {}]" % number) for number in range(count)]


def listed(run: Run, *arguments: str) -> dict[str, Any]:
    done = run("list", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def ids(app: WarrenCelery, queue: str = "math") -> list[str | None]:
    return [item.id for item in deadletter.read(app, queue)]


def content(message: Any) -> bytes:
    """A message's bytes; py-amqp decodes some bodies."""
    return message.body if isinstance(message.body, bytes) else message.body.encode()


def published(app: WarrenCelery) -> Counter[str]:
    """How often each id was published to the math queue."""
    return Counter(message.headers["id"] for message in messages(app, SPY))


def test_a_failed_task_is_listed_and_replayed_under_its_id(
    stack: Stack, app: WarrenCelery, operator: WarrenCelery, run: Run, project: Path
) -> None:
    name = f"{uuid.uuid4().hex}.png"
    task_id = app.send_task("image.process_image", [name, [40, 40]]).id
    assert awaited(lambda: task_id in ids(operator, "image"))
    [found] = listed(run, "image", "--task", "image.process_image", "--since", "1h")["letters"]
    assert (found["id"], found["copies"], found["replays"]) == (task_id, 1, 0)
    assert found["reason"] in {"not_found", "rejected"}, "the worker's reason, or the broker's"
    assert name in found["error"]

    shown = run("show", "image", task_id)
    assert task_id in shown.stdout
    assert name in shown.stdout
    assert json.loads(run("show", "image", task_id, "--json").stdout)["headers"]["id"] == task_id

    before = messages(operator, "image.dead")
    rehearsal = run("replay", "image", "--dry-run")
    assert rehearsal.returncode == 0
    assert "1 dead letters of image would be replayed; nothing was changed" in rehearsal.stdout
    assert [item.body for item in messages(operator, "image.dead")] == [item.body for item in before]

    # The cause is still there: it fails again, and is one letter again.
    assert "image: 1 moved, 0 failed, 0 left" in run("replay", "image", "--id", task_id).stdout
    assert awaited(lambda: [item.replays for item in deadletter.read(operator, "image")] == [1])
    [again] = deadletter.read(operator, "image")
    assert (again.id, again.copies) == (task_id, 1)

    (stack.images / name).write_bytes((project / "examples" / "photos" / "coffee.png").read_bytes())
    done = json.loads(run("replay", "image", "--json").stdout)
    assert (done["moved"], done["failed"], done["left"]) == (1, [], 0)
    assert app.AsyncResult(task_id).get(timeout=PATIENCE)["status"] == "success"
    assert listed(run, "image")["matching"] == 0


def test_the_broker_s_letter_has_the_recorded_error(operator: WarrenCelery, run: Run) -> None:
    task_id = str(uuid.uuid4())
    operator.backend.store_result(task_id, ValueError("it was the heat"), "FAILURE")
    with operator.connection_for_write() as connection, connection.channel() as channel:
        arguments = {"x-dead-letter-exchange": DEAD_LETTER_EXCHANGE, "x-dead-letter-routing-key": "math"}
        channel.queue_declare("test.dying", exclusive=True, arguments=arguments)
        channel.basic_publish_confirm(
            amqp.Message(b"[]", application_headers={"id": task_id, "task": "math.add"}), routing_key="test.dying"
        )
        channel.basic_reject(channel.basic_get("test.dying").delivery_tag, requeue=False)
        assert awaited(lambda: ids(operator) == [task_id])
    [found] = listed(run)["letters"]
    assert (found["reason"], found["worker"], found["error"]) == ("rejected", None, "it was the heat")
    assert abs(deadletter.since(found["at"], 0) - time.time()) < 60
    assert "it was the heat" in run("list").stdout
    assert "it was the heat" in run("show", "math", task_id).stdout


def test_a_list_is_newest_first_with_counts_by_reason(operator: WarrenCelery, run: Run) -> None:
    now = time.time()
    bury(
        operator,
        letter("middle", x_dead_at=now - 3600),
        letter("new", x_dead_at=now, x_dead_reason="memory"),
        letter("old", x_dead_at=now - 86400, task="math.xsum"),
    )
    bury(operator, letter("mail", x_dead_at=now - 7200), queue="email")
    found = listed(run)
    assert [item["id"] for item in found["letters"]] == ["new", "middle", "mail", "old"]
    assert found["reasons"] == {"exception": 3, "memory": 1}
    assert [item["id"] for item in listed(run, "math", "--oldest")["letters"]] == ["old", "middle", "new"]
    assert [item["id"] for item in listed(run, "--since", "90m", "--reason", "exception")["letters"]] == ["middle"]
    assert [item["id"] for item in listed(run, "--task", "math.xsum")["letters"]] == ["old"]
    limited = listed(run, "math", "email", "--limit", "1")
    assert (limited["matching"], [item["id"] for item in limited["letters"]]) == (4, ["new"])
    text = run("list", "--limit", "2").stdout
    assert "3  exception" in text
    assert "2 of 4 shown" in text
    assert run("list", "image").stdout == "no dead letters\n"


@pytest.mark.parametrize("prefetch", [7, 5000])
def test_reading_takes_nothing_and_keeps_the_order(
    operator: WarrenCelery, monkeypatch: pytest.MonkeyPatch, prefetch: int
) -> None:
    for name in ("FIRST_PREFETCH", "LOW_PREFETCH", "HIGH_PREFETCH"):
        monkeypatch.setattr(browse, name, prefetch)
    bury(operator, *numbered(200))
    everything = [f"n-{number}" for number in range(200)]
    for _ in range(3):
        assert ids(operator) == everything
    letters = deadletter.read(operator, "math")
    dropped = replay.drop(operator, "math", letters[::3])
    assert (dropped.done, dropped.left) == (67, 0)
    kept = [task_id for number, task_id in enumerate(everything) if number % 3]
    assert ids(operator) == kept
    assert ids(operator) == kept


def test_what_rabbitmq_loses_of_many_acknowledgements_is_acknowledged_again(
    operator: WarrenCelery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond 32 on their way, the broker may forget them with the channel; here the first pass loses every second."""
    bury(operator, *numbered(60))
    genuine, calls = browse.Browser.acknowledge, [0]

    def forgetful(self: browse.Browser, message: Any) -> None:
        calls[0] += 1
        if calls[0] > 60 or calls[0] % 2:
            genuine(self, message)

    monkeypatch.setattr(browse.Browser, "acknowledge", forgetful)
    report = replay.drop(operator, "math", deadletter.read(operator, "math"))
    assert (report.done, report.left) == (60, 0)
    assert ids(operator) == []


def test_two_copies_of_one_id_are_replayed_once(operator: WarrenCelery, idle: None, run: Run) -> None:
    own = letter("twice")
    broker_s = amqp.Message(own.body, application_headers={"id": "twice", "task": "math.add", "x-death": [{"a": "b"}]})
    bury(operator, broker_s, letter("other"), own)
    found = {item["id"]: item for item in listed(run, "math")["letters"]}
    assert (found["twice"]["copies"], found["twice"]["reason"]) == (2, "exception")
    assert "math: 2 moved, 0 failed, 0 left" in run("replay", "math").stdout
    assert published(operator) == {"twice": 1, "other": 1}
    assert messages(operator, "math.dead") == []


def test_a_replay_is_the_same_task_in_a_new_life(operator: WarrenCelery, idle: None) -> None:
    before = time.time()
    original = letter("again", retries=2, origin="here", x_first_published_at=5.0, x_death=[{"queue": "math"}])
    original.properties |= {"correlation_id": "again", "reply_to": "somewhere", "user_id": "operator"}
    bury(operator, original)
    assert replay.replay(operator, "math", deadletter.read(operator, "math")).done == 1
    [sent] = messages(operator, SPY)
    assert sent.properties["delivery_mode"] == 2
    assert (sent.properties["correlation_id"], sent.properties["reply_to"]) == ("again", "somewhere")
    assert sent.properties["content_type"] == "application/json"
    headers = {name: value for name, value in sent.headers.items() if name != "x-delivery-count"}
    assert headers.pop("x-published-at") >= before
    assert headers == {
        "id": "again",
        "task": "math.add",
        "lang": "py",
        "retries": 2,
        "origin": "here",
        "x-first-published-at": 5.0,
        "x-replays": 1,
    }
    assert content(sent) == content(original)


def interrupted(name: str) -> str:
    """The command line, with a signal between the confirm and the acknowledgement of the second letter."""
    return (
        "import os, signal\n"
        "from ops import browse\n"
        "from ops.__main__ import main\n"
        "genuine, calls = browse.Browser.acknowledge, []\n"
        "def acknowledge(self, message):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 2:\n"
        f"        os.kill(os.getpid(), signal.{name})\n"
        "    genuine(self, message)\n"
        "browse.Browser.acknowledge = acknowledge\n"
        "main()\n"
    )


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupted_replay_finishes_its_letter_and_reports(
    operator: WarrenCelery, idle: None, run: Run, name: str
) -> None:
    bury(operator, *numbered(10))
    done = run("replay", "math", code=interrupted(name))
    assert done.returncode == 130
    assert "math: 2 moved, 0 failed, 8 left" in done.stdout
    assert "interrupted" in done.stderr
    assert ids(operator) == [f"n-{number}" for number in range(2, 10)]
    assert run("replay", "math").returncode == 0
    assert published(operator) == {f"n-{number}": 1 for number in range(10)}


def test_a_killed_replay_leaves_at_most_one_letter_that_was_sent(operator: WarrenCelery, idle: None, run: Run) -> None:
    bury(operator, *numbered(10))
    assert run("replay", "math", code=interrupted("SIGKILL")).returncode == -signal.SIGKILL
    assert published(operator) == {"n-0": 1, "n-1": 1}
    assert awaited(lambda: sorted(map(str, ids(operator))) == [f"n-{number}" for number in range(1, 10)])
    assert "math: 9 moved, 0 failed, 0 left" in run("replay", "math").stdout
    assert published(operator) == {f"n-{number}": 2 if number == 1 else 1 for number in range(10)}
    assert ids(operator) == []


def test_a_broker_that_goes_away_during_a_replay_costs_nothing(
    operator: WarrenCelery, idle: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    bury(operator, *numbered(10))
    genuine, calls = browse.Browser.acknowledge, [0]

    def acknowledge(self: browse.Browser, message: Any) -> None:
        calls[0] += 1
        if calls[0] == 3:
            with socket.socket(fileno=os.dup(message.channel.connection.transport.sock.fileno())) as wire:
                wire.shutdown(socket.SHUT_RDWR)
        genuine(self, message)

    monkeypatch.setattr(browse.Browser, "acknowledge", acknowledge)
    report = replay.replay(operator, "math", deadletter.read(operator, "math"))
    assert isinstance(report.error, UnreachableError)
    assert "nothing is lost" in str(report.error)
    assert (report.done, report.left) == (2, 8)
    monkeypatch.undo()
    assert awaited(lambda: len(ids(operator)) == 8)
    assert replay.replay(operator, "math", deadletter.read(operator, "math")).done == 8
    assert published(operator) == {f"n-{number}": 2 if number == 2 else 1 for number in range(10)}


def test_what_is_refused_stays_where_it_is(operator: WarrenCelery, run: Run, app: WarrenCelery) -> None:
    task_id = str(uuid.uuid4())
    bury(operator, letter(task_id), letter("other"))
    with operator.connection_for_write() as connection, connection.channel() as channel:
        channel.queue_unbind("math", "tasks.math", "math")
        try:
            done = run("replay", "math", "--id", task_id)
        finally:
            channel.queue_bind("math", "tasks.math", "math")
    assert done.returncode == 1
    assert "math: 0 moved, 1 failed, 0 left" in done.stdout
    assert "no queue takes tasks.math/math" in done.stderr
    assert ids(operator) == [task_id, "other"]
    assert run("replay", "math", "--id", task_id).returncode == 0
    assert app.AsyncResult(task_id).get(timeout=PATIENCE) == 3
    assert ids(operator) == ["other"]


def test_a_drop_needs_to_be_meant(operator: WarrenCelery, run: Run) -> None:
    bury(operator, letter("a"), letter("b", x_dead_reason="memory"), letter("c"), letter("d"))
    assert run("drop", "math", "--reason", "memory").returncode == 2
    assert run("drop", "math", "--yes").returncode == 2
    rehearsal = run("drop", "math", "--all", "--dry-run")
    assert "4 dead letters of math would be dropped; nothing was changed" in rehearsal.stdout
    assert ids(operator) == ["a", "b", "c", "d"]
    assert "math: 1 dropped, 0 failed, 0 left" in run("drop", "math", "--reason", "memory", "--yes").stdout
    assert ids(operator) == ["a", "c", "d"]
    done = json.loads(run("drop", "math", "--all", "--limit", "1", "--yes", "--json").stdout)
    assert (done["dropped"], done["matching"]) == (1, 1)
    assert ids(operator) == ["c", "d"]
    assert run("drop", "math", "--all", "--yes").returncode == 0
    assert ids(operator) == []


class Raw(amqp.Message):
    """A message whose properties are bytes of our choice."""

    def __init__(self, body: bytes, properties: bytes) -> None:
        super().__init__(body)
        self.raw = properties

    def _serialize_properties(self) -> bytes:
        return self.raw


def hostile() -> list[amqp.Message]:
    deep = b""
    for _ in range(3000):
        deep = b"\x01aF" + pack(">I", len(deep)) + deep
    return [
        amqp.Message(b""),
        amqp.Message(b"\x00\xff\xfe no id, no headers"),
        letter("big", x_dead_error="e" * 1000, value="v" * 100_000),
        letter("한국어 \x1b[31m[/red] \u202e", b"\xf0\x9f\x90\xb0", x_dead_reason="[bold]\x07"),
        letter("types", when=[{"a": [None, True, 2**40, 1.5, "x", b"\xff"]}], retries="many", x_dead_at="soon"),
        amqp.Message(b"same"),
        amqp.Message(b"same"),
        Raw(b"not utf-8", pack(">H", 0x0400) + b"\x02\xff\xfe"),
        Raw(b"deep", pack(">HI", 0x2000, len(deep)) + deep),
    ]


def test_hostile_letters_are_shown_exported_and_replayed(
    operator: WarrenCelery, idle: None, run: Run, tmp_path: Path
) -> None:
    bury(operator, *hostile())
    found = listed(run, "math", "--oldest")
    assert (found["matching"], found["reasons"]["undecodable"]) == (9, 2)
    for arguments in (("list",), *(("show", "math", item["ref"]) for item in found["letters"])):
        shown = run(*arguments)
        assert shown.returncode == 0, shown.stderr
        assert not {"\x1b", "\x07", "\u202e"} & set(shown.stdout)

    path = tmp_path / "letters.jsonl"
    done = run("export", "math", "--output", str(path))
    assert "9 dead letters written" in done.stderr
    full = run("export", "--output", "/dev/full/x")
    assert (full.returncode, "cannot be written" in full.stderr) == (1, True)
    assert path.stat().st_mode & 0o777 == 0o600
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    piped = [json.loads(line) for line in run("export").stdout.splitlines()]
    assert [(line["ref"], line["body"]) for line in piped] == [(line["ref"], line["body"]) for line in lines]
    assert [item["body"] for item in lines if item["body_encoding"] == "text"].count("same") == 2
    assert next(item for item in lines if item["id"] == "big")["headers"]["value"] == "v" * 100_000
    assert run("export", "math", "--output", str(path)).returncode == 1, "an export overwrites nothing"

    moved = run("replay", "math")
    assert moved.returncode == 1
    assert "math: 7 moved, 2 failed, 0 left" in moved.stdout
    assert moved.stderr.count("its properties cannot be decoded") == 2
    sent = messages(operator, SPY)
    assert Counter(map(content, sent)) == Counter(map(content, hostile()[:7]))
    by_id = {(item.headers or {}).get("id"): item.headers for item in sent}
    assert by_id["big"]["value"] == "v" * 100_000
    assert by_id["types"]["when"] == [{"a": [None, True, 2**40, 1.5, "x", b"\xff"]}]
    assert "math: 2 dropped" in run("drop", "math", "--reason", "undecodable", "--yes").stdout


def test_an_export_brings_every_letter_back(operator: WarrenCelery, run: Run) -> None:
    originals = numbered(30)
    bury(operator, *originals)
    lines = [json.loads(line) for line in run("export", "math", "--limit", "20").stdout.splitlines()]
    assert [line["id"] for line in lines] == [f"n-{number}" for number in range(20)]
    for line, original in zip(lines, originals, strict=False):
        assert line["body"].encode() == original.body
        assert line["properties"] == {
            "content_type": "application/json",
            "content_encoding": "utf-8",
            "delivery_mode": 2,
        }
        headers = {name: value for name, value in line["headers"].items() if name != "x-delivery-count"}
        assert headers == original.properties["application_headers"]
    assert len(ids(operator)) == 30


def test_what_retention_deletes_is_counted(stack: Stack, app: WarrenCelery, operator: WarrenCelery) -> None:
    """For want of room, and after its time; by queue, however the message came there."""

    def deleted(queue: str, reason: str) -> float:
        metrics = Metrics.scrape(stack.metrics_url)
        return metrics.sum("celery_dead_letters_deleted_total", queue=queue, reason=reason)

    with contextlib.closing(Management.from_env(stack.environment("operator"))) as management:
        version = management.version()
    row = QUEUES.queue("math")
    short = definitions.dead_letter_policy(replace(row, dead_letter_bytes=4000), version)
    brief = definitions.dead_letter_policy(replace(row, dead_letter_ttl=1), version)
    before = deleted("math", "maxlen"), deleted("email", "expired")
    for queue, policy in (("math", short), ("email", brief)):
        stack.broker.ctl(
            *("set_policy", "--apply-to", "queues", "--priority", "9", f"test.{queue}", rf"^{queue}\.dead$"),
            json.dumps(policy),
        )
    try:
        bury(operator, *(letter(body=b"x" * 1000) for _ in range(10)))
        bury(operator, *numbered(5), queue="email")
        assert awaited(lambda: ready(operator, "email.dead") == 0)
        left = awaited(lambda: ready(operator, "math.dead"))
        assert 0 < left < 10
        app.send_task("monitor.check_status")
        assert awaited(
            lambda: (deleted("math", "maxlen"), deleted("email", "expired")) == (before[0] + 10 - left, before[1] + 5)
        ), (deleted("math", "maxlen"), deleted("email", "expired"), before, left)
        assert ready(operator, DELETED_DEAD_LETTERS) == 0
    finally:
        for queue in ("math", "email"):
            stack.broker.ctl("clear_policy", f"test.{queue}")


def test_a_second_reader_is_told_of_the_first(operator: WarrenCelery, monkeypatch: pytest.MonkeyPatch) -> None:
    bury(operator, letter("a"))
    monkeypatch.setattr(browse, "OTHER_READER", 0.2)
    with browse.browse(operator, "math.dead") as first:
        next(iter(first))
        with pytest.raises(OpsError, match=r"math\.dead is being read by another command"):
            deadletter.read(operator, "math")
    assert ids(operator) == ["a"]


def test_a_queue_that_is_not_there_and_a_user_that_may_not_read_are_sentences(
    stack: Stack, operator: WarrenCelery
) -> None:
    with pytest.raises(OpsError, match="does not exist: run"), browse.browse(operator, "nosuch.dead"):
        pass
    bury(operator, letter("a"))
    with pytest.raises(OpsError, match="use the operator's"):
        deadletter.read(acting_as(stack, "producer"), "math")
    app = acting_as(stack, "operator", BROKER_HOSTS="127.0.0.1:9", PUBLISH_TIMEOUT="1")
    with pytest.raises(UnreachableError, match="no broker answers"):
        deadletter.read(app, "math")


def test_a_replayed_task_that_had_expired_runs(
    stack: Stack, app: WarrenCelery, operator: WarrenCelery, run: Run
) -> None:
    """Celery remembers the id of what expired, and would swallow it as revoked."""
    late = app.send_task("math.add", [20, 22], expires=-5)
    assert awaited(lambda: ready(operator, "math.dead") == 1)
    assert run("replay", "math", "--id", late.id).returncode == 0
    assert awaited(lambda: app.AsyncResult(late.id).state == "SUCCESS")
    assert app.AsyncResult(late.id).get(timeout=PATIENCE) == 42


def test_a_verdict_is_refused_where_there_is_no_doubt(app: WarrenCelery, operator: WarrenCelery, run: Run) -> None:
    failing = app.send_task("math.reliable_task", [{"fail": True}])
    assert awaited(lambda: ready(operator, "math.dead") == 1)
    refused = run("replay", "math", "--id", failing.id, "--done")
    assert refused.returncode == 1
    assert "no doubt" in refused.stderr
    assert ready(operator, "math.dead") == 1
