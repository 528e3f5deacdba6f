"""Typed stubs of every task: call one to enqueue it, sign one for a chain, group or chord.

    from queues import tasks

    result = tasks.add(2, 3)                                   # an AsyncResult; the task is in the queue, confirmed
    tasks.process_image("photos/cat.jpg", [800, 600])
    (tasks.add.s(2, 3) | tasks.multiply.s(10)).apply_async()

A stub knows the task's parameters and nothing of its code, so producers stay light. Each raises
`queues.errors.InvalidArgumentsError` at once where arguments do not fit, and what `queues.publish` raises.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, Generic, ParamSpec

from queues import celeryconfig
from queues.app import default_app
from queues.errors import ConfigurationError, InvalidArgumentsError
from queues.topology import QUEUES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from celery.canvas import Signature
    from celery.result import AsyncResult

    from queues.app import WarrenCelery

Parameters = ParamSpec("Parameters")


class Stub(Generic[Parameters]):
    """A task as a producer sees it."""

    def __init__(self, name: str, function: Callable[Parameters, Any]) -> None:
        functools.update_wrapper(self, function)
        self.name = name
        self.parameters = inspect.signature(function)

    def __repr__(self) -> str:
        return f"<Stub {self.described}>"

    @property
    def described(self) -> str:
        """The task's name and parameters as a person writes them."""
        return f"{self.name}{self.parameters.replace(return_annotation=inspect.Signature.empty)}".replace("'", "")

    def __call__(self, *args: Parameters.args, **kwargs: Parameters.kwargs) -> AsyncResult[Any]:
        """Enqueue the task; returns when the broker has confirmed it."""
        return self.apply_async(args, kwargs)

    #: Celery's name for the same.
    delay = __call__

    def apply_async(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> AsyncResult[Any]:
        """Enqueue with Celery's options (`countdown`, `eta`, `expires`, `task_id`, `link`, ...)."""
        self.check(args, kwargs or {})
        return default_app().send_task(self.name, list(args), dict(kwargs or {}), **options)

    def s(self, *args: Any, **kwargs: Any) -> Signature[Any]:
        """A signature; earlier arguments may come from the step before."""
        return default_app().signature(self.name, args=args, kwargs=kwargs)

    def si(self, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Signature[Any]:
        """An immutable signature: it takes nothing from the step before."""
        self.check(args, kwargs)
        return default_app().signature(self.name, args=args, kwargs=kwargs, immutable=True)

    def _many(self) -> None:
        """Refuse many calls in one message of a task that must not run twice: the ledger knows messages.

        Raises:
            InvalidArgumentsError: send each on its own.
        """
        if QUEUES.task(self.name)[1].once:
            raise InvalidArgumentsError(f"{self.name} runs once for each message: send a group, not a map or chunks")

    def chunks(self, arguments: Iterable[Sequence[Any]], size: int) -> Signature[Any]:
        """Many calls in few messages: for tasks of less than about a millisecond each."""
        from celery.canvas import chunks

        self._many()
        return chunks(self.s(), arguments, size, app=default_app())

    def starmap(self, arguments: Iterable[Sequence[Any]]) -> Signature[Any]:
        """Many calls, one after the other, in one message."""
        from celery.canvas import xstarmap

        self._many()
        return xstarmap(self.s(), arguments, app=default_app())

    def map(self, values: Iterable[Any]) -> Signature[Any]:
        """The same for a task that takes one argument."""
        from celery.canvas import xmap

        self._many()
        return xmap(self.s(), values, app=default_app())

    def check(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Compare arguments with the task's parameters.

        Raises:
            InvalidArgumentsError: they do not fit; the message shows the parameters.
        """
        try:
            self.parameters.bind(*args, **kwargs)
        except TypeError as exc:
            raise InvalidArgumentsError(f"{self.described}: {exc}; nothing was published") from None


def result(task_id: str) -> AsyncResult[Any]:
    """The result of a task that any process enqueued.

    Raises:
        ConfigurationError: RESULT_BACKEND is missing.
    """
    return reading_results().AsyncResult(task_id)


def status(task_id: str) -> dict[str, Any]:
    """A task's state by its id: `{"state", "status"}` while it waits, else `{"state", "info"}`.

    `info` is the progress a task reports, its result, or the text of its error. A result store cannot tell a task that
    waits from an id that never was: both are PENDING, `waiting`.

    Raises:
        ConfigurationError: RESULT_BACKEND is missing.
    """
    # One answer of the store: an AsyncResult asks anew for each attribute, and the task goes on in between.
    found = reading_results().backend.get_task_meta(task_id, cache=False)
    state, info = found["status"], found["result"]
    if state == "PENDING":
        return {"state": state, "status": "waiting"}
    return {"state": state, "info": str(info) if isinstance(info, Exception) else info}


def reading_results() -> WarrenCelery:
    """The app, for a process that may read results."""
    app = default_app()
    if app.conf.result_backend == celeryconfig.NO_RESULTS:
        raise ConfigurationError("RESULT_BACKEND is missing: set it as the workers have it, to read results")
    return app


STUBS: dict[str, Stub[Any]] = {}


def stub(name: str) -> Callable[[Callable[Parameters, Any]], Stub[Parameters]]:
    """Make a function's signature the stub of the task of that name."""

    def register(function: Callable[Parameters, Any]) -> Stub[Parameters]:
        made = Stub(name, function)
        STUBS[name] = made
        return made

    return register


@stub("math.add")
def add(x: float, y: float) -> None:
    """The sum of two numbers."""


@stub("math.multiply")
def multiply(x: float, y: float) -> None:
    """The product of two numbers."""


@stub("math.xsum")
def xsum(values: Sequence[float]) -> None:
    """The sum of a list: exact for integers, correctly rounded for floats."""


@stub("math.long_task")
def long_task(seconds: int) -> None:
    """One step a second, its progress in the result's state."""


@stub("math.reliable_task")
def reliable_task(data: Any, *, raise_on_error: bool = True) -> None:
    """A task that retries what may heal and fails on what cannot."""


@stub("image.process_image")
def process_image(
    image_path: str,
    size: int | Sequence[int] = (800, 600),
    *,
    mode: str = "fit",
    output: str | None = None,
    format: str | None = None,
    quality: int | None = None,
    gravity: str | Sequence[float] = "center",
    background: str = "#ffffff",
    upscale: bool = False,
    keep_metadata: str = "none",
    color: str = "srgb",
    animated: str = "first",
    overwrite: bool = False,
    renditions: Sequence[Any] | None = None,
    raise_on_error: bool = True,
) -> None:
    """Resize an image of the image root, once or into several renditions; the result names the new files."""


@stub("image.inspect_image")
def inspect_image(image_path: str, *, raise_on_error: bool = True) -> None:
    """Tell what an image of the image root is: format, size, orientation, frames, profile."""


@stub("email.send_email")
def send_email(
    to_addr: str,
    subject: str,
    body: str,
    *,
    html: str | None = None,
    from_addr: str | None = None,
    reply_to: str | None = None,
    cc: Sequence[str] = (),
    headers: Mapping[str, str] | None = None,
    list_unsubscribe: str | None = None,
    idempotency_key: str | None = None,
    on_uncertain: str | None = None,
    expires_at: float | str | None = None,
    raise_on_error: bool = True,
) -> None:
    """Send one mail to one recipient, and to those in copy."""


@stub("email.send_bulk")
def send_bulk(
    recipients: Sequence[str],
    subject: str,
    body: str,
    *,
    html: str | None = None,
    from_addr: str | None = None,
    reply_to: str | None = None,
    headers: Mapping[str, str] | None = None,
    list_unsubscribe: str | None = None,
    idempotency_key: str | None = None,
    on_uncertain: str | None = None,
    expires_at: float | str | None = None,
    raise_on_error: bool = True,
) -> None:
    """Enqueue one mail for each recipient; the result names their tasks."""


@stub("monitor.check_status")
def check_status() -> None:
    """Look at broker, queues and result store."""


@stub("monitor.generate_report")
def generate_report(day: str | None = None) -> None:
    """Report on a day, yesterday by default."""
