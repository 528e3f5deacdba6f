"""What every integration test cleans up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integration.helpers import OPENED

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _close_apps() -> Iterator[None]:
    """Close the connections that a test opened."""
    yield
    while OPENED:
        OPENED.pop().close()
