"""The operator's commands against a running stack, run as programs."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING

import pytest

from tests.integration.helpers import Run, awaited

if TYPE_CHECKING:
    from pathlib import Path

    from ops.local import Stack

pytestmark = pytest.mark.integration


def test_enqueue_and_result(run: Run) -> None:
    sent = run("enqueue", "math.add", "--args", "[2, 3]")
    assert sent.returncode == 0, sent.stderr
    task_id = sent.stdout.strip()
    assert awaited(lambda: run("result", task_id).stdout.strip() == "SUCCESS: 5")
    seen = json.loads(run("result", task_id, "--json").stdout)
    assert seen == {"id": task_id, "state": "SUCCESS", "result": 5}


def test_enqueue_many(run: Run) -> None:
    sent = run("enqueue", "math.multiply", "--args", "[2, 3]", "--count", "50", "--json")
    assert len(set(json.loads(sent.stdout)["ids"])) == 50
    assert "50 x math.add confirmed" in run("enqueue", "math.add", "--args", "[1, 1]", "--count", "50").stdout


def test_an_unknown_id_says_so(run: Run) -> None:
    done = run("result", str(uuid.uuid4()))
    assert done.returncode == 3
    assert done.stdout.startswith("unknown: no trace")


def test_a_failure_has_an_exit_code(run: Run) -> None:
    task_id = run("enqueue", "math.reliable_task", "--args", '[{"fail": true}]').stdout.strip()
    assert awaited(lambda: run("result", task_id).returncode == 1)
    assert "the data asked for a failure" in run("result", task_id).stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("enqueue", "math.ad"), 1, "task 'math.ad' is not in the table"),
        (("enqueue", "math.add", "--args", "[1"), 2, "--args is not JSON"),
        (("enqueue", "math.add", "--args", '{"x": 1}'), 2, "no list"),
        (("enqueue", "math.add", "--kwargs", "[]"), 2, "no object"),
        (("enqueue", "math.add", "--args", "[1]"), 1, "missing a required argument: y"),
        (("enqueue", "math.add", "--args", "[NaN, 1]"), 2, "NaN is no number in JSON"),
        (("put", "/nonexistent.jpg"), 2, "does not exist"),
        (("put", "/etc/passwd"), 1, "is no image"),
    ],
)
def test_a_mistake_is_a_sentence(run: Run, arguments: tuple[str, ...], code: int, words: str) -> None:
    done = run(*arguments)
    assert done.returncode == code
    assert words in done.stderr.replace("'y'", "y")


def test_put_stores_an_image_for_the_image_worker(run: Run, stack: Stack, project: Path) -> None:
    name = f"{uuid.uuid4().hex}.png"
    stored = run("put", str(project / "examples" / "photos" / "coffee.png"), "--as", name)
    assert stored.stdout.strip() == name
    task_id = run("enqueue", "image.process_image", "--args", f'["{name}", [50, 50]]').stdout.strip()
    made = f"processed_{name.removesuffix('.png')}-50x50-fit-*.png"
    assert awaited(lambda: run("result", task_id).returncode == 0 and list(stack.images.glob(made)))
    refused = run("put", str(project / "examples" / "photos" / "coffee.png"), "--as", "../escape.png")
    assert refused.returncode == 1
    assert not (stack.folder / "escape.png").exists()


def test_status_shows_every_queue(run: Run) -> None:
    rows = {row["queue"]: row for row in json.loads(run("status", "--json").stdout)}
    assert set(rows) == {"math", "image", "email", "monitor", "undeliverable"}
    assert awaited(lambda: run("status").returncode == 0), run("status").stdout
    assert "dead letters" in run("status").stdout


def test_ping_and_inspect(run: Run) -> None:
    found = json.loads(run("ping", "--json").stdout)
    assert {name.partition("@")[0] for name in found["workers"]} == {"math", "image", "email", "monitor"}
    assert "answers in" in run("ping").stdout
    task_id = run("enqueue", "math.long_task", "--args", "[8]").stdout.strip()
    assert awaited(lambda: task_id in [row["id"] for row in json.loads(run("inspect", "active", "--json").stdout)])
    for what in ("scheduled", "reserved"):
        assert run("inspect", what).returncode == 0


def test_only_the_operator_may_ask_the_workers(run: Run, stack: Stack, tmp_path: Path) -> None:
    for command in ("ping", "inspect"):
        done = run(command, **{**stack.environment("producer"), "WARREN_HOME": str(tmp_path)})
        assert done.returncode == 1
        assert "use the operator's settings" in done.stderr


def test_an_id_may_be_sent_again(run: Run) -> None:
    task_id = str(uuid.uuid4())
    assert run("enqueue", "math.add", "--args", "[2, 3]", "--id", task_id).stdout.strip() == task_id
    assert awaited(lambda: run("result", task_id).stdout.strip() == "SUCCESS: 5")


def test_the_broker_agrees_with_the_table(run: Run) -> None:
    done = run("check")
    assert done.returncode == 0, done.stdout


def test_check_names_what_differs(run: Run, stack: Stack) -> None:
    stack.broker.ctl("clear_policy", "image.dead")
    try:
        done = run("check")
        assert done.returncode == 1
        assert "policy image.dead is missing" in done.stdout
    finally:
        stack.broker.ctl("import_definitions", str(stack.broker.definitions_path))
    assert run("check").returncode == 0


def test_certificates_are_listed(run: Run) -> None:
    listed = json.loads(run("certs", "--json").stdout)
    assert {"ca.crt", "broker.crt", "worker-math.crt"} <= {row["name"] for row in listed}
    assert all(row["days_left"] >= 30 for row in listed)


def test_without_a_broker_a_sentence_names_the_ways_out(run: Run, tmp_path: Path) -> None:
    done = run("status", WARREN_HOME=str(tmp_path))
    assert done.returncode == 1
    assert "set BROKER_HOSTS, or start one here" in done.stderr


def test_a_folder_that_cannot_be_written_is_a_sentence(run: Run) -> None:
    done = run("up", WARREN_HOME="/dev/null")
    assert done.returncode == 1
    assert "set WARREN_HOME to a folder of your own" in done.stderr


def test_a_second_stack_in_the_same_folder_is_refused(run: Run) -> None:
    done = run("up")
    assert done.returncode == 1
    assert "a stack already runs in" in done.stderr
