"""The folder of the stack, which one version leaves to the other, and looks into what runs there."""

from __future__ import annotations

import contextlib
import json
import ssl
import subprocess
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import amqp

from ops.processes import clean_environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.upgrade.versions import Version

#: Seconds within which a version is up or down, and a command over, on a busy machine.
PATIENCE = 180.0


class Home:
    """The folder of the stack, which one version leaves to the other."""

    def __init__(self, folder: Path, journals: Path, logs: Path) -> None:
        self.folder, self.journals, self.logs = folder, journals, logs

    def journal(self, version: Version) -> Path:
        """Where the tasks of a version write down that they ran."""
        return self.journals / f"ran-{version.name}"

    def environment(self, version: Version) -> dict[str, str]:
        """What every process of a version has."""
        journal = str(self.journal(version))
        return {**version.environment, "WARREN_HOME": str(self.folder), "FAULTS_JOURNAL": journal}

    def settings(self, role: str) -> dict[str, str]:
        """A role's settings, as the version that was started last has written them."""
        found: dict[str, str] = json.loads((self.folder / "env" / f"{role}.json").read_text())
        return found

    @property
    def queues(self) -> list[str]:
        """The work queues."""
        return sorted(path.stem.removeprefix("worker-") for path in self.folder.glob("env/worker-*.json"))

    @property
    def exporter(self) -> str:
        """The exporter's address."""
        return "http://" + self.settings("exporter")["EXPORTER_ADDRESS"]

    def ops(self, version: Version, *words: str, check: bool = True) -> str:
        """The operator's command of a version; what it prints.

        Raises:
            AssertionError: it fails.
        """
        done = subprocess.run(
            version.command("-m", "ops", *words),
            env={**clean_environment(), **self.environment(version)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        command = f"{version.name}: ops {' '.join(words[:3])}"
        assert not check or done.returncode == 0, f"{command} ended with {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout

    def letters(self, version: Version) -> dict[str, dict[str, Any]]:
        """All dead letters as a version lists them, by id."""
        found = json.loads(self.ops(version, "dead-letters", "list", "--json"))["letters"]
        return {letter["id"] or letter["ref"]: letter for letter in found}

    @contextlib.contextmanager
    def channel(self) -> Iterator[Any]:
        """A channel with the operator's rights, by plain AMQP."""
        settings = self.settings("operator")
        connection = amqp.Connection(
            host=settings["BROKER_HOSTS"],
            userid=settings["BROKER_USER"],
            password=Path(settings["BROKER_PASSWORD_FILE"]).read_text().strip(),
            connect_timeout=5,
            read_timeout=10,
            ssl={
                "cert_reqs": ssl.CERT_REQUIRED,
                "ca_certs": settings["BROKER_CA"],
                "certfile": settings["BROKER_CERT"],
                "keyfile": settings["BROKER_KEY"],
                "server_hostname": settings["BROKER_SERVER_NAME"],
            },
        )
        connection.connect()
        try:
            yield connection.channel()
        finally:
            connection.close()

    def counts(self, *queues: str) -> dict[str, tuple[int, int]]:
        """Ready messages and consumers of queues."""
        with self.channel() as channel:
            answers = [channel.queue_declare(queue, passive=True) for queue in queues]
        return {
            queue: (found.message_count, found.consumer_count) for queue, found in zip(queues, answers, strict=True)
        }

    def consumed(self, least: int = 1) -> bool:
        """Whether so many workers consume each queue."""
        try:
            return all(consumers >= least for _, consumers in self.counts(*self.queues).values())
        except (OSError, amqp.AMQPError):
            return False

    def exporting(self) -> bool:
        """Whether the exporter receives and counts."""
        try:
            with urllib.request.urlopen(f"{self.exporter}/-/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
