"""Remote control and Celery's own commands, with and without workers, as operators use them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from kombu import Producer

from queues.errors import BrokerUnavailableError, ControlRefusedError
from queues.topology import QUEUES
from tests.integration.helpers import PATIENCE, PROJECT, acting_as, awaited, consumers, ended, lines, ready, start
from workers import heartbeat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ops.local import Stack
    from queues.app import WarrenCelery

pytestmark = pytest.mark.integration

NODE = "math@full"
ADD = QUEUES.task("math.add")[1]


@pytest.fixture
def celery(idle: Stack, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def command(*arguments: str, role: str = "operator") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "celery", "-A", "workers.app", *arguments],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT), **idle.environment(role)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    return command


class Worker:
    """A worker with `REMOTE_CONTROL=full`, and what an operator sees of it."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, alive: Path) -> None:
        self.process, self.log, self.alive = process, log, alive

    @property
    def said(self) -> list[str]:
        return [line["message"] for line in lines(self.log)]


@pytest.fixture(scope="module")
def worker(idle: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    folder = tmp_path_factory.mktemp("full")
    environment = {
        **idle.environment("worker-math"),
        "REMOTE_CONTROL": "full",
        "HEARTBEAT_FILE": str(folder / "alive"),
    }
    arguments = ("worker", "-Q", "math", "-n", NODE, "--loglevel", "INFO")
    process = start(environment, *arguments, log=folder / "log")
    made = Worker(process, folder / "log", folder / "alive")
    try:
        assert awaited(made.alive.exists), made.log.read_text()
        yield made
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def operator(idle: Stack) -> WarrenCelery:
    return acting_as(idle, "operator")


@pytest.fixture
def producer(idle: Stack) -> WarrenCelery:
    return acting_as(idle, "producer")


def order(app: WarrenCelery, name: str, **arguments: Any) -> Any:
    """A worker's answer to a command."""
    answers = app.control.broadcast(
        name, arguments=arguments, destination=[NODE], reply=True, timeout=PATIENCE, limit=1
    )
    return answers[0][NODE]


def works(app: WarrenCelery) -> bool:
    return bool(app.send_task("math.add", (2, 3)).get(timeout=PATIENCE) == 5)


def test_without_a_worker_nobody_answers_and_nothing_is_wrong(
    operator: WarrenCelery, celery: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    assert operator.control.ping(timeout=0.5) == []
    inspect = operator.control.inspect(timeout=0.5)
    assert inspect.ping() is None
    assert inspect.active() is None
    operator.AsyncResult("nobodys").revoke()
    operator.control.shutdown()
    for command in (("status",), ("inspect", "ping"), ("control", "rate_limit", "math.add", "1/s")):
        done = celery(*command)
        assert (done.returncode, done.stderr) == (69, "Error: No nodes replied within time constraint\n"), command


def test_who_may_not_ask_is_told_so(
    producer: WarrenCelery, celery: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    for ask in (
        producer.control.ping,
        producer.control.inspect().active,
        producer.AsyncResult("nobodys").revoke,
        producer.control.shutdown,
    ):
        with pytest.raises(ControlRefusedError, match="use the operator's settings"):
            ask()
    assert producer.send_task("math.add", (1, 2)).id, "the pool's connections are as they were"
    done = celery("status", role="worker-math")
    assert done.returncode == 69
    assert "Unable to run the `status` command. Reason: this broker user may not ask or order workers" in done.stderr


def test_without_a_broker_a_question_is_refused_in_time(idle: Stack) -> None:
    app = acting_as(idle, "operator", BROKER_HOSTS="localhost:1", PUBLISH_TIMEOUT="1")
    with pytest.raises(BrokerUnavailableError, match=r"no broker answers at 127\.0\.0\.1:1"):
        app.control.ping()


def test_an_unknown_task_is_a_sentence(celery: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = celery("call", "math.nothing")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: task 'math.nothing' is not in the table: use one of math.add, ")
    assert done.stderr.count("\n") == 1


def test_limits_and_rates_that_are_ordered_hold(
    worker: Worker, operator: WarrenCelery, celery: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = celery("control", "-t", "30", "-d", NODE, "time_limit", "math.add", "10")
    assert f"math.add has a soft limit of 10 s and a hard limit of {ADD.time_limit} s" in done.stdout
    assert works(operator)
    for limits in ({"hard": 30}, {"soft": 5, "hard": 10}, {}):
        assert "ok" in order(operator, "time_limit", task_name="math.add", **limits)
        assert works(operator)
    assert "beyond the" in order(operator, "time_limit", task_name="math.add", soft=5000, hard=6000)["error"]
    assert "is no rate" in order(operator, "rate_limit", task_name="math.add", rate_limit="nan/s")["error"]
    assert "ok" in order(operator, "rate_limit", task_name="math.add", rate_limit=0)
    assert works(operator)


def test_commands_that_cannot_work_here_are_refused_and_leave_the_worker(
    worker: Worker, operator: WarrenCelery, celery: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = celery("control", "-t", "10", "add_consumer", "image")
    assert "add_consumer is refused: a worker consumes one queue, this one math" in done.stdout
    for name, arguments in (
        ("objgraph", {}),
        ("election", {"id": "1", "topic": "x"}),
        ("autoscale", {"max": 4, "min": 1}),
        ("pool_restart", {}),
        ("pool_grow", {"n": 2}),
        ("pool_shrink", {"n": 5}),
        ("cancel_consumer", {"queue": "image"}),
        ("add_consumer", {"queue": "nowhere", "exchange": "x", "exchange_type": "direct", "routing_key": "x"}),
    ):
        assert f"{name} is refused: " in order(operator, name, **arguments)["error"]
    assert "does not exist" in order(operator, "nonsense")["error"]
    assert works(operator)
    assert "Traceback" not in worker.log.read_text()


def test_a_worker_that_is_paused_stays_so_and_is_healthy(
    worker: Worker, operator: WarrenCelery, producer: WarrenCelery, idle: Stack
) -> None:
    assert "paused on purpose" in order(operator, "cancel_consumer", queue="math")["ok"]
    assert awaited(lambda: consumers(operator, "math") == 0)
    before = worker.alive.stat().st_mtime
    waiting = producer.send_task("math.add", (2, 3))
    idle.broker.ctl("close_all_connections", "--global", "test")
    sentence = "paused on purpose: math is not consumed until `add_consumer math`, or a restart"
    assert awaited(lambda: worker.said.count(sentence) == 2), "on the new connection, again"
    assert awaited(lambda: worker.alive.exists() and worker.alive.stat().st_mtime > before + heartbeat.INTERVAL)
    assert order(operator, "ping") == {"ok": "pong"}
    assert order(operator, "active_queues") == []
    assert (consumers(operator, "math"), ready(operator, "math")) == (0, 1)
    assert "ok" in order(operator, "add_consumer", queue="math")
    assert waiting.get(timeout=PATIENCE) == 5
    idle.broker.ctl("close_all_connections", "--global", "test")
    assert awaited(lambda: len([text for text in worker.said if "Connection to broker lost" in text]) == 2)
    assert works(operator), "and after a connection more"
    assert worker.process.poll() is None
    assert not [text for text in worker.said if "Error in timer" in text]


def test_a_command_that_cannot_be_read_is_no_dead_letter(worker: Worker, operator: WarrenCelery) -> None:
    before = ready(operator, "math.dead")
    with operator.connection_for_write() as connection:
        Producer(connection.default_channel, auto_declare=False).publish(
            b"{", exchange="celery.pidbox", content_type="application/json", content_encoding="utf-8"
        )
    assert awaited(lambda: "a remote control command that cannot be decoded is left out: DecodeError" in worker.said)
    assert works(operator)
    assert ready(operator, "math.dead") == before


def test_the_reason_of_a_retry_is_in_the_log(worker: Worker, producer: WarrenCelery) -> None:
    result = producer.send_task("math.reliable_task", ({"fail_times": 1, "note": "ada@example.com"},))
    assert result.get(timeout=PATIENCE)["attempts"] == 2
    (line,) = (line for line in lines(worker.log) if line["message"].startswith("task retried"))
    assert line["message"].endswith("s: TransientError: attempt 1 was asked to fail: it is retried")
    assert (line["task_id"], line["task"], line["attempt"]) == (result.id, "math.reliable_task", 1)
    assert "ada@example.com" not in worker.log.read_text()


def test_a_worker_ends_by_order(worker: Worker, operator: WarrenCelery) -> None:
    """The last that is asked of it."""
    operator.control.shutdown(destination=[NODE])
    assert ended(worker.process) == 0


def test_a_cold_stop_complains_of_nothing_and_writes_to_the_file_of_f(
    idle: Stack, operator: WarrenCelery, tmp_path: Path
) -> None:
    environment = {**idle.environment("worker-math"), "HEARTBEAT_FILE": str(tmp_path / "alive")}
    arguments = ("worker", "-Q", "math", "-n", "math@cold", "--loglevel", "INFO", "-f", str(tmp_path / "%n.log"))
    process = start(environment, *arguments, log=tmp_path / "stderr")
    try:
        assert awaited((tmp_path / "alive").exists), (tmp_path / "stderr").read_text()
        assert works(operator)
        process.send_signal(signal.SIGQUIT)
    finally:
        ended(process)
    said = [line["message"] for line in lines(tmp_path / "math.log")]
    assert [text for text in said if text == "task succeeded"], "a child's lines, too"
    assert not [text for text in said if "measurements cannot be sent" in text]
    assert not lines(tmp_path / "stderr")


def test_a_log_file_that_cannot_be_written_is_a_sentence(idle: Stack, tmp_path: Path) -> None:
    process = start(
        idle.environment("worker-math"), "worker", "-Q", "math", "-f", "/proc/none/log", log=tmp_path / "stderr"
    )
    assert ended(process) == 2
    assert (
        "the log file /proc/none/log cannot be written (No such file or directory)" in (tmp_path / "stderr").read_text()
    )
