"""What both sides need: Warren's broker with a virtual host for stock Celery, and a Redis each."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

from ops.ports import HOST, free_port
from tests.faults import control
from tests.faults.lab import Lab
from tests.resultserver import installed
from tests.suites.table import QUEUE

if TYPE_CHECKING:
    from pathlib import Path

SIDES = ("stock", "warren")


class SuiteLab(Lab):
    """The fault suite's lab. Celery's settings of the control have no place for TLS, nor have its tests for Redis'."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.plain = free_port()
        # The tests count channels, and use the same keys.
        self.redis = {side: free_port() for side in SIDES}
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        program = installed()
        if program is None:
            raise FileNotFoundError("neither redis-server nor valkey-server is installed: run ops/bootstrap redis")
        super().__enter__()
        try:
            listen = f'rabbit_networking:start_tcp_listener({{"{HOST}", {self.plain}}}, 10).'
            self.broker.ctl("eval", listen)
            for port in self.redis.values():
                words = ("--port", str(port), "--bind", HOST, "--save", "", "--dir", str(self.folder))
                self.processes.append(subprocess.Popen([program, *words], stdout=subprocess.DEVNULL))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *details: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        super().__exit__(*details)

    def side(self, name: str) -> dict[str, str]:
        """The settings of one side."""
        backend = f"redis://{HOST}:{self.redis[name]}/0"
        found = {
            "TEST_BACKEND": backend,
            "TEST_BROKER": f"pyamqp://{control.NAME}:{quote(self.control_password)}@{HOST}:{self.plain}/{control.NAME}",
            "REDIS_HOST": HOST,
            "REDIS_PORT": str(self.redis[name]),
        }
        if name == "stock":
            return found
        more = {"RESULT_BACKEND": backend, "REMOTE_CONTROL": "full"}
        producer = json.dumps({**self.environment("operator"), **more})
        return {**found, **self.environment(f"worker-{QUEUE}"), **more, "SUITE_PRODUCER": producer}

    def purge(self, name: str) -> None:
        """What a file's tests have left must not reach the next one's."""
        vhost, queue = (control.NAME, "celery") if name == "stock" else ("/", QUEUE)
        if queue in self.broker.ctl("list_queues", "-p", vhost, "--silent", "name").splitlines():
            self.broker.ctl("purge_queue", "-p", vhost, queue)
