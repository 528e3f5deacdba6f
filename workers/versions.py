"""Whether the libraries that Warren reaches inside of are those that it was tested with."""

from __future__ import annotations

import logging
from importlib.metadata import version

from workers.hooks import TESTED

logger = logging.getLogger(__name__)

#: Those of every worker and of beat.
FAMILY = ("celery", "kombu", "billiard", "amqp")


def check() -> None:
    """Say, in one line, which are of another minor; an override may be dead there without an error."""
    found = {name: version(name) for name in FAMILY}
    other = [name for name in FAMILY if found[name].split(".")[:2] != TESTED[name].split(".")]
    if other:
        logger.warning(
            "untested versions: %s, where Warren was tested with %s; install those of requirements.txt",
            ", ".join(f"{name} {found[name]}" for name in other),
            ", ".join(f"{name} {TESTED[name]}" for name in other),
        )
