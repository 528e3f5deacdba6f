"""What a child tells of a task, and what its parent makes of it."""

from __future__ import annotations

import enum
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
from celery.app.trace import TraceInfo, trace_ok_t
from celery.concurrency import asynpool
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
    exit_status,
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


def raising(*_: object) -> Any:
    raise SystemExit("no")


class Nameless(type):
    """A metaclass that has no answers."""

    __name__ = property(raising)
    __mro__ = property(raising)
    __module__ = property(raising)


class Odd(Exception, metaclass=Nameless):
    """An error whose class cannot be asked."""


class Mute(Exception):
    """An error that answers nothing."""

    __getattribute__ = raising


class Lying(Exception):
    """An error that says that it is another."""

    __class__ = Reject


class Faceless(Exception):
    __class__ = property(raising)


class Coded(PermanentError):
    code = property(raising)

    def __init__(self) -> None:
        pass


class Vague(Reject):
    """A rejection that does not say what of."""

    reason = requeue = property(raising)

    def __init__(self) -> None:
        pass


class Exits(enum.IntEnum):
    FULL = 28


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
        (Coded(), TaskError, "failed", "Coded: "),
        (type("Un", (Exception,), {"__module__": None})("x"), TaskError, "exception", "Un: x"),
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


@pytest.mark.parametrize("cls", ["Odd", "Mute", "Lying", "Faceless"])
def test_an_error_that_cannot_be_asked_arrives_with_its_class_and_text(cls: str) -> None:
    """They are made here: pytest asks its parameters, too."""
    found = crossed(globals()[cls]("x"))
    assert described(found) == f"{cls}: x"
    assert isinstance(found, TaskError)


def test_a_class_that_cannot_be_asked_is_known_by_its_names() -> None:
    found = crossed(Odd("x"))
    assert isinstance(found, TaskError)
    assert found.names == ("Odd", "Exception", "BaseException", "object")
    assert type(crossed(type("N", (Exception,), {"__qualname__": "a\0b"})())).__qualname__ == "ab"


@pytest.mark.parametrize(
    ("code", "status"), [(None, 0), (3, 3), (True, 1), ("a text", 1), (Exits.FULL, 28), (-1, 255), (2**80, 0), (1.5, 1)]
)
def test_a_process_ends_with_a_number_whatever_it_is_told(code: object, status: int) -> None:
    assert exit_status(code) == status
    assert type(exit_status(code)) is int
    left = crossed(SystemExit(code), returned=False)
    assert isinstance(left, SystemExit)
    assert left.code == status


def test_a_rejection_that_says_nothing_is_one() -> None:
    found = crossed(Vague())
    assert isinstance(found, Reject)
    assert not found.requeue


@pytest.mark.parametrize(("requeue", "asked"), [("yes", True), (1, True), (None, False)])
def test_a_rejection_that_asks_for_its_message_in_another_word_is_understood(requeue: Any, asked: bool) -> None:
    rejected = crossed(Reject("x", requeue=requeue))
    assert isinstance(rejected, Reject)
    assert rejected.requeue is asked


@pytest.mark.parametrize("cls", ["Odd", "Mute", "Faceless"])
def test_what_cannot_be_told_does_not_end_the_process(cls: str) -> None:
    def within(*_: object) -> Any:
        raise globals()[cls]("x")

    with pytest.raises(pipe.UntellableError, match=f"{cls}: x") as found:
        traced(within)
    ExceptionInfo((found.type, found.value, found.tb))


def test_a_retry_of_which_nothing_was_sent_is_a_failure() -> None:
    def by_hand(*_: object) -> Any:
        try:
            raise Retry("later", when=5)
        except Retry as exc:
            return trace_ok_t(ExceptionInfo(), TraceInfo("RETRY", exc), 0.1, None)

    def by_celery(*_: object) -> Any:
        try:
            raise Retry("later", when=5, sig=object())
        except Retry as exc:
            return trace_ok_t(ExceptionInfo(), TraceInfo("RETRY", exc), 0.1, None)

    assert traced(by_celery).retval["kind"] == "retry"
    with pytest.raises(pipe.NotSentError, match=r"call self.retry"):
        traced(by_hand)


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


def test_a_message_whose_parts_are_wrong_ends_its_process_and_not_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, _signal: ended.append(pid))

    def received(_self: object, _add: object, _fd: int, callback: Any, **_: object) -> Any:
        yield callback((0, (1,)))

    def on_state_change(message: Any) -> None:
        raise TypeError(f"missing arguments: {message}")

    monkeypatch.setattr(asynpool.ResultHandler, "_recv_message", received)
    handler = object.__new__(pipe.ResultHandler)
    handler._hub = SimpleNamespace(remove_reader=lambda _fd: None)
    handler.fileno_to_outq = {5: SimpleNamespace(pid=77)}
    assert [*handler._recv_message(None, 5, on_state_change)] == []
    assert ended == [77]


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

    def leaving(task_id: str, *_: object) -> Any:
        Running.failed = (task_id, ValueError("the task's"))
        raise SystemExit(3)

    def within(*_: object) -> Any:
        Running.failed = ("another", ValueError("another's"))
        raise RuntimeError("the task's own")

    assert traced(leaving).retval["text"] == "the task's", "run again, it would fail again, and tell twice"
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
