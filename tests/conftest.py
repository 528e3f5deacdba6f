"""Fixtures of all tests: a clean environment, and one real stack for the integration tests."""

from __future__ import annotations

import contextlib
import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ops.broker import find_rabbitmq
from ops.errors import MissingProgramError
from ops.local import Stack
from ops.processes import PREFIXES
from queues.app import WarrenCelery, create_app, default_app
from queues.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator


#: The running stack, for clean-up between test files.
STACKS: list[Stack] = []


#: Files of a minute and more, the longest first: begun last, one would go on alone when all others are done.
LONGEST = (
    *("test_smoke", "test_startup", "test_limits", "test_torture", "test_processes", "test_programs", "test_setup"),
    *("test_naughty", "test_delays", "test_guard", "test_beat", "test_resultstore", "test_next_step", "test_apply"),
    *("test_waiting", "test_canvas", "test_check", "test_deadletters", "test_workers", "test_once", "test_broker"),
    *("test_embedded", "test_places", "test_cli", "test_permissions"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def pytest_collection_finish() -> None:
    """What was imported and collected stays until the end: each full collection would look through all of it again."""
    gc.collect()
    gc.freeze()


def need_rabbitmq() -> None:
    """Skip without RabbitMQ on a laptop; in CI that is a failure."""
    try:
        find_rabbitmq()
    except MissingProgramError as exc:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(exc))


@contextlib.contextmanager
def embedded(folder: Path, *, only: tuple[str, ...] | None = None) -> Iterator[Stack]:
    """A running stack, or its broker with some services; killed at the end: an orderly stop has tests of its own."""
    need_rabbitmq()
    with Stack(folder, only=only) as stack:
        stack.hurry = lambda: True
        stack.start()
        yield stack


@pytest.fixture(autouse=True, scope="session")
def _clean_environment() -> None:
    """A developer's own settings must not reach a test."""
    for name in list(os.environ):
        if name.startswith((*PREFIXES, "WARREN_", "TIMEZONE", "PUBLISH_")):
            del os.environ[name]


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The whole stack with a real RabbitMQ."""
    with embedded(tmp_path_factory.mktemp("stack") / "home") as running:
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
