"""One deployment for all tests on a Docker engine."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from tests.compose.deployment import PHOTO, ROOT, Deployment, engine_problem

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session", autouse=True)
def _engine(request: pytest.FixtureRequest) -> None:
    """Skipped where no engine answers; asked for by name (`-m compose`) in CI, that is a failure."""
    if problem := engine_problem():
        asked_for = "compose" in str(request.config.option.markexpr)
        (pytest.fail if asked_for and os.environ.get("CI") else pytest.skip)(f"no Docker engine answers: {problem}")


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The whole file, from nothing, with the mail catcher, Prometheus and Flower."""
    found = Deployment(tmp_path_factory.mktemp("compose"))
    try:
        began = time.monotonic()
        found.compose("--profile", "flower", "build", timeout=900)
        built = time.monotonic()
        found.compose("up", "-d", "--wait")
        healthy = time.monotonic()
        found.copy_producer()
        assert found.works()
        done = time.monotonic()
        print(
            f"\nimages built in {built - began:.1f} s; from `up` to everything healthy {healthy - built:.1f} s, "
            f"to the first task done {done - built:.1f} s"
        )
        found.up()
        found.compose("cp", str(ROOT / "examples" / "photos" / PHOTO), "worker-image:/var/lib/warren/images/")
        yield found
    finally:
        found.down()
