"""Valkey, made to take new passwords and certificates while it runs."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from ops.errors import OpsError, UnreachableError
from ops.servers import KEEPER, MOUNT

if TYPE_CHECKING:
    from pathlib import Path

HOST, PORT = "valkey", 6379
TIMEOUT = 10.0


def refresh(secrets: Path) -> None:
    """Have Valkey read its users and its certificate again; no connection is closed.

    Args:
        secrets: The folder that `ops.provision` fills.

    Raises:
        OpsError: it does not answer, or refuses.
    """
    import redis

    own = secrets / "operator"
    client: Any = redis.Redis(
        host=HOST,
        port=PORT,
        username=KEEPER,
        password=(secrets / "passwords" / KEEPER).read_text(encoding="utf-8").strip(),
        ssl=True,
        ssl_ca_certs=str(own / "ca.crt"),
        ssl_check_hostname=True,
        socket_timeout=TIMEOUT,
        socket_connect_timeout=TIMEOUT,
    )
    files = {"tls-cert-file": "tls.crt", "tls-key-file": "tls.key", "tls-ca-cert-file": "ca.crt"}
    try:
        with contextlib.closing(client):
            client.execute_command("ACL LOAD")
            client.execute_command(
                "CONFIG SET", *(word for name, file in files.items() for word in (name, f"{MOUNT}/{file}"))
            )
    except (redis.AuthenticationError, redis.ResponseError) as exc:
        raise OpsError(f"Valkey did not take its new files ({exc}): `restart valkey` makes it read them") from exc
    except (redis.RedisError, OSError) as exc:
        raise UnreachableError(f"Valkey does not answer ({exc}): `up -d valkey`, then apply again") from exc
