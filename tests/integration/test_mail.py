"""Mails through a real Postfix where there is one, and through the mail sink elsewhere."""

from __future__ import annotations

import contextlib
import email
import email.policy
import itertools
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from typing import Any

import pytest
from aiosmtpd.controller import Controller

from ops.local import Stack
from ops.ports import free_port
from ops.processes import clean_environment, process_name
from queues import tasks
from queues.app import WarrenCelery
from tests import postfix
from tests.integration.helpers import PATIENCE, acting_as, awaited, children, dead_letter
from tests.unit import test_mailer_injection as corpus
from workers import ledger
from workers.ledger import Entry
from workers.ledgerstore import SqlStore
from workers.mailer import Draft, Mailer, MailRejected, SmtpConfig

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("stubs")]

TASK = "email.send_email"
TO, BODY = "ada.secret@example.com", "The burrow is dry, and nobody else is to know.\n"
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture(scope="module")
def mail_queue(stack: Stack) -> Iterator[None]:
    """The stack's own mail worker stays away."""
    stack.processes._rpc("stopProcess", process_name("worker-email"), True)
    yield
    stack.processes._rpc("startProcess", process_name("worker-email"), True)


@pytest.fixture(scope="module")
def relay() -> Iterator[postfix.Postfix | None]:
    """A Postfix of our own, or None: the stack's mail sink."""
    if postfix.missing():
        yield None
        return
    with postfix.running() as server:
        yield server


@contextlib.contextmanager
def running(stack: Stack, relay: postfix.Postfix | None, **changes: str) -> Iterator[subprocess.Popen[bytes]]:
    """A mail worker without a limit, unless the changes say otherwise."""
    name = f"mail{uuid.uuid4().hex[:8]}"
    beat = stack.folder / "run" / f"{name}.alive"
    environment = {
        **clean_environment(),
        **stack.environment("worker-email"),
        **(relay.environment if relay else {}),
        "MAIL_RATE": "0",
        "HEARTBEAT_FILE": str(beat),
        **changes,
    }
    # With the log that tells most: no line of it may tell what a mail says.
    options = ("-Q", "email", "-n", f"email@{name}", "--loglevel", "DEBUG")
    command = (sys.executable, "-m", "celery", "-A", "workers.app", "worker", *options)
    with (stack.folder / "log" / "mail.log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        assert awaited(beat.exists), (stack.folder / "log" / "mail.log").read_text()[-3000:]
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)


@pytest.fixture(scope="class")
def worker(stack: Stack, mail_queue: None, relay: postfix.Postfix | None) -> Iterator[subprocess.Popen[bytes]]:
    with running(stack, relay, REMOTE_CONTROL="full", MAIL_TO_ALLOWED="example.com") as process:
        yield process


@pytest.fixture
def start(stack: Stack, mail_queue: None, relay: postfix.Postfix | None) -> Iterator[Start]:
    """Starts mail workers, which end with the test."""
    with contextlib.ExitStack() as workers:
        yield lambda **changes: workers.enter_context(running(stack, relay, **changes))


@pytest.fixture
def read(stack: Stack, relay: postfix.Postfix | None) -> Callable[[str], list[EmailMessage]]:
    """The mails with a subject, as they arrived."""

    def found(subject: str) -> list[EmailMessage]:
        raw = relay.mails() if relay else [path.read_bytes() for path in stack.mails.glob("*.eml")]
        mails: list[Any] = [email.message_from_bytes(mail, policy=email.policy.default) for mail in raw]
        return [mail for mail in mails if mail["Subject"] == subject]

    return found


def entry(stack: Stack, task_id: str) -> Entry:
    text = SqlStore(acting_as(stack, "worker-email"), 14).read(ledger.key_of(TASK, task_id, None))
    return Entry.read(text or "")


@pytest.mark.usefixtures("worker")
class TestOneWorker:
    def test_a_mail_with_everything_arrives_and_nothing_of_it_is_told(
        self, stack: Stack, app: WarrenCelery, read: Callable[[str], list[EmailMessage]]
    ) -> None:
        operator = acting_as(stack, "operator")
        events: list[dict[str, Any]] = []
        with operator.connection_for_read() as connection:
            receiver = operator.events.Receiver(connection, handlers={"*": events.append})
            with receiver.consumer_context(wakeup=False) as (opened, _, _):
                operator.control.enable_events()
                subject = uuid.uuid4().hex
                options = {
                    "html": f"<p>{BODY}</p>",
                    "cc": ["bob@example.com"],
                    "headers": {"X-Order": "1042"},
                    "list_unsubscribe": "https://example.com/u",
                }
                told = {"argsrepr": repr([TO, subject, BODY]), "kwargsrepr": repr(options)}  # as Celery's producers do
                sent = tasks.send_email.apply_async([TO, subject, BODY], options, **told)
                result = sent.get(timeout=PATIENCE)

                def succeeded() -> bool:
                    with contextlib.suppress(TimeoutError):
                        opened.drain_events(timeout=1)
                    return any(event["type"] == "task-succeeded" for event in events)

                assert awaited(succeeded)
        assert (result["status"], result["smtp_code"], result["attempts"], result["to"]) == ("sent", 250, 1, TO)
        assert awaited(lambda: read(subject))
        mail = read(subject)[0]
        assert (mail["To"], mail["Cc"], mail["X-Order"]) == (TO, "bob@example.com", "1042")
        assert (mail["Message-ID"], mail["List-Unsubscribe-Post"]) == (
            result["message_id"],
            "List-Unsubscribe=One-Click",
        )
        seen = (stack.folder / "log" / "mail.log").read_text() + repr(events)
        assert sent.id in seen
        assert not any(word in seen for word in (TO, "bob@", BODY.strip(), subject)), (
            "addresses and bodies are told nobody"
        )

    def test_bulk_is_one_mail_for_each_and_sent_once(
        self, app: WarrenCelery, read: Callable[[str], list[EmailMessage]]
    ) -> None:
        subject, key = uuid.uuid4().hex, uuid.uuid4().hex
        addresses = [f"{name}@example.com" for name in ("ada", "bob", "cleo", "ada")]
        link = "https://example.com/u?for={recipient}"

        def send() -> Any:
            queued = tasks.send_bulk(addresses, subject, BODY, list_unsubscribe=link, idempotency_key=key)
            return queued.get(timeout=PATIENCE)

        queued = send()
        assert (queued["status"], queued["count"]) == ("queued", 3)
        results = [app.AsyncResult(one).get(timeout=PATIENCE) for one in queued["task_ids"]]
        assert [result["status"] for result in results] == ["sent"] * 3
        assert awaited(lambda: len(read(subject)) == 3)
        assert {mail["To"]: mail["List-Unsubscribe"] for mail in read(subject)} == {
            f"{name}@example.com": f"<https://example.com/u?for={name}%40example.com>"
            for name in ("ada", "bob", "cleo")
        }
        assert send()["task_ids"] == queued["task_ids"]
        other = tasks.send_email("ada@example.com", subject, BODY, idempotency_key=f"{key}:ada@example.com")
        assert other.get(timeout=PATIENCE) == {**results[0], "status": "duplicate"}
        assert len(read(subject)) == 3
        with pytest.raises(Exception, match=r"1 recipients .* at the places 1 counted from 0"):
            tasks.send_bulk(["ada@example.com", "ada"], subject, BODY).get(timeout=PATIENCE)
        refused = tasks.send_bulk(["ada@example.com"], "a\nb", BODY, raise_on_error=False).get(timeout=PATIENCE)
        assert (refused["status"], refused["code"]) == ("error", "invalid_header")
        link = "https://example.com/u?" + "x" * 868 + "{recipient}"
        refused = tasks.send_bulk(
            ["ada@example.com", "adalovelace@example.com"], "x", BODY, list_unsubscribe=link, raise_on_error=False
        ).get(timeout=PATIENCE)
        assert (refused["status"], refused["code"]) == ("error", "invalid_header"), "the second one's is too long"

    def test_what_cannot_be_sent_is_a_dead_letter_without_the_address(
        self, stack: Stack, relay: postfix.Postfix | None
    ) -> None:
        cases = {"not_allowed": ("eve@evil.test", {}), "expired": (TO, {"expires_at": time.time() - 1})}
        if relay:
            cases["refused"] = ("nobody@example.com", {})
        for code, (to, options) in cases.items():
            failed = tasks.send_email.apply_async([to, "x", BODY], options, argsrepr="", kwargsrepr="")
            with pytest.raises(Exception, match=r"MAIL_TO_ALLOWED|time is over|5\.1\.1"):
                failed.get(timeout=PATIENCE)
            letter = dead_letter(stack, "email", failed.id)
            assert letter.headers["x-dead-reason"] == code
            assert to not in repr(letter.headers)
            assert to not in (stack.folder / "log" / "mail.log").read_text()


def test_what_others_have_smuggled_reaches_nobody_through_a_real_relay(relay: postfix.Postfix | None) -> None:
    if relay is None:
        pytest.skip(postfix.missing() or "no Postfix")
    config = SmtpConfig(
        host="localhost",
        port=relay.port,
        from_addr=corpus.FROM,
        ca_file=relay.ca,
        user=postfix.USER,
        password_file=relay.password_file,
    )
    mailer, sent = Mailer(config), []
    for field, name, value in corpus.CASES:
        given = {"to_addr": corpus.TO, "subject": "Hi", "body": "Hi there", field: value}
        with contextlib.suppress(MailRejected):
            sent.append(mailer.send(Draft(**given), key=f"{field} {name}")["message_id"])
    mailer.close()

    def arrived() -> list[Any]:
        mails: list[Any] = [email.message_from_bytes(mail, policy=email.policy.default) for mail in relay.mails()]
        return [mail for mail in mails if mail["Message-ID"] in sent]

    assert 0 < len(sent) < len(corpus.CASES) / 4
    assert awaited(lambda: len(arrived()) == len(sent))
    assert {mail["Delivered-To"] for mail in arrived()} == {corpus.TO}
    assert corpus.EVIL not in relay.log()


def test_a_wrong_password_has_mails_wait_without_burning_a_retry(
    stack: Stack, app: WarrenCelery, start: Start, tmp_path: Any, read: Callable[[str], list[EmailMessage]]
) -> None:
    (tmp_path / "password").write_text("wrong")
    start(SMTP_PASSWORD_FILE=str(tmp_path / "password"))
    log = stack.folder / "log" / "mail.log"
    before = log.read_text().count("no mail is sent until this is put right")
    subject = uuid.uuid4().hex
    # So that it costs the next test no turn when it comes again.
    waiting = tasks.send_email(TO, subject, BODY, expires_at=time.time() + 30)

    def withdrawn() -> bool:
        text = SqlStore(acting_as(stack, "worker-email"), 14).read(ledger.key_of(TASK, waiting.id, None))
        return bool(text) and not (found := Entry.read(text or "")).begun and found.until <= time.time()

    assert awaited(withdrawn), "its claim has ended as if it had never begun"
    assert log.read_text().count("no mail is sent until this is put right") == before + 1
    assert entry(stack, waiting.id).retries == 0
    assert waiting.state == "STARTED", "it neither failed nor is it retried"
    assert read(subject) == []


class Silent:
    """A relay that takes every mail and hangs up instead of saying so."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []

    async def handle_DATA(self, server: Any, _session: Any, envelope: Any) -> str:
        self.taken.append(envelope.content)
        server.transport.abort()
        return "250 OK"


def test_silence_after_the_dot_follows_the_policy(stack: Stack, start: Start) -> None:
    relay, port = Silent(), free_port()
    controller = Controller(relay, hostname="127.0.0.1", port=port)
    controller.start()
    try:
        start(SMTP_PORT=str(port), SMTP_SECURITY="none", SMTP_USER="", SMTP_PASSWORD_FILE="")
        held = tasks.send_email(TO, "x", BODY, on_uncertain="hold")
        with pytest.raises(Exception, match="--done or --not-done"):
            held.get(timeout=PATIENCE)
        assert dead_letter(stack, "email", held.id).headers["x-dead-reason"] == "in-doubt"
        assert (entry(stack, held.id).state, entry(stack, held.id).begun) == ("claimed", True), "in doubt for everybody"
        again = tasks.send_email(TO, "x", BODY, expires_at=time.time() + 15)
        assert awaited(lambda: again.state == "RETRY"), "and it is resent after a while"
        assert len(relay.taken) == 2
    finally:
        controller.stop()


def test_two_workers_keep_one_rate_and_one_dies(
    stack: Stack, app: WarrenCelery, start: Start, relay: postfix.Postfix | None
) -> None:
    """At the sink, which stamps each mail with its nanosecond."""
    sink = {"SMTP_PORT": str(stack.ports["smtp"]), "SMTP_CA": str(stack.folder / "certs" / "ca.crt")}
    own = stack.environment("worker-email")
    sink |= {name: own[name] for name in ("SMTP_USER", "SMTP_PASSWORD_FILE")}
    first, _second = (start(MAIL_RATE="60/m", **sink) for _ in range(2))
    subject = uuid.uuid4().hex

    def stamps() -> list[float]:
        found = [path for path in stack.mails.glob("*.eml") if subject.encode() in path.read_bytes()]
        return sorted(int(path.name.partition("-")[0]) / 1e9 for path in found)

    for _ in range(5):
        tasks.send_email(TO, subject, BODY)
    assert awaited(lambda: len(stamps()) >= 2)
    for pid in (*children(first.pid), first.pid):
        os.kill(pid, signal.SIGKILL)
    assert awaited(lambda: len(stamps()) >= 4, 2 * PATIENCE)
    times = stamps()
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert min(gaps) >= 1, "never sooner, and no burst when one takes over"
