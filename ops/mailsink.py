"""A mail server for one machine: TLS and AUTH like a relay's, every mail kept as a file instead of sent."""

from __future__ import annotations

import argparse
import hmac
import itertools
import os
import signal
import ssl
import sys
import time
from pathlib import Path
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

#: Bytes of one mail; Postfix has the same limit.
MAX_MAIL_BYTES = 10_240_000


class Mailbox:
    """Keeps each accepted mail as a numbered `.eml` file."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._numbers = itertools.count(1)

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:
        """Write the mail whole, then answer."""
        name = f"{time.time_ns()}-{next(self._numbers):04d}"
        partial = self.folder / f".{name}"
        head = "".join(f"X-Envelope-To: {recipient}\r\n" for recipient in envelope.rcpt_tos)
        partial.write_bytes(head.encode() + (envelope.original_content or b""))
        partial.replace(self.folder / f"{name}.eml")
        return "250 2.0.0 kept"


class Login:
    """One user with one password."""

    def __init__(self, user: str, password: str) -> None:
        self._expected = (user.encode(), password.encode())

    def __call__(self, _server: Any, _session: Any, _envelope: Any, mechanism: str, data: Any) -> AuthResult:
        """Compare in constant time; `handled=False` lets aiosmtpd answer a wrong password at once."""
        ok = (
            mechanism in ("LOGIN", "PLAIN")
            and isinstance(data, LoginPassword)
            and hmac.compare_digest(data.login, self._expected[0])
            and hmac.compare_digest(data.password, self._expected[1])
        )
        return AuthResult(success=ok, handled=False)


def controller(
    host: str, port: int, mailbox: Mailbox, *, cert: Path, key: Path, user: str, password: str
) -> Controller:
    """The server, not started yet: STARTTLS required, then AUTH."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(cert, key)
    return Controller(
        mailbox,
        hostname=host,
        port=port,
        tls_context=context,
        require_starttls=True,
        auth_required=True,
        authenticator=Login(user, password),
        data_size_limit=MAX_MAIL_BYTES,
        ident="warren",
    )


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m ops.mailsink", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--cert", type=Path, required=True)
    parser.add_argument("--key", type=Path, required=True)
    parser.add_argument("--user", default="warren")
    parser.add_argument("--password-file", type=Path, required=True)
    options = parser.parse_args()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    password = options.password_file.read_text(encoding="utf-8").strip()
    server = controller(
        options.host,
        options.port,
        Mailbox(options.folder),
        cert=options.cert,
        key=options.key,
        user=options.user,
        password=password,
    )
    try:
        server.start()
    except OSError as exc:
        sys.exit(f"the mail sink cannot listen on {options.host}:{options.port} ({exc.strerror}): free the port")
    print(f"mail sink {os.getpid()} on {options.host}:{options.port}", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    server.stop()


if __name__ == "__main__":
    main()
