"""What a producer imports: `import queues`, then `queues.tasks.add(2, 3)`. Needs Celery and nothing else."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

    from queues import tasks

__all__ = ["tasks"]


def __getattr__(name: str) -> ModuleType:
    """Load `tasks`, and with it Celery, at first use: the table and the settings alone need neither."""
    if name != "tasks":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module("queues.tasks")
