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
    """The embedded stack's folder, from `WARREN_HOME`.

    Raises:
        OpsError: its path leads nowhere.
    """
    folder = Path(os.environ.get("WARREN_HOME") or DEFAULT_FOLDER)
    try:
        return folder.resolve()
    except (OSError, RuntimeError, ValueError) as exc:  # RuntimeError: a loop of symbolic links
        raise OpsError(f"the folder {folder} cannot be used ({exc}): set WARREN_HOME to another one") from exc


def environment(role: str) -> Mapping[str, str]:
    """The settings of a role: the environment's where it names a broker, else those of the embedded stack.

    Raises:
        OpsError: neither exists, or the stack's cannot be read.
    """
    path = home() / "env" / f"{role}.json"
    if os.environ.get("BROKER_HOSTS") and not is_another_role_here(path):
        return os.environ
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise OpsError(
            f"no broker is known: set BROKER_HOSTS, or start one here with `make up` ({path} is missing)"
        ) from None
    except OSError as exc:
        raise OpsError(
            f"{path} cannot be read ({exc.strerror}): run as the user who ran `make up`, or set WARREN_HOME"
        ) from exc
    except ValueError as exc:
        raise OpsError(
            f"{path} is damaged ({exc}): start the stack again with `make up`, which writes it anew"
        ) from exc
    if not isinstance(found, dict):
        raise OpsError(f"{path} is damaged: start the stack again with `make up`, which writes it anew")
    return {**os.environ, **found}


def is_another_role_here(path: Path) -> bool:
    """Whether the shell holds another role's settings of this folder's stack (`. .warren/env/producer.sh`)."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(
        isinstance(found, dict)
        and found.get("BROKER_HOSTS") == os.environ.get("BROKER_HOSTS")
        and found.get("BROKER_USER") != os.environ.get("BROKER_USER")
    )


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
