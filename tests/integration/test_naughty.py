"""No code of a task stops or fools a worker: each wrong thing is one dead letter or none, and the next task runs."""

from __future__ import annotations

import os
import pickle
import struct
from typing import TYPE_CHECKING, Any

import pytest
from billiard.pool import ACK, DEATH, READY

from queues.app import create_app
from queues.settings import Settings
from tests.integration.helpers import PATIENCE, awaited, children, ended, lines, messages, start

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ops.local import Stack

pytestmark = pytest.mark.integration

#: What should become of each kind of error: the dead letter's reason, and a part of its text.
ERRORS = {
    "error-as-text": ("storage", "PermanentError: disk"),
    "no-text": ("storage", "PermanentError: None"),
    "bytes-as-text": ("storage", r"PermanentError: b'\xff'"),
    "number-as-code": ("404", "gone"),
    "no-code": ("failed", "gone"),
    "base-not-called": ("failed", "Hollow"),
    "own-signature": ("too_big", "Own: a.jpg has 7 bytes"),
    "str-raises": ("exception", "Raising: <its text cannot be had: RuntimeError>"),
    "str-gives-no-text": ("exception", "Textless: <its text cannot be had: TypeError>"),
    "str-exits": ("exception", "Leaving: <its text cannot be had: SystemExit>"),
    "half-a-character": ("exception", r"ValueError: \ud800"),
    "huge-text": ("exception", "ValueError: xxx"),
    "nul": ("exception", "ValueError: a"),
    "pickles-one-way": ("exception", "OnlyHere: x"),
    "pickle-raises": ("exception", "Unreduced: x"),
    "ghost-module": ("exception", "Ghost: boo"),
    "plugin": ("exception", "Plugged: loaded"),
    "exec": ("exception", "Made: x"),
    "worker-lost": ("exception", "WorkerLostError: says who?"),
    "terminated": ("exception", "Terminated"),
    "time-limit": ("exception", "TimeLimitExceeded"),
    "group": ("exception", "ExceptionGroup: two"),
    "memory": ("memory", "MemoryError: mine"),
    "recursive": ("exception", "RecursionError"),
    "generator-exit": ("exception", "GeneratorExit"),
    "cancelled": ("exception", "CancelledError: x"),
    "class-without-a-place": ("exception", "UntellableError: "),
    "mute": ("exception", "UntellableError: "),
    "faceless": ("exception", "UntellableError: "),
    "untraced": ("exception", "UntellableError: "),
    "code-exits": ("failed", "Coded"),
    "nul-in-its-name": ("exception", "ab: x"),
    "retry-by-hand": ("exception", "NotSentError: Retry was raised, and no next attempt was sent"),
    # What its process does not survive is tried three times.
    "pickle-ends-the-reader": ("worker-lost", "its process died 3 times"),
    "terminate-the-worker": ("worker-lost", "its process died 3 times"),
    "exits-with-an-enum": ("worker-lost", "SystemExit: 28"),
    "exit-with-a-text": ("worker-lost", "SystemExit: 1"),
    "an-error-as-result": ("exception", "EncodeError"),
    "kombu-mark": ("exception", "EncodeError"),
    "a-set": ("exception", "EncodeError"),
    "an-object": ("exception", "EncodeError"),
    "tuple-keys": ("exception", "EncodeError"),
    "circle": ("exception", "EncodeError"),
}
RESULTS = {
    "repr-raises": {"a": 1},
    "status-first": {"status": "failed", "rows": 3},
    "status-last": {"rows": 3, "status": "failed"},
    "close-output": "closed",
    "replace-output": "replaced",
    "break-logging": "broken",
    "leave-alarm": "left",
    "fork-and-return": "True",
    "call-in-a-fork": 3,
    "marks": "<recorded> ",
    "break-the-clock": "no time",
}


def told(kind: int, *parts: object) -> str:
    """A message of a child, as it writes it."""
    text = pickle.dumps((kind, parts))
    return (struct.pack(">i", len(text)) + text).hex()


class Lab:
    """A worker whose tasks do what they are asked to."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        self.stack, self.folder = stack, folder
        # Kept from test to test.
        self.apps = [create_app(Settings.from_env(stack.environment(role))) for role in ("producer", "operator")]
        self.producer, self.operator = self.apps
        self.log = folder / "log"
        environment = {**stack.environment("worker-math"), "HEARTBEAT_FILE": str(folder / "alive")}
        words = ("worker", "-Q", "math", "-n", f"math@{os.urandom(3).hex()}")
        self.worker = start(environment, *words, log=self.log, app="tests.integration.naughty")

    def send(self, *words: Any, **options: Any) -> Any:
        return self.producer.send_task("math.xsum", [list(words)], **options)

    def letters(self, task_id: str) -> list[Any]:
        return [one for one in messages(self.operator, "math.dead") if one.headers.get("id") == task_id]

    def buried(self, task_id: str) -> list[tuple[str, str]]:
        """Reason and text of each dead letter of a task, awaited."""
        return [
            (one.headers["x-dead-reason"], one.headers["x-dead-error"])
            for one in awaited(lambda: self.letters(task_id))
        ]

    def check_places(self) -> None:
        """Every process of the pool takes work."""
        sums = [self.producer.send_task("math.add", [number, 1]) for number in range(6)]
        assert [one.get(timeout=PATIENCE) for one in sums] == [number + 1 for number in range(6)]


@pytest.fixture(scope="module")
def lab(idle: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(idle, tmp_path_factory.mktemp("naughty"))
    try:
        assert awaited((made.folder / "alive").exists), made.log.read_text()
        yield made
    finally:
        made.worker.terminate()
        ended(made.worker)
        for app in made.apps:
            app.close()


def test_every_error_is_one_dead_letter_with_its_reason_and_takes_no_place(lab: Lab) -> None:
    sent = {kind: lab.send(kind) for kind in ERRORS}
    found = {}
    for kind, task in sent.items():
        found[kind] = lab.buried(task.id)
        assert task.get(timeout=PATIENCE, propagate=False) is not None, kind
        assert task.state == "FAILURE", kind
    wrong = {
        kind: letters
        for kind, letters in found.items()
        if len(letters) != 1 or letters[0][0] != ERRORS[kind][0] or ERRORS[kind][1] not in letters[0][1]
    }
    assert not wrong
    lab.check_places()
    assert lab.worker.poll() is None
    assert "Traceback" not in "".join(line for line in lab.log.read_text().splitlines() if not line.startswith("{"))


def test_what_can_be_carried_is_a_success_and_no_dead_letter(lab: Lab) -> None:
    for kind, result in RESULTS.items():
        task = lab.send(kind)
        assert task.get(timeout=PATIENCE) == result, kind
        lab.check_places()
        assert not lab.letters(task.id), kind
    assert lab.worker.poll() is None


def test_an_alarm_or_handler_that_a_task_leaves_does_not_meet_the_next(lab: Lab) -> None:
    for _ in range(4):  # in either process
        assert lab.send("leave-alarm").get(timeout=PATIENCE) == "left"
    limited = [lab.send("wait", 30, soft_time_limit=1, time_limit=20) for _ in range(2)]
    for task in limited:
        ((reason, text),) = lab.buried(task.id)
        assert reason == "time-limit"
        assert "SoftTimeLimitExceeded" in text


@pytest.mark.parametrize(
    "text",
    [
        *("0000000580044b052e", "00000004ffffffff", "fffffff0", "0000000c80046302676f0a676f0a2e20"),
        *(told(READY, 1), told(ACK, 1, 2, 3), told(DEATH, "no pid", 0), told(READY, [], {}, (), None)),
    ],
)
def test_a_process_that_writes_garbage_to_its_parent_is_ended(lab: Lab, text: str) -> None:
    """Before it ends it says what its parent reads as: another kind, no pickle, no size, a class, wrong parts."""
    task = lab.send("garbage", text, time_limit=4, soft_time_limit=3)
    ((reason, _),) = lab.buried(task.id)
    assert reason in ("worker-lost", "time-limit")
    lab.check_places()
    assert lab.worker.poll() is None
    assert awaited(lambda: len(children(lab.worker.pid)) >= 2), "one may just be replaced"


def test_a_copy_of_the_process_that_comes_back_from_a_task_ends_and_says_so(lab: Lab) -> None:
    assert any("came back from its code" in line["message"] for line in lines(lab.log))
