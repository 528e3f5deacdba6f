"""The worker command itself: its mistakes, and what a sentence says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ops.certs import Authority
from ops.local import Stack
from tests.integration.helpers import acting_as, awaited

pytestmark = pytest.mark.integration


def celery(environment: dict[str, str], *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "workers.app", *arguments],
        env={"PATH": os.environ["PATH"], **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "A worker consumes exactly one queue: start it with -Q and one of math, image, email, monitor."),
        (("-Q", "maths"), "Queue 'maths' is not in the table"),
        (("-Q", "math,image"), "A worker consumes exactly one queue"),
        (("-Q", "math", "-P", "solo"), "prefork pool only"),
    ],
)
def test_a_worker_without_a_queue_of_the_table_says_so(
    stack: Stack, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    done = celery(stack.environment("worker-math"), "worker", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr


def test_a_worker_with_wrong_settings_names_all_of_them(tmp_path: Path) -> None:
    done = celery({"BROKER_HOSTS": "a b", "TIMEZONE": "Mars"}, "worker", "-Q", "math", cwd=tmp_path)
    assert done.returncode == 2
    for name in ("BROKER_HOSTS", "BROKER_CA", "BROKER_PASSWORD_FILE", "RESULT_BACKEND", "TIMEZONE"):
        assert name in done.stderr


@pytest.mark.parametrize(
    ("queue", "variable"),
    [("image", "IMAGE_ROOT"), ("email", "SMTP_HOST"), ("email", "MAIL_FROM"), ("email", "SMTP_USER")],
)
def test_a_worker_names_the_setting_that_its_own_queue_lacks(
    stack: Stack, tmp_path: Path, queue: str, variable: str
) -> None:
    environment = {name: value for name, value in stack.environment(f"worker-{queue}").items() if name != variable}
    if variable == "SMTP_USER":
        environment |= {"SMTP_USER": "x", "SMTP_PASSWORD_FILE": "/nonexistent"}
        variable = "SMTP_PASSWORD_FILE"
    done = celery(environment, "worker", "-Q", queue, cwd=tmp_path)
    assert done.returncode == 2
    assert variable in done.stderr


def test_librabbitmq_is_refused_in_a_worker(stack: Stack, tmp_path: Path) -> None:
    environment = {**stack.environment("worker-math"), "BROKER_DRIVER": "librabbitmq"}
    done = celery(environment, "worker", "-Q", "math", cwd=tmp_path)
    assert done.returncode == 2
    assert "BROKER_DRIVER=librabbitmq is refused in a worker" in done.stderr


@pytest.mark.parametrize("command", [("worker", "-Q", "math"), ("beat", "--pidfile=")])
@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("BROKER_PASSWORD_FILE", "{folder}/wrong", "refused the login: check BROKER_USER, BROKER_PASSWORD_FILE"),
        ("BROKER_SERVER_NAME", "elsewhere.example", "is not valid"),
        ("BROKER_CA", "{folder}/other/ca.crt", "check BROKER_CA"),
    ],
)
def test_what_cannot_heal_ends_a_service_with_a_sentence(
    stack: Stack, tmp_path: Path, command: tuple[str, ...], variable: str, value: str, words: str
) -> None:
    (tmp_path / "wrong").write_text("wrong")
    Authority.ensure(tmp_path / "other")
    environment = {**stack.environment("worker-math"), variable: value.format(folder=tmp_path)}
    done = celery(environment, *command, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr


def test_a_worker_waits_while_its_name_is_still_taken_at_the_broker(stack: Stack, tmp_path: Path) -> None:
    """As after a drop that only the worker noticed: the broker still has the old connection and its control queue."""
    environment = {**stack.environment("worker-math"), "HEARTBEAT_FILE": str(tmp_path / "alive")}
    owner = acting_as(stack, "worker-math").connection_for_read()
    owner.channel().queue_declare("math@taken.celery.pidbox", exclusive=True)
    log = tmp_path / "log"
    with log.open("w") as output:
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "workers.app", "worker", "-Q", "math", "-n", "math@taken"],
            env={"PATH": os.environ["PATH"], **environment},
            stdout=output,
            stderr=output,
        )
    try:
        assert awaited(lambda: "the name math@taken is still taken" in log.read_text())
        assert worker.poll() is None
        owner.collect()
        assert awaited((tmp_path / "alive").exists), log.read_text()
    finally:
        worker.terminate()
        assert worker.wait(30) == 0
    assert "Traceback" not in log.read_text()
