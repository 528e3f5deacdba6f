"""One hierarchy of errors. Every message states the remedy.

Arguments are plain values, so that an error survives pickle and the JSON form in which Celery stores it.
"""

from __future__ import annotations


class WarrenError(Exception):
    """Root of every error that Warren raises on purpose."""


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
