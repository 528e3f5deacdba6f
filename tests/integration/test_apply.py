"""`warren apply`: a changed table into a running broker, and what it refuses. After each change the broker restarts."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import amqp
import pytest

from ops.definitions import user
from ops.passwords import hash_password
from tests.integration.helpers import acting_as, awaited, ready

if TYPE_CHECKING:
    from pathlib import Path

    from ops.local import Stack
    from tests.integration.helpers import Run

pytestmark = pytest.mark.integration

ROW = """        QueueSpec(
            name="pdf",
            module="workers.pdf_tasks",
            tasks=(TaskSpec(name="pdf.count_pages", soft_time_limit=50, time_limit=60),),
        ),
        QueueSpec(
            name="email","""


@pytest.fixture
def warren(idle: Stack, project: Path, tmp_path: Path) -> Run:
    """The operator's command, with another table."""

    def run(*arguments: str, table: tuple[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        copy = tmp_path / "project"
        for folder in ("queues", "workers", "ops"):
            shutil.copytree(project / folder, copy / folder, dirs_exist_ok=True)
        if table:
            path = copy / "queues" / "topology.py"
            text = path.read_text()
            assert len(re.findall(re.escape(table[0]), text)) >= 1, "the table has changed: mend this test"
            path.write_text(text.replace(*table, 1))
        environ = {**os.environ, "WARREN_HOME": str(idle.folder), "PYTHONPATH": str(copy), "PYTHONSAFEPATH": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "ops", *arguments],
            capture_output=True,
            text=True,
            env=environ,
            cwd=tmp_path,
            timeout=120,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run


def restart(idle: Stack) -> None:
    """Restart the broker as it is: it imports its definitions file again."""
    idle.broker.ctl("stop_app")
    idle.broker.ctl("start_app", timeout_s=60)
    idle.broker.wait()


def exists(idle: Stack, queue: str) -> bool:
    with acting_as(idle, "operator").connection_for_read() as connection:
        try:
            connection.channel().queue_declare(queue, passive=True)
        except amqp.NotFound:
            return False
    return True


def put(idle: Stack, queue: str, count: int = 1) -> None:
    """Messages straight into a queue."""
    with acting_as(idle, "operator").connection_for_write() as connection:
        channel = connection.channel()
        for _ in range(count):
            channel.basic_publish(amqp.Message("x", delivery_mode=2), routing_key=queue)
    assert awaited(lambda: ready(acting_as(idle, "operator"), queue) == count)


def purge(idle: Stack, queue: str) -> None:
    with acting_as(idle, "operator").connection_for_write() as connection:
        connection.channel().queue_purge(queue)


def test_what_agrees_stays(warren: Run) -> None:
    done = warren("apply")
    assert (done.returncode, done.stdout) == (0, "broker and table agree\n"), done.stderr


def test_a_row_comes_and_goes(idle: Stack, warren: Run) -> None:
    row = ('        QueueSpec(\n            name="email",', ROW)
    refused = warren("apply", "--yes", table=row)
    assert "refused  user worker-pdf: it has no password in the file" in refused.stdout
    assert not exists(idle, "pdf")
    path = idle.folder / "broker" / "definitions.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "users": [*document["users"], user("worker-pdf", hash_password("x"))]}))
    shown = warren("apply", table=row)
    assert "add      queue pdf\n" in shown.stdout
    assert "nothing was changed: --yes carries it out" in shown.stdout
    assert not exists(idle, "pdf")
    done = warren("apply", "--yes", table=row)
    assert done.returncode == 0, done.stdout + done.stderr
    assert exists(idle, "pdf")
    restart(idle)
    assert warren("apply", table=row).stdout == "broker and table agree\n"

    put(idle, "pdf", 3)
    refused = warren("apply", "--yes")
    assert refused.returncode == 1
    assert re.search(r"refused  queue pdf: it holds 3 messages", refused.stdout), refused.stdout
    assert refused.stderr.startswith("nothing was changed: 1 of")
    assert ready(acting_as(idle, "operator"), "pdf") == 3
    purge(idle, "pdf")
    done = warren("apply", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not exists(idle, "pdf")
    restart(idle)
    assert not exists(idle, "pdf"), "the definitions file still held it"
    assert warren("check").returncode == 0


def test_a_policy_changes_and_stays_changed(idle: Stack, warren: Run) -> None:
    changed = ("delivery_limit: int = 20", "delivery_limit: int = 10")
    done = warren("apply", "--yes", table=changed)
    assert "change   policy math: delivery-limit 20 -> 10\n" in done.stdout
    assert done.returncode == 0, done.stdout + done.stderr
    restart(idle)
    assert warren("apply", table=changed).stdout == "broker and table agree\n"
    assert warren("apply", "--yes").returncode == 0


def test_a_shorter_retention_is_refused_while_it_would_drop(idle: Stack, warren: Run) -> None:
    shorter = ("dead_letter_ttl: int = 14 * 86400", "dead_letter_ttl: int = 86400")
    put(idle, "image.dead", 2)
    refused = warren("apply", "--yes", table=shorter)
    assert refused.returncode == 1
    assert "refused  policy image.dead: message-ttl 1209600000 -> 86400000 would drop of 2 messages" in refused.stdout
    assert ready(acting_as(idle, "operator"), "image.dead") == 2
    purge(idle, "image.dead")
    assert warren("apply", "--yes", table=shorter).returncode == 0
    put(idle, "image.dead")
    done = warren("apply", "--yes")
    assert done.returncode == 0, "a longer one drops nothing: " + done.stdout
    purge(idle, "image.dead")


def test_an_argument_is_a_new_queue(idle: Stack, warren: Run) -> None:
    single = ("single_active_consumer: bool = False", "single_active_consumer: bool = True")
    refused = warren("apply", "--yes", table=single)
    assert refused.returncode == 1
    assert re.search(r"refused  queue math: arguments .* cannot be changed; give the row a new name", refused.stdout)
    assert warren("check").returncode == 0


def test_a_wrong_file_is_one_sentence(warren: Run, tmp_path: Path) -> None:
    path = tmp_path / "definitions.json"
    assert "cannot be read (No such file or directory)" in warren("apply", "--definitions", str(path)).stderr
    path.write_text("{}")
    done = warren("apply", "--definitions", str(path))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "holds no definitions" in done.stderr
