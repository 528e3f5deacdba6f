"""Tasks with classes of their own, in each way that Celery knows."""

from __future__ import annotations

from typing import Any

import celery
from celery import shared_task

from workers.app import app


def work(value: Any) -> Any:
    if value == "fail":
        raise ValueError("asked to fail")
    return value


class Registered(celery.Task):
    """Registered as an object."""

    name = "classes.registered"

    def run(self, value: Any) -> Any:
        return work(value)


class Base(celery.Task):
    """What a project's tasks have in common."""

    abstract = True

    def doubled(self, value: Any) -> Any:
        return work(value)


@app.task(name="classes.based", base=Base, bind=True)
def based(self: Any, value: Any) -> Any:
    return self.doubled(value)


@shared_task(name="classes.shared")
def shared(value: Any) -> Any:
    return work(value)


app.register_task(Registered())
