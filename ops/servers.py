"""Configuration files of the Compose deployment's two stores, RabbitMQ and Valkey."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from queues.settings import BROKER_TLS_PORT

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Where a service sees its folder.
MOUNT = "/run/secrets"
#: The user that may make Valkey read its users and certificates again, and nothing else.
KEEPER = "keeper"

# The memory limits stay well below the containers' in docker-compose.rabbitmq.yml: a drift test compares them.
RABBITMQ_CONF = f"""\
# Written by ops.provision at every start of the deployment.
listeners.tcp = none
listeners.ssl.default = {BROKER_TLS_PORT}
ssl_options.cacertfile = {MOUNT}/ca.crt
ssl_options.certfile = {MOUNT}/tls.crt
ssl_options.keyfile = {MOUNT}/tls.key
ssl_options.versions.1 = tlsv1.3
ssl_options.versions.2 = tlsv1.2
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
ssl_options.depth = 1
ssl_handshake_timeout = 5000
auth_mechanisms.1 = PLAIN
management.ssl.port = 15671
management.ssl.cacertfile = {MOUNT}/ca.crt
management.ssl.certfile = {MOUNT}/tls.crt
management.ssl.keyfile = {MOUNT}/tls.key
management.ssl.versions.1 = tlsv1.3
management.ssl.versions.2 = tlsv1.2
management.ssl.verify = verify_peer
management.ssl.fail_if_no_peer_cert = true
management.ssl.depth = 1
prometheus.tcp.ip = 127.0.0.1
prometheus.ssl.port = 15691
prometheus.ssl.cacertfile = {MOUNT}/ca.crt
prometheus.ssl.certfile = {MOUNT}/tls.crt
prometheus.ssl.keyfile = {MOUNT}/tls.key
prometheus.ssl.versions.1 = tlsv1.3
prometheus.ssl.versions.2 = tlsv1.2
load_definitions = {MOUNT}/definitions.json
vm_memory_high_watermark.absolute = 600MiB
raft.wal_max_size_bytes = 64000000
disk_free_limit.absolute = 500MB
log.console = true
log.console.level = info
"""
VALKEY_CONF = f"""\
# Written by ops.provision at every start of the deployment.
port 0
tls-port 6379
tls-cert-file {MOUNT}/tls.crt
tls-key-file {MOUNT}/tls.key
tls-ca-cert-file {MOUNT}/ca.crt
tls-auth-clients optional
tls-protocols "TLSv1.2 TLSv1.3"
aclfile {MOUNT}/users.acl
dir /data
appendonly yes
appendfsync everysec
save ""
maxmemory 256mb
maxmemory-policy noeviction
"""


def valkey_users(results: Iterable[str], keeper: str) -> str:
    """Valkey's users, with the hashes of their passwords.

    `health` may do nothing but PING; the workers' user may not administer, so none of them can empty or stop the store.

    Args:
        results: the passwords that workers may show: the present one and, while it is replaced, the one before.
        keeper: the password of the user that makes the store read its files again.
    """
    shown = " ".join(f"#{hashed(password)}" for password in results)
    return (
        f"user default on {shown} ~* &* +@all -@admin -@dangerous\n"
        "user health on nopass resetkeys resetchannels -@all +ping\n"
        f"user {KEEPER} on #{hashed(keeper)} resetkeys resetchannels -@all +ping +acl|load +config|set\n"
    )


def hashed(password: str) -> str:
    """A password as Valkey keeps it."""
    return hashlib.sha256(password.encode()).hexdigest()
