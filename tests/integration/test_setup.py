"""A worker that cannot be set up ends with the reason and leaves the messages; what is merely away is waited for."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from queues.topology import QUEUES
from tests.integration.helpers import PATIENCE, PROJECT, acting_as, awaited, ended, ready, start
from tests.postgresql import PostgreSQL, programs
from tests.resultserver import ResultServer, installed, need_store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ops.local import Stack
    from tests.resultserver import Server

pytestmark = pytest.mark.integration

WORKER = ("worker", "-Q", "math", "-n", "math@setup")
HEAD, GOOD = (PROJECT / "workers" / "math_tasks.py").read_text().split("import time\n", 1)
HEAD = f"{HEAD}import time\n"
#: What may be wrong in a team's module, and what the worker says of it.
BROKEN = {
    "missing-variable": (f'{HEAD}import os\nKEY = os.environ["API_KEY"]\n{GOOD}', "KeyError: 'API_KEY' (at {file}:"),
    "missing-package": (f"{HEAD}import no_such_package\n{GOOD}", "'no_such_package'; install the extra"),
    "misspelt": (f"{HEAD}pritn('hello')\n{GOOD}", "NameError: name 'pritn' is not defined"),
    "no-python": ("def add(:\n", "SyntaxError: invalid syntax (at {file}:1)"),
    "not-in-the-table": (
        GOOD + '\n\n@register("math.power")\ndef power(x: int) -> int:\n    return x\n',
        "'math.power'",
    ),
    "registered-twice": (
        GOOD + '\n\n@register("math.add")\ndef plus(x: int, y: int) -> int:\n    return x - y\n',
        "task math.add is registered twice: rename the one in {file}:",
    ),
    "less-than-the-table": (HEAD + GOOD.partition('@register("math.xsum")')[0], "the table differ in math.long_task"),
    "exits": ("raise SystemExit('API_KEY is not set')\n", "API_KEY is not set"),
    "exits-as-we-do": ("raise SystemExit(2)\n", "borrowed_tasks cannot be imported: SystemExit: 2 (at {file}:1)"),
    "receiver-that-exits": (
        HEAD + GOOD + "\n\nfrom celery import signals\n\n\n@signals.worker_init.connect(weak=False)\n"
        "def connect(**_: object) -> None:\n    raise SystemExit(0)\n",
        "what is called at worker_init failed: SystemExit: 0",
    ),
    "receiver": (
        HEAD + GOOD + "\n\nfrom celery import signals\n\n\n@signals.worker_init.connect(weak=False)\n"
        'def connect(**_: object) -> None:\n    raise LookupError("no licence")\n',
        "connect, called at worker_init, failed: LookupError: no licence",
    ),
    "receiver-in-a-process": (
        HEAD + GOOD + "\n\nfrom celery import signals\n\n\n@signals.worker_process_init.connect(weak=False)\n"
        'def connect(**_: object) -> None:\n    raise LookupError("no licence")\n',
        "connect, called at worker_process_init, failed: LookupError: no licence",
    ),
}


@pytest.fixture(autouse=True)
def _empty_queue(idle: Stack) -> Iterator[None]:
    """What no worker of a test has taken would be the next one's."""
    yield
    with acting_as(idle, "operator").connection_for_write() as connection, connection.channel() as channel:
        channel.queue_purge("math")


@pytest.mark.parametrize("kind", BROKEN)
def test_a_module_that_is_wrong_ends_the_worker_and_the_messages_stay(idle: Stack, tmp_path: Path, kind: str) -> None:
    code, words = BROKEN[kind]
    (tmp_path / "borrowed_tasks.py").write_text(code)
    environment = {
        **idle.environment("worker-math"),
        "PYTHONPATH": f"{PROJECT}:{tmp_path}",
        "MATH_MODULE": "borrowed_tasks",
        "HEARTBEAT_FILE": str(tmp_path / "alive"),
    }
    operator, producer = acting_as(idle, "operator"), acting_as(idle, "producer")
    dead, waiting = ready(operator, "math.dead"), ready(operator, "math")
    sent = [producer.send_task("math.add", [number, 1]) for number in range(3)]
    log = tmp_path / "log"
    code_of_exit = ended(start(environment, *WORKER, log=log, app="tests.integration.borrowed"))
    said = log.read_text()
    assert words.format(file=tmp_path / "borrowed_tasks.py") in said
    assert code_of_exit == 2
    assert not any(line.startswith("Traceback") for line in said.splitlines())
    assert awaited(lambda: ready(operator, "math") == waiting + len(sent)), "given back"
    assert ready(operator, "math.dead") == dead
    assert not (tmp_path / "alive").exists()


def test_a_table_that_is_wrong_is_a_sentence(idle: Stack, tmp_path: Path) -> None:
    for folder in ("queues", "workers"):
        shutil.copytree(PROJECT / folder, tmp_path / folder)
    table = tmp_path / "queues" / "topology.py"
    table.write_text(
        table.read_text().replace("soft_time_limit=10, time_limit=15", "soft_time_limit=20, time_limit=15")
    )
    environment = {**idle.environment("worker-math"), "PYTHONPATH": str(tmp_path)}
    code = ended(start(environment, *WORKER, log=tmp_path / "log"))
    said = (tmp_path / "log").read_text()
    assert "TopologyError: task math.add: soft_time_limit 20 must be positive and below time_limit 15" in said
    assert code == 2
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("-c", "8"), "Leave --concurrency out: the queue's row in queues/topology.py says it"),
        (("--autoscale", "4,1"), "Leave --autoscale out"),
        (("--prefetch-multiplier", "4"), "Leave --prefetch-multiplier out"),
        (("--time-limit", "5"), "Leave --time-limit out"),
        (("--max-tasks-per-child", "1"), "Leave --max-tasks-per-child out"),
        (("-X", "image"), "Leave --exclude-queues out"),
        (("-I", "os"), "Leave --include out"),
        (("-B",), "Leave -B out: beat is a service of its own"),
        (("--purge",), "Leave --purge out: it deletes tasks that were confirmed"),
        (("-P", "threads"), "leave -P out"),
    ],
)
def test_an_option_that_would_beat_the_table_is_refused(
    idle: Stack, tmp_path: Path, option: tuple[str, ...], words: str
) -> None:
    code = ended(start(idle.environment("worker-math"), *WORKER, *option, log=tmp_path / "log"))
    said = (tmp_path / "log").read_text()
    assert words in said
    assert code == 2
    assert "Traceback" not in said


OTHER = """
import logging, celery
from celery.apps.worker import Worker
import workers.app
app = celery.Celery("theirs", broker="memory://")
worker = Worker(app=app, queues=["theirs"], pool_cls="solo", loglevel="INFO", quiet=True)
app.log.setup("INFO")
logging.getLogger("theirs").warning("in its own format")
print("set up", app.conf.worker_concurrency, sorted(q for q in app.amqp.queues.consume_from))
"""


def test_another_apps_worker_in_the_process_is_left_alone(idle: Stack) -> None:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT), **idle.environment("worker-math")}
    done = subprocess.run([sys.executable, "-c", OTHER], env=environment, capture_output=True, text=True, check=False)
    assert "set up" in done.stdout, done.stderr
    assert "'theirs'" in done.stdout
    assert "WARNING" in done.stderr, "no JSON"


@pytest.fixture(params=["postgresql", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    kind, found = (PostgreSQL, programs()) if request.param == "postgresql" else (ResultServer, installed())
    need_store(found, request.param)
    with kind(tmp_path / "store") as server:
        yield server


@contextlib.contextmanager
def a_worker(environment: dict[str, str], tmp_path: Path) -> Iterator[Path]:
    """A worker, and the file in which it says that it is healthy."""
    alive = tmp_path / "alive"
    worker = start({**environment, "HEARTBEAT_FILE": str(alive)}, *WORKER, log=tmp_path / "log")
    try:
        yield alive
        assert worker.poll() is None, (tmp_path / "log").read_text()
    finally:
        worker.terminate()
        ended(worker)


def test_a_store_that_is_away_at_the_start_is_waited_for(idle: Stack, store: Server, tmp_path: Path) -> None:
    environment = {**idle.environment("worker-math"), **store.environment()}
    names = ("RESULT_BACKEND", "RESULT_CA", "RESULT_PASSWORD_FILE")
    store.stop()
    operator = acting_as(idle, "operator")
    dead = ready(operator, "math.dead")
    with a_worker(environment, tmp_path) as alive:
        log = tmp_path / "log"
        assert awaited(lambda: "the result store does not answer" in log.read_text()), log.read_text()
        sent = acting_as(idle, "producer", RESULT_BACKEND="").send_task("math.add", [20, 22])
        assert not alive.exists(), "not healthy"
        assert ready(operator, "math") == 1, "not consuming"
        store.restart()
        assert awaited(alive.exists), log.read_text()
        reader = acting_as(idle, "producer", **{name: environment[name] for name in names})
        assert reader.AsyncResult(sent.id).get(timeout=PATIENCE) == 42
        assert log.read_text().count("does not answer") == 1, "a line a minute"
    assert ready(operator, "math.dead") == dead


def test_a_store_that_refuses_the_login_is_a_sentence(idle: Stack, store: Server, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_text("wrong")
    environment = {**idle.environment("worker-math"), **store.environment()}
    for number, changes in enumerate(({"RESULT_PASSWORD_FILE": str(tmp_path / "wrong")}, {"RESULT_PASSWORD_FILE": ""})):
        log = tmp_path / f"log{number}"
        code = ended(start({**environment, **changes}, *WORKER, log=log))
        assert "RESULT_PASSWORD_FILE" in log.read_text()
        assert "Traceback" not in log.read_text()
        assert code == 2


def test_the_environment_of_another_application_beats_no_setting(idle: Stack, tmp_path: Path) -> None:
    theirs = {
        "CELERY_BROKER_URL": "redis://127.0.0.1:1/0",
        "CELERY_RESULT_BACKEND": "django-db",
        "BROKER_URL": "amqp://guest:guest@127.0.0.1:1//",
    }
    with a_worker({**idle.environment("worker-math"), **theirs}, tmp_path) as alive:
        assert awaited(alive.exists), (tmp_path / "log").read_text()
        assert acting_as(idle, "producer").send_task("math.add", [20, 22]).get(timeout=PATIENCE) == 42
    assert QUEUES.queue("math").module == "workers.math_tasks"
