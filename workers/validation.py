"""Whether a message is a task that this worker can run; what is not never reaches code that would stop the worker."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

from celery.app.task import Context
from celery.utils.time import maybe_iso8601, maybe_make_aware

from queues.publish import MAX_MESSAGE_BYTES
from queues.transport import UNDECODABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: Characters of a task id; AMQP's short strings hold 255 bytes.
MAX_ID = 255
#: No honest count in a header is above; one more must still be a number that AMQP can carry.
MAX_COUNT = 2**31
#: What a body's third part may hold: the tasks to call afterwards.
SIGNATURES, SIGNATURE = ("callbacks", "errbacks", "chain"), "chord"


class Problem(NamedTuple):
    """Why a message cannot be run: a short reason for programs, and the text."""

    reason: str
    text: str


def problem(message: Any, tasks: Mapping[str, Any]) -> Problem | None:
    """Look at one delivery, its body included.

    Args:
        message: kombu's message; it is decoded here, once.
        tasks: the worker's registered tasks by name.
    """
    return in_headers(message.headers, tasks) or in_content(message) or in_body(message, tasks)


def in_headers(headers: Any, tasks: Mapping[str, Any]) -> Problem | None:
    """Look at id, task and limits."""
    if not isinstance(headers, dict):
        return Problem("malformed", "the message has no headers")
    if UNDECODABLE in headers:
        return Problem("undecodable", "the message's properties cannot be decoded: text is UTF-8, dates end in 9999")
    if "compression" in headers:
        return Problem("compressed", "bodies are not decompressed here: 242 bytes may hold 300 MB; send it as it is")
    name, task_id = headers.get("task"), headers.get("id")
    if not isinstance(name, str) or not name:
        return Problem("malformed", "the header `task` is missing or no text")
    if not is_text(task_id) or not 0 < len(task_id.encode()) <= MAX_ID:
        return Problem("malformed", f"the header `id` is missing or no text of up to {MAX_ID} bytes")
    if name not in tasks:
        return Problem("unknown-task", f"this worker has no task {name!r:.80}: is it older than the producer?")
    limits = headers.get("timelimit")
    if limits is not None and not is_limit_pair(limits):
        return Problem("malformed", f"the header `timelimit` is {limits!r:.80}, not two numbers")
    if not RESERVED.isdisjoint(headers):
        return Problem("malformed", f"the header `{min(RESERVED & set(headers))}` is a name of Celery's own")
    for header, (fits, kind) in KINDS.items():
        value = headers.get(header)
        if value is not None and not fits(value):
            shown = "something else" if header in ARGUMENTS else f"{value!r:.80}"
            return Problem("malformed", f"the header `{header}` is {shown}, not {kind}")
    return None


def is_text(value: Any) -> TypeGuard[str]:
    """Whether a value is a text that can be stored: not a part of a character."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_time(value: Any) -> bool:
    """Whether a value is a date and time as Celery reads it."""
    try:
        return is_text(value) and maybe_make_aware(maybe_iso8601(value), datetime.UTC) is not None
    except (AttributeError, ValueError, OverflowError):
        return False


def is_count(value: Any) -> TypeGuard[int]:
    """Whether a value counts something."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_COUNT


def are_texts(value: Any) -> bool:
    """Whether a value is a list of texts."""
    return isinstance(value, list) and all(map(is_text, value))


def are_deaths(value: Any) -> bool:
    """Whether a value is what RabbitMQ writes of deaths; its own dead-lettering ends over other lists (3.10)."""
    return isinstance(value, list) and all(
        isinstance(death, dict)
        and is_text(death.get("queue"))
        and is_text(death.get("reason"))
        and isinstance(death.get("count"), int)
        for death in value
    )


def is_signature(value: Any) -> bool:
    """Whether a value is a task to call, as Celery writes one."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("task"), str)
        and isinstance(value.get("args"), list | None)
        and isinstance(value.get("kwargs"), dict | None)
        and isinstance(value.get("options"), dict | None)
    )


def is_limit_pair(value: Any) -> bool:
    """Whether a value is `[hard, soft]` in seconds, each a positive number or None."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return False
    return all(
        item is None or (isinstance(item, int | float) and not isinstance(item, bool) and 0 < item < float("inf"))
        for item in value
    )


#: Headers that hold a task's arguments, which are in no log or error.
ARGUMENTS = ("argsrepr", "kwargsrepr")
#: What Celery takes from headers without a look, by their names: whether a value fits, and what it should be.
KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("retries", "group_index", "replaced_task_nesting"), (is_count, "a count")),
    **dict.fromkeys(
        ("lang", "shadow", "group", "root_id", "parent_id", "argsrepr", "kwargsrepr", "origin"),
        (is_text, "a text"),
    ),
    **dict.fromkeys(("eta", "expires"), (is_time, "a date and time in ISO form")),
    "ignore_result": (lambda value: isinstance(value, bool), "true or false"),
    "stamped_headers": (are_texts, "a list of texts"),
    "x-death": (are_deaths, "the broker's list of deaths"),
    "stamps": (lambda value: isinstance(value, dict) and all(map(is_text, value)), "a table"),
}
#: Headers that a running task would take for parts of its request: all but those that are sent, or overwritten there.
RESERVED = vars(Context).keys() - {
    *KINDS,
    *("id", "timelimit", "args", "kwargs", "hostname", "properties", "reply_to", "correlation_id", "delivery_info"),
}


def in_content(message: Any) -> Problem | None:
    """Look at what the body claims to be, and at its size."""
    if len(message.body or b"") > MAX_MESSAGE_BYTES:
        return Problem("too-large", f"the body has {len(message.body)} bytes, the limit is {MAX_MESSAGE_BYTES}")
    if message.content_type != "application/json":
        return Problem(
            "content-type", f"the content type is {message.content_type!r:.80}, only application/json is taken"
        )
    return None


def in_body(message: Any, tasks: Mapping[str, Any]) -> Problem | None:
    """Decode the body and look at its shape, and at the arguments against the task's parameters."""
    try:
        payload = message.payload
    except Exception as exc:  # noqa: BLE001 - whatever a decoder raises means the same here
        return Problem("undecodable", f"{type(exc).__name__}: {exc}")
    if not isinstance(payload, list | tuple) or len(payload) != 3:
        return Problem("malformed", "the body is not [args, kwargs, embed]")
    args, kwargs, embed = payload
    if not isinstance(args, list) or not isinstance(kwargs, dict) or not isinstance(embed, dict | None):
        return Problem("malformed", "the body is not [list, object, object or null]")
    found = in_calls(embed or {})
    if found is not None:
        return found
    task = tasks[message.headers["task"]]
    try:
        if hasattr(task, "__header__"):  # what only Celery's decorator and our registry set
            task.__header__(*args, **kwargs)
    except TypeError as exc:
        return Problem("wrong-arguments", f"{task.name}: {exc}")
    return None


def in_calls(embed: dict[str, Any]) -> Problem | None:
    """Look at what is to be called afterwards: Celery calls it in the main process as well, where a child died."""
    for name, value in embed.items():
        if name not in (*SIGNATURES, SIGNATURE):
            return Problem("malformed", f"the body's third part has {name!r:.80}, which is not known here")
        calls = value if name in SIGNATURES else [value]
        if value is not None and not (isinstance(calls, list) and all(map(is_signature, calls))):
            return Problem("malformed", f"the body's {name} are no calls of tasks")
    return None
