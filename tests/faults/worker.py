"""One worker process with the restart policy that a container has."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ops.processes import clean_environment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Seconds until a worker that ended is started again.
RESTART_DELAY = 1.0


class Worker:
    """A process that is started again whenever it ends, until `stop`.

    Attributes:
        exits: exit codes of the ends that nobody asked for.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        # Told by the kernel to end when the suite is gone, however it ended.
        tell = shutil.which("setpriv")
        self.command = (tell, "--pdeathsig", "TERM", "--", *command) if tell else tuple(command)
        self.environment, self.log = environment, log
        self.exits: list[int] = []
        self._asked = 0
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        # The kernel ends the process with the thread that made it: this one lives as long as the worker.
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """The main process, while it runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def children(self) -> list[int]:
        """The processes that run tasks."""
        pid = self.pid
        try:
            return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except OSError:
            return []

    def memory(self) -> int:
        """Bytes that the main process has had in memory at most."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return 0

    def kill(self) -> None:
        """SIGKILL to the main process; the restart is not one that a message caused."""
        if (pid := self.pid) is not None:
            self._asked += 1
            os.kill(pid, signal.SIGKILL)

    def restart(self, patience: float = 30.0) -> float:
        """SIGTERM, as a new version's rollout does, and a start; gives the seconds that the end took."""
        process = self._process
        self._asked += 1
        begun = time.monotonic()
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                process.kill()
        return time.monotonic() - begun

    def stop(self, patience: float = 30.0) -> tuple[int, float]:
        """SIGTERM, and SIGKILL when patience ends.

        Returns:
            The exit code, and the seconds that it took.
        """
        self._stopping.set()
        process, begun = self._process, time.monotonic()
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._thread.join(5)
        return (process.returncode if process is not None else 0), time.monotonic() - begun

    def _keep(self) -> None:
        while not self._stopping.is_set():
            with self.log.open("ab") as output:
                self._process = subprocess.Popen(
                    self.command,
                    env={**clean_environment(), **self.environment},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                )
            code = self._process.wait()
            if self._stopping.is_set():
                return
            if self._asked:
                self._asked -= 1
            else:
                self.exits.append(code)
            self._stopping.wait(RESTART_DELAY)
