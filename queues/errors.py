"""One hierarchy of errors. Every message states the remedy.

Arguments are plain values, so that an error survives pickle and the JSON form in which Celery stores it.
"""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import TYPE_CHECKING

from kombu.exceptions import OperationalError

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Characters of an error's code, of its class's name, and of its text where it goes on a wire.
MAX_CODE, MAX_NAME, MAX_TEXT = 64, 100, 8 * 1024


def text_of(value: object, longest: int = MAX_TEXT) -> str:
    """What a value says as a text that can be sent and stored, whatever its own code does.

    A `str` that raises, one that gives no text, half a character: all of it happens in errors that people write.
    """
    try:
        text = str(value)
        # Exactly a str: a subclass could run code of its own later.
        text = str.__getitem__(text, slice(longest))
    except BaseException as exc:  # noqa: BLE001 - the code is anybody's, and this is where errors are told
        text = f"<its text cannot be had: {name_of(type(exc))}>"
    return text.encode(errors="backslashreplace").decode()


def name_of(cls: type, kind: str = "__name__") -> str:
    """A class's `__name__`, `__qualname__` or `__module__`, whatever its metaclass says; empty if there is none."""
    try:
        name = str.__getitem__(vars(type)[kind].__get__(cls), slice(MAX_NAME))
    except (AttributeError, TypeError):
        return ""
    # No class of ours could be called so.
    return name.replace("\0", "").encode(errors="backslashreplace").decode()


def code_of(value: object, otherwise: str) -> str:
    """An error's code as a short text: a number's digits, and `otherwise` where there is none."""
    text = text_of(value).strip()[:MAX_CODE] if isinstance(value, str | int) else ""
    return text or otherwise


def seconds_of(value: object) -> float:
    """A time that the other side asks for; none where it is no number, as a date in a header."""
    try:
        seconds = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return seconds if math.isfinite(seconds) else 0.0


class WarrenError(Exception):
    """Root of every error that Warren raises on purpose."""


class ConfigurationError(WarrenError):
    """Settings are missing or contradict each other; one line names each variable."""


class UnknownTaskError(WarrenError):
    """A task that the table does not hold; nothing was published."""


class UnknownQueueError(WarrenError):
    """A queue that the table does not hold, or that does not run the task; nothing was published."""


class InvalidArgumentsError(WarrenError):
    """Arguments that the task does not take, or that JSON cannot carry; nothing was published."""


class PublishError(WarrenError, OperationalError):
    """A publish that was not confirmed; also a kombu OperationalError, which Celery's callers catch.

    Attributes:
        task_id: Id of the message; sending again with the same id is safe.
        states: What became of each task of a group, chord or chain, by its id: ``confirmed``, ``refused``, ``unknown``
            or ``not sent``. Empty where one task was sent by itself.
    """

    task_id: str | None = None
    states: Mapping[str, str] = MappingProxyType({})


class PublishRefusedError(PublishError):
    """The broker did not take the message, for certain: unroutable, full, too large or not permitted."""


class UnroutableError(PublishRefusedError):
    """No queue takes the message."""


class BrokerUnavailableError(PublishRefusedError):
    """No broker could be reached, or it takes no messages now; nothing was sent.

    Attributes:
        hopeless: Trying again cannot help before somebody mends a setting: a refused login, a certificate.
    """

    hopeless: bool = False


class PublishUnknownError(PublishError):
    """The message was sent and no answer came in time: it may or may not be in the queue."""


class ControlRefusedError(WarrenError):
    """The broker lets this user send no command to workers, or have no queue for their answers; nothing was sent."""

    def __init__(self, *_: object) -> None:
        super().__init__(
            "this broker user may not ask or order workers: use the operator's settings (BROKER_USER=operator with its "
            "password and certificate; of the embedded stack, env/operator.sh)"
        )


class PermanentError(WarrenError):
    """Trying again cannot help: the message is dead-lettered with this reason.

    Attributes:
        code: Stable identifier for programs, e.g. ``not_found``; up to 64 characters.
        message: What is wrong and what to do about it. An error given for it is kept as its text.
    """

    #: What a subclass has that does not call `super().__init__`.
    code = "failed"
    message = ""

    def __init__(self, code: str, message: object) -> None:
        self.code = code_of(code, "failed")
        self.message = text_of(message)
        super().__init__(self.code, self.message)

    def __str__(self) -> str:
        return self.message or super().__str__()


class InDoubtError(PermanentError):
    """An attempt of a `once` task ended without a record: whether it had its effect is not known.

    Attributes:
        run: names the run that left the doubt, as far as it is known.
    """

    def __init__(self, run: str = "", *_: object) -> None:
        super().__init__(
            "in-doubt",
            "an earlier attempt ended without saying whether it was done: look where its effect would be, then replay "
            "this letter with --done or --not-done",
        )
        self.args = (run,)
        self.run = run


class RecordedError(PermanentError):
    """The recorded error of an attempt that was delivered once more; it was not run again."""


class TransientError(WarrenError):
    """Trying again later may help.

    Attributes:
        code: Stable identifier for programs, e.g. ``storage``; up to 64 characters.
        message: What is wrong and what to do about it. An error given for it is kept as its text.
        retry_after: Seconds to wait that the other side asked for, if it did.
    """

    #: What a subclass has that does not call `super().__init__`.
    code = "failed"
    message = ""
    retry_after: float | None = None

    def __init__(self, code: str, message: object, retry_after: float | None = None) -> None:
        self.code = code_of(code, "failed")
        self.message = text_of(message)
        self.retry_after = retry_after
        super().__init__(self.code, self.message, retry_after)

    def __str__(self) -> str:
        return self.message or super().__str__()


class UncertainError(TransientError):
    """An attempt that may have had its effect: a `once` task is in doubt, and follows its `in_doubt`."""


class PostponedError(TransientError):
    """Nothing was done, and nothing can be until an operator acts: the message comes again, and no retry is counted."""
