"""What can go wrong for an operator. Each message is one sentence that ends in the remedy."""

from __future__ import annotations

from typing import ClassVar

from queues.errors import WarrenError

#: Exit code of a command that Ctrl-C ended.
INTERRUPTED = 130


class OpsError(WarrenError):
    """An operation failed; the command line prints the message and leaves with `exit_code`.

    Attributes:
        exit_code: The status for scripts: 1 failed, 3 a program is missing, 4 a service does not answer.
            2 stays what it is everywhere, a wrong command line.
    """

    exit_code: ClassVar[int] = 1


class MissingProgramError(OpsError):
    """A program that this machine needs is not installed."""

    exit_code = 3


class UnreachableError(OpsError):
    """A service does not answer."""

    exit_code = 4
