"""Which broker a command talks to, and as whom: the environment's, or the stack that runs in this folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ops.errors import OpsError
from queues.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from queues.app import WarrenCelery

#: The folder of the embedded stack, below the folder where the command is run.
DEFAULT_FOLDER = ".warren"


def home() -> Path:
    """The embedded stack's folder, from `WARREN_HOME`."""
    return Path(os.environ.get("WARREN_HOME") or DEFAULT_FOLDER).resolve()


def environment(role: str) -> Mapping[str, str]:
    """The settings of a role: the environment's where it names a broker, else those of the embedded stack.

    Raises:
        OpsError: neither exists.
    """
    if os.environ.get("BROKER_HOSTS"):
        return os.environ
    path = home() / "env" / f"{role}.json"
    try:
        found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise OpsError(
            f"no broker is known: set BROKER_HOSTS, or start one here with `make up` ({path} is missing)"
        ) from None
    except OSError as exc:
        raise OpsError(f"{path} cannot be read ({exc.strerror}): run as the user who ran `make up`") from exc
    # The caller's own choices, such as RESULT_BACKEND, stand above the stack's.
    return {**found, **{name: value for name, value in os.environ.items() if name in found}}


def settings(role: str) -> Settings:
    """The checked settings of a role.

    Raises:
        ConfigurationError: what is wrong with them.
    """
    return Settings.from_env(environment(role))


def app(role: str) -> WarrenCelery:
    """A Celery app that acts as a role."""
    from queues.app import create_app

    return create_app(settings(role), name=f"warren-{role}")
