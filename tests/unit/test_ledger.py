"""Who may run an attempt of a `once` task, and what becomes of the others."""

from __future__ import annotations

import contextlib
import datetime
import pickle
import re
import sqlite3
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery.exceptions import Ignore, Reject, Retry

from queues.errors import InDoubtError, PermanentError, UncertainError
from queues.settings import ResultSettings, Settings
from queues.topology import QUEUES
from workers import ledger, once
from workers.ledger import Attempt, Entry, LedgerUnavailableError, claim, decide, settle
from workers.ledgerstore import DAY, SqlStore, open_store
from workers.report import DelayedError, SupersededError

NOW, LEASE = 1000.0, 60.0


class Memory:
    """A store in memory, that may be changed or fail between a read and a write."""

    def __init__(self) -> None:
        self.entries: dict[str, str] = {}
        self.between: list[Any] = []

    def read(self, key: str) -> str | None:
        return self.entries.get(key)

    def swap(self, key: str, old: str | None, new: str) -> bool:
        if self.between:
            self.between.pop()()
        if self.entries.get(key) != old:
            return False
        self.entries[key] = new
        return True


def entry(state: ledger.State, until: float = 0.0, **fields: Any) -> Entry:
    """What the ledger holds: a run `r` of attempt 0 of task `a`, in process `1@n`."""
    given = {"id": "a", "replays": 0, "retries": 0, "run": "r", "at": NOW - 1, "until": until, "process": "1@n"}
    return Entry(state, **{**given, "value": {"value": 1}, **fields})


def mine(run: str = "new", **fields: Any) -> Entry:
    """The claim that an attempt would make now."""
    given = {"id": "a", "replays": 0, "retries": 0, "at": NOW, "until": NOW + LEASE, "process": "2@n"}
    return Entry("claimed", run=run, **{**given, **fields})


LIVE, LAPSED = NOW + 5, NOW - 5


@pytest.mark.parametrize(
    ("attempt", "known", "action"),
    [
        ({}, None, "run"),
        ({}, entry("done"), "repeat"),
        ({"retries": 3}, entry("done"), "repeat"),
        ({"id": "b"}, entry("done"), "repeat"),
        ({"replays": 1}, entry("done"), "repeat"),
        # One that runs is waited for, and outlived by a later attempt.
        ({}, entry("claimed", LIVE), "wait"),
        ({"retries": 1}, entry("claimed", LIVE), "wait"),
        ({"id": "b"}, entry("claimed", LIVE), "wait"),
        ({"replays": 1, "verdict": "done", "about": "r"}, entry("claimed", LIVE), "wait"),
        ({}, entry("claimed", LIVE, retries=1), "drop"),
        ({"retries": 9}, entry("claimed", LIVE, replays=1), "drop"),
        # One that left no record is in doubt, unless its effect had not begun.
        ({}, entry("claimed", LAPSED), "hold"),
        ({"id": "b"}, entry("claimed", LAPSED), "hold"),
        ({"replays": 1}, entry("claimed", LAPSED), "hold"),
        ({}, entry("claimed", LAPSED, retries=1), "hold"),
        ({}, entry("claimed", LAPSED, begun=False), "run"),
        # Its process died, and nobody need wait; another process's death says nothing.
        ({"dead": "1@n"}, entry("claimed", LIVE), "hold"),
        ({"dead": "1@n"}, entry("claimed", LIVE, begun=False), "run"),
        ({"dead": "2@n"}, entry("claimed", LIVE), "wait"),
        ({"dead": "1@n", "retries": 1}, entry("claimed", LIVE), "wait"),
        # A claim whose answer was lost is the message's own.
        ({"run": "r"}, entry("claimed", LIVE), "run"),
        ({"run": "q"}, entry("claimed", LIVE), "wait"),
        # A verdict is about one run or attempt, and no other.
        ({"replays": 1, "verdict": "not-done", "about": "r"}, entry("claimed", LAPSED), "run"),
        ({"replays": 1, "verdict": "not-done", "about": "a/0/0"}, entry("claimed", LAPSED), "run"),
        ({"replays": 1, "verdict": "done", "about": "r"}, entry("claimed", LAPSED), "repeat"),
        ({"id": "b", "verdict": "not-done", "about": "r"}, entry("claimed", LAPSED), "run"),
        ({"replays": 1, "verdict": "not-done", "about": "q"}, entry("claimed", LAPSED), "hold"),
        ({"replays": 1, "verdict": "not-done", "about": "a/0/0"}, entry("claimed", LAPSED, replays=1), "hold"),
        ({"id": "c", "verdict": "done", "about": "q"}, entry("claimed", LAPSED, id="b"), "hold"),
        ({"replays": 1, "verdict": "done", "about": "r"}, None, "repeat"),
        # Outcomes are repeated to whoever had them, and free the way for others.
        ({}, entry("retry", LIVE), "repeat"),
        ({"retries": 1}, entry("retry", LIVE), "run"),
        ({"id": "b"}, entry("retry", LIVE), "wait"),
        ({"id": "b"}, entry("retry", LAPSED), "run"),
        ({}, entry("retry", retries=1), "drop"),
        ({}, entry("failed"), "repeat"),
        ({}, entry("failed", retries=3), "repeat"),
        ({"replays": 1}, entry("failed", retries=3), "run"),
        ({"id": "b"}, entry("failed"), "run"),
    ],
)
def test_a_new_attempt_runs_only_after_one_that_is_known_to_have_failed(
    attempt: dict[str, Any], known: Entry | None, action: str
) -> None:
    decision = decide(Attempt(**{"id": "a", **attempt}), known, mine(), resend=False)
    assert decision.action == action
    if action == "run":
        assert decision.entry == mine()
    if action == "wait":
        assert decision.wait == 5


def test_what_is_in_doubt_runs_again_only_where_that_is_wanted() -> None:
    decision = decide(Attempt("a"), entry("claimed", LAPSED), mine(), resend=True)
    assert (decision.action, decision.doubtful) == ("run", True)
    assert decide(Attempt("a"), entry("claimed", LIVE), mine(), resend=True).action == "wait"
    held = decide(Attempt("a"), entry("claimed", LAPSED), mine(), resend=False)
    assert held.entry is not None
    assert held.entry.run == "r", "the dead letter says whose doubt it is"


def test_of_two_that_claim_at_once_one_runs() -> None:
    store = Memory()
    store.between.append(lambda: claim(store, "k", Attempt("b"), mine("other", id="b"), resend=False))
    assert claim(store, "k", Attempt("a"), mine(), resend=False).action == "wait"
    assert Entry.read(store.entries["k"]).run == "other"


def test_a_claim_whose_answer_is_lost_is_known_as_one_s_own() -> None:
    store = Memory()
    swap = store.swap
    store.swap = lambda *arguments: swap(*arguments) and False  # type: ignore[method-assign]
    assert claim(store, "k", Attempt("a"), mine(), resend=False).action == "run"


def test_an_entry_that_changes_for_ever_is_given_up() -> None:
    store = Memory()
    store.swap = lambda *_: False  # type: ignore[method-assign]
    with pytest.raises(LedgerUnavailableError, match="changed"):
        claim(store, "k", Attempt("a"), mine(), resend=False)


def test_an_outcome_is_recorded_unless_it_is_of_no_account_any_more() -> None:
    store = Memory()
    first = claim(store, "k", Attempt("a"), mine("one"), resend=False).entry
    assert first is not None
    retry = replace(first, state="retry", until=0.0)
    assert settle(store, "k", retry) == retry
    assert settle(store, "k", retry) == retry
    second = claim(store, "k", Attempt("a", retries=1), mine("two", retries=1), resend=False).entry
    assert second is not None
    assert settle(store, "k", replace(first, state="failed")) == second, "a straggler ends nobody else's run"
    assert settle(store, "k", replace(first, until=0.0)) == second
    done = replace(first, state="done", value=1)
    assert settle(store, "k", done) == done, "a success is a fact"
    assert settle(store, "k", replace(second, state="failed")) == done


def test_of_two_runs_of_one_attempt_one_begins() -> None:
    """The one stood still beyond its lease, and the other took over: both have the same id and number."""
    store = Memory()
    slow = held(store, mine("slow", begun=False, until=NOW - 1))
    assert claim(store, "k", Attempt("a"), mine("quick", begun=False), resend=False).action == "run"
    quick = once.Claim(store, "k", mine("quick", begun=False), LEASE, store.entries["k"])  # type: ignore[arg-type]
    with pytest.raises(SupersededError):
        slow.begin()
    slow.lapse(begun=True)
    assert Entry.read(store.entries["k"]).run == "quick"
    quick.begin()
    assert Entry.read(store.entries["k"]).begun
    with pytest.raises(SupersededError):
        slow.begin()


def test_a_claim_that_lapses_keeps_what_began() -> None:
    store = Memory()
    claimed = held(store, mine("one", begun=False))
    claimed.lapse(begun=claimed.entry.begun)
    assert decide(Attempt("a"), Entry.read(store.entries["k"]), now_claim(), resend=False).action == "run"
    claimed.begin()
    claimed.lapse(begun=claimed.entry.begun)
    assert decide(Attempt("a"), Entry.read(store.entries["k"]), now_claim(), resend=False).action == "hold"


def now_claim() -> Entry:
    return mine("next", at=time.time(), until=time.time() + LEASE)


def held(store: Memory, claimed: Entry) -> once.Claim:
    """A claim as it stands in the store."""
    store.entries["k"] = claimed.write()
    return once.Claim(store, "k", claimed, LEASE, claimed.write())  # type: ignore[arg-type]


def test_an_entry_survives_its_writing() -> None:
    one = entry("failed", 2.5, id="ä", begun=False, value={"code": "x", "items": [1, None]})
    assert Entry.read(one.write()) == one
    assert Entry.read(one.write().replace("{", '{"new":1,', 1)) == one, "a newer version's field is left out"
    hostile = ('"at":"x"', '"at":1e999', '"retries":-1', '"run":null', '"state":"gone"', '"value":5')
    names = [item.partition(":")[0] for item in hostile]
    broken = [re.sub(rf"{name}:[^,}}]+", item, one.write(), count=1) for name, item in zip(names, hostile, strict=True)]
    for text in ("", "null", "[]", "{}", *broken):
        with pytest.raises(ValueError, match="no ledger entry"):
            Entry.read(text)


@pytest.mark.parametrize("value", [{"__type__": "decimal", "__value__": "x"}, {"__type__": "gone", "__value__": 1}])
def test_a_result_that_cannot_be_read_again_does_not_poison_its_key(value: dict[str, Any]) -> None:
    assert Entry.read(entry("done", value=value).write()).state == "done"
    assert Entry.read(entry("done", value=object()).write()).value == ledger.NOT_KEPT


def test_hostile_headers_count_as_none() -> None:
    headers = {"x-replays": "9", "x-ledger-verdict": ["done"], "x-dead-process": 5, "x-ledger-claim": None}
    assert Attempt.of("a", 2, headers) == Attempt("a", 0, 2)
    assert Attempt.of("a", 0, {"x-ledger-verdict": "maybe r"}).about == ""
    for text in (5, "{", entry("claimed").write(), entry("done", id="b").write(), entry("failed", retries=1).write()):
        assert once.carried_outcome({"x-ledger-outcome": text}, Attempt("a")) is None
    done = entry("done", replays=1, value=7)
    assert once.carried_outcome({"x-ledger-outcome": done.write()}, Attempt("a")) == done, "done is done for good"


def test_a_producer_s_key_is_kept_as_a_digest() -> None:
    assert ledger.key_of("email.send_email", "id", None) == "email.send_email:id"
    key = ledger.key_of("email.send_email", "id", "order 7 of jo@example.org")
    assert "example" not in key
    assert key == ledger.key_of("email.send_email", "other", "order 7 of jo@example.org")


class FakeTask:
    """What `once.record` needs of a task: its request, and a signature that is sent."""

    name = "email.send_email"
    app = SimpleNamespace(keeping=contextlib.nullcontext)

    def __init__(self) -> None:
        self.request = SimpleNamespace(id="a", retries=0, headers={"x-replays": 1}, hostname="n")
        self.sent: list[dict[str, Any]] = []

    def signature_from_request(self, **options: Any) -> SimpleNamespace:
        return SimpleNamespace(apply_async=lambda: self.sent.append(options))


@pytest.mark.parametrize("value", [{"status": "sent"}, {"status": "x" * 200_000}])
def test_an_outcome_that_cannot_be_recorded_travels_with_the_message(
    monkeypatch: pytest.MonkeyPatch, value: dict[str, Any]
) -> None:
    store, task = Memory(), FakeTask()
    claimed = once.Claim(store, "k", mine(replays=1), LEASE)  # type: ignore[arg-type]
    monkeypatch.setattr(once, "RECORD_TIME", -1)
    monkeypatch.setattr(store, "read", lambda _key: (_ for _ in ()).throw(LedgerUnavailableError("away")))
    outcome = once.entry_of(once.Outcome(value), claimed)
    with pytest.raises(DelayedError):
        once.record(task, claimed, outcome)
    (options,) = task.sent
    assert options["headers"]["x-replays"] == 1
    assert options["expires"] is None, "what was done expires no more"
    assert len(options["headers"]["x-ledger-outcome"]) < 100_000, "headers must fit into one frame"
    carried = once.carried_outcome(options["headers"], Attempt("a", replays=1))
    assert carried is not None
    assert carried.state == "done"


def test_a_result_that_cannot_be_stored_comes_again_and_is_not_run() -> None:
    task = FakeTask()
    assert once.carried(task) is None
    once.carry(task, {"sum": 3}, link=None, chain=None)
    (options,) = task.sent
    assert (options["link"], options["chain"], options["expires"]) == (None, None, None), "it called them already"
    task.request.headers = options["headers"]
    assert once.carried(task) == once.Outcome({"sum": 3})
    task.request.id = "another"
    assert once.carried(task) is None


def test_a_task_without_an_id_or_with_a_key_that_is_no_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = QUEUES.task("email.send_email")[1]
    monkeypatch.setattr(once._Process, "store", Memory())
    task = FakeTask()
    with pytest.raises(PermanentError, match="is a text"):
        once.run(task, spec, {spec.once_key or "": 5}, lambda: once.Outcome(1), begins=False)
    task.request.id = None
    with pytest.raises(PermanentError, match="map or chunk"):
        once.run(task, spec, {}, lambda: once.Outcome(1), begins=False)


@pytest.mark.parametrize(
    ("ended", "again"),
    [
        (Retry(exc=ValueError("x"), when=5), "drop"),
        (Retry(when=datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=5)), "drop"),
        (Ignore("replaced by another task"), "drop"),
        (Reject("not mine", requeue=True), "run"),
        (Reject("not mine", requeue=False), "repeat"),
    ],
)
def test_what_a_task_decides_by_celerys_own_means_leaves_no_doubt(
    monkeypatch: pytest.MonkeyPatch, ended: Exception, again: str
) -> None:
    """Delivered again, as after a lost acknowledgement, the message is not held for a person."""
    spec, store, runs = QUEUES.task("email.send_email")[1], Memory(), []
    monkeypatch.setattr(once._Process, "store", store)

    def attempt() -> once.Outcome:
        runs.append(1)
        raise ended

    with pytest.raises(type(ended)):
        once.run(FakeTask(), spec, {}, attempt, begins=False)
    if again == "run":
        with pytest.raises(type(ended)):
            once.run(FakeTask(), spec, {}, attempt, begins=False)
    elif isinstance(ended, Retry):
        # The same attempt comes again, and then the next one.
        assert once.run(FakeTask(), spec, {}, attempt, begins=False).wait in range(1, 6)
        task = FakeTask()
        task.request.retries = 1
        assert once.run(task, spec, {}, lambda: once.Outcome("sent"), begins=False) == once.Outcome("sent")
    elif again == "drop":
        with pytest.raises(SupersededError):
            once.run(FakeTask(), spec, {}, attempt, begins=False)
    else:
        found = once.run(FakeTask(), spec, {}, attempt, begins=False)
        assert isinstance(found.error, PermanentError)
        assert found.error.code == "rejected"
    assert len(runs) == (2 if again == "run" else 1)


def test_a_claim_is_extended_while_its_task_waits_and_still_settles(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, now = QUEUES.task("email.send_email")[1], time.time()
    store, clock = Memory(), SimpleNamespace(time=lambda: now, monotonic=time.monotonic, sleep=time.sleep)
    monkeypatch.setattr(once._Process, "store", store)
    monkeypatch.setattr(once, "time", clock)

    def unavailable() -> None:
        raise LedgerUnavailableError

    def lease() -> float:
        (text,) = store.entries.values()
        return Entry.read(text).until

    def attempt() -> once.Outcome:
        nonlocal now
        first = lease()
        once.extend()
        assert lease() == first, "not for each look"
        for _ in range(10):
            now += spec.time_limit
            once.extend()
            assert lease() == pytest.approx(now + spec.time_limit + ledger.LEASE_MARGIN)
        now += spec.time_limit
        store.between.append(unavailable)
        once.extend()
        return once.Outcome("done")

    once.extend()
    assert once.run(FakeTask(), spec, {}, attempt, begins=False) == once.Outcome("done")
    (text,) = store.entries.values()
    assert Entry.read(text).state == "done"


@pytest.mark.parametrize(("back", "next_action"), [(Reject, "run"), (once.GivenBackError, "hold")])
def test_a_message_that_goes_back_leaves_a_doubt_unless_its_task_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, back: type[Reject], next_action: str
) -> None:
    spec, store = QUEUES.task("email.send_email")[1], Memory()
    monkeypatch.setattr(once._Process, "store", store)

    def attempt() -> once.Outcome:
        raise back("later", requeue=True)

    with pytest.raises(Reject):
        once.run(FakeTask(), spec, {}, attempt, begins=False)
    (text,) = store.entries.values()
    again = Attempt("a", replays=1, retries=0)
    assert decide(again, Entry.read(text), now_claim(), resend=False).action == next_action


@pytest.mark.parametrize("wait", [7, None])
def test_an_uncertain_attempt_leaves_a_doubt_and_not_a_retry(monkeypatch: pytest.MonkeyPatch, wait: int | None) -> None:
    spec = QUEUES.task("email.send_email")[1]
    store, task = Memory(), FakeTask()
    monkeypatch.setattr(once._Process, "store", store)
    outcome = once.Outcome(error=UncertainError("uncertain", "no answer"), wait=wait)
    if wait is None:
        with pytest.raises(InDoubtError):
            once.run(task, spec, {}, lambda: outcome, begins=False)
    else:
        assert once.run(task, spec, {}, lambda: outcome, begins=False) == outcome
    (text,) = store.entries.values()
    assert decide(Attempt("a", replays=1, retries=1), Entry.read(text), now_claim(), resend=False).action == "hold"


def test_a_doubt_keeps_its_run_on_the_way_to_the_dead_letter() -> None:
    error = pickle.loads(pickle.dumps(InDoubtError("r1")))
    assert (error.run, error.code) == ("r1", "in-doubt")
    assert "--not-done" in str(error)


@pytest.fixture
def sql(tmp_path: Path) -> SqlStore:
    from queues.app import create_app

    path = tmp_path / "results.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    connection.close()
    app = create_app(Settings(results=ResultSettings(url=f"db+sqlite:///{path}")))
    store = open_store(app, "sql", 14)
    assert isinstance(store, SqlStore)
    store.prepare()
    store.prepare()
    return store


def test_the_table_lets_one_of_many_claim(sql: SqlStore) -> None:
    actions: list[str] = []
    barrier = threading.Barrier(4)

    def ask(name: str) -> None:
        barrier.wait()
        actions.append(claim(sql, "k", Attempt(name), mine(name, id=name), resend=False).action)

    threads = [threading.Thread(target=ask, args=(str(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(actions) == ["run", "wait", "wait", "wait"]


def test_the_table_changes_only_what_was_read(sql: SqlStore) -> None:
    assert sql.read("k") is None
    assert sql.swap("k", None, "one")
    assert not sql.swap("k", None, "two")
    assert not sql.swap("k", "other", "two")
    assert sql.swap("k", "one", "two")
    assert sql.read("k") == "two"


def test_old_entries_are_forgotten_and_young_ones_are_not(sql: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    sql.swap("old", None, "x")
    monkeypatch.setattr(time, "time", lambda: now + 14 * DAY)
    sql.swap("young", None, "x")
    assert sql.purge() == 0
    monkeypatch.setattr(time, "time", lambda: now + 15 * DAY + 1)
    assert sql.purge() == 1
    assert sql.read("old") is None
    assert sql.read("young") == "x"


def test_a_store_that_is_away_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from celery.backends.database import session

    from queues.app import create_app

    monkeypatch.setattr(session, "PREPARE_MODELS_MAX_RETRIES", 0)
    app = create_app(Settings(results=ResultSettings(url=f"db+sqlite:///{tmp_path}/gone/results.sqlite")))
    with pytest.raises(LedgerUnavailableError):
        SqlStore(app, 14).read("k")


def test_a_store_that_is_away_tells_nothing_of_what_it_was_to_keep(sql: SqlStore, tmp_path: Path) -> None:
    sql.app.backend.engine_options["connect_args"] = {"timeout": 0}
    other = sqlite3.connect(tmp_path / "results.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with contextlib.closing(other), pytest.raises(LedgerUnavailableError) as caught:
        sql.swap("k", None, "ada@example.com")
    assert str(caught.value) == "OperationalError: (sqlite3.OperationalError) database is locked"
    assert "ada" not in f"{caught.value.__cause__}"


@pytest.mark.parametrize("kind", ["disabled", ""])
def test_a_result_store_that_keeps_nothing_keeps_no_ledger(kind: str) -> None:
    from queues.app import create_app

    assert open_store(create_app(Settings()), kind, 14) is None
