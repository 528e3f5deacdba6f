"""Ends a task that no process has run: its FAILURE is recorded, and whoever waits for it is told.

A task that raises is ended by its own process. One that a worker's look refuses, or that the broker ends, has only its
message: who waits stands there, in headers (its group) and body (errbacks, chord, later steps of a chain).

The failure is recorded first, so that nobody is told twice; where telling was not possible, the record is opened again,
and the monitor, which gets a copy of every dead letter, does the whole of it later.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

from celery.app.task import Context
from celery.states import FAILURE, STARTED

from queues.canvas import CONFIRMED
from queues.errors import BrokerUnavailableError, PublishError
from queues.transport import deadline
from workers.resultstore import chain as causes
from workers.validation import KINDS, SIGNATURE, SIGNATURES, in_content, is_signature, is_text

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

#: Seconds that telling may take in a worker's main process, whose loop stands still meanwhile; of that, those in which
#: the broker is waited for.
PATIENCE, BROKER_PATIENCE = 5.0, 2.0


class NotToldError(Exception):
    """Broker or result store is away: the monitor tells whoever waits."""


def context(message: Any) -> Context | None:
    """What a message says of its task and of who waits for it; what does not fit is left out.

    Args:
        message: kombu's.

    Returns:
        None where it has no id that could be recorded.
    """
    headers = message.headers if isinstance(message.headers, dict) else {}
    if not is_storable(headers.get("id")):
        return None
    known = {name: headers[name] for name, (fits, _) in KINDS.items() if name in headers and fits(headers[name])}
    name = headers.get("task")
    # Errbacks look there for a task that is run without a broker.
    known |= {"id": headers["id"], "task": name if is_text(name) else None, "delivery_info": {}}
    return Context(known, **calls(message))


def is_storable(task_id: Any) -> bool:
    """Whether a result can have such an id; a message may hold anything."""
    return is_text(task_id) and task_id != "" and "\0" not in task_id


def calls(message: Any) -> dict[str, Any]:
    """The tasks that a body says to call afterwards; those of a wrong shape are left out."""
    if "compression" in (message.headers or {}) or in_content(message) is not None:
        return {}  # what a look would not decode is not decoded for this either
    try:
        embed = message.payload[2]
        found = {name: [call for call in embed.get(name) or () if is_signature(call)] for name in SIGNATURES}
    except Exception:  # noqa: BLE001 - whatever a decoder raises, and any shape of a body, means the same here
        return {}
    chord = embed.get(SIGNATURE)
    return {**found, SIGNATURE: chord if is_signature(chord) else None}


def end(backend: Any, request: Context, exc: BaseException, *, patience: float = PATIENCE) -> bool:
    """Record a failure, and tell whoever waits for the task.

    Args:
        backend: the result store.
        request: see `context`.
        exc: how the task ended.
        patience: seconds that it may take.

    Returns:
        Whether it is done; otherwise the state is not a final one, for the monitor to find.
    """
    try:
        with deadline(min(patience, BROKER_PATIENCE)), alarm(patience):
            if not request.ignore_result:
                backend.mark_as_failure(request.id, exc)
                # Where the store is away that was a line in the log.
                if backend.get_task_meta(request.id, cache=False)["status"] != FAILURE:
                    return False
            if request.chord:
                with told(backend, "its chord", request):
                    backend.on_chord_part_return(request, FAILURE, exc)
            follow(backend, request, exc, patience=patience)
    except NotToldError as reason:
        reopen(backend, request, reason)
        return False
    except Exception:
        logger.exception("the failure of %s could not be recorded", request.id)
        return False
    return True


def reopen(backend: Any, request: Context, reason: Exception) -> None:
    """Take a recorded failure back: the monitor finds an open task among the dead letters, and tells."""
    logger.warning("whoever waits for task %s is told later: %s", request.id, reason)
    if not request.ignore_result:
        with contextlib.suppress(Exception):
            backend.store_result(request.id, {}, STARTED, request=request)


def follow(
    backend: Any, request: Context, exc: BaseException, *, state: str = FAILURE, patience: float = PATIENCE
) -> None:
    """Record how a task ended for a chain's later steps, and call errbacks.

    The last step is the first: it is the one that is waited for.

    Raises:
        NotToldError: it can be done later; errbacks, which are called once, have not been.
    """
    until = time.monotonic() + patience
    for place, step in enumerate(request.chain or ()):
        if time.monotonic() > until:
            left = len(request.chain) - place
            logger.warning("task %s has too many next steps: %d of them stay open", request.id, left)
            break
        with told(backend, "a later step of its chain", request):
            backend._fail_chain([step], exc, state=state)
    if request.errbacks:
        with told(backend, "its errbacks", request):
            backend._call_task_errbacks(request, exc, None)


@contextlib.contextmanager
def told(backend: Any, whom: str, request: Context) -> Iterator[None]:
    """What cannot be told, because of what the message says, is a line in the log.

    Raises:
        NotToldError: broker or result store is away.
    """
    try:
        yield
    except PublishError as exc:
        if isinstance(exc, BrokerUnavailableError) and CONFIRMED not in exc.states.values():
            raise NotToldError(exc) from exc
        # It may have been sent, some of it has, or it never can be.
        logger.exception("%s was not told of the failure of task %s", whom, request.id)
    except Exception as exc:
        if any(isinstance(cause, TimeoutError) or backend.exception_safe_to_retry(cause) for cause in causes(exc)):
            raise NotToldError(exc) from exc
        logger.exception("%s was not told of the failure of task %s", whom, request.id)


class TooLongError(Exception):
    """An errback that Celery runs right here, because it wants more than an id, does not come back."""


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Interrupt what takes longer; in a thread of somebody's program that cannot be done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise TooLongError(f"still running after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
