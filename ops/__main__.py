"""`python -m ops` and the console script `warren`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; a user's mistake is one sentence and an exit code."""
    try:
        from ops.cli import cli
    except ModuleNotFoundError as exc:
        sys.exit(f"{exc.name} is missing: install the operator's packages with pip install '.[ops]'")
    from ops.errors import OpsError
    from queues.errors import ConfigurationError, WarrenError

    try:
        cli(standalone_mode=True, prog_name="warren")
    except ConfigurationError as exc:
        print(exc, file=sys.stderr)
        sys.exit(2)
    except WarrenError as exc:
        print(exc, file=sys.stderr)
        sys.exit(exc.exit_code if isinstance(exc, OpsError) else 1)


if __name__ == "__main__":
    main()
