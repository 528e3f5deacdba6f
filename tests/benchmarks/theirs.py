"""danihodovic's exporter (PyPI: prometheus-exporter-celery) in a virtual environment of its own, beside ours."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

from ops.ports import free_port
from tests.integration.exporters import Metrics

if TYPE_CHECKING:
    from ops.local import Stack

PACKAGE = "prometheus-exporter-celery==0.11.2"


def install(folder: Path) -> Path:
    """Its Python, installed where it is missing.

    Raises:
        subprocess.CalledProcessError: it cannot be installed.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
        subprocess.run([*pip, PACKAGE], check=True, stderr=subprocess.DEVNULL)
    return python


class Theirs:
    """Their exporter against a stack, as the operator: it declares queues of its own; use it as a context manager."""

    def __init__(self, python: Path, stack: Stack) -> None:
        environment = stack.environment("operator")
        password = Path(environment["BROKER_PASSWORD_FILE"]).read_text(encoding="utf-8").strip()
        self.address = f"127.0.0.1:{free_port()}"
        self.log = stack.folder / "log" / "theirs.log"
        self.process: subprocess.Popen[bytes] | None = None
        options = {
            "ca_certs": environment["BROKER_CA"],
            "certfile": environment["BROKER_CERT"],
            "keyfile": environment["BROKER_KEY"],
            "cert_reqs": "2",
        }
        self._command = [
            *(str(python), "-c", "from src.cli import cli; cli()"),
            f"--broker-url=amqps://operator:{quote(password, safe='')}@{environment['BROKER_HOSTS']}//",
            *(f"--broker-ssl-option={name}={value}" for name, value in options.items()),
            # Without it, the first error of the broker ends the process.
            *("--retry-interval=1", "--host=127.0.0.1", f"--port={self.address.rpartition(':')[2]}"),
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_details: object) -> None:
        self.end(signal.SIGKILL)

    def start(self) -> None:
        """Start it, and wait until it serves."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)
        limit = time.monotonic() + 60
        while self.metrics() is None:
            if time.monotonic() > limit or self.process.poll() is not None:
                raise RuntimeError(f"it did not start: see {self.log}")
            time.sleep(0.2)

    def end(self, number: int) -> None:
        """End it by a signal."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(15)

    def metrics(self) -> Metrics | None:
        """A scrape; None where it fails."""
        try:
            return Metrics.scrape(f"http://{self.address}/metrics")
        except OSError:
            return None
