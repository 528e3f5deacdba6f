"""docker-compose.rabbitmq.yml on a real engine: up from nothing, work from the host, who may do what."""

from __future__ import annotations

import importlib.util
import json
import re
import urllib.error
import urllib.request
from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from queues.topology import QUEUES
from tests.compose.deployment import BESIDE, ONCE, PHOTO, PROFILES, ROOT, eventually

if TYPE_CHECKING:
    from tests.compose.deployment import Deployment

pytestmark = pytest.mark.compose

CORPUS = Path("tests/unit/test_mailer_injection.py")

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


def test_everything_is_healthy(deployment: Deployment) -> None:
    for container in deployment.containers().values():
        expected = ("exited", "") if container["Service"] in ONCE else ("running", "healthy")
        assert (container["State"], container["Health"]) == expected, container["Service"]
        assert container["ExitCode"] == 0


def test_a_start_is_no_warning_in_any_log(deployment: Deployment) -> None:
    log = deployment.compose("logs", "--no-color", "--no-log-prefix")
    assert [line for line in log.splitlines() if line.startswith("{") and '"level": "info"' not in line] == []
    assert "Traceback" not in log
    # A program on the host that just ends, as the fixture's does, is one in the broker's log.
    assert set(re.findall(r"\[warning\] .*closing AMQP connection .*user: '([a-z-]+)'", log)) <= {"producer"}


def test_work_from_the_host_through_every_queue(deployment: Deployment) -> None:
    photo = ROOT / "examples" / "photos" / PHOTO
    mounted = f"{photo}:/given/{PHOTO}:ro"
    deployment.compose("run", "--rm", "-T", "--no-deps", "-v", mounted, "ops", "put", f"/given/{PHOTO}")
    sent = dict(line.split() for line in deployment.produce(ENQUEUE).splitlines())
    assert set(sent) == set(QUEUES.names), "each queue of the table gets a task: complete ENQUEUE"
    added, image, mail = deployment.results(sent["math"], sent["image"], sent["email"])
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
    assert deployment.dead_letters() == []


def test_operator_finds_broker_and_table_agreed(deployment: Deployment) -> None:
    """The command line ends with an error where they differ, or where no worker answers."""
    for command in ("check", "ping"):
        deployment.operator(command)


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
    def scraped() -> bool:
        return (deployment.ask_prometheus("sum(celery_task_completions_total)") or 0) >= len(QUEUES.names)

    eventually(scraped, "Prometheus has not got the counts")


def test_only_the_image_worker_has_pillow(deployment: Deployment) -> None:
    found = {name: not deployment.fails(name, "python", "-c", "import PIL") for name in ("worker-math", "worker-image")}
    assert found == {"worker-math": False, "worker-image": True}


def test_nothing_is_injected_into_mails_on_the_images_python(deployment: Deployment) -> None:
    """Its email package is another than this machine's; pytest and what it needs are pure Python, and lent to it."""
    lent = [path_of(name) for name in ("pytest", "_pytest", "py", "pluggy", "iniconfig", "packaging", "pygments")]
    mounts = [f"{path}:/lent/{path.name}:ro" for path in lent] + [f"{ROOT / CORPUS}:/lent/{CORPUS.name}:ro"]
    pytest_there = ("python", "-m", "pytest", "--noconftest", "-q", "-p", "no:cacheprovider", f"/lent/{CORPUS.name}")
    said = deployment.compose(
        *("run", "--rm", "-T", "--no-deps", "-e", "PYTHONPATH=/app:/lent"),
        *(word for mount in mounts for word in ("-v", mount)),
        *("worker-email", *pytest_there),
    )
    assert re.search(r"^\d{3} passed in ", said, re.MULTILINE), said


def path_of(package: str) -> Path:
    """The folder, or the one file, of a package of this machine."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    file = Path(spec.origin)
    return file.parent if file.name == "__init__.py" else file


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

    stranger = """
import socket, ssl
context = ssl.create_default_context(cafile="/run/secrets/ca.crt")
for port in (5671, 15671):
    with (
        socket.create_connection(("rabbitmq", port), 10) as plain,
        context.wrap_socket(plain, server_hostname="rabbitmq") as without_certificate,
    ):
        try:
            without_certificate.recv(1)
        except ssl.SSLError as exc:
            print(exc.reason)
"""
    told = deployment.exec("worker-math", "python", "-c", stranger).split()
    assert told == ["TLSV13_ALERT_CERTIFICATE_REQUIRED"] * 2


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
    first, *others = re.findall(r"files written for|everything is up to date", log)
    assert (first, set(others)) == ("files written for", {"everything is up to date"})


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


def test_flower_asks_and_may_do_nothing_else(deployment: Deployment) -> None:
    url = f"http://127.0.0.1:{deployment.ports['FLOWER']}"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{url}/workers", timeout=10)
    password = deployment.exec("flower", "cat", "/run/secrets/pages-password")
    login = {"Authorization": "Basic " + b64encode(f"flower:{password}".encode()).decode()}

    def ask(path: str, method: str = "GET") -> bytes:
        with urllib.request.urlopen(urllib.request.Request(url + path, headers=login, method=method), timeout=20) as it:
            found: bytes = it.read()
        return found

    def all_answer() -> bool:
        found = json.loads(ask("/api/workers?refresh=1"))
        return {name.partition("@")[0] for name in found} == set(QUEUES.names)

    eventually(all_answer, "Flower does not see every worker")
    with pytest.raises(urllib.error.HTTPError, match=r"40[35]"):
        ask("/api/worker/shutdown/math@x", "POST")
    # Task events would cost four messages a task; workers were not asked for them, nor for what they refuse.
    stats = json.loads(ask("/api/workers"))
    assert stats
    for queue in QUEUES:
        assert "REMOTE_CONTROL" not in deployment.compose("logs", "--no-color", queue.user)


def test_the_readmes_commands(deployment: Deployment) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    ours = ("docker compose ", "python3 -m ops check --compose")
    lines = [line for block in blocks for line in block.splitlines() if line.startswith(ours)]
    assert len(lines) >= 5
    environ = {**deployment.environ, "COMPOSE_PROJECT_NAME": deployment.project, "COMPOSE_PROFILES": ",".join(PROFILES)}
    for line in lines:
        deployment.run(["bash", "-c", line], environ, 300)
    deployment.up("--scale", "worker-image=1")


def test_what_it_costs(deployment: Deployment) -> None:
    """Memory of every container at rest, and the size of every image of ours; for docs/deploy.md."""
    names = [name for name, container in deployment.containers().items() if container["State"] == "running"]
    lines = deployment.run(
        ["docker", "stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}", *names], deployment.environ, 60
    ).splitlines()
    used = {name.removeprefix(f"{deployment.project}-"): amount for name, amount, *_ in map(str.split, lines)}
    assert set(used) >= {f"{queue.user}-1" for queue in QUEUES} | {f"{name}-1" for name in BESIDE}
    total = sum(float(amount.removesuffix("MiB")) for amount in used.values())
    print(f"\nat rest {total:.0f} MiB: {', '.join(f'{name} {amount}' for name, amount in sorted(used.items()))}")
    sizes = deployment.run(
        ["docker", "images", "--format", "{{.Repository}} {{.Size}}", "--filter", f"reference=*:{deployment.tag}"],
        deployment.environ,
        60,
    )
    print(f"images: {', '.join(sorted(sizes.splitlines()))}")
