"""The register of private hooks: every place where Warren reaches inside Celery and its family.

Data alone. A hook is a name that a library does not promise to keep, or a method that Warren overrides and that only
the library calls: where it moves, most would fall silent. `tests/drift/test_hooks.py` asserts each in the installed
releases, and that there are no others; docs/hooks.md says how to add one, and how to move to a newer Celery.
"""

from __future__ import annotations

from workers.hooks import consuming, operating, pooling, publishing, running
from workers.hooks.hook import Hook, each

__all__ = ["HOOKS", "TESTED", "Hook"]

#: The minors that the hooks were read and tested in; pyproject.toml admits no others.
TESTED = {
    "celery": "5.7",
    "kombu": "5.7",
    "billiard": "4.3",
    "amqp": "5.4",
    "flower": "2.2",
    "supervisor": "4.3",
    "prometheus-client": "0.26",
}

HOOKS = tuple(each(publishing.ROWS, consuming.ROWS, running.ROWS, pooling.ROWS, operating.ROWS))
