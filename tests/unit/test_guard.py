from __future__ import annotations

import datetime
import pickle
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery import signals
from celery.app.task import Context
from celery.exceptions import TaskRevokedError, WorkerShutdown
from celery.utils.threads import LocalStack
from celery.worker.request import Request as CeleryRequest
from celery.worker.request import create_request_cls, task_ready

from queues.app import HIDDEN
from queues.errors import PermanentError, PublishRefusedError, PublishUnknownError, TransientError
from queues.topology import QUEUES
from queues.transport import remaining
from workers.deadletter import MAX_HEADERS, PATIENCE, DeadLetters
from workers.guard import Request, Undertaker, bounded, is_tick
from workers.metrics import Recorder, recorder
from workers.report import described, reason_of, report
from workers.validation import KINDS, in_headers


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (None, (100, 50)),
        ((None, None), (100, 50)),
        ((10, None), (10, 9)),
        ((10, 5), (10, 5)),
        ((10, 20), (10, 9)),
        ((1000, 900), (100, 50)),
        ((None, 20), (100, 20)),
    ],
)
def test_limits_are_never_above_the_tables_and_soft_is_below_hard(
    limits: object, expected: tuple[float, float]
) -> None:
    assert bounded(limits, 100, 50) == expected


@pytest.mark.parametrize(
    ("exc", "reason"),
    [
        (PermanentError("not_found", "x"), "not_found"),
        (TransientError("storage", "x"), "retries-exhausted"),
        (MemoryError(), "memory"),
        (ValueError("x"), "exception"),
    ],
)
def test_reasons_are_short_and_stable(exc: Exception, reason: str) -> None:
    assert reason_of(exc) == reason
    assert described(exc).startswith(type(exc).__name__)


def test_ticks_are_the_tables_periodic_tasks_and_celerys_own() -> None:
    assert is_tick("monitor.check_status")
    assert is_tick("celery.backend_cleanup")
    assert not is_tick("math.add")
    assert not is_tick("unknown")


@pytest.mark.parametrize("told", [{}, {"argsrepr": "['ada@example.com']", "kwargsrepr": "{'cc': 'bob@example.com'}"}])
def test_arguments_are_shown_to_nobody_whatever_a_producer_says_of_them(told: dict[str, str]) -> None:
    message = SimpleNamespace(
        headers={"id": "1", "task": "email.send_email", **told},
        body=b"",
        payload=[["ada@example.com"], {}, {}],
        content_type="application/json",
        content_encoding="utf-8",
        properties={},
        delivery_info={},
    )
    task = SimpleNamespace(time_limit=20, soft_time_limit=10, ignore_result=False, request_stack=None)
    request = Request(message, task=task, app=SimpleNamespace(timezone=None), hostname="email@test")
    assert (request.argsrepr, request.kwargsrepr) == (HIDDEN, HIDDEN), "events and the worker's log show these"
    assert request.request_dict["argsrepr"] == request.request_dict["kwargsrepr"] == HIDDEN, "a child's log shows these"


class Delivery:
    """What a request needs of a message."""

    headers: dict[str, object] | None = None

    def __init__(self, connection: object) -> None:
        self.channel = SimpleNamespace(connection=connection)


@pytest.mark.parametrize("connected", [True, False])
def test_a_memory_error_of_a_task_is_a_dead_letter_and_does_not_reach_the_loop(
    monkeypatch: pytest.MonkeyPatch, connected: bool
) -> None:
    buried: list[tuple[str, str]] = []

    class Letters:
        def bury(self, _message: object, reason: str, text: str) -> bool:
            buried.append((reason, text))
            return True

    acknowledged: list[bool] = []
    request = object.__new__(Request)
    request.id, request.name, request.acknowledged, request._message = (
        "1",
        "math.add",
        False,
        Delivery(object() if connected else None),
    )
    request._request_dict = {"id": "1", "task": "math.add"}
    request._eventer = None
    requeued: list[bool] = []
    monkeypatch.setattr(CeleryRequest, "reject", lambda self, requeue: requeued.append(requeue))
    monkeypatch.setattr(Undertaker, "letters", Letters())
    monkeypatch.setattr(recorder, "failed", lambda *_: None)
    monkeypatch.setattr(CeleryRequest, "acknowledge", lambda self: acknowledged.append(True))
    try:
        raise MemoryError("no room")
    except MemoryError:
        info = ExceptionInfo()
    request.on_failure(info, return_ok=True)
    if connected:
        assert (buried, acknowledged, requeued) == ([("memory", "MemoryError: no room")], [True], [])
    else:
        assert (buried, acknowledged, requeued) == ([], [], [True]), "the broker delivers it again"


class Buried(list[tuple[str, str]]):
    """Dead letters that are not sent anywhere."""

    queue = "math"
    deaths: object = None

    def bury(self, _message: object, reason: str, text: str) -> bool:
        self.append((reason, text))
        return True

    def requeue(self, _message: object, headers: dict[str, object]) -> bool:
        self.deaths = headers["x-child-deaths"]
        return True


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch) -> Buried:
    found = Buried()
    monkeypatch.setattr(Undertaker, "letters", found)
    monkeypatch.setattr("workers.guard.recorder", Recorder())
    monkeypatch.setattr(CeleryRequest, "acknowledge", lambda self: setattr(self, "acknowledged", True))
    return found


class FakeTask(SimpleNamespace):
    """A task, which signals know by its hash."""

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)


def noop(*_args: object, **_options: object) -> None:
    """What a backend does that has nothing to do."""


def fail(*_args: object, **_options: object) -> None:
    """What a pool does that cannot take a task."""
    raise RecursionError("too deep to be pickled")


class Watcher(list[tuple[str, dict[str, Any]]]):
    """Whoever watches a worker's events."""

    enabled = True

    def __bool__(self) -> bool:
        return True

    def send(self, kind: str, **fields: Any) -> None:
        self.append((kind, fields))


def a_request(told: Any, pool: Any = None, watcher: Watcher | None = None, **headers: Any) -> Any:
    """A request as Celery makes one for a task, where `told` is what its backend does about a failure."""
    task: Any = FakeTask(
        name="math.add",
        time_limit=10,
        soft_time_limit=5,
        acks_late=True,
        acks_on_failure=False,
        acks_on_timeout=True,
        reject_on_worker_lost=True,
        retry_on_worker_lost=False,
        ignore_result=False,
        store_errors_even_if_ignored=False,
        send_events=True,
        resultrepr_maxsize=1024,
        backend=SimpleNamespace(mark_as_failure=told, _ensure_retryable=None, max_retries=0),
        on_failure=lambda *_: None,
        request_stack=LocalStack(),
    )
    pool = pool or SimpleNamespace(apply_async=None)
    made = create_request_cls(Request, task, pool, "math@here", None, app=SimpleNamespace(use_fast_trace_task=False))
    message = Delivery(object())
    message.headers = {"id": "1", "task": "math.add", **headers}
    embed = {"errbacks": [{"task": "math.add"}], "chord": None}
    vars(message).update(
        payload=([1, 2], {}, embed),
        body=b"",
        properties={},
        delivery_info={},
        content_type="application/json",
        content_encoding="utf-8",
    )
    app = SimpleNamespace(conf=SimpleNamespace(timezone=datetime.UTC))
    return made(message, task=task, app=app, eventer=watcher)


def test_what_cannot_be_given_to_a_process_ends_and_frees_its_place(letters: Buried) -> None:
    """Celery would lose the place of one task for each, or the worker."""
    jobs: dict[int, Any] = {}
    told: list[str] = []

    def apply_async(*_args: object, callback: object, **_options: object) -> None:
        jobs[1] = SimpleNamespace(_callback=callback, discard=jobs.clear)
        raise RecursionError("too deep to be pickled")

    pool: Any = SimpleNamespace(apply_async=apply_async, _pool=SimpleNamespace(_cache=jobs))
    request = a_request(lambda task_id, *_args, **_options: told.append(task_id), pool)
    with pytest.raises(TaskRevokedError):
        request.execute_using_pool(pool)
    assert letters == [("malformed", "RecursionError: too deep to be pickled")]
    assert request.acknowledged
    assert (told, jobs) == (["1"], {})


def test_an_error_of_an_errback_does_not_keep_a_task_from_ending(letters: Buried) -> None:
    """Celery calls some errbacks in the main process; its loop hears of no error of theirs."""
    bounds: list[float] = []

    def told(*_args: object, **_options: object) -> None:
        bounds.append(remaining(float("inf")))
        raise LookupError("an errback's")

    lost = a_request(told)
    lost._request_dict["x-child-deaths"] = QUEUES.queue("math").child_death_limit
    failed = a_request(told)
    for request, error in ((lost, WorkerLostError("signal 9")), (failed, ValueError("x"))):
        try:
            raise error
        except (WorkerLostError, ValueError):
            request.on_failure(ExceptionInfo())
        assert request.acknowledged
    assert [reason for reason, _ in letters] == ["worker-lost", "exception"]
    assert all(bound <= PATIENCE for bound in bounds)
    assert len(bounds) == 2


@pytest.mark.parametrize("error", [LookupError("a hook's"), SystemExit(3)])
@pytest.mark.parametrize("callback", ["on_failure", "on_timeout", "on_success"])
def test_whatever_a_callback_raises_ends_that_message_and_nothing_else(
    letters: Buried, monkeypatch: pytest.MonkeyPatch, callback: str, error: BaseException
) -> None:
    def broken(*_args: object) -> None:
        raise error

    told: list[str] = []
    request = a_request(lambda task_id, *_args, **_options: told.append(task_id))
    for name in ("failed", "timed_out", "finished"):
        monkeypatch.setattr(f"workers.guard.recorder.{name}", broken)
    if callback == "on_success":
        request.on_success((0, ((), "<hidden>"), 0.1))
    elif callback == "on_timeout":
        request.on_timeout(soft=False, timeout=10)
    else:
        request.on_failure(report(ValueError("the task's")))
    assert request.acknowledged
    # A success is one, and a time limit was told by the callback before.
    assert letters == ([] if callback == "on_success" else [("internal-error", described(error))])
    assert told == (["1"] if callback == "on_failure" else [])


def test_a_callback_that_raises_before_the_end_ends_nothing(letters: Buried, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: object) -> None:
        raise LookupError

    request = a_request(None)
    monkeypatch.setattr("workers.guard.recorder.started", broken)
    monkeypatch.setattr("workers.guard.recorder.timed_out", broken)
    request.on_accepted(1, 0.0)
    request.on_timeout(soft=True, timeout=5)
    assert not request.acknowledged
    assert not letters
    task_ready(request)


def test_celerys_way_to_end_a_worker_is_not_caught(letters: Buried, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(*_args: object) -> None:
        raise WorkerShutdown(0)

    request = a_request(None)
    monkeypatch.setattr("workers.guard.recorder.failed", end)
    with pytest.raises(WorkerShutdown):
        request.on_failure(report(ValueError("x")))
    assert not letters


def test_a_hard_limit_is_told_once(letters: Buried) -> None:
    told: list[Any] = []
    request = a_request(lambda *_args, request, **_options: told.append(request.errbacks))
    try:
        raise TimeLimitExceeded(10)
    except TimeLimitExceeded:
        request.on_failure(ExceptionInfo())
    request.on_timeout(soft=False, timeout=10)
    assert told == [[{"task": "math.add"}], None]
    assert [reason for reason, _ in letters] == ["time-limit"]


def test_a_producer_cannot_have_deaths_forgiven(letters: Buried) -> None:
    """Below zero, a task that kills its process would be run again for ever."""
    request = a_request(None)
    request._request_dict["x-child-deaths"] = -(10**9)
    try:
        raise WorkerLostError("signal 9")
    except WorkerLostError:
        request.on_failure(ExceptionInfo())
    assert letters.deaths == 1


def the_end(request: Any, error: BaseException) -> None:
    """A task ends by an error as the pool reports it."""
    try:
        raise error
    except BaseException:  # noqa: BLE001 - as billiard catches it
        request.on_failure(ExceptionInfo())


@pytest.mark.parametrize("kind", ["given up", "memory", "not given"])
def test_who_watches_events_sees_a_task_end(letters: Buried, kind: str) -> None:
    """Celery's own code sends these events, which ours leaves out."""
    watcher = Watcher()
    signalled: list[dict[str, Any]] = []

    @signals.task_failure.connect(weak=False)
    def receive(sender: Any, **told: Any) -> None:
        signalled.append({**told, "seen": sender.request_stack.top})

    try:
        if kind == "given up":
            limit = QUEUES.queue("math").child_death_limit
            the_end(a_request(noop, watcher=watcher, **{"x-child-deaths": limit}), WorkerLostError("signal 9"))
        elif kind == "memory":
            the_end(a_request(noop, watcher=watcher), MemoryError("no room"))
        else:
            pool: Any = SimpleNamespace(apply_async=fail, _pool=SimpleNamespace(_cache={}))
            with pytest.raises(TaskRevokedError):
                a_request(noop, pool, watcher).execute_using_pool(pool)
    finally:
        signals.task_failure.disconnect(receive)
    ((event, fields),) = watcher
    assert (event, fields["uuid"]) == ("task-failed", "1")
    error = {"given up": "WorkerLostError", "memory": "MemoryError", "not given": "RecursionError"}[kind]
    assert fields["exception"].startswith(error)
    assert error in fields["traceback"]
    assert len(letters) == 1
    if kind == "given up":
        assert "WorkerLostError: signal 9" in signalled[0]["traceback"], "text, as Celery gives it"
        assert signalled[0]["seen"].id == "1", "a handler looks at the task's request"
        assert signalled[0]["einfo"].exception.exc is signalled[0]["exception"], "the pool's own report"


def test_who_watches_events_sees_a_task_given_back_and_one_that_was_done(letters: Buried) -> None:
    watcher = Watcher()
    the_end(a_request(noop, watcher=watcher), WorkerLostError("signal 9"))
    done = a_request(noop, watcher=watcher)
    done._success_was_stored = lambda: {"status": "SUCCESS", "result": {"sum": 3}}
    the_end(done, WorkerLostError("signal 9"))
    assert watcher == [
        ("task-rejected", {"uuid": "1", "requeue": True}),
        ("task-succeeded", {"uuid": "1", "result": HIDDEN, "runtime": None}),
    ]
    assert not letters


#: The app of what connects to nothing.
NOWHERE: Any = SimpleNamespace()


class Sender:
    """A producer whose broker has one answer for everything."""

    def __init__(self, answer: Exception | None) -> None:
        self.answer = answer
        self.sent: list[dict[str, Any]] = []

    def copy(self, _body: bytes, **options: Any) -> None:
        self.sent.append(options)
        if self.answer is not None:
            raise self.answer


@pytest.mark.parametrize(
    ("answer", "headers", "paused"),
    [
        (None, {}, False),
        (None, {"pad": "x" * MAX_HEADERS}, False),
        (PublishRefusedError("a header cannot be encoded"), {}, False),
        (PublishUnknownError("no confirm"), {}, True),
    ],
)
def test_only_a_broker_that_stalls_takes_the_reasons_from_the_next_dead_letters(
    answer: Exception | None, headers: dict[str, Any], paused: bool
) -> None:
    letters = DeadLetters(NOWHERE, "math", "math@here")
    letters._producer = sender = Sender(answer)  # type: ignore[assignment]
    message = SimpleNamespace(headers=headers, properties={}, body=b"", content_type=None, content_encoding=None)
    assert letters.bury(message, "malformed", "why") is (answer is None and not headers)
    assert letters.paused is paused
    assert len(sender.sent) == (not headers)


def test_a_delay_is_never_longer_than_the_broker_can_hold() -> None:
    letters = DeadLetters(NOWHERE, "math", "math@here")
    letters._producer = sender = Sender(None)  # type: ignore[assignment]
    message = SimpleNamespace(headers={}, properties={}, body=b"", content_type=None, content_encoding=None)
    assert letters.delay(message, 2.5)
    assert letters.delay(message, 1e11)
    keys = [options["routing_key"] for options in sender.sent]
    assert keys == ["0." * 26 + "1.1.math", "1." * 28 + "math"]
    assert {options["exchange"] for options in sender.sent} == {"celery_delayed_27"}


#: What a producer may put into any header.
JUNK: tuple[Any, ...] = (
    *(0, 5, -1, 2**63 - 1, True, 2.5, Decimal("1.5"), datetime.datetime(2026, 1, 1)),  # noqa: DTZ001 - as py-amqp's
    *("", "x", "x" * 300, "2999-01-01T00:00:00", "9999-12-31T23:59:59-23:59", "2999-W48-3", b"\xff"),
    *([], [1], ["x"], [1e-9, None], [1e308, 1], [None, None], {}, {"x": 1}, {"x": ["y"]}),
)


@pytest.mark.parametrize("name", [*KINDS, "id", "timelimit", "x-published-at", "x-replays", "x-child-deaths"])
def test_a_header_that_passes_the_look_passes_celery(name: str, letters: Buried) -> None:
    """Whatever Celery would raise over a header, it would raise in the worker's loop."""
    given: list[Any] = []
    pool: Any = SimpleNamespace(apply_async=lambda *_, args, **__: given.append(pickle.dumps(args)))
    tried = 0
    for value in JUNK:
        headers = {"id": "1", "task": "math.add", name: value}
        if in_headers(headers, {"math.add": None}) is None:
            tried += 1
            request = a_request(None, pool, **headers)
            request.execute_using_pool(pool)
            request.on_accepted(1, 0.0)
            task_ready(request)  # as far as other tests can see
            assert Context(request.request_dict).as_execution_options()["task_id"] == request.id
    assert len(given) == tried > 0
    assert not letters
