"""Passwords of the broker's users: made, and hashed as RabbitMQ keeps them."""

from __future__ import annotations

import base64
import hashlib
import secrets


def generate_password() -> str:
    """A new password of 192 bits that needs no quoting in a URL."""
    return secrets.token_urlsafe(24)


def hash_password(password: str, salt: bytes | None = None) -> str:
    """A password as RabbitMQ keeps it in `password_hash` (rabbit_password_hashing_sha256).

    Args:
        password: The password.
        salt: 4 bytes; random unless given.

    Raises:
        ValueError: the salt has another length.
    """
    salt = secrets.token_bytes(4) if salt is None else salt
    if len(salt) != 4:
        raise ValueError("RabbitMQ's salt has 4 bytes")
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()
