"""Whether a message is a task that this worker can run; what is not never reaches code that would stop the worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

from queues.transport import UNDECODABLE

#: Characters of a task id; AMQP's short strings hold 255 bytes.
MAX_ID = 255


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
    if not isinstance(task_id, str) or not 0 < len(task_id) <= MAX_ID:
        return Problem("malformed", "the header `id` is missing or no text")
    if name not in tasks:
        return Problem("unknown-task", f"this worker has no task {name!r}: is it older than the producer?")
    limits = headers.get("timelimit")
    if limits is not None and not is_limit_pair(limits):
        return Problem("malformed", f"the header `timelimit` is {limits!r}, not two numbers")
    retries = headers.get("retries")
    if retries is not None and (isinstance(retries, bool) or not isinstance(retries, int) or retries < 0):
        return Problem("malformed", f"the header `retries` is {retries!r}, not a count")
    return None


def is_limit_pair(value: Any) -> bool:
    """Whether a value is `[hard, soft]` in seconds, each a positive number or None."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return False
    return all(
        item is None or (isinstance(item, int | float) and not isinstance(item, bool) and 0 < item < float("inf"))
        for item in value
    )


def in_content(message: Any) -> Problem | None:
    """Look at what the body claims to be."""
    if message.content_type != "application/json":
        return Problem("content-type", f"the content type is {message.content_type!r}, only application/json is taken")
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
    task = tasks[message.headers["task"]]
    try:
        task.__header__(*args, **kwargs)
    except TypeError as exc:
        return Problem("wrong-arguments", f"{task.name}: {exc}")
    return None
