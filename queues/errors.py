"""One hierarchy of errors. Every message states the remedy.

Arguments are plain values, so that an error survives pickle and the JSON form in which Celery stores it.
"""

from __future__ import annotations

from kombu.exceptions import OperationalError


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
    """

    task_id: str | None = None


class PublishRefusedError(PublishError):
    """The broker did not take the message, for certain: unroutable, full, too large or not permitted."""


class BrokerUnavailableError(PublishRefusedError):
    """No broker could be reached, or it takes no messages now; nothing was sent."""


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
        code: Stable identifier for programs, e.g. ``not_found``.
        message: What is wrong and what to do about it.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


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
        code: Stable identifier for programs, e.g. ``storage``.
        message: What is wrong and what to do about it.
        retry_after: Seconds to wait that the other side asked for, if it did.
    """

    def __init__(self, code: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(code, message, retry_after)
        self.code = code
        self.message = message
        self.retry_after = retry_after

    def __str__(self) -> str:
        return self.message


class UncertainError(TransientError):
    """An attempt that may have had its effect: a `once` task is in doubt, and follows its `in_doubt`."""


class PostponedError(TransientError):
    """Nothing was done, and nothing can be until an operator acts: the message comes again, and no retry is counted."""
