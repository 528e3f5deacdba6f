"""What is wrong is one clear line, from the service that found it or from `ops check --compose`."""

from __future__ import annotations

import datetime
import itertools
import re
import shutil
import socket
import subprocess
import sys
from datetime import UTC, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ops.certs import Authority
from ops.definitions import roles
from ops.servers import MOUNT
from tests.compose.deployment import PROVISION, ROOT, Deployment, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.compose


@pytest.fixture(scope="module")
def other(deployment: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Another project with the same images, of which nothing runs yet."""
    found = Deployment(tmp_path_factory.mktemp("other"))
    found.environ["WARREN_TAG"] = found.tag = deployment.tag
    try:
        yield found
    finally:
        found.compose("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "1")


def check(deployment: Deployment, *arguments: str, path: str = "", **changes: str) -> list[str]:
    """What `ops check --compose` says, by a Python without packages."""
    environ = {**deployment.environ, "COMPOSE_PROJECT_NAME": deployment.project, **changes}
    environ["PATH"] = f"{path}:{environ['PATH']}" if path else environ["PATH"]
    done = subprocess.run(
        [sys.executable, "-S", "-m", "ops", "check", "--compose", *arguments],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode == 0) is (not done.stderr), done.stderr
    return done.stderr.splitlines()


def docker_that(folder: Path, answers: str) -> str:
    """A folder with a `docker` that gives some answers of its own, and else asks the real one."""
    real = shutil.which("docker")
    program = folder / "docker"
    program.write_text(f'#!/bin/sh\ncase "$*" in\n{answers}\n*) exec {real} "$@" ;;\nesac\n')
    program.chmod(0o755)
    return str(folder)


def test_a_running_deployment_can_be_started(deployment: Deployment) -> None:
    assert check(deployment) == []


def test_a_port_in_use(other: Deployment) -> None:
    with socket.create_server(("127.0.0.1", other.ports["AMQPS"])):
        (line,) = check(other)
    assert line == (
        f"rabbitmq: 127.0.0.1:{other.ports['AMQPS']} is in use: "
        "stop what listens there, or set WARREN_AMQPS_ADDRESS to another"
    )
    (line,) = check(other, WARREN_AMQPS_ADDRESS="192.0.2.1:5671")
    assert "is no address of this machine" in line


def test_a_wrong_image_tag(other: Deployment) -> None:
    (line,) = check(other, RABBITMQ_IMAGE="rabbitmq:4.3-no-such-tag")
    assert line.startswith("rabbitmq: image rabbitmq:4.3-no-such-tag cannot be had (")
    assert "correct RABBITMQ_IMAGE" in line


@pytest.mark.parametrize("name", ["SMTP_PASSWORD_FILE", "SMTP_CA", "WARREN_SECRETS"])
def test_a_file_that_is_not_there(other: Deployment, name: str) -> None:
    assert check(other, **{name: "/nowhere"}) == [f"{name}: /nowhere does not exist: give the path of an existing one"]


@pytest.mark.parametrize(
    ("answers", "line"),
    [
        ("version*) echo 24.0.9 ;;", "Docker Engine 24.0.9 cannot mount a part of a volume: update it to 26 or newer"),
        ("'compose version'*) echo 2.20.3 ;;", "Compose 2.20.3 is too old for this file: update it to 2.26 or newer"),
        (
            "info*) echo 1073741824 ;;",
            r"the services may use \d\.\d GiB together, the engine has 1\.0 GiB: give it more memory, or start .*",
        ),
    ],
)
def test_an_engine_that_cannot(other: Deployment, tmp_path: Path, answers: str, line: str) -> None:
    """The old versions are the answers of a program beside the real one: they cannot be had here."""
    (found,) = check(other, path=docker_that(tmp_path, answers))
    assert re.fullmatch(line, found)


def test_no_engine(other: Deployment, tmp_path: Path) -> None:
    (line,) = check(other, DOCKER_HOST="unix:///nowhere")
    assert line.startswith("Docker does not answer (")
    (line,) = check(other, WARREN_AMQPS_ADDRESS="here:there")
    assert line.startswith("Compose refuses the file or a variable in it (")


def given(folder: Path, *, server: tuple[str, ...] = ("rabbitmq",), old: bool = False) -> Path:
    """Certificates of an owner's own authority."""
    began = datetime.datetime.now(UTC) - timedelta(days=500 if old else 0)
    authority = Authority.ensure(folder / "made", now=lambda: began)
    own = folder / "own"
    own.mkdir()
    shutil.copy(folder / "made" / "ca.crt", own)
    for name in ("rabbitmq", "valkey", *roles()):
        names = {"rabbitmq": server, "valkey": ("valkey",)}.get(name)
        identity = authority.server(names, role=name) if names else authority.client(name)
        shutil.copy(identity.cert, own / f"{name}.crt")
        shutil.copy(identity.key, own / f"{name}.key")
    return own


def provisioned(deployment: Deployment, **changes: str) -> list[str]:
    """What `provision` says where it fails."""
    said = deployment.refused("run", "--rm", "-T", "provision", **changes)
    return [line for line in said.splitlines() if not re.match(r" (Network|Volume|Container) ", line) and line]


def test_wrong_settings_stop_nothing(deployment: Deployment) -> None:
    starts = deployment.starts()
    said = deployment.refused(*PROVISION, SMTP_HOST="relay.example.com")
    assert (
        "SMTP_PASSWORD_FILE is missing: give the file that holds the password of SMTP_USER, or set SMTP_USER=" in said
    )
    deployment.compose(*PROVISION)
    deployment.up()
    assert deployment.starts() == starts


def test_certificates_that_cannot_be_used(other: Deployment, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    lines = provisioned(other, WARREN_SECRETS=str(given(tmp_path / "old", old=True)))
    assert len(lines) == 2 + len(roles())
    assert all(re.fullmatch(r"[a-z-]+\.crt expired on \d{4}-\d\d-\d\d: give a newer one", line) for line in lines)
    (tmp_path / "name").mkdir()
    (line,) = provisioned(other, WARREN_SECRETS=str(given(tmp_path / "name", server=("broker.example.com",))))
    assert line.startswith("rabbitmq.crt proves broker.example.com, localhost, 127.0.0.1 and not rabbitmq: ")


def test_certificates_of_the_owner(other: Deployment, tmp_path: Path) -> None:
    own = given(tmp_path)
    (own / "producer.password").write_text("a password of my own\n")
    said = other.compose("run", "--rm", "-T", "provision", WARREN_SECRETS=str(own))
    assert "files written for" in said
    show = ("run", "--rm", "-T", "--no-deps", "--entrypoint", "cat", "provision")
    assert other.compose(*show, "/secrets/rabbitmq/tls.crt") == (own / "rabbitmq.crt").read_text()
    assert other.compose(*show, "/secrets/producer/broker-password") == "a password of my own"
    try:
        other.compose("up", "-d", "--wait", "worker-math", "exporter", WARREN_SECRETS=str(own))
        other.copy_producer()
        assert other.works(), "the deployment does not run on the owner's certificates"
    finally:
        other.compose("down", "--volumes", "--timeout", "5")


def test_a_missing_secret_is_said_at_each_try(other: Deployment, tmp_path: Path) -> None:
    other.compose("run", "--rm", "-T", "provision")
    extra = tmp_path / "extra.yml"
    extra.write_text("services:\n  worker-math:\n    environment: {BROKER_PASSWORD_FILE: /run/secrets/no-such-file}\n")
    command = ["docker", "compose", "-f", "docker-compose.rabbitmq.yml", "-f", str(extra), "-p", other.project]
    other.run([*command, "up", "-d", "--no-deps", "worker-math"], other.environ, 120)

    def tries() -> list[tuple[str, str]]:
        log = other.compose("logs", "--no-color", "--no-log-prefix", "--timestamps", "worker-math")
        return re.findall(r"(\d{4}-\S+)Z (.+)", log)

    eventually(lambda: len(tries()) >= 6, "it does not say so at each try")
    said = {line for _, line in tries()}
    (line,) = said
    assert line.startswith(f"BROKER_PASSWORD_FILE='{MOUNT}/no-such-file' cannot be read (No such file or directory): ")
    times = [datetime.datetime.fromisoformat(stamp[:26]) for stamp, _ in tries()]
    first, *_, last = (after - before for before, after in itertools.pairwise(times))
    assert last > first, "it does not back off"
