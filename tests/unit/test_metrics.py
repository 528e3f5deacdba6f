"""The worker's measuring: every number of a recorder."""

from __future__ import annotations

import datetime
import json
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from billiard.exceptions import SoftTimeLimitExceeded, Terminated, TimeLimitExceeded, WorkerLostError
from celery.exceptions import Ignore, Reject, Retry

from queues.errors import PermanentError, TransientError
from queues.publish import FIRST_PUBLISHED_AT, PUBLISHED_AT, stamp
from queues.topology import QUEUES
from workers import metrics
from workers.deletions import DELETIONS
from workers.metrics import REJECTIONS, Recorder, exception_name
from workers.report import rebuilt, report, unwrapped

NOW = 1_760_000_000.0
MATH = QUEUES.queue("math")
ADD = "math.add"


@dataclass
class FakeRequest:
    """What the recorder reads of a Celery request."""

    headers: dict[str, Any] = field(default_factory=lambda: {PUBLISHED_AT: NOW - 0.5, FIRST_PUBLISHED_AT: NOW - 8})
    type: str = ADD
    eta: datetime.datetime | None = None
    time_start: float | None = NOW
    redelivered: bool = False
    _already_cancelled: bool = False
    _already_revoked: bool = False

    @property
    def request_dict(self) -> dict[str, Any]:
        return {"id": "1", "task": self.type, **self.headers}

    @property
    def delivery_info(self) -> dict[str, Any]:
        # The routing key of a delayed message is not the queue's.
        return {"routing_key": f"0.0.1.{self.type}", "redelivered": self.redelivered}


def reported(exc: BaseException) -> BaseException:
    """An error of a task as the main process knows it."""
    return unwrapped(rebuilt(report(exc), returned=True))


@pytest.fixture
def recorder() -> Recorder:
    made = Recorder(clock=lambda: NOW + 30)
    made.bind(MATH)
    return made


def values(recorder: Recorder) -> dict[tuple[str, str, str], Any]:
    """All series that are not zero."""
    message = recorder.snapshot("math@host", {}, full=True)
    assert message is not None
    found = {(name, task, label): value for name, task, label, value in json.loads(json.dumps(message))["series"]}
    return {key: value for key, value in found.items() if (sum(value) if isinstance(value, list) else value)}


def histogram(*seconds: float) -> list[Any]:
    """What the observations make, by the plain definition of a bucket."""
    edges = (*MATH.buckets, math.inf)
    lows = (-math.inf, *MATH.buckets)
    return [
        pytest.approx(sum(seconds)),
        *(sum(low < second <= high for second in seconds) for low, high in zip(lows, edges, strict=True)),
    ]


def test_a_task_that_succeeds(recorder: Recorder) -> None:
    request = FakeRequest()
    recorder.started(request)
    recorder.finished(request, "succeeded", 0.01)
    assert values(recorder) == {
        ("started", ADD, ""): 1,
        ("completions", ADD, ""): 1,
        ("wait", ADD, ""): histogram(0.5),
        ("runtime", ADD, "succeeded"): histogram(0.01),
        ("end_to_end", ADD, ""): histogram(8.01),
    }


def test_a_value_on_a_bound_belongs_to_its_bucket(recorder: Recorder) -> None:
    for seconds in (0.0, 0.001, 0.0011, 300, 300.1):
        recorder.finished(FakeRequest(headers={}), "succeeded", seconds)
    assert values(recorder)["runtime", ADD, "succeeded"] == [pytest.approx(600.1021), 2, 1, *[0] * 13, 1, 1]


def test_an_attempt_that_is_retried_is_no_completion(recorder: Recorder) -> None:
    request = FakeRequest()
    recorder.started(request)
    recorder.failed(request, Retry(), 2.0)
    recorder.finished(request, "retried", 2.0)
    found = values(recorder)
    del found["wait", ADD, ""]
    assert found == {
        ("started", ADD, ""): 1,
        ("retries", ADD, ""): 1,
        ("runtime", ADD, "retried"): histogram(2.0),
    }


@pytest.mark.parametrize(
    ("exc", "label"),
    [
        (ValueError("x"), "ValueError"),
        (PermanentError("code", "message"), "PermanentError"),
        (SoftTimeLimitExceeded(), "SoftTimeLimitExceeded"),
        (MemoryError(), "MemoryError"),
        (Reject("no", requeue=False), "Reject"),
        (type("Invented42", (ValueError,), {})(), "ValueError"),
        (type("Invented43", (PermanentError,), {})("code", "message"), "Invented43"),
        (type("Invented44", (Exception,), {})(), "other"),
        (reported(KeyError("x")), "KeyError"),
        (reported(type("Invented45", (TransientError,), {})("code", "message")), "Invented45"),
        (reported(type("Invented46", (ValueError,), {})("x")), "ValueError"),
    ],
)
def test_failures_by_exception(recorder: Recorder, exc: BaseException, label: str) -> None:
    recorder.failed(FakeRequest(), exc, 0.2)
    assert values(recorder) == {
        ("failures", ADD, label): 1,
        ("completions", ADD, ""): 1,
        ("runtime", ADD, "failed"): histogram(0.2),
        ("end_to_end", ADD, ""): histogram(8.2),
    }


def test_an_error_value_is_a_failure(recorder: Recorder) -> None:
    recorder.finished(FakeRequest(), "failed", 0.2)
    found = values(recorder)
    assert found["failures", ADD, "reported"] == found["completions", ADD, ""] == 1
    assert found["runtime", ADD, "failed"] == histogram(0.2)


def test_a_task_may_send_its_message_back(recorder: Recorder) -> None:
    recorder.failed(FakeRequest(), Reject("later", requeue=True), None)
    assert values(recorder) == {("rejections", ADD, "requeued"): 1}


@pytest.mark.parametrize("exc", [Retry(), Terminated(-15), TimeLimitExceeded(1)])
def test_what_is_counted_elsewhere_is_no_failure(recorder: Recorder, exc: Exception) -> None:
    recorder.failed(FakeRequest(), exc, None)
    assert values(recorder) == {}


def test_ignore_is_how_a_task_ends_without_a_result(recorder: Recorder) -> None:
    recorder.failed(FakeRequest(), Ignore(), 0.2)
    assert values(recorder)["completions", ADD, ""] == 1


@pytest.mark.parametrize("exc", [WorkerLostError("gone"), SystemExit(1), KeyboardInterrupt()])
def test_a_lost_child_is_no_failure_its_message_comes_again(recorder: Recorder, exc: BaseException) -> None:
    recorder.failed(FakeRequest(), exc, None)
    recorder.failed(FakeRequest(_already_cancelled=True), exc, None)
    recorder.failed(FakeRequest(_already_revoked=True), exc, None)
    assert values(recorder) == {("worker_lost", ADD, ""): 1}


def test_a_child_that_died_once_too_often_is_a_failure(recorder: Recorder) -> None:
    recorder.failed(FakeRequest(), WorkerLostError("gone"), None)
    recorder.given_up(FakeRequest())
    assert values(recorder) == {
        ("worker_lost", ADD, ""): 1,
        ("failures", ADD, "WorkerLostError"): 1,
        ("completions", ADD, ""): 1,
        ("runtime", ADD, "failed"): histogram(30.0),
        ("end_to_end", ADD, ""): histogram(38.0),
    }


def test_a_hard_limit_is_a_failure_and_a_soft_one_is_not_yet(recorder: Recorder) -> None:
    recorder.timed_out(FakeRequest(), "soft")
    assert values(recorder) == {("timeouts", ADD, "soft"): 1}
    recorder.timed_out(FakeRequest(), "hard")
    assert values(recorder) == {
        ("timeouts", ADD, "soft"): 1,
        ("timeouts", ADD, "hard"): 1,
        ("failures", ADD, "TimeLimitExceeded"): 1,
        ("completions", ADD, ""): 1,
        ("runtime", ADD, "failed"): histogram(30.0),
        ("end_to_end", ADD, ""): histogram(38.0),
    }


def test_a_hard_limit_of_a_task_whose_start_is_unknown(recorder: Recorder) -> None:
    recorder.timed_out(FakeRequest(time_start=None), "hard")
    found = values(recorder)
    assert ("runtime", ADD, "failed") not in found
    assert found["end_to_end", ADD, ""] == histogram(38.0)


def test_revocations_by_reason(recorder: Recorder) -> None:
    for reason in ("expired", "revoked", "revoked", "terminated", "made up"):
        recorder.revoked(FakeRequest(), reason)
    assert {key[2]: value for key, value in values(recorder).items()} == {
        "expired": 1,
        "revoked": 2,
        "terminated": 1,
        "other": 1,
    }


def test_wait_begins_at_the_eta_if_that_is_later(recorder: Recorder) -> None:
    for seconds in (-0.02, -3600):
        eta = datetime.datetime.fromtimestamp(NOW, datetime.UTC) + datetime.timedelta(seconds=seconds)
        recorder.started(FakeRequest(eta=eta.astimezone(datetime.timezone(datetime.timedelta(hours=9)))))
    found = values(recorder)
    assert found["wait", ADD, ""] == histogram(0.02, 0.5)
    assert found["lateness", ADD, ""] == histogram(0.02, 3600)


def test_an_eta_is_enough_for_lateness_and_not_for_wait(recorder: Recorder) -> None:
    eta = datetime.datetime.fromtimestamp(NOW - 3, datetime.UTC)
    recorder.started(FakeRequest(headers={}, eta=eta))
    recorder.started(FakeRequest(eta=eta, redelivered=True))
    found = values(recorder)
    assert found["lateness", ADD, ""] == histogram(3)
    assert ("wait", ADD, "") not in found


def test_how_far_the_queue_has_been_worked_off(recorder: Recorder) -> None:
    def due() -> float:
        message = recorder.snapshot("math@host", {}, full=True)
        assert message is not None
        return float(message["due"])

    recorder.started(FakeRequest(headers={PUBLISHED_AT: NOW - 5}))
    recorder.started(FakeRequest(headers={PUBLISHED_AT: NOW - 7}))
    recorder.started(FakeRequest(headers={PUBLISHED_AT: NOW - 1}, redelivered=True))
    assert due() == NOW - 5
    # A stamp in the future says nothing of the messages behind it.
    recorder.started(FakeRequest(headers={PUBLISHED_AT: NOW + 3600}))
    assert due() == NOW


def test_repeats_of_what_runs_once_are_counted(recorder: Recorder) -> None:
    recorder.deduplicated(FakeRequest())
    recorder.in_doubt(FakeRequest())
    recorder.bind(QUEUES.queue("email"))
    message = recorder.snapshot("email@host", {}, full=True)
    assert message is not None
    found = {(name, task): value for name, task, _, value in message["series"]}
    assert found["deduplicated", ADD] == found["in_doubt", ADD] == 1
    assert found["deduplicated", "email.send_email"] == found["in_doubt", "email.send_email"] == 0


def test_a_negative_duration_is_clock_skew_and_observed_as_zero(recorder: Recorder) -> None:
    request = FakeRequest(headers={PUBLISHED_AT: NOW + 2, FIRST_PUBLISHED_AT: NOW + 2})
    recorder.started(request)
    recorder.finished(request, "succeeded", 0.1)
    found = values(recorder)
    assert found["clock_skew", ADD, ""] == 2
    assert found["wait", ADD, ""] == found["end_to_end", ADD, ""] == [0.0, 1, *[0] * len(MATH.buckets)]


def test_a_redelivery_is_counted_and_its_wait_is_not_observed(recorder: Recorder) -> None:
    request = FakeRequest(redelivered=True)
    recorder.started(request)
    recorder.finished(request, "succeeded", 0.1)
    found = values(recorder)
    assert found["redeliveries", ADD, ""] == found["started", ADD, ""] == 1
    assert ("wait", ADD, "") not in found
    assert found["end_to_end", ADD, ""] == histogram(8.1)


@pytest.mark.parametrize("value", [None, "1760000000", -1.0, 0, NOW * 1000, math.nan, math.inf, {}, b"x"])
def test_a_message_without_a_sound_stamp_is_counted_and_never_guessed(recorder: Recorder, value: object) -> None:
    headers = {} if value is None else {PUBLISHED_AT: value, FIRST_PUBLISHED_AT: value}
    request = FakeRequest(headers=headers)
    recorder.started(request)
    recorder.finished(request, "succeeded", 0.1)
    assert values(recorder) == {
        ("started", ADD, ""): 1,
        ("unstamped", ADD, ""): 1,
        ("completions", ADD, ""): 1,
        ("runtime", ADD, "succeeded"): histogram(0.1),
    }


def test_the_producers_stamp_is_understood(recorder: Recorder) -> None:
    headers = stamp({})
    recorder.started(FakeRequest(headers=headers, time_start=headers[PUBLISHED_AT] + 0.25))
    assert values(recorder)["wait", ADD, ""] == histogram(0.25)


def test_an_attempt_whose_runtime_celery_keeps_to_itself_ends_now(recorder: Recorder) -> None:
    recorder.failed(FakeRequest(), ValueError(), None)
    recorder.finished(FakeRequest(), "retried", None)
    assert values(recorder) == {
        ("failures", ADD, "ValueError"): 1,
        ("completions", ADD, ""): 1,
        ("retries", ADD, ""): 1,
        ("runtime", ADD, "failed"): histogram(30.0),
        ("runtime", ADD, "retried"): histogram(30.0),
        ("end_to_end", ADD, ""): histogram(38.0),
    }


def test_tasks_of_celery_are_measured_too(recorder: Recorder) -> None:
    recorder.started(FakeRequest(type="celery.chord_unlock"))
    assert values(recorder)["wait", "celery.chord_unlock", ""] == histogram(0.5)


def test_a_message_says_all_that_an_exporter_needs(recorder: Recorder) -> None:
    message = recorder.snapshot("math@host", {"concurrency": 2, "busy": 1}, full=True)
    assert message is not None
    series = message.pop("series")
    assert message == {
        "version": 1,
        "incarnation": recorder.incarnation,
        "worker": "math@host",
        "queue": "math",
        "seq": 1,
        "started_at": NOW + 30,
        "sent_at": NOW + 30,
        "full": True,
        "due": 0.0,
        "gauges": {"concurrency": 2, "busy": 1},
        "bounds": MATH.buckets,
    }
    # Every series of every task is there from the start, as a zero.
    assert len(series) == len(MATH.tasks) * 23 + len(REJECTIONS) + len(DELETIONS)
    assert ("started", "math.xsum", "", 0) in series


def test_only_changes_are_sent_with_their_cumulative_value(recorder: Recorder) -> None:
    gauges = {"concurrency": 2, "busy": 0}

    def send(gauges: dict[str, int]) -> list[Any] | None:
        message = recorder.snapshot("math@host", gauges, full=False)
        if message is None:
            return None
        recorder.sent(message)
        return sorted(message["series"])

    assert send(gauges) == []
    assert send(gauges) is None
    recorder.revoked(FakeRequest(), "expired")
    assert send(gauges) == [("revocations", ADD, "expired", 1)]
    assert send(gauges) is None
    assert send({"concurrency": 2, "busy": 1}) == []
    recorder.revoked(FakeRequest(), "expired")
    recorder.revoked(FakeRequest(type="math.xsum"), "revoked")
    assert send(gauges) == [("revocations", ADD, "expired", 2), ("revocations", "math.xsum", "revoked", 1)]


def test_what_was_not_sent_stays_for_the_next_message(recorder: Recorder) -> None:
    recorder.revoked(FakeRequest(), "expired")
    first = recorder.snapshot("math@host", {}, full=False)
    second = recorder.snapshot("math@host", {}, full=False)
    assert first is not None
    assert second is not None
    assert second["series"] == first["series"] == [("revocations", ADD, "expired", 1)]
    assert (first["seq"], second["seq"]) == (1, 2)


def test_a_new_connection_does_not_begin_a_new_count(recorder: Recorder) -> None:
    recorder.revoked(FakeRequest(), "expired")
    recorder.bind(MATH)
    assert values(recorder) == {("revocations", ADD, "expired"): 1}


def test_a_team_cannot_make_series_without_end(recorder: Recorder) -> None:
    for number in range(metrics.MAX_OWN + 20):
        recorder.failed(FakeRequest(), type(f"Own{number}", (PermanentError,), {})("code", "text"), 0.1)
    labels = [label for name, _, label in values(recorder) if name == "failures"]
    assert len(labels) == metrics.MAX_OWN + 1
    assert values(recorder)["failures", ADD, "PermanentError"] == 20


def test_exception_names_come_from_a_closed_list() -> None:
    assert len(metrics.EXCEPTIONS) < 100
    assert exception_name(RecursionError()) == "RecursionError"
    assert exception_name(type("X", (Exception,), {})()) == "other"
