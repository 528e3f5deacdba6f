"""Tasks as users write them, most of them after Celery's own documentation."""

from __future__ import annotations

import datetime
import logging
import os
import signal
import sys
import threading
import time
from typing import Any, NoReturn

from celery import chord, group

from queues.errors import TransientError
from tests.faults.kinds_errors import Holds, Two
from workers.app import app
from workers.task import register


@register("cases.echo")
def echo(value: Any = None, sleep: float = 0.0) -> Any:
    time.sleep(sleep)
    return value


@register("cases.pair")
def pair(one: Any, two: Any) -> Any:
    return [one, two]


@register("cases.again", bind=True)
def again(self: Any, value: Any, *, times: int = 2, how: str = "plain") -> Any:
    """Fails so many times."""
    if self.request.retries >= times:
        return value
    if how == "transient":
        raise TransientError("bad_gateway", "the gateway answered 502")
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=1)
    options: dict[str, dict[str, Any]] = {
        "plain": {"countdown": 1},
        "error": {"exc": Two("the gateway answered", 502), "countdown": 1},
        "lock": {"exc": Holds(threading.Lock()), "countdown": 1},
        "at once": {"countdown": 0},
        "arguments": {"args": (), "kwargs": {"value": value, "times": times, "how": how}, "countdown": 0.3},
        "eta": {"eta": later},
    }
    raise self.retry(**options[how])


@register("cases.replace", bind=True)
def replace(self: Any, value: Any, *, by: str = "echo") -> Any:
    step = app.signature("cases.echo", args=[value])
    made = {
        "echo": lambda: step,
        "chain": lambda: step | app.signature("cases.echo"),
        "group": lambda: group([step, step.clone()], app=app),
        "chord": lambda: chord([step, step.clone()], app.signature("cases.echo"), app=app),
    }
    return self.replace(made[by]())


@register("cases.steady", bind=True)
def steady(self: Any, value: Any) -> Any:
    """Not to be run twice; the next task has the effect."""
    return self.replace(app.signature("cases.echo", args=[value]))


@register("cases.say")
def say(text: str) -> None:
    print(f"printed {text}")
    print(f"complained {text}", file=sys.stderr)
    logging.getLogger("my.app").info("logged %s", text)
    logging.getLogger("my.app").warning("warned\nof %s", text)
    logging.getLogger("multiprocessing").warning("billiard of %s", text)


@register("cases.die")
def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("dead")
