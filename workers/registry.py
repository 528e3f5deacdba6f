"""Every task of a worker is guarded, however it was made: the app sees to it at registration, and not a task's class.

`@app.task`, `@shared_task`, `base=` of any kind, `register_task` of a class: a class may set whatever Celery lets it
set, and its messages are dead-lettered, limited and acknowledged as everybody's.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

from celery.app.registry import TaskRegistry
from celery.exceptions import MaxRetriesExceededError, Reject, Retry

from queues.app import follows
from queues.canvas import UNLOCK
from queues.topology import QUEUES, Topology
from workers import chords
from workers.report import described

if TYPE_CHECKING:
    from collections.abc import Callable

#: What a task's class does not decide: how its messages are taken, and given back.
FIXED = {
    "Request": "workers.guard:Request",
    "Strategy": "celery.worker.strategy:default",
    "acks_late": True,
    "acks_on_failure": False,
    "acks_on_timeout": True,
    "reject_on_worker_lost": True,
    "retry_on_worker_lost": False,
}


class Registry(TaskRegistry):
    """A worker's tasks by name."""

    def __init__(self, tasks: Any = (), topology: Topology = QUEUES) -> None:
        super().__init__(tasks)
        self.topology = topology

    def __setitem__(self, name: str, task: Any) -> None:
        vars(task).update(FIXED)
        if "retry" not in vars(task):
            task.retry = functools.partial(retry, task.retry)
        # Celery's decorator sets it; by it wrong arguments are seen before the task is run.
        header = getattr(task, "__header__", None)
        parameters = inspect.signature(header or task.run)
        task.__header__ = Header.of(header or parameters.bind, parameters)
        if name in self.topology.task_names:
            spec = self.topology.task(name)[1]
            task.time_limit = min(task.time_limit or spec.time_limit, spec.time_limit)
            task.soft_time_limit = min(task.soft_time_limit or spec.soft_time_limit, spec.soft_time_limit)
            task.rate_limit = task.rate_limit or spec.rate_limit
        super().__setitem__(name, task)


class Header:
    """What takes the arguments that a task takes.

    Celery compares them when a task is sent. Of what comes after another task it would be that one, which has done its
    work, that fails; so this one's worker looks, and tells. Celery also counts the parameters: a callback for failures
    that takes the error is called, in the worker's main process, and any other is sent; so is every bound one.
    """

    def __init__(self, takes: Callable[..., Any], parameters: inspect.Signature) -> None:
        self.takes, self.__signature__ = takes, parameters

    @classmethod
    def of(cls, takes: Callable[..., Any], parameters: inspect.Signature) -> Callable[..., Any]:
        """The header of a function with these parameters; of anything else a partial: Celery always sends those."""
        if isinstance(takes, cls) or isinstance(getattr(takes, "func", None), cls):
            return takes
        header = cls(takes, parameters)
        return header if inspect.isfunction(takes) else functools.partial(header)

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Compare them.

        Raises:
            TypeError: the task does not take them.
        """
        if not follows.get():
            self.takes(*args, **kwargs)


def retry(original: Any, *args: Any, **kwargs: Any) -> Any:
    """Celery's, which would turn down for good a message that is to go back, and tell everybody a task's arguments."""
    task = getattr(original, "__self__", None)
    if task is not None and task.name == UNLOCK:
        kwargs["countdown"] = chords.next_look(task)
    try:
        return told(original(*args, **kwargs))
    except Retry as again:
        told(again)
        raise
    except Reject as exc:
        if isinstance(exc.reason, Reject):
            raise exc.reason from exc
        raise
    except MaxRetriesExceededError as exc:
        text, given, _ = str(exc).partition(" args:")
        if given and text.startswith("Can't retry "):
            exc.args, exc.task_args, exc.task_kwargs = (f"{text}: its retries are used up",), (), {}
        raise


def told(again: Retry) -> Retry:
    """A retry whose reason is a class and a text; Celery's has what the error was made of."""
    if again.exc is not None:
        again.excs = described(again.exc)
    return again
