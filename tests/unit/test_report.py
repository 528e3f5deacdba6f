"""What a child tells of a task, and what its parent makes of it."""

from __future__ import annotations

import io
import os
import pickle
import signal
from types import SimpleNamespace
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from billiard.exceptions import SoftTimeLimitExceeded, Terminated, WorkerLostError
from billiard.pool import READY
from celery.app.trace import trace_ok_t
from celery.exceptions import Ignore, MaxRetriesExceededError, Reject, Retry

from queues.errors import InDoubtError, PermanentError, RecordedError, TransientError
from workers import pipe
from workers.report import (
    DelayedError,
    Mark,
    Running,
    SupersededError,
    TaskError,
    described,
    reason_of,
    rebuilt,
    report,
    unwrapped,
)


class Wild(Exception):
    """Its text, its attributes and its pickle raise."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    def __reduce__(self) -> Any:
        raise RuntimeError("no pickle")

    @property
    def code(self) -> Any:
        raise RuntimeError("no code")


class Worded(str):
    """A text with code of its own."""

    __slots__ = ()

    def __format__(self, spec: str) -> str:
        raise RuntimeError(spec)

    def encode(self, *_: Any, **__: Any) -> bytes:
        raise RuntimeError("no bytes")


class Hollow(TransientError):
    def __init__(self) -> None:
        pass


def crossed(exc: BaseException, *, returned: bool = True) -> BaseException:
    """The error as it is in the parent."""
    told = pipe.load(io.BytesIO(pickle.dumps((READY, (report(exc, "its traceback"),)))))
    info = rebuilt(told[1][0], returned=returned)
    assert info.traceback == "its traceback"
    return unwrapped(info)


@pytest.mark.parametrize(
    ("exc", "cls", "reason", "text"),
    [
        (ValueError("x"), TaskError, "exception", "ValueError: x"),
        (Wild(), TaskError, "exception", "Wild: <its text cannot be had: RuntimeError>"),
        (ValueError(Worded("words")), TaskError, "exception", "ValueError: words"),
        (ValueError("\ud800"), TaskError, "exception", r"ValueError: \ud800"),
        (PermanentError("gone", ValueError("x")), TaskError, "gone", "PermanentError: x"),
        (PermanentError(404, None), TaskError, "404", "PermanentError: None"),  # type: ignore[arg-type]
        (PermanentError("", "x"), TaskError, "failed", "PermanentError: x"),
        (Hollow(), TaskError, "retries-exhausted", "Hollow: "),
        (MaxRetriesExceededError("x"), TaskError, "retries-exhausted", "MaxRetriesExceededError: x"),
        (SoftTimeLimitExceeded(5), TaskError, "time-limit", "SoftTimeLimitExceeded: SoftTimeLimitExceeded(5,)"),
        (WorkerLostError("x"), TaskError, "exception", "WorkerLostError: x"),
        (Terminated(9), TaskError, "exception", "Terminated: 9"),
        (MemoryError("x"), MemoryError, "memory", "MemoryError: x"),
        (Reject(Wild(), requeue=True), Reject, "rejected", "Reject: <its text cannot be had: RuntimeError>"),
        (Ignore("x"), Ignore, "exception", "Ignore: x"),
        (DelayedError("x"), DelayedError, "exception", "DelayedError: x"),
        (SupersededError("x"), SupersededError, "exception", "SupersededError: x"),
        (InDoubtError("a run"), InDoubtError, "in-doubt", "InDoubtError: an earlier attempt"),
        (RecordedError("gone", "x"), RecordedError, "gone", "RecordedError: x"),
        (SystemExit(3), TaskError, "exception", "SystemExit: 3"),
    ],
)
def test_an_error_arrives_with_its_class_text_and_reason(
    exc: BaseException, cls: type[BaseException], reason: str, text: str
) -> None:
    found = crossed(exc)
    assert isinstance(found, cls)
    assert reason_of(found) == reason
    assert described(found).startswith(text)
    assert type(found).__name__ == type(exc).__name__


def test_what_celery_looks_for_is_kept() -> None:
    retry = crossed(Retry(exc=RecordedError("gone", "x"), when=5))
    assert isinstance(retry, Retry)
    assert isinstance(retry.exc, RecordedError)
    rejected = crossed(Reject("x", requeue=True))
    assert isinstance(rejected, Reject)
    assert rejected.requeue is True
    doubt = crossed(InDoubtError("a run"))
    assert isinstance(doubt, InDoubtError)
    assert doubt.run == "a run"
    left = crossed(SystemExit("with a text"), returned=False)
    assert isinstance(left, SystemExit)
    assert left.code == 1
    assert isinstance(crossed(KeyboardInterrupt(), returned=False), KeyboardInterrupt)


@pytest.mark.parametrize(
    "message", [b"", b"\xff", pickle.dumps(5), pickle.dumps((1,)), pickle.dumps((READY, os.getpid))]
)
def test_the_parent_reads_plain_data_only(message: bytes) -> None:
    with pytest.raises(pipe.GarbledError):
        pipe.load(io.BytesIO(message))


def test_what_is_put_into_the_pipe_is_plain() -> None:
    sent: list[Any] = []
    try:
        raise Wild
    except Wild:
        info = ExceptionInfo()
    pipe.plainly(sent.append)((READY, (1, None, (False, info), 7)))
    assert pipe.load(io.BytesIO(pickle.dumps(sent[0])))[1][2][1]["name"] == "Wild"
    pipe.plainly(sent.append)((0, (1, 2)))
    assert sent[1] == (0, (1, 2))


def traced(trace: Any) -> Any:
    return pipe.traced(trace)("1", [], {})


def test_marks_of_a_result_are_no_part_of_it() -> None:
    def trace(*_: object) -> Any:
        Running.mark(Mark.REPORTED)
        return trace_ok_t(None, None, 0.1, "{'status': 'failed'}")

    assert traced(trace).retstr == (("reported",), "<hidden>")
    assert traced(lambda *_: trace_ok_t(None, None, 0.1, "<recorded> ")).retstr == ((), "<hidden>"), (
        "marks are forgotten"
    )


def test_what_raises_after_the_end_changes_nothing_of_it() -> None:
    def after_success(task_id: str, *_: object) -> Any:
        Running.done = task_id
        raise RuntimeError("a log handler's")

    def after_failure(task_id: str, *_: object) -> Any:
        Running.failed = (task_id, ValueError("the task's"))
        raise RuntimeError("a log handler's")

    def within(*_: object) -> Any:
        raise RuntimeError("the task's own")

    assert traced(after_success).info is None
    answer = traced(after_failure)
    assert answer.info
    assert answer.retval["text"] == "the task's"
    with pytest.raises(RuntimeError, match="the task's own"):
        traced(within)


def test_signals_are_as_before_the_task() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    pipe.Signals.remember()
    try:

        def leaving(*_: object) -> Any:
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
            signal.setitimer(signal.ITIMER_REAL, 60)
            return trace_ok_t(None, None, 0.1, "")

        traced(leaving)
        assert signal.getsignal(signal.SIGUSR1) is before
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
        assert signal.SIGUSR1 not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    finally:
        pipe.Signals._handlers.clear()


def test_a_process_that_was_never_ready_and_cannot_be_set_up_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[Any] = []

    class Pool:
        def _create_process_handlers(self, _hub: object) -> None:
            self.on_process_down = ended.append

        def on_process_alive(self, pid: int) -> None:
            """Celery's."""

    pool = type("Made", (pipe.Pipes, Pool), {})()
    state = SimpleNamespace(should_stop=None)
    monkeypatch.setattr(pipe, "state", state)
    pool._create_process_handlers(None)
    pool.on_process_alive(1)
    pool.on_process_down(SimpleNamespace(pid=1, exitcode=2))
    assert state.should_stop is None, "a task that exits with 2"
    pool.on_process_down(SimpleNamespace(pid=2, exitcode=2))
    assert state.should_stop == 2
    assert [one.pid for one in ended] == [1, 2]
