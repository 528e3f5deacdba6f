"""What every integration test cleans up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from queues.topology import QUEUES, UNREAD_DEAD_LETTERS
from tests.conftest import STACKS
from tests.integration.helpers import OPENED, acting_as

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _close_apps() -> Iterator[None]:
    """Close the connections that a test opened."""
    yield
    while OPENED:
        OPENED.pop().close()


@pytest.fixture(autouse=True, scope="module")
def _empty_dead_letters() -> Iterator[None]:
    """Thousands of one file's dead letters would make every look of the next file's tests slow."""
    yield
    if STACKS:
        operator = acting_as(STACKS[0], "operator")
        with operator.connection_for_write() as connection, connection.channel() as channel:
            for queue in QUEUES:
                channel.queue_purge(queue.dead_letter)
            channel.queue_purge(UNREAD_DEAD_LETTERS)
        OPENED.remove(operator)
        operator.close()
