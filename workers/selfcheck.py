"""What a worker or beat checks before it starts: what cannot heal ends it with one sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from queues.publish import connect, explain, is_hopeless
from queues.transport import deadline
from workers.settings import stop

if TYPE_CHECKING:
    from queues.app import WarrenCelery

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
