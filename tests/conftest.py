"""Fixtures of all tests: a clean environment, and one real stack for the integration tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ops.errors import MissingProgramError
from ops.local import Stack
from ops.processes import PREFIXES
from queues.app import WarrenCelery, create_app, default_app
from queues.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator


#: The running stack, for clean-up between test files.
STACKS: list[Stack] = []


@pytest.fixture(autouse=True, scope="session")
def _clean_environment() -> None:
    """A developer's own settings must not reach a test."""
    for name in list(os.environ):
        if name.startswith((*PREFIXES, "WARREN_", "TIMEZONE", "PUBLISH_")):
            del os.environ[name]


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The whole stack with a real RabbitMQ; skipped without one on a laptop, a failure in CI."""
    with Stack(tmp_path_factory.mktemp("stack") / "home") as running:
        try:
            running.start()
        except MissingProgramError as exc:
            if os.environ.get("CI"):
                raise
            pytest.skip(str(exc))
        STACKS.append(running)
        yield running
        STACKS.clear()


@pytest.fixture(scope="session")
def producer_environment(stack: Stack) -> dict[str, str]:
    """A producer's settings."""
    return stack.environment("producer")


@pytest.fixture(scope="session")
def app(producer_environment: dict[str, str]) -> Iterator[WarrenCelery]:
    """An app that acts as a producer."""
    with create_app(Settings.from_env(producer_environment)) as made:
        yield made


@pytest.fixture
def stubs(producer_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`queues.tasks` talks to the stack."""
    for name, value in producer_environment.items():
        monkeypatch.setenv(name, value)
    default_app.cache_clear()
    yield
    if default_app.cache_info().currsize:
        default_app().close()
    default_app.cache_clear()


@pytest.fixture
def project() -> Path:
    """The project's root."""
    return Path(__file__).parent.parent
