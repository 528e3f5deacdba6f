"""What a process looks at before it starts: each finding is one sentence with its remedy, and exit code 2."""

from __future__ import annotations

import contextlib
import signal
import socket
import sqlite3
import ssl
import threading
import time
from typing import TYPE_CHECKING

import pytest

from ops.certs import Authority
from ops.local import Stack
from ops.ports import free_port
from queues.app import create_app
from queues.errors import ConfigurationError
from queues.settings import Settings
from queues.topology import QUEUES
from tests.integration.helpers import PATIENCE, PROJECT, acting_as, awaited, ended, lines, ready, start
from tests.resultserver import ResultServer, installed, need_store
from workers import selfcheck

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration


def refused(environment: dict[str, str], *arguments: str, log: Path) -> str:
    """What a process printed that refused to start: sentences, and no traceback."""
    code = ended(start(environment, *arguments, log=log))
    said = log.read_text()
    assert code == 2, said
    assert "Traceback" not in said
    return said


WORKER = ("worker", "-Q", "math", "-n", "math@start")
BEAT = ("beat", "--pidfile=", "--schedule", "schedule")


@contextlib.contextmanager
def without(stack: Stack, kind: str, name: str) -> Iterator[None]:
    """The broker lacks a queue or exchange."""
    with acting_as(stack, "operator").connection_for_write() as connection, connection.channel() as channel:
        getattr(channel, f"{kind}_delete")(name)
    try:
        yield
    finally:
        stack.broker.ctl("import_definitions", str(stack.broker.definitions_path))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("queue", "math"),
        ("exchange", "tasks.math"),
        ("exchange", "celery_delayed_27"),
        ("exchange", "dead-letters"),
        ("exchange", "metrics"),
        ("exchange", "celery.pidbox"),
        ("exchange", "celeryev"),
    ],
)
def test_a_worker_names_what_its_broker_lacks(idle: Stack, tmp_path: Path, kind: str, name: str) -> None:
    with without(idle, kind, name):
        said = refused(idle.environment("worker-math"), *WORKER, log=tmp_path / "log")
    assert f"{kind} {name} does not exist at 127.0.0.1:{idle.broker.ports.amqps}: run `warren check`" in said


@pytest.mark.parametrize("role", ["producer", "worker-image"])
def test_a_worker_with_another_roles_user_says_so(idle: Stack, tmp_path: Path, role: str) -> None:
    environment = {**idle.environment(role), "RESULT_BACKEND": f"db+sqlite:///{tmp_path}/results"}
    said = refused(environment, *WORKER, log=tmp_path / "log")
    assert f"user {role} may not have the queue math@start.celery.pidbox: set BROKER_USER to this role's own" in said


def test_a_worker_whose_name_is_not_its_queues_says_so(idle: Stack, tmp_path: Path) -> None:
    said = refused(idle.environment("worker-math"), "worker", "-Q", "math", "-n", "w1@here", log=tmp_path / "log")
    assert "name a worker QUEUE@NAME, or not at all" in said


def test_a_second_worker_of_one_name_waits_and_then_says_so_and_the_first_goes_on(idle: Stack, tmp_path: Path) -> None:
    environment = {**idle.environment("worker-math"), "BROKER_HEARTBEAT": "5"}
    first = start({**environment, "HEARTBEAT_FILE": str(tmp_path / "alive")}, *WORKER, log=tmp_path / "first")
    try:
        assert awaited((tmp_path / "alive").exists, 60), (tmp_path / "first").read_text()
        began = time.monotonic()
        second = start(environment, *WORKER, log=tmp_path / "second")
        code = ended(second)
        said = (tmp_path / "second").read_text()
        assert "another worker is called math@start: give this one a name" in said
        assert "Traceback" not in said
        assert code == 2
        assert time.monotonic() - began > 2 * 5, "the broker gives a silent connection up after two heartbeats"
        assert first.poll() is None
        assert acting_as(idle, "producer").send_task("math.add", [20, 22]).get(timeout=PATIENCE) == 42
    finally:
        first.terminate()
        assert ended(first) == 0


def test_a_worker_gets_in_when_the_broker_gives_up_its_predecessors_silent_connection(
    idle: Stack, tmp_path: Path
) -> None:
    """As a container that is started anew while its old connection is half-open."""
    environment = {**idle.environment("worker-math"), "BROKER_HEARTBEAT": "5"}
    log = tmp_path / "first"
    first = start({**environment, "HEARTBEAT_FILE": str(tmp_path / "alive")}, *WORKER, log=log)
    second = None
    try:
        assert awaited((tmp_path / "alive").exists, 60), log.read_text()
        first.send_signal(signal.SIGSTOP)
        second = start({**environment, "HEARTBEAT_FILE": str(tmp_path / "next")}, *WORKER, log=tmp_path / "second")
        assert awaited((tmp_path / "next").exists, 60), (tmp_path / "second").read_text()
        assert "still taken" in (tmp_path / "second").read_text()
    finally:
        first.kill()
        first.wait()
        if second is not None:
            second.terminate()
            assert ended(second) == 0


@contextlib.contextmanager
def dying() -> Iterator[int]:
    """The port of a broker that dies whenever TLS is about to be agreed."""

    def hang_up() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                connection.recv(1 << 16)
                connection.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=hang_up)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("away", [dying, lambda: contextlib.nullcontext(free_port())], ids=["dying", "gone"])
def test_a_broker_that_is_away_is_waited_for(
    idle: Stack, tmp_path: Path, away: Callable[[], contextlib.AbstractContextManager[int]]
) -> None:
    log = tmp_path / "log"
    with away() as port:
        environment = {**idle.environment("worker-math"), "BROKER_HOSTS": f"127.0.0.1:{port}"}
        worker = start(environment, *WORKER, log=log)
        try:
            assert awaited(lambda: "trying again" in log.read_text() or worker.poll() is not None)
            assert worker.poll() is None, log.read_text()
        finally:
            worker.terminate()
            assert ended(worker) == 0


@pytest.mark.parametrize(
    ("kind", "name"),
    [("exchange", "tasks.monitor"), ("exchange", "beat.state"), ("queue", "beat.state")],
)
def test_beat_names_what_its_broker_lacks(idle: Stack, tmp_path: Path, kind: str, name: str) -> None:
    with without(idle, kind, name):
        said = refused(idle.environment("beat"), *BEAT, log=tmp_path / "log")
    assert f"{kind} {name} does not exist" in said


def test_beat_with_another_roles_user_says_so(idle: Stack, tmp_path: Path) -> None:
    environment = {**idle.environment("producer"), "RESULT_BACKEND": "disabled://"}
    assert "user producer may not have the queue beat.lock" in refused(environment, *BEAT, log=tmp_path / "log")


@pytest.mark.parametrize(("role", "arguments"), [("worker-math", WORKER), ("beat", BEAT)], ids=["worker", "beat"])
def test_untested_versions_are_one_line_and_no_end(
    idle: Stack, tmp_path: Path, role: str, arguments: tuple[str, ...]
) -> None:
    newer = tmp_path / "newer" / "celery-5.99.0.dist-info"
    newer.mkdir(parents=True)
    (newer / "METADATA").write_text("Metadata-Version: 2.1\nName: celery\nVersion: 5.99.0\n")
    environment = {**idle.environment(role), "PYTHONPATH": f"{newer.parent}:{PROJECT}", "HEARTBEAT_FILE": "beating"}
    log = tmp_path / "log"
    process = start(environment, *arguments, log=log)
    sign = tmp_path / ("beating" if role == "worker-math" else "schedule")
    try:
        assert awaited(lambda: sign.exists() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
    finally:
        process.terminate()
        assert ended(process) == 0, log.read_text()
    said = [line for line in lines(log) if "untested" in line["message"]]
    assert [line["level"] for line in said] == ["warning"], log.read_text()
    assert "celery 5.99.0, where Warren was tested with celery 5." in said[0]["message"]


def test_a_connection_that_checks_no_certificate_is_refused_at_first_use(idle: Stack) -> None:
    app = acting_as(idle, "producer")
    app.conf.broker_use_ssl = {**app.conf.broker_use_ssl, "cert_reqs": ssl.CERT_OPTIONAL}
    with pytest.raises(ConfigurationError, match=r"not checked for its name: leave broker_url and broker_use_ssl"):
        app.send_task("math.add", [1, 2])


def test_kombus_own_transport_does_not_check_the_name_and_is_refused(idle: Stack) -> None:
    app = acting_as(idle, "producer")
    app.conf.broker_url = app.conf.broker_url.replace("warren-amqps", "amqps")
    options = {name: value for name, value in app.conf.broker_use_ssl.items() if name != "server_hostname"}
    app.conf.broker_use_ssl = options
    with pytest.raises(ConfigurationError, match="not checked for its name"):
        app.send_task("math.add", [1, 2])


def test_an_exchange_that_cannot_delay_and_a_limit_beyond_the_timeout_are_refused(
    idle: Stack, capsys: pytest.CaptureFixture[str]
) -> None:
    queue = QUEUES.queue("math")
    app = create_app(Settings.from_env(idle.environment("worker-math")))
    app.finalize()
    for task in app.tasks.values():
        task.time_limit, task.soft_time_limit = queue.time_limit, queue.soft_time_limit
    selfcheck.limits(app, queue)
    app.tasks["celery.chunks"].time_limit = queue.consumer_timeout - 1
    with pytest.raises(SystemExit):
        selfcheck.limits(app, queue)
    assert (
        "celery.chunks has the hard limit 1799: the queue's consumer_timeout allows 1680 s" in capsys.readouterr().err
    )
    app.tasks["celery.chunks"].time_limit = queue.time_limit
    app.amqp.queues["image"].exchange.type = "direct"
    with pytest.raises(SystemExit):
        selfcheck.limits(app, queue)
    assert "exchange tasks.image is direct: delays and retries need a topic exchange" in capsys.readouterr().err


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ResultServer]:
    need_store(installed(), "redis")
    with ResultServer(tmp_path_factory.mktemp("store")) as server:
        yield server


def with_store(idle: Stack, store: ResultServer, tmp_path: Path, **changes: str) -> dict[str, str]:
    values = {**store.environment(), "HEARTBEAT_FILE": str(tmp_path / "alive")}
    return {**idle.environment("worker-math"), **values, **changes}


def test_a_result_store_that_verifies_is_used(idle: Stack, store: ResultServer, tmp_path: Path) -> None:
    environment = with_store(idle, store, tmp_path)
    worker = start(environment, *WORKER, log=tmp_path / "log")
    try:
        assert awaited((tmp_path / "alive").exists, 60), (tmp_path / "log").read_text()
        names = ("RESULT_BACKEND", "RESULT_CA", "RESULT_PASSWORD_FILE")
        producer = acting_as(idle, "producer", **{name: environment[name] for name in names})
        assert producer.send_task("math.add", [20, 22]).get(timeout=PATIENCE) == 42
    finally:
        worker.terminate()
        assert ended(worker) == 0


def test_a_result_store_that_does_not_verify_is_a_sentence(idle: Stack, store: ResultServer, tmp_path: Path) -> None:
    other = Authority.ensure(tmp_path / "other")
    (tmp_path / "wrong").write_text("wrong")
    cases = (
        ({"RESULT_BACKEND": f"rediss://127.0.0.2:{store.port}/0"}, "its certificate is not valid (IP address mismatch"),
        ({"RESULT_CA": str(other.folder / "ca.crt")}, "check RESULT_CA and RESULT_BACKEND"),
        ({"RESULT_PASSWORD_FILE": str(tmp_path / "wrong")}, "refused the login: check RESULT_PASSWORD_FILE"),
    )
    for number, (changes, words) in enumerate(cases):
        said = refused(with_store(idle, store, tmp_path, **changes), *WORKER, log=tmp_path / f"log{number}")
        assert "the result store cannot be used: " in said
        assert words in said
        assert "secret-of-the-store" not in said


def test_a_result_store_that_stops_answering_does_not_stop_the_workers_loop(
    idle: Stack, store: ResultServer, tmp_path: Path
) -> None:
    """Celery would try each of these calls for a minute and more, in the main process, whose watchdog then ends it."""
    environment = with_store(idle, store, tmp_path)
    names = ("RESULT_BACKEND", "RESULT_CA", "RESULT_PASSWORD_FILE")
    producer = acting_as(idle, "producer", **{name: environment[name] for name in names})
    operator = acting_as(idle, "operator")
    alive, log = tmp_path / "alive", tmp_path / "log"
    worker = start(environment, *WORKER, log=log)
    try:
        assert awaited(alive.exists, 60), log.read_text()
        assert producer.send_task("math.add", [1, 1]).get(timeout=PATIENCE) == 2
        dead = ready(operator, "math.dead")
        store.freeze()
        # The main process itself records that a task has expired.
        expired = [producer.send_task("math.add", [1, 2], expires=-5) for _ in range(5)]
        failing = [producer.send_task("math.reliable_task", [{"fail": True}]) for _ in range(5)]
        sums = [producer.send_task("math.add", [number, 1]) for number in range(5)]
        ages: list[float] = []

        def all_dead() -> bool:
            ages.append(time.time() - alive.stat().st_mtime)
            return ready(operator, "math.dead") == dead + len(expired) + len(failing)

        assert awaited(all_dead, 120), log.read_text()
        assert max(ages) < 60, "a health check allows a minute"
        store.thaw()
        assert [done.get(timeout=60) for done in sums] == [1, 2, 3, 4, 5]
        assert ready(operator, "math.dead") == dead + len(expired) + len(failing)
        assert worker.poll() is None
    finally:
        store.thaw()
        worker.terminate()
        assert ended(worker) == 0


def test_a_file_that_is_no_database_is_a_sentence(idle: Stack, tmp_path: Path) -> None:
    (tmp_path / "results").write_text("something else")
    environment = {**idle.environment("worker-math"), "RESULT_BACKEND": f"db+sqlite:///{tmp_path}/results"}
    assert "the file is no SQLite database" in refused(environment, *WORKER, log=tmp_path / "log")


def test_tables_of_something_else_are_a_sentence(idle: Stack, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "results")) as database:
        database.execute("CREATE TABLE celery_taskmeta (name TEXT)")
    environment = {**idle.environment("worker-math"), "RESULT_BACKEND": f"db+sqlite:///{tmp_path}/results"}
    assert "its tables have other columns" in refused(environment, *WORKER, log=tmp_path / "log")
