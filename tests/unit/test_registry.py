"""Whatever makes a task, the app guards it."""

from __future__ import annotations

import pickle
from types import MethodType, SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock

import celery
import pytest
from celery.app.task import Context
from celery.exceptions import MaxRetriesExceededError, Reject, Retry
from celery.utils.functional import arity_greater

from queues.app import WarrenCelery
from queues.errors import TransientError
from queues.topology import QUEUES
from workers import registry, selfcheck
from workers.registry import FIXED, Registry, retry

if TYPE_CHECKING:
    from collections.abc import Callable

ADD = QUEUES.task("math.add")[1]
MAIL = QUEUES.task("email.send_email")[1]


class Base(celery.Task):
    """What a class may set."""

    Request = "celery.worker.request:Request"
    Strategy = "tests.unit.test_registry:strategy"
    acks_late = False
    acks_on_failure = True
    acks_on_timeout = False
    reject_on_worker_lost = False
    retry_on_worker_lost = True
    autoretry_for = (LookupError,)

    def retry(self, *_args: Any, **_options: Any) -> Any:
        """An override of an application's own."""
        return super().retry(countdown=7)


class Resize(Base):
    name = "math.add"

    def run(self, x: float, y: float) -> float:
        return x + y


class Plain(celery.Task):
    name = "math.add"
    time_limit, soft_time_limit = 3, 2

    def run(self, x: float, *, y: float = 0) -> float:
        return x + y


class Static(celery.Task):
    name = "math.add"
    time_limit = 10**6

    @staticmethod
    def run(x: float, y: float) -> float:
        return x + y


def add(x: float, y: float) -> float:
    return x + y


def bound(self: Any, x: float, y: float) -> float:
    return x + y


def by_id(task_id: str) -> None:
    """Told by its id."""


def bound_by_id(self: Any, task_id: str) -> None:
    """The same, bound."""


def by_error(request: Any, exc: Any, traceback: Any) -> None:
    """Told with the error."""


class Listed(celery.Task):
    name = "math.add"

    def run(self, task_id: str) -> None:
        """Told by its id."""


@pytest.fixture
def app() -> WarrenCelery:
    return WarrenCelery("test", set_as_current=False, tasks=Registry())


def made(app: WarrenCelery, kind: str) -> Any:
    """A task, made in one of Celery's ways."""
    if kind in ("class", "instance", "plain", "static"):
        task = {"class": Resize, "instance": Resize(), "plain": Plain, "static": Static}[kind]
        app.register_task(task)
    elif kind == "registry":
        app.tasks.register(Resize)
        Resize.bind(app)
    else:
        app.task(
            shared=False, name="math.add", base={"base": Base, "celery": celery.Task}.get(kind), bind=kind == "bound"
        )(bound if kind == "bound" else add)
    return app.tasks["math.add"]


WAYS = ("class", "instance", "plain", "static", "registry", "base", "celery", "bound", "function")


@pytest.mark.parametrize("kind", WAYS)
def test_every_way_of_making_a_task(app: WarrenCelery, kind: str) -> None:
    task = made(app, kind)
    assert {name: getattr(task, name) for name in FIXED} == FIXED
    assert 0 < task.soft_time_limit <= ADD.soft_time_limit
    assert 0 < task.time_limit <= ADD.time_limit
    if kind == "plain":
        assert (task.soft_time_limit, task.time_limit) == (2, 3), "its own, where they are lower"
    assert task.retry.func is retry
    task.__header__(1, y=2)
    for args, kwargs in (((), {}), ((1, 2, 3), {}), ((1,), {"z": 2})):
        with pytest.raises(TypeError):
            task.__header__(*args, **kwargs)
    assert pickle.loads(pickle.dumps(task.name)) == "math.add"


def old_style(failed: str) -> None: ...


def new_style(request: Any, exc: Any, traceback: Any) -> None: ...


def labelled(failed: str, label: str) -> None: ...


def bound_style(self: Any, request: Any, exc: Any, traceback: Any) -> None: ...


@pytest.mark.parametrize(
    ("function", "given", "sent"),
    [
        (old_style, {}, True),
        (labelled, {"args": ("label",)}, True),
        (labelled, {"kwargs": {"label": "label"}}, True),
        (labelled, {"args": ("label",), "immutable": True}, False),
        (new_style, {}, False),
        (bound_style, {}, True),
        (Resize, {}, True),
    ],
)
def test_an_errback_is_called_or_sent_as_celery_has_it(
    monkeypatch: pytest.MonkeyPatch, function: Any, given: dict[str, Any], sent: bool
) -> None:
    """By the header Celery counts what an errback takes: an id, for which it is sent, or more, and it is run there."""
    sending = MagicMock()
    monkeypatch.setattr("celery.backends.base.group", sending)
    ours = WarrenCelery("test", set_as_current=False, tasks=Registry())
    for app in (ours, celery.Celery("stock", set_as_current=False)):
        if function is Resize:
            app.register_task(Resize())
        else:
            app.task(shared=False, name="math.add", bind=function is bound_style)(function)
        task = app.tasks["math.add"]
        calls: list[Any] = []
        task.run = lambda *args, noted=calls, **_: noted.append(args)
        app.backend._call_task_errbacks(Context(id="1", delivery_info={}, errbacks=[task.signature(**given)]), None, "")
        assert (sending.call_count, len(calls)) == (sent, not sent), app.main
        sending.reset_mock()


def test_a_task_is_wrapped_once(app: WarrenCelery) -> None:
    task = made(app, "instance")
    first = task.retry
    app.register_task(task)
    assert task.retry is first


def test_a_tables_rate_is_had_by_every_class(app: WarrenCelery) -> None:
    app.task(shared=False, name=MAIL.name, base=celery.Task)(add)
    assert app.tasks[MAIL.name].rate_limit == MAIL.rate_limit
    app.task(shared=False, name="another", base=celery.Task)(add)
    assert app.tasks["another"].time_limit is None, "it is not in the table, and refused at the start"


@pytest.mark.parametrize(("soft", "hard", "said"), [(None, None, "hard limit None"), (None, 5, "no soft limit")])
def test_a_task_without_limits_is_refused_at_the_start(
    app: WarrenCelery, capsys: pytest.CaptureFixture[str], soft: int | None, hard: int | None, said: str
) -> None:
    app.task(shared=False, name="another", base=celery.Task, soft_time_limit=soft, time_limit=hard)(add)
    for name, task in app.tasks.items():
        if name != "another":
            task.soft_time_limit, task.time_limit = 1, 2
    with pytest.raises(SystemExit):
        selfcheck.limits(app, QUEUES.queue("math"))
    assert f"task another has {said}" in capsys.readouterr().err.replace("the hard", "hard")


def giving(answer: Any) -> Any:
    """A task's own `retry`, which raises or gives that."""

    def original(_task: Any, *_args: Any, **_options: Any) -> Any:
        if isinstance(answer, MaxRetriesExceededError | Reject):
            raise answer
        return answer

    return MethodType(original, SimpleNamespace(name="math.add"))


def test_the_reason_of_a_retry_is_a_class_and_a_text() -> None:
    again = Retry(exc=TransientError("storage", "not now", 5), when=3)
    assert str(retry(giving(again))) == "Retry in 3s: TransientError: not now"
    assert str(retry(giving(Retry(exc=KeyError("x"), when=3)))) == "Retry in 3s: KeyError: 'x'"
    assert str(retry(giving(Retry(when=3)))) == "Retry in 3s"


def test_a_retry_that_is_used_up_shows_no_argument() -> None:
    exc = MaxRetriesExceededError("Can't retry a.b[1] args:('v',) kwargs:{}", task_args=("v",), task_kwargs={})
    with pytest.raises(MaxRetriesExceededError) as raised:
        retry(giving(exc))
    again = pickle.loads(pickle.dumps(raised.value))
    for error in (raised.value, again):
        assert str(error) == "Can't retry a.b[1]: its retries are used up"
        assert (tuple(error.task_args), dict(error.task_kwargs)) == ((), {})
    own = MaxRetriesExceededError("given by the task itself: args:1")
    with pytest.raises(MaxRetriesExceededError, match="given by the task itself: args:1"):
        retry(giving(own))


def test_a_retry_that_the_broker_is_to_have_back_goes_back() -> None:
    inner = Reject("blocked", requeue=True)
    with pytest.raises(Reject) as raised:
        retry(giving(Reject(inner, requeue=False)))
    assert raised.value is inner
    with pytest.raises(Reject, match="for good"):
        retry(giving(Reject("for good")))


def test_the_modules_names_are_celerys() -> None:
    assert all(hasattr(celery.Task, name) for name in registry.FIXED)


@pytest.mark.parametrize(
    ("make", "with_the_error"),
    [
        (lambda app: app.task(name="math.add", shared=False)(by_id), False),
        (lambda app: app.task(name="math.add", bind=True, shared=False)(bound_by_id), False),
        (lambda app: app.task(name="math.add", shared=False)(by_error), True),
        (lambda app: app.register_task(Static()), True),
        (lambda app: app.register_task(Listed()), False),
    ],
    ids=["of the id", "bound, of the id", "of the error", "a class's, of two", "a class's, of one"],
)
def test_a_callback_is_sent_unless_it_takes_the_error(
    app: WarrenCelery, make: Callable[[Any], Any], with_the_error: bool
) -> None:
    make(app)
    assert bool(arity_greater(app.tasks["math.add"].__header__, 1)) is with_the_error
