"""A deployment of the Compose file on a real engine, apart from any other."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ops.ports import free_port
from ops.processes import PREFIXES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parent.parent.parent
FILE = ROOT / "docker-compose.rabbitmq.yml"
PROFILES = ("dev",)
#: Services of other profiles that are started by name: there may be no image of Grafana beside Prometheus.
BESIDE = ("prometheus", "flower")
#: Services that run once and end.
ONCE = ("provision", "check")
TARGETS = ("worker", "worker-image", "worker-monitor", "ops", "flower", "local")
PHOTO = "dogs.jpg"
#: New settings and secrets before anything else; together with it, Compose would recreate all that depends on it.
PROVISION = ("up", "--no-deps", "--exit-code-from", "provision", "provision")

#: The result store is not published: its readers are in the deployment.
RESULTS = """
import json, sys
from queues import tasks
print(json.dumps([tasks.result(task).get(timeout=60) for task in sys.argv[1:]]))
"""
STATES = """
import collections, json, sys
from queues import tasks
print(json.dumps(collections.Counter(tasks.result(task).state for task in sys.stdin.read().split())))
"""
#: A producer that does not give up: what is refused or unknown is sent again, with the same id.
LOAD = """
import json, pathlib, sys, time
from kombu.utils.uuid import uuid
from queues import tasks
from queues.errors import PublishError
stop, again, sent = pathlib.Path(sys.argv[1]), 0, []
while not stop.exists():
    sent.append(uuid())
    while True:
        try:
            tasks.process_image.apply_async([sys.argv[2], [64, 64]], task_id=sent[-1])
            break
        except PublishError:
            again += 1
            time.sleep(0.2)
    time.sleep(0.1)
print(json.dumps({"sent": sent, "again": again}))
"""


class Deployment:
    """One project on the engine, with ports of its own."""

    def __init__(self, folder: Path) -> None:
        self.project = f"warren-test-{secrets.token_hex(4)}"
        self.tag = self.project.removeprefix("warren-")
        self.tags: list[str] = [self.tag]
        self.folder = folder
        self.producer = folder / "producer"
        self.ports = {name: free_port() for name in ("AMQPS", "EXPORTER", "PROMETHEUS", "FLOWER", "GRAFANA")}
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith((*PREFIXES, "COMPOSE_"))},
            **{f"WARREN_{name}_ADDRESS": f"127.0.0.1:{port}" for name, port in self.ports.items()},
            "WARREN_TAG": self.tag,
        }

    def command(self, *args: str) -> list[str]:
        """Compose with what makes it this project."""
        profiles = [word for name in PROFILES for word in ("--profile", name)]
        return ["docker", "compose", "--ansi", "never", "-f", str(FILE), "-p", self.project, *profiles, *args]

    def compose(self, *args: str, timeout: float = 300, **changes: str) -> str:
        """Run Compose, and give what it prints."""
        return self.run(self.command(*args), self.environ | changes, timeout)

    def refused(self, *args: str, **changes: str) -> str:
        """Run Compose, which must fail, and give what is said about it."""
        done = subprocess.run(
            self.command(*args), cwd=ROOT, env=self.environ | changes, capture_output=True, text=True, timeout=120
        )
        assert done.returncode, done.stdout + done.stderr
        return done.stdout + done.stderr

    def exec(self, service: str, *command: str, text: str | None = None) -> str:
        """Run a command in a service's first container."""
        return self.run(self.command("exec", "-T", service, *command), self.environ, 120, text)

    def operator(self, *command: str) -> str:
        """Run an operator's command."""
        return self.compose("run", "--rm", "-T", "--no-deps", "ops", *command)

    def fails(self, service: str, *command: str) -> bool:
        """Whether a command fails in a service's first container."""
        try:
            self.exec(service, *command)
        except AssertionError:
            return True
        return False

    def up(self, *args: str) -> None:
        """Start what does not run, and wait until all is healthy."""
        services = self.compose("config", "--services").split()
        try:
            self.compose("up", "-d", "--wait", *args, *services, *BESIDE)
        except AssertionError as exc:
            sick = [name for name, found in self.containers().items() if found["Health"] not in ("", "healthy")]
            health = ["docker", "inspect", "-f", "{{.Name}} {{.RestartCount}} {{json .State}}", *sick]
            told = self.run(health, self.environ, 60) if sick else ""
            raise AssertionError(f"{exc}\n{told}\n{self.compose('logs', '--no-color', '--tail', '20')}") from None

    def down(self) -> None:
        """Leave nothing behind but the build cache."""
        try:
            self.compose("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "20")
        finally:
            images = [f"warren-{target}:{tag}" for target in TARGETS for tag in self.tags]
            subprocess.run(["docker", "image", "rm", "--force", *images], capture_output=True, timeout=60)

    def retag(self) -> None:
        """Other images, as a build of other code makes them."""
        old, self.tag = self.tag, f"{self.tag}-new"
        self.tags.append(self.tag)
        self.environ["WARREN_TAG"] = self.tag
        for target in TARGETS:
            subprocess.run(["docker", "tag", f"warren-{target}:{old}", f"warren-{target}:{self.tag}"], check=True)

    def copy_producer(self) -> None:
        """Give the producer on the host its folder, as its owner does after each change of passwords."""
        self.compose("cp", "provision:/secrets/producer/.", str(self.producer))

    def producing(self, program: str, *args: str) -> list[str]:
        """The command line of a producer's program on the host."""
        source = ["bash", "-c", '. "$1/env.sh" && shift && exec "$@"', "produce", str(self.producer)]
        return [*source, sys.executable, "-c", program, *args]

    def produce(self, program: str) -> str:
        """Run a Python program on the host with the producer's settings, as its README says."""
        return self.run(self.producing(program), {**self.environ, "PYTHONPATH": str(ROOT)}, 60)

    @contextlib.contextmanager
    def load(self) -> Iterator[dict[str, Any]]:
        """Image tasks from the host, ten a second at most; afterwards `sent` has their ids, `again` the repeats."""
        stop, found = self.folder / secrets.token_hex(4), dict[str, Any]()
        process = subprocess.Popen(
            self.producing(LOAD, str(stop), PHOTO),
            env={**self.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield found
        finally:
            stop.touch()
            try:
                output, _ = process.communicate(timeout=60)
            finally:
                process.kill()
        found |= json.loads(output)

    def await_success(self, sent: list[str], seconds: float = 120) -> None:
        """Wait until every task has succeeded: none is lost."""
        found: dict[str, int] = {}

        def all_done() -> bool:
            found.clear()
            found.update(json.loads(self.exec("worker-math", "python", "-c", STATES, text="\n".join(sent))))
            return found == {"SUCCESS": len(sent)}

        try:
            eventually(all_done, "not every task has succeeded", seconds)
        except AssertionError as exc:
            raise AssertionError(f"{exc}: {found} of {len(sent)}\n{self.dead_letters()}") from None

    def dead_letters(self) -> list[str]:
        """What failed for good, and why."""
        letters = json.loads(self.operator("dead-letters", "list", "--json"))["letters"]
        return [f"{letter['id']} ({letter['reason']}): {letter['error']}" for letter in letters]

    def results(self, *tasks: str) -> list[Any]:
        """The results of tasks, which must succeed."""
        found: list[Any] = json.loads(self.exec("worker-math", "python", "-c", RESULTS, *tasks))
        return found

    def works(self) -> bool:
        """Whether a task goes all the way."""
        task = self.produce("from queues import tasks; print(tasks.add(2, 3).id)").strip()
        return self.results(task) == [5]

    def containers(self) -> dict[str, dict[str, Any]]:
        """State of all containers by name, ended ones too."""
        lines = self.compose("ps", "--all", "--format", "json").splitlines()
        return {container["Name"]: container for container in map(json.loads, lines)}

    def container(self, service: str, number: int = 1) -> str:
        """The name of a service's container."""
        return f"{self.project}-{service}-{number}"

    def starts(self) -> dict[str, str]:
        """Id and time of the last start of each container that stays up."""
        names = [name for name, container in self.containers().items() if container["Service"] not in ONCE]
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

    def completions(self, task: str) -> float:
        """How often a task was run to its end, as workers counted it."""
        start = "celery_task_completions_total{"
        return sum(value for name, value in self.metrics().items() if name.startswith(start) and f'"{task}"' in name)

    def ask_prometheus(self, query: str) -> float | None:
        """The value of a query with one result; None for no result."""
        url = f"http://127.0.0.1:{self.ports['PROMETHEUS']}/api/v1/query?query={urllib.request.quote(query)}"  # type: ignore[attr-defined]
        vector = json.loads(fetch(url))["data"]["result"]
        return float(vector[0]["value"][1]) if vector else None

    def run(self, command: list[str], environ: dict[str, str], timeout: float, text: str | None = None) -> str:
        done = subprocess.run(
            command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=timeout, input=text
        )
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
