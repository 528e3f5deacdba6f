"""Real SMTP with TLS and AUTH in this process; every stage at which it can fail."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import pickle
import socket
import ssl
import threading
import tracemalloc
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ops.ports import free_port
from workers.mailer import (
    MAX_BYTES,
    PAUSE,
    Draft,
    MailConfiguration,
    MailDeferred,
    Mailer,
    MailRejected,
    MailResult,
    MailUncertain,
    SmtpConfig,
)
from workers.relay import stuffed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from email.message import EmailMessage
    from pathlib import Path

    from queues.errors import TransientError

_Error = TypeVar("_Error", bound=Exception)

TO, FROM = "ada@example.test", "warren@example.test"
NAME = "relay.test"


@dataclass
class Relay:
    """What the server is told to do, and what it saw. A reply of None cuts the line instead."""

    script: dict[str, list[str | None]] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    mails: list[EmailMessage] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    envelopes: list[tuple[str, list[str]]] = field(default_factory=list)
    password: bytes = b"first"
    port: int = 0
    quit: threading.Event = field(default_factory=threading.Event)
    pipelining: bool = False

    def _reply(self, command: str, server: Any, default: str) -> str:
        self.seen.append(command)
        replies = self.script.get(command, [])
        reply = replies.pop(0) if replies else default
        if reply is None:
            server.transport.abort()
            return "421 Gone"
        return reply

    async def handle_EHLO(
        self, server: Any, session: Any, _envelope: Any, hostname: str, responses: list[str]
    ) -> list[str]:
        session.host_name = hostname
        reply = self._reply("EHLO", server, "")
        if self.pipelining:
            responses.insert(1, "250-PIPELINING")
        return [reply] if reply else responses

    async def handle_MAIL(self, server: Any, _session: Any, envelope: Any, address: str, _options: Any) -> str:
        reply = self._reply("MAIL", server, "250 OK")
        if reply.startswith("250"):
            envelope.mail_from = address
        return reply

    async def handle_RCPT(self, server: Any, _session: Any, envelope: Any, address: str, _options: Any) -> str:
        reply = self._reply("RCPT", server, "250 OK")
        if reply.startswith("25"):
            envelope.rcpt_tos.append(address)
        return reply

    async def handle_DATA(self, server: Any, _session: Any, envelope: Any) -> str:
        reply = self._reply("DOT", server, "250 2.0.0 Ok: queued as 4D1")
        if reply.startswith("250"):
            self.raw.append(envelope.content)
            self.mails.append(message_from_bytes(envelope.content, policy=policy.default))
            self.envelopes.append((envelope.mail_from, envelope.rcpt_tos))
        return reply

    async def handle_NOOP(self, server: Any, _session: Any, _envelope: Any, _argument: str) -> str:
        return self._reply("NOOP", server, "250 OK")

    async def handle_RSET(self, server: Any, _session: Any, _envelope: Any) -> str:
        return self._reply("RSET", server, "250 OK")

    async def handle_QUIT(self, server: Any, _session: Any, _envelope: Any) -> str:
        self.quit.set()
        return self._reply("QUIT", server, "221 Bye")

    def authenticate(self, _server: Any, _session: Any, _envelope: Any, mechanism: str, data: Any) -> AuthResult:
        self.seen.append(f"AUTH {mechanism}")
        good = isinstance(data, LoginPassword) and (data.login, data.password) == (b"user", self.password)
        # handled=True would promise a reply of our own: without one the client waits for ever.
        return AuthResult(success=good, handled=False)


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Certificates:
    ca: Path
    other_ca: Path
    server: ssl.SSLContext


def authority(name: str) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    return key, certificate(name, key, None)


def certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: tuple[ec.EllipticCurvePrivateKey, x509.Certificate] | None,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[1].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if issuer:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    return builder.sign(issuer[0] if issuer else key, hashes.SHA256())


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")
    issuer, other = authority("Test CA"), authority("Other CA")
    key = ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(issuer[1].public_bytes(pem))
    (folder / "other.pem").write_bytes(other[1].public_bytes(pem))
    (folder / "server.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate(NAME, key, issuer).public_bytes(pem)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return Certificates(folder / "ca.pem", folder / "other.pem", context)


@contextlib.contextmanager
def serving(relay: Relay, **keywords: Any) -> Iterator[Relay]:
    relay.port = free_port()
    controller = Controller(relay, hostname="127.0.0.1", port=relay.port, **keywords)
    controller.start()
    try:
        yield relay
    finally:
        controller.stop()


@pytest.fixture(params=[False, True], ids=["one by one", "pipelining"])
def relay(certificates: Certificates, request: pytest.FixtureRequest) -> Iterator[Relay]:
    relay = Relay(pipelining=request.param)
    with serving(
        relay,
        tls_context=certificates.server,
        require_starttls=True,
        auth_required=True,
        authenticator=relay.authenticate,
        data_size_limit=MAX_BYTES + 1000,
    ):
        yield relay


@pytest.fixture
def config(relay: Relay, certificates: Certificates, tmp_path: Path) -> SmtpConfig:
    (tmp_path / "password").write_text("first\n")
    return SmtpConfig(
        host="127.0.0.1",
        port=relay.port,
        from_addr=f"Warren <{FROM}>",
        ca_file=certificates.ca,
        server_name=NAME,
        user="user",
        password_file=tmp_path / "password",
        connect_timeout=5,
        command_timeout=5,
        data_timeout=5,
    )


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def mailer(config: SmtpConfig, clock: Clock) -> Iterator[Mailer]:
    mailer = Mailer(config, clock=clock, sleep=lambda _seconds: None)
    yield mailer
    mailer.close()


def send(mailer: Mailer, key: str = "order-1", **keywords: Any) -> MailResult:
    return mailer.send(Draft(**{"to_addr": TO, "subject": "Hello", "body": "Hi there", **keywords}), key=key)


def failure(kind: type[_Error], mailer: Mailer, **keywords: Any) -> _Error:
    with pytest.raises(kind) as caught:
        send(mailer, **keywords)
    return caught.value


def test_send(mailer: Mailer, relay: Relay) -> None:
    result = send(mailer, body="Grüße\n.\n.dot\nfrom me", reply_to="Help <help@example.test>")
    assert result == {
        "status": "sent",
        "to": TO,
        "message_id": result["message_id"],
        "smtp_code": 250,
        "smtp_reply": "2.0.0 Ok: queued as 4D1",
        "attempts": 1,
    }
    (mail,) = relay.mails
    assert relay.envelopes == [(FROM, [TO])]
    assert (mail["From"], mail["To"], mail["Subject"]) == (f"Warren <{FROM}>", TO, "Hello")
    assert (mail["Message-ID"], mail["Auto-Submitted"]) == (result["message_id"], "auto-generated")
    assert mail["Reply-To"] == "Help <help@example.test>"
    assert mail["Date"].datetime.tzinfo
    assert mail.get_content().splitlines() == ["Grüße", ".", ".dot", "from me"]
    assert relay.raw[0].isascii()
    assert "AUTH PLAIN" in relay.seen


def test_html_goes_beside_the_text(mailer: Mailer, relay: Relay) -> None:
    send(mailer, html="<p>Grüße</p>", from_addr="Größe <shop@example.test>", subject="Größe ✓ " * 20)
    (mail,) = relay.mails
    assert mail.get_content_type() == "multipart/alternative"
    assert [part.get_content_type() for part in mail.iter_parts()] == ["text/plain", "text/html"]
    assert mail["From"].addresses[0].display_name == "Größe"
    assert mail["Subject"] == "Größe ✓ " * 20
    assert relay.envelopes[0][0] == FROM
    assert relay.raw[0].isascii()
    assert max(map(len, relay.raw[0].split(b"\r\n"))) < 998


@pytest.mark.parametrize("name", ["Jane Q. Doe", "Größe & Söhne", "Owner's", ""])
@pytest.mark.parametrize("quote", ["", '"'])
def test_name_of_the_sender(mailer: Mailer, relay: Relay, name: str, quote: str) -> None:
    send(mailer, from_addr=f"{quote}{name}{quote} <shop@example.test>")
    (author,) = relay.mails[0]["From"].addresses
    assert (author.display_name, author.addr_spec) == (name, "shop@example.test")


def test_message_id_is_the_same_for_the_same_key_and_recipient(mailer: Mailer) -> None:
    first, again = send(mailer), send(mailer, subject="Other")
    others = send(mailer, key="order-2"), send(mailer, to_addr="bob@example.test")
    assert first["message_id"] == again["message_id"]
    assert len({mail["message_id"] for mail in (first, *others)}) == 3
    assert first["message_id"].endswith("@example.test>")
    assert "ada" not in first["message_id"]


@pytest.mark.parametrize("body", ["", "\r", "a\rb\nc\r\nd", "\0\x1b", "x" * 5000, "\ud800", "\n.\n", "\u2028" * 3])
def test_strange_bodies_arrive(mailer: Mailer, relay: Relay, body: str) -> None:
    send(mailer, body=body, html=body)
    content = relay.mails[0].get_body(("plain",))
    assert content
    assert "\n" not in relay.raw[0].decode("ascii").replace("\r\n", "")
    assert b"\0" not in relay.raw[0]
    assert len(content.get_content()) >= len(body.splitlines())


@pytest.mark.parametrize(
    "address",
    [
        "",
        "ada",
        "ada@",
        "@example.test",
        "ada@example",
        "ada@localhost",
        "ada@example.test, eve@example.test",
        "ada@example.test;eve@example.test",
        "Ada <ada@example.test>",
        "ada@example.test\r\nBcc: eve@example.test",
        "ada@exam\0ple.test",
        "ada@[127.0.0.1]",
        '"a b"@example.test',
        "adä@example.test",
        " ada@example.test",
        "ada@example.test ",
        "a" * 65 + "@example.test",
        None,
        7,
        ["ada@example.test"],
    ],
)
def test_invalid_recipient(mailer: Mailer, relay: Relay, address: Any) -> None:
    error = failure(MailRejected, mailer, to_addr=address)
    assert error.code == "invalid_address"
    assert "ada" not in str(error)
    assert relay.seen == []


def test_international_domain_travels_as_ascii(mailer: Mailer, relay: Relay) -> None:
    assert send(mailer, to_addr="ada@bücher.example")["to"] == "ada@bücher.example"
    assert relay.envelopes[0][1] == ["ada@xn--bcher-kva.example"]


@pytest.mark.parametrize("name", ["from_addr", "reply_to"])
@pytest.mark.parametrize(
    "address", ["nobody", "a@x.test, b@x.test", "a@x.test, B <b@x.test>", "x\n <a@x.test>", "A, B <a@x.test>", "", 7]
)
def test_invalid_other_address(mailer: Mailer, name: str, address: Any) -> None:
    assert failure(MailRejected, mailer, **{name: address}).code == "invalid_address"


@pytest.mark.parametrize(
    "subject",
    [
        "Hi\nBcc: eve@example.test",
        "Hi\r\nBcc: eve@example.test",
        "Hi\rBcc: eve@example.test",
        "Hi\0",
        "Hi\x7f",
        "Hi\x85",
        "Hi\u2028there",
        "Hi\ud800",
        "=?utf-8?q?x=0ABcc=3A_eve=40example.test?=",
        "=?utf-8?q?x=0D=0ABcc=3A_eve=40example.test?=",
        "=?utf-8?b?eApCY2M6IGV2ZUBleGFtcGxlLnRlc3Q=?=",
        "Re: =?utf-8?q?x=0A?= =?utf-8?q?Bcc=3A_eve?=",
        "x" * 999,
        None,
        b"bytes",
    ],
)
def test_header_injection(mailer: Mailer, relay: Relay, subject: Any) -> None:
    error = failure(MailRejected, mailer, subject=subject)
    assert error.code == "invalid_header"
    assert "eve" not in str(error)
    assert relay.seen == []


@pytest.mark.parametrize("name", ["=?utf-8?q?x=0ABcc=3A_eve?=", "=?utf-8?b?eApCY2M6IGV2ZQ==?="])
@pytest.mark.parametrize("header", ["from_addr", "reply_to"])
def test_header_injection_through_a_name(mailer: Mailer, relay: Relay, name: str, header: str) -> None:
    for quoted in (name, f'"{name}"'):
        with contextlib.suppress(MailRejected):
            send(mailer, **{header: f"{quoted} <shop@example.test>"})
    assert all("Bcc" not in mail for mail in relay.mails)
    assert all(b"\nBcc" not in raw for raw in relay.raw)


def test_innocent_encoded_word_is_read(mailer: Mailer, relay: Relay) -> None:
    send(mailer, subject="=?utf-8?q?caf=C3=A9?=")
    assert relay.mails[0]["Subject"] == "café"


@pytest.mark.parametrize("keywords", [{"body": None}, {"html": 7}])
def test_body_must_be_text(mailer: Mailer, keywords: dict[str, Any]) -> None:
    assert failure(MailRejected, mailer, **keywords).code == "invalid_header"


@pytest.mark.parametrize("text", ["x\n", ".\n", "\n\n\u00e9" + "x" * 20])
def test_a_mail_of_short_lines_takes_little_memory(mailer: Mailer, text: str) -> None:
    body = text * 300_000
    tracemalloc.start()
    stuffed(mailer.compose(Draft(to_addr=TO, subject="Hello", body=body), "key").payload)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * len(body.encode())


def test_too_large(mailer: Mailer, relay: Relay) -> None:
    assert failure(MailRejected, mailer, body="x" * MAX_BYTES).code == "too_large"
    assert relay.seen == []


def test_too_large_for_this_relay(config: SmtpConfig) -> None:
    with serving(Relay(), data_size_limit=2000) as small:
        mailer = Mailer(replace(config, port=small.port, security="none", user=None, password_file=None))
        assert failure(MailRejected, mailer, body="x" * 2000).code == "too_large"
        assert "MAIL" not in small.seen
        assert send(mailer)["attempts"] == 1
        mailer.close()


@pytest.mark.parametrize(
    ("command", "reply", "kind", "code"),
    [
        ("MAIL", "451 4.3.0 Try later", MailDeferred, "deferred"),
        ("MAIL", "550 5.1.0 Sender unknown", MailConfiguration, "configuration"),
        ("MAIL", "552 5.3.4 Message too big", MailRejected, "too_large"),
        ("MAIL", "530 5.7.0 Authentication required", MailConfiguration, "configuration"),
        ("RCPT", "450 4.2.1 Greylisted", MailDeferred, "deferred"),
        ("RCPT", "421 4.3.2 Shutting down", MailDeferred, "deferred"),
        ("RCPT", "550 5.1.1 No such user ada@example.test", MailRejected, "refused"),
        ("RCPT", "552 5.2.2 Mailbox full", MailRejected, "refused"),
        ("RCPT", "550 No such user", MailRejected, "refused"),
        ("RCPT", "554 5.7.1 Relay access denied", MailConfiguration, "configuration"),
        ("RCPT", "553 5.1.8 Sender domain not found", MailConfiguration, "configuration"),
        ("RCPT", "538 5.7.11 Encryption required", MailConfiguration, "configuration"),
        ("RCPT", "354 What", MailDeferred, "deferred"),
        ("DOT", "454 Throttling failure", MailDeferred, "deferred"),
        ("DOT", "421 4.7.0 Too many", MailDeferred, "deferred"),
        ("DOT", "552 Too much mail data", MailRejected, "too_large"),
        ("DOT", "552 5.2.3 Message too long", MailRejected, "too_large"),
        ("DOT", "554 5.6.0 Bad content: Hi there", MailRejected, "refused"),
        ("DOT", "550 5.7.1 Not allowed", MailConfiguration, "configuration"),
    ],
)
def test_refusal(
    mailer: Mailer, relay: Relay, command: str, reply: str, kind: type[MailRejected | TransientError], code: str
) -> None:
    send(mailer)
    relay.script[command] = [reply, reply]
    error = failure(kind, mailer)
    assert (type(error), error.code) == (kind, code)
    if code != "too_large":
        assert reply[:3] in str(error)
        assert reply.split()[1] in str(error) or "." not in reply.split()[1]
    assert not any(word in str(error) for word in ("ada", "Hi there", "example"))
    assert pickle.loads(pickle.dumps(error)).args == error.args
    relay.script.clear()
    assert send(mailer)["attempts"] == 1
    assert len(relay.mails) == 2


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("4.7.1 Greylisted, please try again in 5 minutes", 300),
        ("Try again in 90 seconds", 90),
        ("wait 30s and retry", 30),
        ("retry after 2 hours.", 7200),
        ("4.2.0 Greylisted for 1 minute", 60),
        ("please try again later", None),
        ("in 5 messages", None),
    ],
)
def test_time_to_wait_is_read(mailer: Mailer, relay: Relay, text: str, seconds: float | None) -> None:
    relay.script["RCPT"] = [f"450 {text}"]
    assert failure(MailDeferred, mailer).retry_after == seconds


def test_connection_is_reused_checked_and_renewed(mailer: Mailer, relay: Relay, clock: Clock) -> None:
    send(mailer)
    send(mailer)
    assert relay.seen.count("EHLO") == 2, "one before TLS, one after"
    assert "NOOP" not in relay.seen
    clock.now += 6
    send(mailer)
    assert (relay.seen.count("EHLO"), relay.seen.count("NOOP")) == (2, 1)
    clock.now += 6
    relay.script["NOOP"] = ["421 Timeout"]
    assert send(mailer)["attempts"] == 1
    assert relay.seen.count("EHLO") == 4
    clock.now += 61
    send(mailer)
    assert (relay.seen.count("EHLO"), relay.seen.count("NOOP")) == (6, 2)


def test_connection_is_renewed_after_a_hundred_mails(mailer: Mailer, relay: Relay) -> None:
    for _ in range(101):
        send(mailer)
    assert relay.seen.count("EHLO") == 4
    assert len(relay.mails) == 101


def test_connection_of_the_parent_is_not_used_after_a_fork(
    mailer: Mailer, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(mailer)
    with monkeypatch.context() as patched:
        patched.setattr(os, "getpid", lambda: -1)
        send(mailer)
    assert relay.seen.count("EHLO") == 4


def test_reset_after_an_error(mailer: Mailer, relay: Relay) -> None:
    relay.script["RCPT"] = ["550 5.1.1 Unknown"]
    failure(MailRejected, mailer)
    assert relay.seen[-1] == "RSET"
    send(mailer)
    assert relay.seen.count("EHLO") == 2


@pytest.mark.parametrize("command", ["EHLO", "MAIL", "RCPT"])
def test_lost_before_the_dot_is_repeated_once(mailer: Mailer, relay: Relay, command: str) -> None:
    relay.script[command] = [None]
    assert send(mailer)["attempts"] == 2
    assert len(relay.mails) == 1
    mailer.close()
    relay.script[command] = [None, None]
    error = failure(MailDeferred, mailer)
    assert "before the mail was sent" in str(error)
    assert len(relay.mails) == 1


def test_closed_while_idle_is_repeated(mailer: Mailer, relay: Relay) -> None:
    send(mailer)
    relay.script["MAIL"] = ["421 4.4.2 Timeout exceeded"]
    assert send(mailer)["attempts"] == 2


def test_closed_at_once_is_deferred(mailer: Mailer, relay: Relay) -> None:
    relay.script["MAIL"] = ["421 4.7.0 Try again in 10 minutes"]
    assert failure(MailDeferred, mailer).retry_after == 600
    assert relay.seen.count("MAIL") == 1


def test_lost_after_the_dot_is_uncertain_and_not_repeated(mailer: Mailer, relay: Relay) -> None:
    relay.script["DOT"] = [None]
    error = failure(MailUncertain, mailer)
    assert error.code == "uncertain"
    assert relay.seen.count("DOT") == 1
    assert send(mailer)["attempts"] == 1


@pytest.mark.parametrize("reply", ["999 what", "no number", "354 more"])
def test_nonsense_after_the_dot_is_uncertain(mailer: Mailer, relay: Relay, reply: str) -> None:
    relay.script["DOT"] = [reply]
    assert failure(MailUncertain, mailer).code == "uncertain"


class TimeLimitError(Exception):
    """Arrives at any line, as Celery's soft time limit does."""


@pytest.mark.parametrize(("call", "kind"), [("_step", TimeLimitError), ("getreply", MailUncertain)])
def test_time_limit_drops_the_connection(
    mailer: Mailer, relay: Relay, monkeypatch: pytest.MonkeyPatch, call: str, kind: type[Exception]
) -> None:
    send(mailer)
    session = mailer._session
    assert session

    def interrupt(*_arguments: Any) -> Any:
        raise TimeLimitError

    if call == "getreply":
        original = session.smtp.send

        def send_then_interrupt(data: bytes | str) -> None:
            original(data)
            if data == b".\r\n":
                monkeypatch.setattr(session.smtp, "getreply", interrupt)

        monkeypatch.setattr(session.smtp, "send", send_then_interrupt)
    else:
        monkeypatch.setattr(session, call, interrupt)
    failure(kind, mailer)
    assert mailer._session is None
    assert send(mailer)["attempts"] == 1


def test_certificate_of_an_unknown_authority(config: SmtpConfig, certificates: Certificates, relay: Relay) -> None:
    for security in ("starttls", "tls"):
        with contextlib.ExitStack() as stack:
            other = (
                stack.enter_context(serving(Relay(), ssl_context=certificates.server)) if security == "tls" else relay
            )
            for ca_file in (certificates.other_ca, None):
                changed = replace(config, port=other.port, security=security, ca_file=ca_file)
                error = failure(MailConfiguration, Mailer(changed))
                assert "certificate" in str(error)
            assert "MAIL" not in other.seen


def test_certificate_for_another_name(config: SmtpConfig, relay: Relay) -> None:
    error = failure(MailConfiguration, Mailer(replace(config, server_name=None)))
    assert "127.0.0.1" in str(error)
    assert not any(command.startswith("AUTH") for command in relay.seen)


@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")
def test_tls_from_the_first_byte(config: SmtpConfig, certificates: Certificates) -> None:
    relay = Relay()
    with serving(
        relay,
        ssl_context=certificates.server,
        auth_required=True,
        auth_require_tls=False,
        authenticator=relay.authenticate,
    ):
        mailer = Mailer(replace(config, port=relay.port, security="tls"))
        assert send(mailer)["status"] == "sent"
        mailer.close()


def test_never_in_clear_text(config: SmtpConfig) -> None:
    with serving(Relay()) as plain:
        error = failure(MailConfiguration, Mailer(replace(config, port=plain.port)))
        assert "STARTTLS" in str(error)
        error = failure(MailConfiguration, Mailer(replace(config, port=plain.port, security="tls")))
        assert "TLS" in str(error)
        assert set(plain.seen) <= {"EHLO"}
        error = failure(MailConfiguration, Mailer(replace(config, port=plain.port, security="none")))
        assert "AUTH" in str(error)
        mailer = Mailer(replace(config, port=plain.port, security="none", user=None, password_file=None))
        assert send(mailer)["status"] == "sent"
        mailer.close()
        assert plain.quit.wait(5)


def test_changed_password_needs_no_restart(mailer: Mailer, relay: Relay, tmp_path: Path) -> None:
    relay.password = b"second"
    error = failure(MailConfiguration, mailer)
    assert "535" in str(error)
    assert [command for command in relay.seen if command.startswith("AUTH")] == ["AUTH PLAIN"], "one try, no lock-out"
    assert "first" not in str(error)
    (tmp_path / "password").write_text("second\n")
    assert send(mailer)["status"] == "sent"


def test_password_that_cannot_be_used(mailer: Mailer, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("pässword")
    assert "ASCII" in str(failure(MailConfiguration, mailer))
    (tmp_path / "password").unlink()
    assert "password file" in str(failure(MailConfiguration, mailer))


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_ca_file_that_cannot_be_used(config: SmtpConfig, tmp_path: Path, content: str | None) -> None:
    if content:
        (tmp_path / "ca").write_text(content)
    assert "CA file" in str(failure(MailConfiguration, Mailer(replace(config, ca_file=tmp_path / "ca"))))


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"security": "none", "host": "relay.example.org"}, "loopback"),
        ({"security": "none", "host": "10.0.0.1"}, "loopback"),
        ({"security": "ssl"}, "starttls"),
        ({"user": None}, "belong together"),
        ({"password_file": None}, "belong together"),
    ],
)
def test_wrong_configuration(config: SmtpConfig, wrong: dict[str, Any], match: str) -> None:
    with pytest.raises(MailConfiguration, match=match):
        replace(config, **wrong)


def test_wrong_sender(config: SmtpConfig) -> None:
    with pytest.raises(MailConfiguration, match="sender"):
        Mailer(replace(config, from_addr="warren"))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_clear_text_on_loopback(config: SmtpConfig, host: str) -> None:
    assert replace(config, host=host, security="none").host == host
    assert host == "localhost" or ipaddress.ip_address(host).is_loopback


def test_nobody_listens(config: SmtpConfig) -> None:
    error = failure(MailDeferred, Mailer(replace(config, port=free_port())))
    assert (error.code, "ConnectionRefusedError" in str(error)) == ("deferred", True)


def test_unknown_host(config: SmtpConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: Any) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert failure(MailDeferred, Mailer(config)).code == "deferred"


@contextlib.contextmanager
def stub(answer: Callable[[socket.socket], object]) -> Iterator[tuple[int, list[int]]]:
    """A server that does not speak SMTP; yields its port and how many came."""
    visitors: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    visitors.append(1)
                    with connection:
                        answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1], visitors
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def plain(config: SmtpConfig, port: int, **changes: Any) -> Mailer:
    return Mailer(replace(config, port=port, security="none", user=None, password_file=None, **changes))


def test_silent_relay_is_not_tried_twice(config: SmtpConfig) -> None:
    with stub(lambda connection: connection.recv(1)) as (port, visitors):
        error = failure(MailDeferred, plain(config, port, command_timeout=0.05))
        assert error.code == "deferred"
        assert len(visitors) == 1


@pytest.mark.parametrize(
    ("greeting", "kind"),
    [
        (b"554 5.3.2 Not accepting\r\n", MailConfiguration),
        (b"421 4.3.2 Busy, try again in 2 minutes\r\n", MailDeferred),
        (b"HTTP/1.1 400 Bad Request\r\n", MailDeferred),
        (b"220 " + b"x" * 9000 + b"\r\n", MailDeferred),
        (b"", MailDeferred),
    ],
)
def test_greeting(config: SmtpConfig, greeting: bytes, kind: type[Exception]) -> None:
    with stub(lambda connection: connection.sendall(greeting)) as (port, _):
        failure(kind, plain(config, port))


def test_cut_at_data_is_repeated_once(config: SmtpConfig) -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(b"220 Hello\r\n")
        with connection.makefile("rb") as lines:
            for line in lines:
                if line.startswith(b"DATA"):
                    return
                connection.sendall(b"250 OK\r\n")

    with stub(answer) as (port, visitors):
        assert "at DATA" in str(failure(MailDeferred, plain(config, port)))
        assert len(visitors) == 2


def test_not_tls(config: SmtpConfig) -> None:
    with stub(lambda connection: None) as (port, _):
        failure(MailDeferred, Mailer(replace(config, port=port, security="tls")))


def test_a_copy_that_is_refused_keeps_the_mail_from_everybody(mailer: Mailer, relay: Relay) -> None:
    copies = ["bob@example.test", "eve@example.test"]
    for replies, kind in (
        (["250 OK", "250 OK", "550 5.1.1 No such user"], MailRejected),
        (["250 OK", "450 4.2.1 Later", "250 OK"], MailDeferred),
        (["450 4.2.1 Later", "550 5.1.1 No such user"], MailDeferred),
    ):
        relay.script["RCPT"] = list(replies)
        assert "RCPT" in str(failure(kind, mailer, cc=copies))
        assert relay.mails == []
    relay.script.clear()
    assert send(mailer, cc=copies)["status"] == "sent"
    (mail,) = relay.mails
    assert (mail["To"], mail["Cc"]) == (TO, ", ".join(copies))
    assert relay.envelopes == [(FROM, [TO, *copies])]


def test_nothing_is_handed_over_before_the_last_moment(mailer: Mailer, relay: Relay) -> None:
    seen: list[tuple[bool, list[str]]] = []

    def moment() -> None:
        seen.append((mailer.handed_over, list(relay.seen)))

    mailer.send(Draft(to_addr=TO, subject="s", body="b"), key="k", before_dot=moment)
    ((handed, commands),) = seen
    assert not handed
    assert "RCPT" in commands
    assert "DOT" not in commands
    assert mailer.handed_over

    def refuse() -> None:
        raise TimeLimitError

    with pytest.raises(TimeLimitError):
        mailer.send(Draft(to_addr=TO, subject="s", body="b"), key="k", before_dot=refuse)
    assert not mailer.handed_over
    assert len(relay.mails) == 1
    assert send(mailer)["attempts"] == 1


@dataclass
class Turns:
    """Notes when it was asked."""

    relay: Relay
    ours: list[bool] = field(default_factory=list)
    asked: list[tuple[str, int]] = field(default_factory=list)

    def wait(self) -> None:
        self.asked.append(("wait", self.relay.seen.count("MAIL")))

    def still(self) -> bool:
        self.asked.append(("still", self.relay.seen.count("MAIL")))
        return self.ours.pop(0) if self.ours else True

    def done(self) -> None:
        self.asked.append(("done", self.relay.seen.count("MAIL")))


def test_each_transaction_waits_for_its_turn_and_counts_from_its_end(mailer: Mailer, relay: Relay) -> None:
    mailer.turns = turns = Turns(relay)
    send(mailer)
    relay.script["RCPT"] = ["450 4.2.1 Greylisted"]
    failure(MailDeferred, mailer)
    assert turns.asked == [("wait", 0), ("still", 1), ("done", 1), ("wait", 1), ("done", 2)]


def test_a_turn_that_was_lost_is_waited_for_anew(mailer: Mailer, relay: Relay) -> None:
    mailer.turns = Turns(relay, ours=[False])
    assert send(mailer)["attempts"] == 2
    assert len(relay.mails) == 1
    mailer.turns = Turns(relay, ours=[False, False])
    assert "another's turn" in str(failure(MailDeferred, mailer))


def test_a_relay_that_lets_nobody_in_is_left_alone_and_one_alert_is_raised(
    config: SmtpConfig, relay: Relay, clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.now += seconds

    mailer = Mailer(config, clock=clock, sleep=sleep)
    send(mailer)
    mailer.close()
    relay.password = b"second"
    for number in range(3):
        failure(MailConfiguration, mailer, to_addr=f"a{number}@example.test")
    assert failure(MailRejected, mailer, subject="x\n").code == "invalid_header", "what is wrong needs no wait"
    assert slept == [0, 0, PAUSE, PAUSE]
    (tmp_path / "password").write_text("second")
    send(mailer)
    mailer.close()
    lines = [record.levelname for record in caplog.records if record.name == "workers.mailer"]
    assert lines == ["ERROR", "WARNING"], "one alert, and one word when it is over"
    assert not any(word in caplog.text for word in ("example.test", "Hi there"))


def test_one_mail_that_is_not_let_through_does_not_stop_the_others(
    config: SmtpConfig, relay: Relay, clock: Clock
) -> None:
    slept: list[float] = []
    mailer = Mailer(config, clock=clock, sleep=slept.append)
    refused = "554 5.7.1 Relay access denied"
    for key in ("one", "one"):
        relay.script["RCPT"] = [refused]
        failure(MailConfiguration, mailer, key=key)
    send(mailer, key="good")
    assert not any(slept)
    for key in ("one", "two"):
        relay.script["RCPT"] = [refused]
        failure(MailConfiguration, mailer, key=key)
    send(mailer, key="good")
    assert slept[-1] == PAUSE, "two in a row: it refuses everything"
    mailer.close()


def test_the_relays_wish_for_a_wait_is_bounded(mailer: Mailer, relay: Relay) -> None:
    relay.script["RCPT"] = ["450 4.7.1 try again in 9000 hours"]
    assert failure(MailDeferred, mailer).retry_after == 86400


@pytest.mark.parametrize("sender", ["warren@example.test", "W <a@EXAMPLE.test>", "a@other.test", None])
def test_senders_that_are_allowed(config: SmtpConfig, relay: Relay, sender: str | None) -> None:
    mailer = Mailer(replace(config, from_domains=frozenset({"other.test"})))
    assert send(mailer, from_addr=sender)["status"] == "sent"
    mailer.close()


@pytest.mark.parametrize("sender", ["ceo@bank.test", "a@sub.example.test", "a@example.test.evil.test"])
def test_senders_of_other_domains_are_refused(mailer: Mailer, relay: Relay, sender: str) -> None:
    error = failure(MailRejected, mailer, from_addr=sender)
    assert (error.code, "MAIL_FROM_DOMAINS" in str(error)) == ("not_allowed", True)
    assert relay.seen == []


def test_recipients_are_limited_to_those_allowed(config: SmtpConfig, relay: Relay) -> None:
    mailer = Mailer(replace(config, recipients=frozenset({"example.test", "bob@other.test"})))
    for to in ("ADA@Example.Test", "Bob@other.test"):
        assert send(mailer, to_addr=to)["status"] == "sent"
    for wrong in ({"to_addr": "eve@other.test"}, {"cc": ["eve@other.test"]}, {"to_addr": "a@sub.example.test"}):
        error = failure(MailRejected, mailer, **wrong)
        assert (error.code, "MAIL_TO_ALLOWED" in str(error)) == ("not_allowed", True)
        assert "other.test" not in str(error)
    mailer.close()
