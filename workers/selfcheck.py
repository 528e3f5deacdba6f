"""What a worker or beat checks before it starts: what cannot heal ends it with one sentence."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from celery.exceptions import ImproperlyConfigured

from queues.publish import connect, explain, is_hopeless
from queues.transport import deadline
from workers.settings import stop

if TYPE_CHECKING:
    from queues.app import WarrenCelery

logger = logging.getLogger(__name__)

#: Seconds to try; a broker that is merely away is waited for by Celery itself.
PATIENCE = 5.0


def broker(app: WarrenCelery) -> None:
    """Log in once: a wrong certificate, name, password or virtual host ends the process with exit code 2."""
    with app.connection_for_read() as connection:
        try:
            with deadline(PATIENCE):
                connect(connection)
        except Exception as exc:  # noqa: BLE001 - told apart below
            if is_hopeless(exc):
                stop(explain(connection, exc))
        finally:
            connection.collect()


def results(app: WarrenCelery) -> None:
    """Make the result store's client: a missing package ends the process, a store that is away is waited for."""
    try:
        app.backend.get_task_meta("worker-start", cache=False)
    except (ImportError, ImproperlyConfigured) as exc:
        stop(f"the result store cannot be used ({exc}): check RESULT_BACKEND, and install the extra '.[results]'")
    except Exception:
        logger.warning("the result store does not answer yet", exc_info=True)
