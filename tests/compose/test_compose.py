"""docker-compose.rabbitmq.yml on a real engine: up from nothing, work from the host, scaling, stopping.

Skipped where no engine answers; run by name (`-m compose`) in CI, that is a failure.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ops.local import free_port
from ops.processes import PREFIXES
from queues.topology import QUEUES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.compose

ROOT = Path(__file__).parent.parent.parent
FILE = ROOT / "docker-compose.rabbitmq.yml"
PROFILES = ("dev", "monitoring")
TARGETS = ("worker", "worker-image", "worker-monitor", "ops", "provision", "local")
PHOTO = "dogs.jpg"

#: What a producer's own program does; each line of its output is a queue and the id of a task in it.
ENQUEUE = """
from queues import tasks
for queue, sent in {
    "math": tasks.add(2, 3),
    "image": tasks.process_image("dogs.jpg", [320, 320]),
    "email": tasks.send_email("alice@example.com", "From the host", "The burrow is dry."),
    "monitor": tasks.check_status(),
}.items():
    print(queue, sent.id)
"""
#: The result store is not published: its readers are in the deployment.
RESULTS = """
import json, sys
from queues import tasks
print(json.dumps([tasks.result(task).get(timeout=60) for task in sys.argv[1:]]))
"""


class Deployment:
    """One project on the engine, apart from any other, with ports of its own."""

    def __init__(self, folder: Path) -> None:
        self.project = f"warren-test-{secrets.token_hex(4)}"
        self.tag = self.project.removeprefix("warren-")
        self.producer = folder / "producer"
        self.ports = {name: free_port() for name in ("AMQPS", "EXPORTER", "PROMETHEUS")}
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith((*PREFIXES, "COMPOSE_"))},
            **{f"WARREN_{name}_ADDRESS": f"127.0.0.1:{port}" for name, port in self.ports.items()},
            "WARREN_TAG": self.tag,
        }

    def compose(self, *args: str, timeout: float = 300) -> str:
        """Run Compose, and give what it prints."""
        profiles = [word for name in PROFILES for word in ("--profile", name)]
        command = ["docker", "compose", "-f", str(FILE), "-p", self.project, *profiles, *args]
        return self.run(command, self.environ, timeout)

    def exec(self, service: str, *command: str) -> str:
        """Run a command in a service's first container."""
        return self.compose("exec", "-T", service, *command, timeout=120)

    def fails(self, service: str, *command: str) -> bool:
        """Whether a command fails in a service's first container."""
        try:
            self.exec(service, *command)
        except AssertionError:
            return True
        return False

    def up(self, *args: str) -> None:
        """Start what does not run, and wait until all is healthy."""
        try:
            self.compose("up", "-d", "--wait", *args)
        except AssertionError as exc:
            raise AssertionError(f"{exc}\n{self.compose('logs', '--no-color', '--tail', '20')}") from None

    def down(self) -> None:
        """Leave nothing behind but the build cache."""
        try:
            self.compose("down", "--volumes", "--remove-orphans", "--timeout", "20")
        finally:
            images = [f"warren-{target}:{self.tag}" for target in TARGETS]
            subprocess.run(["docker", "image", "rm", "--force", *images], capture_output=True, timeout=60)

    def produce(self, program: str) -> str:
        """Run a Python program on the host with the producer's settings, as its README says."""
        source = ["bash", "-c", '. "$1/env.sh" && shift && exec "$@"', "produce", str(self.producer)]
        environ = {**self.environ, "PYTHONPATH": str(ROOT)}
        return self.run([*source, sys.executable, "-c", program], environ, 60)

    def results(self, *tasks: str) -> list[Any]:
        """The results of tasks, which must succeed."""
        found: list[Any] = json.loads(self.exec("worker-math", "python", "-c", RESULTS, *tasks))
        return found

    def containers(self) -> dict[str, dict[str, Any]]:
        """State of all containers by name, ended ones too."""
        lines = self.compose("ps", "--all", "--format", "json").splitlines()
        return {container["Name"]: container for container in map(json.loads, lines)}

    def starts(self) -> dict[str, str]:
        """Id and time of the last start of each container that stays up."""
        names = [name for name, container in self.containers().items() if container["Service"] != "provision"]
        form = "{{.Name}} {{.Id}} {{.State.StartedAt}}"
        lines = self.run(["docker", "inspect", "-f", form, *names], self.environ, 60).splitlines()
        return dict(line.split(" ", 1) for line in lines)

    def queues(self) -> dict[str, dict[str, Any]]:
        """The broker's queues by name."""
        listed = self.exec(
            "rabbitmq", "rabbitmqctl", "-q", "--formatter", "json", "list_queues", "name", "messages", "consumers"
        )
        return {queue["name"]: queue for queue in json.loads(listed)}

    def metrics(self) -> dict[str, float]:
        """The exporter's samples, as Prometheus reads them from the host."""
        text = fetch(f"http://127.0.0.1:{self.ports['EXPORTER']}/metrics")
        samples = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def run(self, command: list[str], environ: dict[str, str], timeout: float) -> str:
        done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=timeout)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def fetch(url: str) -> str:
    """What a URL of this machine answers."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def eventually(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Wait for something that takes its time."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, f"after {seconds:g} s: {what}"
        time.sleep(0.5)


def engine_problem() -> str | None:
    """Why no container can be started here."""
    for command in (["docker", "info"], ["docker", "compose", "version"]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired) as exc:
            return f"{' '.join(command)}: {exc}"
        if done.returncode:
            return f"{' '.join(command)}: {done.stderr.strip()}"
    return None


@pytest.fixture(scope="module")
def deployment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The whole file, from nothing, with the mail catcher and Prometheus."""
    if problem := engine_problem():
        asked_for = "compose" in str(request.config.option.markexpr)
        (pytest.fail if asked_for and os.environ.get("CI") else pytest.skip)(f"no Docker engine answers: {problem}")
    found = Deployment(tmp_path_factory.mktemp("compose"))
    try:
        began = time.monotonic()
        found.compose("build", timeout=900)
        built = time.monotonic()
        found.up()
        up = time.monotonic()
        print(f"\nimages built in {built - began:.1f} s, everything healthy after {up - built:.1f} s")
        found.compose("cp", "provision:/secrets/producer", str(found.producer))
        yield found
    finally:
        found.down()


def test_everything_is_healthy(deployment: Deployment) -> None:
    for container in deployment.containers().values():
        expected = ("exited", "") if container["Service"] == "provision" else ("running", "healthy")
        assert (container["State"], container["Health"]) == expected, container["Service"]
        assert container["ExitCode"] == 0


def test_work_from_the_host_through_every_queue(deployment: Deployment) -> None:
    photo = ROOT / "examples" / "photos" / PHOTO
    deployment.compose("cp", str(photo), "worker-image:/var/lib/warren/images/")
    began = time.monotonic()
    sent = dict(line.split() for line in deployment.produce(ENQUEUE).splitlines())
    assert set(sent) == set(QUEUES.names), "each queue of the table gets a task: complete ENQUEUE"
    added, image, mail = deployment.results(sent["math"], sent["image"], sent["email"])
    print(f"\nresults after {time.monotonic() - began:.1f} s")
    assert added == 5
    # The photograph lies on its side, and its EXIF data says so.
    assert (image["width"], image["height"], image["source"]["orientation"]) == (213, 320, 6)
    assert f"\n{image['bytes']}\n" in "\n" + deployment.exec(
        "worker-image", "stat", "-c", "%s", f"/var/lib/warren/images/{image['path']}"
    )
    kept = deployment.exec("mail", "sh", "-c", "cat /var/lib/warren/mail/*.eml")
    assert f"Message-ID: {mail['message_id']}" in kept
    eventually(
        lambda: (
            not deployment.fails("worker-monitor", "grep", "-q", "results_seconds", "/var/lib/warren/state/status.json")
        ),
        "the monitor wrote no status",
    )
    assert all(deployment.queues()[queue.dead_letter]["messages"] == 0 for queue in QUEUES)


def test_operator_finds_broker_and_table_agreed(deployment: Deployment) -> None:
    """The command line ends with an error where they differ, or where no worker answers."""
    for command in ("check", "ping"):
        deployment.compose("run", "--rm", "-T", "--no-deps", "ops", command)


def test_exporter_counts_what_was_done(deployment: Deployment) -> None:
    def counted() -> bool:
        samples = deployment.metrics()
        names = [
            f'celery_task_completions_total{{queue="{queue.name}",task="{queue.tasks[0].name}"}}' for queue in QUEUES
        ]
        return all(samples.get(name, 0) >= 1 for name in names)

    eventually(counted, "the exporter has not counted a task of each queue")

    def consumed() -> bool:
        samples = deployment.metrics()
        return all(samples.get(f'celery_queue_consumers{{queue="{name}"}}') == 1 for name in QUEUES.names)

    # The management API counts anew every five seconds.
    eventually(consumed, "the exporter does not show one consumer of each queue", 20)


def test_prometheus_scrapes_the_exporter(deployment: Deployment) -> None:
    url = f"http://127.0.0.1:{deployment.ports['PROMETHEUS']}/api/v1/query?query=sum(celery_task_completions_total)"

    def scraped() -> bool:
        vector = json.loads(fetch(url))["data"]["result"]
        return bool(vector) and float(vector[0]["value"][1]) >= len(QUEUES.names)

    eventually(scraped, "Prometheus has not got the counts")


def test_only_the_image_worker_has_pillow(deployment: Deployment) -> None:
    found = {name: not deployment.fails(name, "python", "-c", "import PIL") for name in ("worker-math", "worker-image")}
    assert found == {"worker-math": False, "worker-image": True}


def test_worker_may_do_little(deployment: Deployment) -> None:
    assert deployment.exec("worker-math", "id", "-u").strip() == "10001"
    assert deployment.fails("worker-math", "touch", "/app/x", "/run/secrets/x"), "the root file system can be written"
    # Only the files of its own role, and nobody's but the authority's are the same as another's.
    assert deployment.exec("worker-math", "ls", "/run/secrets").split() == [
        "broker-password",
        "ca.crt",
        "results-password",
        "tls.crt",
        "tls.key",
    ]
    look_up = "import socket, sys; socket.getaddrinfo(sys.argv[1], None)"
    reachable = {
        (service, host): not deployment.fails(service, "python", "-c", look_up, host)
        for service, host in (("worker-math", "rabbitmq"), ("exporter", "valkey"), ("worker-math", "mail"))
    }
    assert reachable == {
        ("worker-math", "rabbitmq"): True,
        ("exporter", "valkey"): False,
        ("worker-math", "mail"): False,
    }


def test_broker_speaks_tls_only_to_those_it_knows(deployment: Deployment) -> None:
    listeners = deployment.exec("rabbitmq", "rabbitmq-diagnostics", "-q", "--formatter", "json", "listeners")
    public = {item["protocol"] for item in json.loads(listeners)["listeners"] if item["interface"] == "[::]"}
    assert public == {"amqp/ssl", "https", "https/prometheus"}
    users = json.loads(deployment.exec("rabbitmq", "rabbitmqctl", "-q", "--formatter", "json", "list_users"))
    assert "guest" not in {user["user"] for user in users}

    context = ssl.create_default_context(cafile=deployment.producer / "ca.crt")
    address = ("127.0.0.1", deployment.ports["AMQPS"])
    with (
        socket.create_connection(address, 10) as plain,
        context.wrap_socket(plain, server_hostname="rabbitmq") as stranger,
        pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"),
    ):
        stranger.recv(1)


def test_producer_may_publish_and_nothing_else(deployment: Deployment) -> None:
    program = """
import amqp.exceptions
from queues.app import default_app
with default_app().connection_for_read() as connection:
    for question in ({"queue": "math"}, {"queue": "math.dead"}):
        try:
            connection.channel().basic_get(**question)
        except amqp.exceptions.AccessRefused:
            print("refused")
"""
    assert deployment.produce(program).split() == ["refused", "refused"]


def test_result_store_refuses_strangers_and_administration(deployment: Deployment) -> None:
    cli = ["valkey-cli", "--tls", "--cacert", "/run/secrets/ca.crt", "--no-auth-warning"]
    assert "NOAUTH" in deployment.exec("valkey", *cli, "dbsize")
    assert "NOPERM" in deployment.exec("valkey", *cli, "--user", "health", "--pass", "-", "dbsize")
    program = """
from queues.app import default_app
import redis
for command in ("FLUSHALL", "CONFIG GET requirepass", "SHUTDOWN"):
    try:
        default_app().backend.client.execute_command(*command.split())
    except redis.exceptions.NoPermissionError:
        print("refused")
"""
    assert deployment.exec("worker-math", "python", "-c", program).split() == ["refused"] * 3


def test_second_up_changes_nothing(deployment: Deployment) -> None:
    before = deployment.starts()
    deployment.up()
    assert deployment.starts() == before
    log = deployment.compose("logs", "--no-color", "--no-log-prefix", "provision")
    assert re.findall(r"files written for|everything is up to date", log) == [
        "files written for",
        "everything is up to date",
    ]


def test_image_workers_scale_alone(deployment: Deployment) -> None:
    for replicas in (3, 1):
        deployment.up("--no-recreate", "--scale", f"worker-image={replicas}")
        eventually(
            lambda replicas=replicas: deployment.queues()["image"]["consumers"] == replicas,  # type: ignore[misc]
            f"the queue image has not {replicas} consumers",
        )
        assert deployment.queues()["math"]["consumers"] == 1


def test_stopping_worker_finishes_its_task(deployment: Deployment) -> None:
    """SIGTERM reaches Celery's parent alone, and the grace period is the table's."""
    task = deployment.produce("from queues import tasks; print(tasks.long_task(5).id)").strip()
    eventually(lambda: f'"task_id": "{task}"' in deployment.compose("logs", "worker-math"), "the task did not start")
    deployment.compose("stop", "worker-math")
    stopped = deployment.containers()[f"{deployment.project}-worker-math-1"]
    assert (stopped["State"], stopped["ExitCode"]) == ("exited", 0)
    # The broker counts a quorum queue's messages anew every five seconds.
    eventually(lambda: deployment.queues()["math"]["messages"] == 0, "the task went back into the queue", 15)
    deployment.up()
    assert deployment.results(task) == [{"status": "success", "total": 5}]


def test_the_readmes_commands(deployment: Deployment) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("docker compose ")]
    assert len(lines) >= 4
    environ = {**deployment.environ, "COMPOSE_PROJECT_NAME": deployment.project, "COMPOSE_PROFILES": ",".join(PROFILES)}
    for line in lines:
        deployment.run(["bash", "-c", line], environ, 300)
    deployment.up("--scale", "worker-image=1")
