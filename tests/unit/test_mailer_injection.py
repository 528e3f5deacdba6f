"""What callers have tried to smuggle into mails: each is refused before any SMTP, or arrives as harmless text.

Needs Celery, email-validator and no fixture of ours, so that any Python runs it alone: `pytest --noconftest` and this.
"""

from __future__ import annotations

import base64
import email
import email.policy
import re
from dataclasses import fields
from typing import Any

import pytest

from workers.mailer import Draft, Mailer, SmtpConfig
from workers.mime import MAX_BYTES, Letter
from workers.refusal import MailRejected
from workers.relay import stuffed

TO, FROM = "ada@example.test", "warren@example.test"
EVIL = "eve@evil.test"
OURS = ["Date", "Message-ID", "Auto-Submitted", "MIME-Version"]
ALLOWED = {"from", "to", "cc", "subject", "reply-to", "list-unsubscribe", "list-unsubscribe-post", "content-type"}
ALLOWED |= {"content-transfer-encoding", "x-order", *map(str.lower, OURS)}


def q(text: str) -> str:
    """An encoded word in quoted-printable, every byte of it."""
    return "=?utf-8?q?" + "".join(f"={byte:02X}" for byte in text.encode()) + "?="


def b(text: str, charset: str = "utf-8") -> str:
    """An encoded word in base64."""
    return f"=?{charset}?b?{base64.b64encode(text.encode(charset)).decode()}?="


BCC = f"\nBcc: {EVIL}"
LINES = {
    "lf": f"Hi{BCC}",
    "crlf": f"Hi\r{BCC}",
    "cr": f"Hi\rBcc: {EVIL}",
    "folded": f"Hi\r\n\tthere\r\nBcc: {EVIL}",
    "end of the head": "Hi\r\n\r\n<script>alert(1)</script>",
    "nul": f"Hi\0{BCC}",
    "vertical tab": f"Hi\x0bBcc: {EVIL}",
    "form feed": f"Hi\x0cBcc: {EVIL}",
    "file separator": f"Hi\x1cBcc: {EVIL}",
    "next line": f"Hi\x85Bcc: {EVIL}",
    "line separator": f"Hi\u2028Bcc: {EVIL}",
    "paragraph separator": f"Hi\u2029Bcc: {EVIL}",
    "half a character": "Hi\ud800",
    "escape": "Hi\x1b[2J",
    "encoded lf, q": q(f"x{BCC}"),
    "encoded crlf, q": q(f"x\r{BCC}"),
    "encoded lf, b": b(f"x{BCC}"),
    "encoded cr, b": b(f"x\rBcc: {EVIL}"),
    "encoded lf, latin-1": b(f"x{BCC}", "iso-8859-1"),
    "encoded lf, utf-16": b(f"x{BCC}", "utf-16"),
    "two encoded words": f"Re: {q('x' + chr(10))} {q('Bcc: ' + EVIL)}",
    "encoded among text": f"Order {q(BCC)} is ready",
    "encoded nul": q("x\0y"),
    "encoded line separator": q(f"x\u2028Bcc: {EVIL}"),
    "encoded twice": q(q(f"x{BCC}")),
    "lower case": q(f"x{BCC}").lower(),
    "with a language": q(f"x{BCC}").replace("utf-8", "utf-8*en"),
    "too long": "x" * 999,
}
ADDRESSES = {
    "two": f"{TO}, {EVIL}",
    "two by semicolon": f"{TO};{EVIL}",
    "two by space": f"{TO} {EVIL}",
    "group": f"x:{TO},{EVIL};",
    "route": f"<@evil.test:{TO}>",
    "named": f"Ada <{TO}>, Eve <{EVIL}>",
    "comment": f"{TO}(,{EVIL})",
    "quoted local part": f'"a, {EVIL}"@example.test',
    "percent": f"eve%evil.test@example.test\r\nRCPT TO:<{EVIL}>",
    "smtp command": f"{TO}>\r\nRCPT TO:<{EVIL}",
    "smtp options": f"{TO}> NOTIFY=SUCCESS",
    "literal": "ada@[127.0.0.1]",
    "lf": f"{TO}\nBcc: {EVIL}",
    "nul": f"{TO}\0{EVIL}",
    "encoded": q(f"{TO}, {EVIL}"),
    "full width comma": f"{TO}\uff0c{EVIL}",
    "full width at": f"ada\uff20evil.test,{TO}",
    "looked at for hours": " " * 1_000_000 + f"<{TO}",
    "long name": "x" * 999 + f" <{FROM}>",
}
HEADERS: dict[str, Any] = {
    "bcc": {"Bcc": EVIL},
    "cc": {"Cc": EVIL},
    "to": {"To": EVIL},
    "sender": {"Sender": EVIL},
    "from": {"from": EVIL},
    "return path": {"Return-Path": EVIL},
    "resent": {"Resent-To": EVIL},
    "name with lf": {f"X-A: b{BCC}": "x"},
    "name with a colon": {"X-A: b": "x"},
    "name with a space": {"X-A ": "x"},
    "empty name": {"": "x"},
    "name of another script": {"X-\u0410": "x"},
    "content type": {"Content-Type": "text/html"},
    "transfer encoding": {"Content-Transfer-Encoding": "binary"},
    "mime version": {"MIME-Version": "1.0"},
    "receipt": {"Disposition-Notification-To": EVIL},
    "provider's orders": {"X-SMTPAPI": '{"to":["eve@evil.test"]}'},
    "provider's orders, too": {"X-MC-BccAddress": EVIL},
    "value with lf": {"X-Order": f"1{BCC}"},
    "value with an encoded lf": {"X-Order": q(f"1{BCC}")},
    "no text": {"X-Order": 1},
    "twice": {"X-Order": "1", "x-order": "2"},
    "a list": [["X-Order", "1"]],
    "many": {f"X-Order-{number}": "1" for number in range(21)},
}
URLS = {
    "plain http": "http://example.test/u",
    "lf": f"https://example.test/u>{BCC}",
    "angle": "https://example.test/u>, <mailto:eve@evil.test",
    "mailto": f"mailto:{EVIL}",
    "script": "javascript:alert(1)",
    "space": "https://example.test/a b",
    "not ascii": "https://example.test/\u00fc",
    "no host": "https:///u",
    "long": "https://example.test/" + "x" * 900,
    "number": 7,
}
BODIES = {
    "smuggled": f"a\r\n.\r\nMAIL FROM:<{EVIL}>\r\nRCPT TO:<{EVIL}>\r\nDATA\r\nx\r\n.\r\n",
    "smuggled by lf": f"a\n.\nMAIL FROM:<{EVIL}>\n",
    "smuggled by cr": f"a\r.\rMAIL FROM:<{EVIL}>\r",
    "smuggled by both": f"a\n.\r\nMAIL FROM:<{EVIL}>\r\n",
    "dots": ".\n..\n...\n.x",
    "headers": f"Bcc: {EVIL}\r\n\r\nx",
    "mime": f"--=_x\r\nContent-Type: message/rfc822\r\n\r\nBcc: {EVIL}\r\n--=_x--",
    "controls": "\0\x1b[2J\x85\u2028",
}
CASES = [
    *(("subject", name, value) for name, value in LINES.items()),
    *(("to_addr", name, value) for name, value in ADDRESSES.items()),
    *(("from_addr", name, value) for name, value in ADDRESSES.items()),
    *(("from_addr", f"name, {name}", f"{value} <{FROM}>") for name, value in LINES.items()),
    *(("from_addr", f"quoted name, {name}", f'"{value}" <{FROM}>') for name, value in LINES.items()),
    *(("reply_to", name, value) for name, value in ADDRESSES.items()),
    *(("reply_to", f"quoted name, {name}", f'"{value}" <{FROM}>') for name, value in LINES.items()),
    *(("cc", name, [value]) for name, value in ADDRESSES.items()),
    ("cc", "a text", EVIL),
    ("cc", "many", [f"a{number}@example.test" for number in range(21)]),
    *(("headers", name, value) for name, value in HEADERS.items()),
    *(("headers", f"value, {name}", {"X-Order": value}) for name, value in LINES.items()),
    *(("list_unsubscribe", name, value) for name, value in URLS.items()),
    *(("body", name, value) for name, value in BODIES.items()),
    *(("html", name, value) for name, value in BODIES.items()),
    ("body", "oversize", "x" * MAX_BYTES),
    ("html", "oversize", "\u00fc" * (MAX_BYTES // 3)),
    ("body", "oversize, all controls", "\0" * 15_000_000),
    ("body", "no text", {"a": 1}),
]
#: What must not get through in any form.
REFUSED = {"to_addr", "cc", "list_unsubscribe"}


@pytest.fixture(scope="module")
def mailer() -> Mailer:
    """Nobody listens at this port: whatever wanted to send would fail otherwise."""
    return Mailer(SmtpConfig(host="127.0.0.1", port=9, security="none", from_addr=FROM))


def harmless(letter: Letter) -> None:
    """Look at the bytes as a server and as a reader would."""
    assert letter.recipients == (TO,)
    assert letter.payload.isascii()
    assert not re.search(rb"(?<!\r)\n|\r(?!\n)|\0", letter.payload)
    assert b"\r\n.\r\n" not in stuffed(letter.payload)
    head = letter.payload.partition(b"\r\n\r\n")[0].split(b"\r\n")
    names = [line.partition(b":")[0].decode().lower() for line in head if line[:1] not in (b" ", b"\t")]
    assert set(names) <= ALLOWED
    assert len(names) == len(set(names))
    for policy in (email.policy.default, email.policy.compat32):
        read = email.message_from_bytes(letter.payload, policy=policy)
        assert [name.lower() for name in read] == names
        assert read["To"] == TO
        assert read["Bcc"] is None
        kinds = [part.get_content_type() for part in read.walk()]
        assert kinds in (["text/plain"], ["multipart/alternative", "text/plain", "text/html"])


@pytest.mark.parametrize(
    ("field", "value"), [case[::2] for case in CASES], ids=[f"{field}: {name}" for field, name, _ in CASES]
)
def test_nothing_gets_through(mailer: Mailer, field: str, value: Any) -> None:
    given = {"to_addr": TO, "subject": "Hi", "body": "Hi there", field: value}
    try:
        letter = mailer.compose(Draft(**given), "key")
    except MailRejected as exc:
        assert not any(word in str(exc) for word in ("eve", "evil", "ada@", "Hi there"))
    else:
        assert field not in REFUSED
        harmless(letter)


def test_the_corpus_is_large_and_covers_every_part_of_a_mail() -> None:
    assert len(CASES) >= 40
    assert {field for field, _, _ in CASES} == {one.name for one in fields(Draft)}


def test_an_honest_mail_of_every_part_passes(mailer: Mailer) -> None:
    link = "https://example.test/u?" + "x" * 800
    draft = Draft(
        to_addr=TO,
        subject="Grüße " * 30,
        body="Grüße\n" * 30,
        html="<p>Grüße</p>",
        from_addr="Größe <shop@example.test>",
        reply_to='"Help, please" <help@other.test>',
        cc=["bob@example.test"],
        headers={"X-Order": "1042 " + "ü" * 100, "Feedback-ID": "a:b:c"},
        list_unsubscribe=link,
    )
    letter = mailer.compose(draft, "key")
    assert letter.recipients == (TO, "bob@example.test")
    head = letter.payload.partition(b"\r\n\r\n")[0].decode()
    assert f"List-Unsubscribe: <{link}>\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n" in head
    read = email.message_from_bytes(letter.payload, policy=email.policy.default)
    assert (read["Subject"], read["Cc"]) == ("Grüße " * 30, "bob@example.test")
    assert (read["X-Order"], read["Feedback-ID"]) == ("1042 " + "ü" * 100, "a:b:c")
    assert read["Reply-To"].addresses[0].display_name == "Help, please"
    plain = read.get_body(("plain",))
    assert plain is not None
    assert plain.get_content().splitlines() == ["Grüße"] * 30
