"""How a version runs: the stack of its own `up`, and further processes of it beside another version's."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import xmlrpc.client
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from supervisor.xmlrpc import SupervisorTransport

from ops.processes import clean_environment
from tests.faults.upgrade.home import PATIENCE
from tests.faults.worker import Worker
from tests.integration.helpers import awaited

if TYPE_CHECKING:
    from tests.faults.upgrade.home import Home
    from tests.faults.upgrade.versions import Version


class Up:
    """`python -m ops up` of one version."""

    def __init__(self, version: Version, home: Home) -> None:
        self.version, self.home = version, home
        self.log = home.logs / f"up-{version.name}.log"
        with self.log.open("wb") as log:
            tell = shutil.which("setpriv")
            command = (*((tell, "--pdeathsig", "TERM", "--") if tell else ()), *version.command("-m", "ops", "up"))
            self.process = subprocess.Popen(
                command,
                env={**clean_environment(), **home.environment(version)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait(self) -> None:
        """Wait until every queue is consumed, the exporter counts, and the command says where.

        Raises:
            AssertionError: it ended, or is not up in time.
        """

        def up() -> bool:
            return self.process.poll() is not None or (
                bool(self.home.queues)
                and self.home.exporter in self.log.read_text()
                and self.home.consumed()
                and self.home.exporting()
            )

        assert awaited(up, PATIENCE), f"`up` of {self.version.name} is not up; see {self.home.logs}"
        assert self.process.poll() is None, f"`up` of {self.version.name} ended; see {self.home.logs}"

    def pid(self, service: str) -> int:
        """The process of a service."""
        return int(self._rpc("getProcessInfo", f"services:{service}")["pid"])

    def kill(self, service: str) -> None:
        """SIGKILL to a service's main process; supervisor starts another."""
        os.kill(self.pid(service), signal.SIGKILL)

    def stop_exporter(self) -> None:
        """Make place for the other version's."""
        self._rpc("stopProcess", "services:exporter", True)

    def stop_services(self) -> None:
        """Stop everything but the broker and the mail server; supervisor's log says what ended by itself."""
        self._rpc("stopProcessGroup", "services", True)

    def stop(self) -> int:
        """Stop the rest, as a service manager does; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def _rpc(self, method: str, *arguments: Any) -> Any:
        socket = re.search(r"^file=(.+)$", (self.home.folder / "supervisord.conf").read_text(), re.MULTILINE)
        assert socket, "supervisor has no socket"
        transport = SupervisorTransport(None, None, f"unix://{socket[1]}")
        try:
            return getattr(xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport).supervisor, method)(
                *arguments
            )
        finally:
            transport.close()


class Beside:
    """Workers and beat of one version beside another's; the exporter comes when the other one's has ended."""

    def __init__(self, version: Version, home: Home) -> None:
        self.version, self.home = version, home
        self.processes: dict[str, Worker] = {}
        for queue in home.queues:
            alive = home.logs / f"{version.name}-{queue}.alive"
            alive.unlink(missing_ok=True)
            # A container has a host name of its own.
            words = ("worker", "-Q", queue, "-n", f"{queue}@{version.name}", "--loglevel", "INFO")
            self._start(f"worker-{queue}", *self.celery, *words, HEARTBEAT_FILE=str(alive))
        schedule = str(home.logs / f"{version.name}-beat")
        self._start("beat", *self.celery, "beat", "--loglevel", "INFO", "--schedule", schedule, "--pidfile=")
        alive_files = [home.logs / f"{version.name}-{queue}.alive" for queue in home.queues]
        try:
            assert awaited(lambda: all(path.exists() for path in alive_files), PATIENCE), (
                f"workers of {version.name} do not consume beside the other version's; see {home.logs}"
            )
        except BaseException:
            self.stop_services()
            raise

    celery = ("-m", "celery", "-A", "workers.app")

    def export(self) -> None:
        """Start the exporter."""
        self._start("exporter", "-m", "ops.exporter")
        assert awaited(self.home.exporting, PATIENCE), f"the exporter of {self.version.name} does not count"

    def stop_services(self) -> list[str]:
        """Stop everything as a rollout does: what ended otherwise than with 0, or by itself."""
        stopping, self.processes = self.processes, {}
        # All at once, as a service manager does: each waits for its own tasks only.
        with ThreadPoolExecutor(len(stopping) or 1) as pool:
            codes = [code for code, _ in pool.map(lambda worker: worker.stop(PATIENCE), stopping.values())]
        return [
            f"{name} of {self.version.name}: exit {code}, ended by itself {worker.exits}"
            for (name, worker), code in zip(stopping.items(), codes, strict=True)
            if code or worker.exits
        ]

    def _start(self, role: str, *words: str, **more: str) -> None:
        environment = {**self.home.settings(role), **self.home.environment(self.version), **more}
        log = self.home.logs / f"{self.version.name}-{role}.log"
        self.processes[role] = Worker(self.version.command(*words), environment, log)
