"""PostgreSQL as the result store, over TLS and with a password."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from queues.app import WarrenCelery, create_app
from queues.settings import Settings
from tests.postgresql import PostgreSQL, programs
from tests.resultserver import need_store

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgreSQL]:
    need_store(programs(), "postgresql")
    with PostgreSQL(tmp_path_factory.mktemp("postgresql")) as server:
        yield server


@pytest.fixture
def reader(store: PostgreSQL) -> Iterator[WarrenCelery]:
    broker = {"BROKER_PLAINTEXT": "1", "BROKER_PASSWORD_FILE": str(store.password)}  # never asked
    with create_app(Settings.from_env({**broker, **store.environment()})) as app:
        yield app


def test_a_result_goes_through_it(store: PostgreSQL, reader: WarrenCelery) -> None:
    reader.backend.store_result("some-task", {"sum": 42}, "SUCCESS")
    assert reader.AsyncResult("some-task").get(timeout=10) == {"sum": 42}
    store.stop()
    store.restart()
    store.freeze()
    store.thaw()
    assert reader.AsyncResult("some-task").get(timeout=10) == {"sum": 42}, "a server that was away is used again"
