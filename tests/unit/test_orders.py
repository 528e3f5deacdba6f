"""Orders of remote control that Celery would carry out to a worker's harm."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from queues.topology import QUEUES
from workers import orders, remote
from workers.guard import bounded

MATH = QUEUES.queue("math")
ADD = QUEUES.task("math.add")[1]


#: What no limit can be.
NO_LIMITS: tuple[Any, ...] = (0, -1, math.nan, math.inf, "30", True, [1], {})


class Queues(dict[str, Any]):
    """Celery's queues, as far as it keeps account of which are consumed."""

    def __init__(self, *names: str) -> None:
        super().__init__({name: SimpleNamespace(name=name) for name in QUEUES.names})
        self.consume_from = {name: self[name] for name in names}

    def deselect(self, name: str) -> None:
        self.consume_from.pop(name)

    def select_add(self, queue: Any) -> None:
        self.consume_from[queue.name] = queue


class Pool:
    """A pool of which some processes are busy."""

    def __init__(self, processes: int, busy: int = 0) -> None:
        self.num_processes, self.busy = processes, busy

    def grow(self, n: int) -> None:
        self.num_processes += n

    def shrink(self, n: int) -> None:
        if n > self.num_processes - self.busy:
            raise ValueError("Can't shrink pool. All processes busy!")
        self.num_processes -= n


def a_state(queue: str = "math", pool: Pool | None = None) -> Any:
    """A worker as Celery hands it to a command."""
    tasks = {
        task.name: SimpleNamespace(
            name=task.name, time_limit=task.time_limit, soft_time_limit=task.soft_time_limit, rate_limit=None
        )
        for task in QUEUES.queue(queue).tasks
    }
    row = QUEUES.queue(queue)
    tasks["celery.map"] = SimpleNamespace(time_limit=row.time_limit, soft_time_limit=row.soft_time_limit)
    app = SimpleNamespace(topology=QUEUES, tasks=tasks, amqp=SimpleNamespace(queues=Queues(queue)))
    done: list[tuple[str, str]] = []
    consumer = SimpleNamespace(
        app=app,
        letters=SimpleNamespace(queue=queue),
        pool=pool or Pool(2),
        controller=SimpleNamespace(concurrency=2),
        reset_rate_limits=lambda: None,
        done=done,
        cancel_task_queue="cancel",
        add_task_queue="add",
        call_soon=lambda *call: done.append(call),
    )
    return SimpleNamespace(app=app, consumer=consumer)


def limits_of(state: Any, name: str = "math.add") -> tuple[float, float]:
    task = state.app.tasks[name]
    return task.soft_time_limit, task.time_limit


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"soft": 10}, (10, ADD.time_limit)),
        ({"hard": 12}, (min(ADD.soft_time_limit, 12 * orders.SOFT_SHARE), 12)),
        ({"hard": 30}, (ADD.soft_time_limit, 30)),
        ({"soft": 2.5, "hard": 5}, (2.5, 5)),
        ({"hard": MATH.longest}, (ADD.soft_time_limit, MATH.longest)),
        ({}, (ADD.soft_time_limit, ADD.time_limit)),
    ],
)
def test_a_limit_that_is_left_out_is_the_tables(given: dict[str, float], expected: tuple[float, float]) -> None:
    state = a_state()
    state.app.tasks["math.add"].soft_time_limit = state.app.tasks["math.add"].time_limit = 1.0
    answer = orders.time_limit(state, "math.add", **given)
    assert "ok" in answer, answer
    assert limits_of(state) == expected
    hard, soft = bounded(None, expected[1], expected[0])
    assert 0 < soft < hard, "the next message is bounded by them"


@pytest.mark.parametrize(
    "given",
    [
        {"soft": 10, "hard": 5},
        {"soft": 5, "hard": 5},
        {"soft": ADD.time_limit},
        {"hard": MATH.longest + 1},
        {"soft": 5000, "hard": 6000},
        *({kind: value} for kind in ("soft", "hard") for value in NO_LIMITS),
        {"task_name": "nope", "hard": 5},
        {"task_name": None},
        {"task_name": ["math.add"], "hard": 5},
    ],
)
def test_limits_that_cannot_hold_change_nothing(given: dict[str, Any]) -> None:
    state = a_state()
    answer = orders.time_limit(state, **{"task_name": "math.add", **given})
    assert answer["error"].startswith("time_limit is refused: "), answer
    assert limits_of(state) == (ADD.soft_time_limit, ADD.time_limit)


def test_a_task_that_must_not_run_twice_does_not_outlive_its_claim() -> None:
    (mail,) = (task for task in QUEUES.queue("email").tasks if task.once)
    state = a_state("email")
    assert "the ledger holds its claim" in orders.time_limit(state, mail.name, hard=mail.time_limit + 1)["error"]
    assert "ok" in orders.time_limit(state, mail.name, hard=mail.time_limit, soft=1)
    assert limits_of(state, mail.name) == (1, mail.time_limit)


def test_celerys_own_tasks_have_the_queues_limits() -> None:
    state = a_state()
    assert "ok" in orders.time_limit(state, "celery.map", soft=5)
    assert limits_of(state, "celery.map") == (5, MATH.time_limit)


@pytest.mark.parametrize("rate", ["10/s", "5/m", 3, "0", 0, None, ""])
def test_rates_as_celery_takes_them(rate: Any) -> None:
    state = a_state()
    assert "ok" in orders.rate_limit(state, "math.add", rate)
    assert state.app.tasks["math.add"].rate_limit == rate


@pytest.mark.parametrize("rate", ["abc", "nan/s", "inf/s", "-1/s", "5/x", "1e400", True, [1], {}, "1/h", "1e-320/s"])
def test_rates_that_would_hold_or_spin_are_refused(rate: Any) -> None:
    state = a_state()
    assert "rate_limit is refused" in orders.rate_limit(state, "math.add", rate)["error"]
    assert state.app.tasks["math.add"].rate_limit is None


@pytest.mark.parametrize("n", [0, -1, "x", None, 1.5, 5])
def test_a_pool_keeps_a_process_and_grows_to_where_it_began(n: Any) -> None:
    state = a_state()
    assert "error" in orders.pool_shrink(state, n)
    assert "error" in orders.pool_grow(state, n)
    assert state.consumer.pool.num_processes == 2
    assert "ok" in orders.pool_shrink(state)
    assert "error" in orders.pool_shrink(state)
    assert "ok" in orders.pool_grow(state)
    assert state.consumer.pool.num_processes == 2


def test_a_busy_pool_is_not_shrunk() -> None:
    assert "2 are busy" in orders.pool_shrink(a_state(pool=Pool(2, busy=2)))["error"]


def test_a_worker_is_paused_and_taken_up_again_at_once() -> None:
    state = a_state()
    consumer = state.consumer
    for name in ("image", None, ["math"]):
        assert "consumes math alone" in orders.cancel_consumer(state, name)["error"]
        assert "this one math" in orders.add_consumer(state, name, exchange="x")["error"]
    assert not orders.paused(consumer)
    assert "ok" in orders.add_consumer(state, "math")
    assert not consumer.done
    for _ in range(2):
        assert "paused on purpose" in orders.cancel_consumer(state, "math")["ok"]
        assert orders.paused(consumer)
    for _ in range(2):
        assert "ok" in orders.add_consumer(state, "math", exchange="", exchange_type="direct", routing_key="math")
        assert not orders.paused(consumer)
    assert consumer.done == [("cancel", "math"), ("add", "math")]


@pytest.mark.parametrize("registered", [{"ping": 1, "time_limit": 2, "objgraph": 3}, {"ping": 1}])
def test_only_what_is_registered_is_replaced(registered: dict[str, Any]) -> None:
    mailbox: Any = SimpleNamespace(clock=SimpleNamespace(adjust=None))
    before = dict(registered)
    node = remote.Node("math@here", None, None, registered, mailbox=mailbox)
    assert registered == before, "they are those of every app in the process"
    assert set(node.handlers) == set(registered)
    assert node.handlers["ping"] == 1
    assert all(node.handlers[name] is orders.ORDERS[name] for name in registered if name != "ping")
    assert "does not exist" in node.handlers["nonsense"](None, id=1)["error"]
    restricted = remote.Node("math@here", None, None, remote.Questions(registered), mailbox=mailbox)
    assert "is off: set REMOTE_CONTROL=full" in restricted.handlers["nonsense"](None)["error"]


def test_what_is_not_offered_says_what_to_do_instead() -> None:
    for name, why in orders.NOT_OFFERED.items():
        assert orders.ORDERS[name](None, id="1", topic="x") == {"error": f"{name} is refused: {why}"}
