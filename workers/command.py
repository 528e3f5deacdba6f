"""Celery's own commands (`celery -A workers.app call …`) with our errors: a sentence, and no traceback before it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from queues.errors import WarrenError

if TYPE_CHECKING:
    from types import TracebackType


def tell_errors() -> None:
    """Do so where this process is such a command, and not a program that imports the app."""
    if click.get_current_context(silent=True) is not None:
        before = sys.excepthook

        def tell(kind: type[BaseException], exc: BaseException, trace: TracebackType | None) -> None:
            if isinstance(exc, WarrenError):
                print(f"Error: {exc}", file=sys.stderr)
            else:
                before(kind, exc, trace)

        sys.excepthook = tell
