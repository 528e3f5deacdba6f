"""An exporter of our own, and what the metrics of one say."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from typing import TYPE_CHECKING, Any, Self

import amqp
from prometheus_client.parser import text_string_to_metric_families

from ops.ports import free_port
from queues.publish import stamp

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ops.local import Stack
    from queues.app import WarrenCelery

Labels = tuple[tuple[str, str], ...]


class Metrics:
    """One scrape."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples: dict[tuple[str, Labels], float] = {
            (item.name, tuple(sorted(item.labels.items()))): item.value
            for family in text_string_to_metric_families(text)
            for item in family.samples
        }

    @classmethod
    def scrape(cls, url: str) -> Metrics:
        """Scrape an exporter."""
        with urllib.request.urlopen(url, timeout=10) as answer:
            return cls(answer.read().decode())

    def get(self, name: str, /, **labels: str) -> float | None:
        """A sample, or None where there is none."""
        return self.samples.get((name, tuple(sorted(labels.items()))))

    def of(self, prefix: str, /, **labels: str) -> dict[tuple[str, Labels], float]:
        """All samples whose name begins so and that have these labels."""
        wanted = set(labels.items())
        return {key: value for key, value in self.samples.items() if key[0].startswith(prefix) and wanted <= {*key[1]}}

    def sum(self, name: str, /, **labels: str) -> float:
        """The sum of the samples of a name; 0 where there is none."""
        return sum(value for key, value in self.of(name, **labels).items() if key[0] == name)


class OwnExporter:
    """`python -m ops.exporter` with an id and a folder of its own; use it as a context manager."""

    def __init__(self, stack: Stack, folder: Path, exporter_id: str, **changes: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.address = f"127.0.0.1:{free_port()}"
        self.log = folder / f"{exporter_id}.log"
        self._environment = {
            **os.environ,
            **stack.environment("exporter"),
            "EXPORTER_ID": exporter_id,
            "EXPORTER_ADDRESS": self.address,
            "EXPORTER_STATE_DIR": str(folder),
            **changes,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_details: object) -> None:
        self.end(signal.SIGTERM)

    def start(self) -> None:
        """Start it, again where it was ended."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ops.exporter"], env=self._environment, stdout=log, stderr=log
            )

    def end(self, number: int) -> None:
        """End it by a signal."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(number)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def page(self, path: str) -> tuple[int, str]:
        """Status and text of a page; 0 where nobody answers."""
        try:
            with urllib.request.urlopen(f"http://{self.address}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as exc:
            return exc.code, exc.read().decode()
        except OSError:
            return 0, ""

    @property
    def ready(self) -> bool:
        """Whether it receives snapshots."""
        return self.page("/-/ready")[0] == 200

    def metrics(self) -> Metrics:
        """Its metrics now."""
        return Metrics.scrape(f"http://{self.address}/metrics")


@contextlib.contextmanager
def channel(app: WarrenCelery) -> Iterator[Any]:
    """A channel without confirms, for many messages at once."""
    with app.connection_for_write(transport_options={"confirm_publish": False}) as connection:
        connection.ensure_connection(timeout=10)
        yield connection.connection.channel()


def flood(app: WarrenCelery, name: str, args: tuple[Any, ...], number: int, *, queue: str = "math") -> None:
    """Publish a task many times, unconfirmed, as fast as the socket takes it; each message with its own stamp."""
    with channel(app) as unconfirmed:
        for _ in range(number):
            task_id = str(uuid.uuid4())
            message = app.amqp.as_task_v2(task_id, name, args=args, kwargs={}, ignore_result=True)
            body = app.backend.encode(message.body) if not isinstance(message.body, bytes) else message.body
            unconfirmed.basic_publish(
                amqp.Message(
                    body,
                    content_type="application/json",
                    content_encoding="utf-8",
                    delivery_mode=2,
                    application_headers=stamp(message.headers),
                    timestamp=int(time.time()),
                    correlation_id=task_id,
                ),
                exchange=f"tasks.{queue}",
                routing_key=queue,
            )
        # The broker answers this when it has taken all before it.
        unconfirmed.close()
