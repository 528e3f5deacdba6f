"""A real Prometheus on a free loopback port."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any, Self

import pytest

from ops.ports import free_port

if TYPE_CHECKING:
    from pathlib import Path

REMEDY = "prometheus is not installed: run ops/bootstrap broker prometheus"


def find(program: str) -> str:
    """A program of Prometheus' package; without it a test is skipped on a laptop and fails in CI."""
    found = shutil.which(program)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(REMEDY)
        pytest.skip(REMEDY)
    return found


class Prometheus:
    """Scrapes with a configuration, every second; use it as a context manager."""

    def __init__(self, config: Path, folder: Path, *, interval: str = "1s") -> None:
        """Write a configuration of our own.

        Args:
            config: the configuration to start from.
            folder: where everything is kept.
            interval: between two scrapes, and two evaluations.
        """
        folder.mkdir(parents=True, exist_ok=True)
        text = re.sub(r"_interval: \w+", f"_interval: {interval}", config.read_text(encoding="utf-8"))
        (folder / "prometheus.yml").write_text(text, encoding="utf-8")
        self.folder = folder
        self.url = f"http://127.0.0.1:{free_port()}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    find("prometheus"),
                    f"--config.file={self.folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={self.folder / 'data'}",
                    f"--web.listen-address={self.url.removeprefix('http://')}",
                ],
                stdout=log,
                stderr=log,
                cwd=self.folder,
            )
        limit = time.monotonic() + 30
        while not self._ready():
            if time.monotonic() > limit or self._process.poll() is not None:
                self.__exit__()
                raise RuntimeError((self.folder / "log").read_text())
            time.sleep(0.05)
        return self

    def __exit__(self, *_details: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def get(self, path: str, **query: str) -> Any:
        """The data of an answer; what Prometheus says is wrong is the error's text."""
        try:
            with urllib.request.urlopen(
                f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=10
            ) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as exc:
            raise AssertionError(exc.read().decode()) from exc

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an expression now."""
        found: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return found

    def value(self, expression: str) -> float | None:
        """The value of an expression that has one sample."""
        found = self.query(expression)
        return float(found[0]["value"][1]) if len(found) == 1 else None
