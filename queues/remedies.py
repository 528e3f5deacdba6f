"""Why a broker cannot be used, in one sentence that says what to do."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING

import amqp.exceptions

from queues.errors import ConfigurationError

if TYPE_CHECKING:
    import kombu

#: OpenSSL's verify codes: not valid yet and expired; another host name and another address.
_OUT_OF_DATE, _OTHER_NAME = (9, 10), (62, 64)
#: A broker that dies, or is not up yet, while TLS is agreed; one that refuses says so by an alert.
_HUNG_UP = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)


def explain(connection: kombu.Connection, exc: BaseException) -> str:
    """One sentence on why a broker cannot be used, with the remedy."""
    where = f"{connection.hostname}:{connection.port}"
    cause = exc.__cause__ or exc
    if isinstance(cause, ConfigurationError):
        return str(cause)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"the certificate of {where} is not valid ({cause.verify_message}): {certificate_remedy(cause)}"
    if isinstance(cause, ssl.SSLError):
        reason = "the connection was closed" if isinstance(cause, _HUNG_UP) or not cause.reason else cause.reason
        return (
            f"no TLS with {where} ({reason}): check that it is the TLS port, and BROKER_CA, BROKER_CERT and BROKER_KEY"
        )
    if isinstance(cause, amqp.exceptions.AccessRefused | amqp.exceptions.NotAllowed):
        return f"{where} refused the login: check BROKER_USER, BROKER_PASSWORD_FILE and BROKER_VHOST"
    if "auth mechanism" in str(cause):
        return f"{where} does not offer this login: enable rabbitmq_auth_mechanism_ssl there, or set BROKER_LOGIN=PLAIN"
    if not connection.ssl and not isinstance(cause, ConnectionRefusedError | socket.gaierror):
        # A TLS port ends a plaintext connection without a word, or with an alert that is no AMQP.
        return f"no AMQP at {where} in plaintext: where it is a TLS port, drop BROKER_PLAINTEXT and set BROKER_CA"
    return f"no broker answers at {where}{because(cause)}: start it, or check BROKER_HOSTS"


def because(exc: BaseException) -> str:
    """What the system says went wrong, in brackets, where it is the system that says it."""
    if not isinstance(exc, OSError):
        return ""
    return f" ({'it took too long' if isinstance(exc, TimeoutError) else exc.strerror or exc})"


def certificate_remedy(exc: ssl.SSLCertVerificationError, address: str = "BROKER_HOSTS") -> str:
    """What to do about a broker's certificate that did not verify; `address` is the variable that led to it."""
    if exc.verify_code in _OUT_OF_DATE:
        return "renew it at the broker, or set this machine's clock right"
    if exc.verify_code in _OTHER_NAME:
        return f"check {address}, or set BROKER_SERVER_NAME to a name that it carries"
    return "check BROKER_CA, the file of the authority that signed it"


def is_hopeless(exc: BaseException) -> bool:
    """Whether connecting again cannot help before somebody mends a setting."""
    cause = exc.__cause__ or exc
    hopeless = (ssl.SSLError, amqp.exceptions.AccessRefused, amqp.exceptions.NotAllowed, ConfigurationError)
    return isinstance(cause, hopeless) and not isinstance(cause, _HUNG_UP)
