"""What the fixtures of Celery's integration tests are on Warren's side: its apps, its pool, the queue of its table.

The worker is started by Celery's own fixture, as an application's tests start theirs.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import celery.contrib.testing.tasks  # noqa: F401 - the ping that a worker is tried with
import pytest
from celery.contrib.testing.app import setup_default_app
from celery.utils import nodenames

from queues.app import WarrenCelery, create_app
from queues.settings import Settings
from tests.suites.table import QUEUE

if TYPE_CHECKING:
    from collections.abc import Iterator

#: A broker user may have nodes of its queue's name only; Celery's tests make one up, and ask for it.
NODE = f"{QUEUE}@suite"
nodenames.anon_nodename = lambda: NODE


@pytest.fixture(scope="session")
def celery_session_app() -> WarrenCelery:
    """The workers' app."""
    from workers.app import app

    # Celery's fixture would ask for a connection to it, with this app's transport.
    os.environ.pop("TEST_BROKER", None)
    app.finalize()
    app.set_default()
    app.set_current()
    return app


@pytest.fixture
def celery_app(request: pytest.FixtureRequest, celery_session_app: WarrenCelery) -> Iterator[WarrenCelery]:
    """A test's own app: a producer."""
    from workers.registry import Registry

    settings = Settings.from_env(json.loads(os.environ["SUITE_PRODUCER"]))
    app = create_app(settings, name="celery.tests", tasks=Registry())
    app.housekeeping = QUEUE
    mark = request.node.get_closest_marker("celery")
    app.conf.update(mark.kwargs if mark else {})
    with setup_default_app(app):
        yield app
    app.close()


@pytest.fixture(scope="session")
def celery_worker_pool() -> Any:
    """Warren's pool."""
    from tests.suites.prefork import TaskPool

    return TaskPool


@pytest.fixture(scope="session")
def celery_worker_parameters() -> dict[str, Any]:
    """A worker consumes one queue."""
    return {"queues": [QUEUE], "hostname": NODE, "ping_task_timeout": 60.0, "shutdown_timeout": 60.0}


@pytest.fixture(autouse=True)
def ZZZZ_set_app_current(app: WarrenCelery, celery_session_app: WarrenCelery) -> None:
    """Celery's looks besides that an app has one queue; ours have those of the table."""
    app.set_current()
    app.set_default()
