"""The result store as a worker sees it: how long a call may take, and what about the store can never heal.

Celery tries a call six times, each as long as its timeout: two minutes with a locked SQLite file, in the main process
as in a child, and a task whose STARTED cannot be stored is not run at all. Here a call is tried once, briefly, and then
the store is left alone for a while. A child tries somewhat longer to store a success; where it cannot, the message
comes again with the result in a header, and is not run again (`workers.once.carry`).
"""

from __future__ import annotations

import contextlib
import logging
import math
import ssl
import time
from time import monotonic  # our own: a task may replace the module's
from typing import TYPE_CHECKING, Any

from celery import current_task, signals
from celery.exceptions import ImproperlyConfigured, Reject
from celery.states import READY_STATES, SUCCESS
from kombu.exceptions import EncodeError

from queues.errors import PublishError, text_of
from queues.headers import REPLAYS
from queues.topology import QUEUES
from workers.once import FollowedLaterError, carry
from workers.report import MAX_TRACEBACK, Mark, Running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from queues.app import WarrenCelery

logger = logging.getLogger(__name__)

#: Seconds that one try waits for an answer, or for another writer's lock.
BRIEF = 2
#: Seconds without a try, where nothing depends on it, after one that failed.
PAUSE = 10.0
#: Seconds that a child tries to read, and to store a success.
READ_PATIENCE, SUCCESS_PATIENCE = 10.0, 5.0
#: Seconds between two tries.
STEP = 0.5

#: What kombu's JSON marks a date, a decimal and the like with.
MARK = '"__type__"'

#: Class names, since the clients are imported only where they are used: redis-py's and SQLAlchemy's.
_NO_LOGIN = frozenset({"AuthenticationError", "AuthorizationError", "InvalidPassword", "NoPermissionError"})
#: What databases say, in the text of an error that has no class of its own.
_TEXTS = {
    "certificate verify failed": "its certificate is not valid for that host: check RESULT_CA and RESULT_BACKEND",
    "server does not support SSL": "it has no TLS: switch TLS on there",
    "no password supplied": "it asks for a password: set RESULT_PASSWORD_FILE",
    "no pg_hba.conf entry": "it lets nobody in from here: add a line to its pg_hba.conf",
    '" does not exist': "it has no such database or user: create it there, or check RESULT_BACKEND",
    "authentication failed": "it refused the login: check the user in RESULT_BACKEND, and RESULT_PASSWORD_FILE",
    "no such column": "its tables have other columns: name another database in RESULT_BACKEND",
    "is not a database": "the file is no SQLite database: remove it, or name another in RESULT_BACKEND",
    "unable to open database file": "the file cannot be opened: check RESULT_BACKEND and the folder's owner",
    "readonly database": "the file cannot be written: check its owner",
}


def flaw(exc: BaseException) -> str | None:
    """Why trying again cannot help, as one sentence with the remedy; None for a store that is merely away."""
    for cause in reversed(list(chain(exc))):
        if isinstance(cause, ImportError | ImproperlyConfigured):
            reason = f"{cause}: check RESULT_BACKEND, and install the extra, pip install '.[results]'"
        elif isinstance(cause, ssl.SSLCertVerificationError):
            reason = f"its certificate is not valid ({cause.verify_message}): check RESULT_CA and RESULT_BACKEND"
        elif type(cause).__name__ in _NO_LOGIN:
            reason = "it refused the login: check RESULT_PASSWORD_FILE, and the user's rights there"
        else:
            reason = next((remedy for text, remedy in _TEXTS.items() if text in str(cause)), "")
        if reason:
            return f"the result store cannot be used: {reason}"
    return None


def chain(exc: BaseException | None) -> Iterator[BaseException]:
    """An error and what led to it."""
    while exc is not None:
        yield exc
        exc = exc.__cause__ or exc.__context__


def cause_of(exc: BaseException) -> str:
    """What the store's own client says, in one line; Celery's error around it says nothing."""
    return str(exc.__cause__ or exc).partition("\n")[0]


class Bounds:
    """Bounds every call of one process to the result store, in Celery's one place for retries."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        #: Whether this process is the worker's main one.
        self.main = True
        self._store, self._done, self._failed = backend.store_result, backend.mark_as_done, backend.mark_as_failure
        self._encode = backend.encode
        self._away_until = -math.inf
        self._patience: float | None = None
        self._prepared = False
        #: Whether a success is being stored, and its chord told.
        self._telling = False
        backend._ensure_retryable, backend.store_result = self.call, self.store
        backend.mark_as_done, backend.mark_as_failure = self.done, self.failed
        backend.encode = self.encode
        if hasattr(backend, "connparams"):
            self._bound_redis()
        elif hasattr(backend, "engine_options"):
            self._bound_sql()

    def call(
        self,
        function: Callable[..., Any],
        *args: Any,
        fallback_exc: Callable[[str], BaseException] | None = None,
        fallback_msg: str = "",
        max_retries: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Call the store, in place of Celery's `_ensure_retryable`, until it answers or patience ends.

        Raises:
            Exception: what Celery's callers expect, from the last error.
        """
        patience = self._patience
        if patience is None:
            patience = 0.0 if self.main or max_retries == 0 else READ_PATIENCE
        limit = monotonic() + patience
        while True:
            try:
                if not patience and monotonic() < self._away_until:
                    raise TimeoutError("the result store did not answer a moment ago")
                return function(*args, **kwargs)
            except Exception as exc:
                if not self._is_away(exc):
                    raise
                now = monotonic()
                if now >= self._away_until and not patience:
                    self._away_until = now + PAUSE
                if now + STEP > limit:
                    raise (fallback_exc(fallback_msg) if fallback_exc else exc) from exc
                self.backend.on_backend_retryable_error(exc)
            time.sleep(STEP)

    def store(self, task_id: str, result: Any, state: str, *args: Any, **kwargs: Any) -> Any:
        """Store a state; what is no success is tried once, and a failure of that is a line in the log.

        Raises:
            Exception: a child could not store a success; see `done`.
        """
        insist = state == SUCCESS and not self.main
        if kwargs.get("traceback"):
            # Databases take no half characters, and PostgreSQL no zeros.
            kwargs["traceback"] = text_of(kwargs["traceback"], MAX_TRACEBACK).replace("\0", "\\0")
        result = of_its_life(result, state, kwargs.get("request"))
        self._patience = SUCCESS_PATIENCE if insist and monotonic() >= self._away_until else 0.0
        try:
            return self._store(task_id, result, state, *args, **kwargs)
        except Exception as exc:
            if insist or not self.is_lost(exc):
                raise
            logger.error("%s of task %s could not be stored: %s", state, task_id, cause_of(exc))  # noqa: TRY400 - it is away
            return result
        finally:
            self._patience = None

    def done(self, task_id: str, result: Any, request: Any = None, *args: Any, **kwargs: Any) -> None:
        """Store a success and tell its chord; where that fails in a child, the message comes again with the result."""
        try:
            self._telling = True
            self._done(task_id, result, request, *args, **kwargs)
            Running.done = task_id
        except Exception as exc:
            if self.main or not self.is_lost(exc) or current_task.request.id != task_id:
                raise
            self._away_until = monotonic() + PAUSE
            carry(current_task, result, link=None, chain=None)
        finally:
            self._telling = False

    @contextlib.contextmanager
    def following(self, args: Any = (), *_: Any, **options: Any) -> Iterator[None]:
        """A chord or group that comes after a task is written down in the store first: it comes later if that is away.

        Raises:
            FollowedLaterError: the message comes again with its result.
        """
        try:
            yield
        except Exception as exc:
            # A chord's body, which its last member sends, is no next step of that member's.
            ours = not self.main and not self._telling and "parent_id" in options
            if not ours or isinstance(exc, PublishError) or not any(self._is_away(cause) for cause in chain(exc)):
                raise
            self._away_until = monotonic() + PAUSE
            if current_task.name not in QUEUES.task_names:
                raise Reject(exc, requeue=True) from exc
            # Celery calls links before it goes on with the chain.
            carry(current_task, *args, **({"link": None} if "chain" in options else {}))
            Running.done = current_task.request.id
            Running.mark(Mark.CARRIED)
            raise FollowedLaterError(exc) from exc

    def failed(self, task_id: str, exc: BaseException, *args: Any, **kwargs: Any) -> None:
        """Store a failure and tell who waits, once, and not over what comes after the task was done."""
        if not self.main and (Running.done == task_id or Running.has_failed(task_id)):
            return
        self._failed(task_id, exc, *args, **kwargs)
        Running.failed = (task_id, exc)

    def encode(self, value: Any) -> Any:
        """A value as the store keeps it.

        Raises:
            EncodeError: nobody could read it again: kombu takes a dict that has its own mark for one of its own.
        """
        data = self._encode(value)
        if MARK in (data if isinstance(data, str) else data.decode()):
            try:
                same = self._encode(self.backend.decode(data)) == data
            except Exception as exc:
                raise EncodeError(f"the result has {MARK}, which only kombu's JSON writes ({exc}): rename it") from exc
            if not same:
                raise EncodeError(f"the result has {MARK}, which only kombu's JSON writes: rename it")
        return data

    def answer(self) -> None:
        """Ask the store now.

        Raises:
            Exception: it does not answer; see `flaw`.
        """
        self._away_until = -math.inf
        self.backend.get_task_meta("worker-start", cache=False)

    def is_lost(self, exc: Any) -> bool:
        """Whether an error is one of a store that is away."""
        return self._is_away(exc) or (exc.__cause__ is not None and self.is_lost(exc.__cause__))

    def _is_away(self, exc: BaseException) -> bool:
        return isinstance(exc, TimeoutError) or self.backend.exception_safe_to_retry(exc)

    def _bound_redis(self) -> None:
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        backend = self.backend
        # One repetition at once: a connection that the server has closed meanwhile is noticed by using it.
        given = {"retry": Retry(NoBackoff(), 1), "socket_timeout": BRIEF, "socket_connect_timeout": BRIEF}
        backend.connparams = {**backend.connparams, **given}
        backend.retry_policy = {**backend.retry_policy, "max_retries": 0}
        backend.__dict__.pop("client", None)

    def _bound_sql(self) -> None:
        options = self.backend.engine_options
        name = "timeout" if self.backend.url.startswith("sqlite") else "connect_timeout"
        self.backend.engine_options = {**options, "connect_args": {**options.get("connect_args", {}), name: BRIEF}}

    def leave_tables(self) -> None:
        """Where there are no tables yet, leave it to children to make them: Celery tries that ten times."""
        manager = getattr(self.backend, "session_manager", None)
        if manager is not None:
            self._prepared, manager.prepared = manager.prepared, True

    def in_child(self) -> None:
        """This process runs tasks: a success is worth waiting for."""
        self.main, self._away_until = False, -math.inf
        manager = getattr(self.backend, "session_manager", None)
        if manager is not None:
            manager.prepared = self._prepared


def of_its_life(result: Any, state: str, request: Any) -> Any:
    """What is stored of a task that runs: where it was replayed, how often, so that an earlier death is not its own."""
    replays = (getattr(request, "headers", None) or {}).get(REPLAYS)
    if not replays or state in READY_STATES or not isinstance(result, dict):
        return result
    return {**result, REPLAYS: replays}


def bound(app: WarrenCelery) -> Bounds:
    """Bound the calls of this process and, otherwise, of the children that it will fork."""
    bounds = Bounds(app.backend)
    app.following = bounds.following
    signals.worker_process_init.connect(lambda **_: bounds.in_child(), weak=False)
    return bounds
