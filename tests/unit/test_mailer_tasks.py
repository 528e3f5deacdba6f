"""What the email tasks check and decide; the rest is seen with a broker in tests/integration/test_mail.py."""

from __future__ import annotations

import time
from typing import Any

import pytest

from queues.errors import PermanentError, PostponedError, UncertainError
from queues.publish import FIRST_PUBLISHED_AT
from workers import mailing, settings
from workers.mailer import MailConfiguration, Mailer, MailRejected, MailUncertain, SmtpConfig

HOUR = 3600.0


@pytest.fixture
def mailer() -> Mailer:
    return Mailer(SmtpConfig(host="localhost", port=9, security="none", from_addr="warren@example.com"))


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SMTP_HOST": "localhost", "SMTP_SECURITY": "none", "MAIL_FROM": "w@example.com"}.items():
        monkeypatch.setenv(name, value)


def test_errors_say_what_the_ledger_has_to_know() -> None:
    assert issubclass(MailConfiguration, PostponedError)
    assert issubclass(MailUncertain, UncertainError)


@pytest.mark.parametrize(("age", "wait"), [(0, 60), (200, 100), (HOUR, 900), (100 * HOUR, 900)])
def test_a_mail_that_waits_for_an_operator_is_looked_at_less_and_less(age: float, wait: float) -> None:
    headers = {FIRST_PUBLISHED_AT: time.time() - age}
    error = mailing.postponed(MailConfiguration("configuration", "text"), headers)
    assert isinstance(error, PostponedError)
    assert error.retry_after == pytest.approx(wait, rel=0.01)


def test_a_mail_is_given_up_after_five_days() -> None:
    headers = {FIRST_PUBLISHED_AT: time.time() - 5 * 24 * HOUR - 1}
    error = mailing.postponed(MailConfiguration("configuration", "text"), headers)
    assert isinstance(error, PermanentError)
    assert (error.code, error.message) == ("configuration", "text")
    assert isinstance(mailing.postponed(MailConfiguration("configuration", "text"), {}), PostponedError), "age unknown"


@pytest.mark.parametrize(
    "arguments",
    [
        ("maybe", None, None),
        (None, "", None),
        (None, 7, None),
        (None, "\ud800", None),
        (None, None, "soon"),
        (None, None, "2099-01-01T00:00:00"),
        (None, None, [1]),
        (None, None, 10**400),
        (None, None, float("nan")),
    ],
)
def test_wrong_arguments_are_told_with_the_remedy(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(MailRejected) as caught:
        mailing.check(*arguments)
    assert caught.value.code == "invalid_argument"


@pytest.mark.parametrize("limit", [0, "2001-01-01T00:00:00+09:00", "2001-01-01T00:00:00Z"])
def test_what_is_too_late_is_not_sent(limit: Any) -> None:
    with pytest.raises(MailRejected) as caught:
        mailing.check(None, None, limit)
    assert caught.value.code == "expired"
    mailing.check("hold", "order-1", time.time() + HOUR)
    mailing.check("resend", None, "2099-01-01T00:00:00+00:00")


@pytest.mark.parametrize("recipients", [[], "ada@example.com", None, {"ada@example.com": 1}])
def test_recipients_are_a_list(mailer: Mailer, recipients: Any) -> None:
    with pytest.raises(MailRejected, match="a list of 1 to"):
        mailer.recipients(recipients)


def test_each_recipient_once_and_wrong_ones_by_their_places(mailer: Mailer) -> None:
    good = ["bob@example.com", "ada@example.com", "bob@example.com"]
    assert mailer.recipients(good) == ["bob@example.com", "ada@example.com"]
    with pytest.raises(MailRejected, match=r"2 recipients .* at the places 1, 3 ") as caught:
        mailer.recipients(["ada@example.com", "bob", "cleo@example.com", "x@y, z@y"])
    assert "bob" not in str(caught.value)


def test_only_what_was_sent_becomes_a_duplicate() -> None:
    assert mailing.duplicate({"status": "sent", "to": "a"}) == {"status": "duplicate", "to": "a"}
    for other in ({"status": "done", "by": "operator"}, None, "text"):
        assert mailing.duplicate(other) == other


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("MAIL_RATE", "ten", "MAIL_RATE='ten' is refused"),
        ("MAIL_RATE", "1/h", "at least one a minute"),
        ("MAIL_FROM_DOMAINS", "example.com,exa mple.org", "MAIL_FROM_DOMAINS: 'exa mple.org' is no mail domain:"),
        ("MAIL_FROM_DOMAINS", "ada@example.com", "is no mail domain:"),
        ("MAIL_TO_ALLOWED", "localhost", "MAIL_TO_ALLOWED: 'localhost' is no mail domain or address"),
    ],
)
def test_wrong_settings_end_the_worker_with_a_sentence(
    environment: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    value: str,
    words: str,
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        settings.mail_interval() if name == "MAIL_RATE" else settings.smtp()
    assert words in capsys.readouterr().err


def test_settings_are_read(environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAIL_RATE", "30/m")
    monkeypatch.setenv("MAIL_FROM_DOMAINS", " Example.org ,example.net")
    monkeypatch.setenv("MAIL_TO_ALLOWED", "example.com,ADA@example.org")
    assert settings.mail_interval() == 2
    config = settings.smtp()
    assert config.from_domains == {"example.org", "example.net"}
    assert config.recipients == {"example.com", "ada@example.org"}
