"""Tests of tasks in a worker and on a broker of their own, with Celery's fixtures."""

import os

import pytest

from ops.local import Stack
from queues.errors import PermanentError

pytest_plugins = ("celery.contrib.pytest",)


@pytest.fixture(scope="session")
def celery_includes():
    return ["celery.contrib.testing.tasks"]  # the fixture's ping


@pytest.fixture(scope="session")
def celery_worker_parameters():
    return {"queues": ["math"]}


@pytest.fixture(scope="session")
def settings(tmp_path_factory):
    """A private broker, and in the environment what the worker of the queue has there."""
    with Stack(tmp_path_factory.mktemp("stack") / "home") as stack:
        stack.prepare()
        stack.broker.start()
        os.environ.update(stack.environment("worker-math"))
        yield
        stack.broker.stop(timeout_s=0)


@pytest.fixture
def celery_app(settings):
    from workers.app import app  # reads the environment

    return app


def test_the_code_alone(celery_app):
    from workers.math_tasks import add

    assert add(2, 3) == 5


def test_a_task(celery_app, celery_worker):
    from workers.math_tasks import add

    assert add.delay(2, 3).get(timeout=30) == 5


def test_a_task_that_fails(celery_app, celery_worker):
    from workers.math_tasks import reliable_task

    with pytest.raises(PermanentError, match="asked for a failure"):
        reliable_task.delay({"fail": True}).get(timeout=30)
