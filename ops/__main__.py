"""`python -m ops` and the console script `warren`."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line; a user's mistake is one sentence and an exit code.

    With `WARREN_DEBUG` in the environment every error shows its traceback.
    """
    if sys.argv[1:2] == ["check"] and "--compose" in sys.argv:
        from ops import compose  # runs before any package is installed

        sys.exit(compose.main(sys.argv[2:]))
    try:
        from ops.cli import cli
    except ModuleNotFoundError as exc:
        sys.exit(f"{exc.name} is missing: install the operator's packages with pip install '.[ops]'")
    from amqp.exceptions import AMQPError
    from celery.exceptions import CeleryError
    from kombu.exceptions import KombuError

    from ops.errors import OpsError, UnreachableError
    from queues.errors import BrokerUnavailableError, ConfigurationError, WarrenError

    try:
        cli(standalone_mode=True, prog_name="warren")
    except WarrenError as exc:
        if os.environ.get("WARREN_DEBUG"):
            raise
        print(exc, file=sys.stderr)
        if isinstance(exc, ConfigurationError):
            sys.exit(2)
        if isinstance(exc, BrokerUnavailableError):
            sys.exit(UnreachableError.exit_code)
        sys.exit(exc.exit_code if isinstance(exc, OpsError) else 1)
    except (OSError, ValueError, RecursionError, CeleryError, KombuError, AMQPError) as exc:
        # What nobody foresaw: a person can do more with its name than with forty lines of frames.
        if os.environ.get("WARREN_DEBUG"):
            raise
        text = " ".join(str(exc).split())
        name = type(exc).__name__
        print(f"{name}: {text}" if text else name, "(set WARREN_DEBUG=1 for the traceback)", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
