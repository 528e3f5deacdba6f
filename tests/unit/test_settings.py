from __future__ import annotations

import os
import traceback
from typing import TYPE_CHECKING, Any

import pytest

from queues.environment import Secret
from queues.errors import ConfigurationError
from queues.settings import BrokerSettings, Settings

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    for name in ("ca", "cert", "key"):
        (tmp_path / name).write_text("# made by hand\n-----BEGIN CERTIFICATE-----\n")
    (tmp_path / "password").write_text("s3 cret/@\n")
    return {
        "BROKER_HOSTS": "rabbit.example",
        "BROKER_CA": str(tmp_path / "ca"),
        "BROKER_PASSWORD_FILE": str(tmp_path / "password"),
    }


def problems(environ: dict[str, str], **options: Any) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        Settings.from_env(environ, **options)
    return str(caught.value).splitlines()


def test_what_is_needed_is_little(files: dict[str, str]) -> None:
    settings = Settings.from_env(files)
    assert settings.broker.hosts == (("rabbit.example", 5671),)
    assert settings.broker.tls
    assert settings.timezone == "Asia/Seoul"
    assert settings.results.expires == 3600
    assert settings.publish_timeout == 15


def test_everything_wrong_is_said_at_once_and_each_line_names_its_variable() -> None:
    lines = problems(
        {
            "BROKER_HOSTS": "a b, ok:99999",
            "BROKER_CA": "/nonexistent",
            "BROKER_CERT": "/nonexistent",
            "PUBLISH_TIMEOUT": "soon",
            "RESULT_EXPIRES": "1",
            "TIMEZONE": "Mars/Olympus",
            "BROKER_LOGIN": "KERBEROS",
        }
    )
    for name in (
        "BROKER_HOSTS='a b'",
        "BROKER_HOSTS='ok:99999'",
        "BROKER_CA=",
        "BROKER_CERT=",
        "BROKER_CERT and BROKER_KEY",
        "PUBLISH_TIMEOUT=",
        "RESULT_EXPIRES=",
        "TIMEZONE=",
        "BROKER_LOGIN=",
        "BROKER_PASSWORD_FILE is missing",
    ):
        assert any(line.startswith(name) for line in lines), (name, lines)


def test_plaintext_only_by_name_and_only_on_loopback(files: dict[str, str]) -> None:
    secret = {"BROKER_PASSWORD_FILE": files["BROKER_PASSWORD_FILE"]}
    assert problems({**secret, "BROKER_PLAINTEXT": "1", "BROKER_HOSTS": "rabbit.example"})[0].startswith(
        "BROKER_PLAINTEXT"
    )
    assert problems({**files, "BROKER_PLAINTEXT": "1", "BROKER_HOSTS": "localhost"})[0].startswith(
        "BROKER_PLAINTEXT=1 contra"
    )
    for host in ("127.0.0.1", "localhost", "[::1]"):
        assert not Settings.from_env({**secret, "BROKER_PLAINTEXT": "1", "BROKER_HOSTS": host}).broker.tls
    assert problems({**secret, "BROKER_HOSTS": "127.0.0.1"})[0].startswith("BROKER_CA is missing")


def test_librabbitmq_is_refused_with_tls_in_a_worker_and_where_it_is_missing(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "BROKER_DRIVER=librabbitmq has no TLS" in problems({**files, "BROKER_DRIVER": "librabbitmq"})[0]
    plain = {
        "BROKER_PASSWORD_FILE": files["BROKER_PASSWORD_FILE"],
        "BROKER_PLAINTEXT": "1",
        "BROKER_DRIVER": "librabbitmq",
        "RESULT_BACKEND": "db+sqlite:////tmp/x",
    }
    assert "refused in a worker" in problems(plain, worker=True)[0]
    assert problems(plain) == [
        "BROKER_DRIVER=librabbitmq is not installed, and does not build on Python 3.11 or later: remove the variable"
    ]
    (tmp_path / "librabbitmq.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert Settings.from_env(plain).broker.url.startswith("librabbitmq://")


def test_a_secret_file_is_read_without_its_newline_and_hidden_everywhere(files: dict[str, str]) -> None:
    settings = Settings.from_env(files)
    assert settings.broker.password is not None
    assert settings.broker.password.reveal() == "s3 cret/@"
    assert "s3" not in repr(settings)
    assert "s3" not in str(settings.broker.password)
    assert "s3%20cret%2F%40@rabbit.example" in settings.broker.url


def test_a_secret_given_twice_is_refused(files: dict[str, str]) -> None:
    assert problems({**files, "BROKER_PASSWORD": "other"})[0].startswith("BROKER_PASSWORD and BROKER_PASSWORD_FILE")


def test_a_missing_secret_file_is_named_once(files: dict[str, str]) -> None:
    lines = problems({**files, "BROKER_PASSWORD_FILE": "/nonexistent"})
    assert len(lines) == 1
    assert lines[0].startswith("BROKER_PASSWORD_FILE=")


def test_external_needs_a_certificate_and_no_password(files: dict[str, str], tmp_path: Path) -> None:
    environ = {"BROKER_HOSTS": "rabbit", "BROKER_CA": files["BROKER_CA"], "BROKER_LOGIN": "EXTERNAL"}
    assert "BROKER_LOGIN=EXTERNAL needs" in problems(environ)[0]
    environ |= {"BROKER_CERT": str(tmp_path / "cert"), "BROKER_KEY": str(tmp_path / "key")}
    assert Settings.from_env(environ).broker.login == "EXTERNAL"


def test_a_worker_needs_a_result_store_that_keeps_results(files: dict[str, str]) -> None:
    assert "RESULT_BACKEND is missing" in problems(files, worker=True)[0]
    assert "clear text" in problems({**files, "RESULT_BACKEND": "redis://valkey:6379/0"})[0]
    for url in ("rediss://valkey:6379/0", "db+postgresql://u@pg/db", "db+postgresql+psycopg://u@pg/db"):
        assert "RESULT_CA is missing" in problems({**files, "RESULT_BACKEND": url})[0]


@pytest.mark.parametrize(
    "url",
    [
        "disabled://",
        "rediss://valkey:6379/0",
        "rediss://user@[fd00::1]:6379/0",
        "db+postgresql://u@pg/db",
        "db+postgresql+psycopg://u@pg:5432/db",
    ],
)
def test_result_stores_that_are_safe(files: dict[str, str], url: str) -> None:
    assert Settings.from_env({**files, "RESULT_CA": files["BROKER_CA"], "RESULT_BACKEND": url}).results.url == url


@pytest.mark.parametrize("url", ["redis://localhost/0", "redis://[::1]:6379/0", "db+postgresql://u@127.0.0.1/db"])
def test_result_stores_on_loopback_need_no_tls(files: dict[str, str], url: str) -> None:
    assert Settings.from_env({**files, "RESULT_BACKEND": url}).results.url == url


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("rediss://valkey/0?ssl_cert_reqs=none", "use RESULT_CA, RESULT_CERT and RESULT_KEY"),
        ("db+postgresql://u@pg/db?sslmode=disable", "use RESULT_CA, RESULT_CERT and RESULT_KEY"),
        ("db+sqlite:////tmp/x?timeout=0", "use RESULT_CA, RESULT_CERT and RESULT_KEY"),
        ("disabled://?", "use RESULT_CA, RESULT_CERT and RESULT_KEY"),
        ("rediss://valkey/0#", "use RESULT_CA, RESULT_CERT and RESULT_KEY"),
        ("rediss://:hunter2@valkey/0", "use RESULT_PASSWORD_FILE"),
        ("db+postgresql://u:hunter2@pg/db", "use RESULT_PASSWORD_FILE"),
        ("db+sqlite:///hunter2", "write db+sqlite:////PATH"),
        ("db+sqlite://", "write db+sqlite:////PATH"),
        ("db+sqlite:////nonexistent/results", "'/nonexistent' is no folder that this user may write"),
        ("db+postgresql:///db", "write a host name"),
        ("rediss://valkey:port/0", "no valid host, port and path"),
        ("rediss://val\nkey/0", "no valid host, port and path"),
        # SQLAlchemy reads the host `evil` here, urlsplit 127.0.0.1.
        ("db+postgresql://127.0.0.1:5432/x@evil/db", "no valid host, port and path"),
        ("rediss://a;b/0", "is no host"),
        *(
            (url, "or disabled://")
            for url in ("rpc://", "amqp://", "redis", "db+mysql://u@h/d", "file:///x", "hunter2")
        ),
    ],
)
def test_result_stores_that_are_refused_in_one_sentence(files: dict[str, str], url: str, remedy: str) -> None:
    (line,) = problems({**files, "RESULT_CA": files["BROKER_CA"], "RESULT_BACKEND": url})
    assert line.startswith("RESULT_BACKEND")
    assert remedy in line
    assert "hunter2" not in line


def test_the_folder_of_an_sqlite_store_must_be_writable(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {**files, "RESULT_BACKEND": f"db+sqlite:///{tmp_path}/results.sqlite"}
    assert Settings.from_env(environ).results.kind == "sql"
    # root may write everywhere, so the answer is faked.
    monkeypatch.setattr(os, "access", lambda path, _mode: path != tmp_path)
    (line,) = problems(environ)
    assert "is no folder that this user may write" in line


@pytest.mark.parametrize(
    ("hosts", "remedy"),
    [
        ("::1", "write [::1]"),
        ("fd00::1:5671", "write [fd00::1:5671] or [ADDRESS]:PORT"),
        ("[::1", "is no address"),
        ("[::1]5671", "is no address"),
        ("[rabbit]", "is no address"),
        ("rabbit:", "is no address"),
        ("rabbit:²", "is no address"),
        ("rabbit:" + "9" * 5000, "is no address"),
        ("a." * 126 + "ab", "at most 253"),
        ("a" * 64, "1 to 63"),
        ("a..b", "1 to 63"),
        *((f"a{character}b", "is no host") for character in ";?#/@ \t\x01\x7f"),
    ],
)
def test_hosts_that_are_refused_by_name(files: dict[str, str], hosts: str, remedy: str) -> None:
    (line,) = problems({**files, "BROKER_HOSTS": hosts})
    assert line.startswith("BROKER_HOSTS='")
    assert remedy in line
    assert len(line) < 250


def test_a_password_among_the_hosts_is_not_shown(files: dict[str, str]) -> None:
    (line,) = problems({**files, "BROKER_HOSTS": "user:hunter2@rabbit"})
    assert "hunter2" not in line
    assert "rabbit" in line


@pytest.mark.parametrize("name", ["rabbit:5671", "[::1]", "a b", "a;b", "a" * 64, "a" * 254])
def test_a_server_name_is_a_host(files: dict[str, str], name: str) -> None:
    (line,) = problems({**files, "BROKER_SERVER_NAME": name})
    assert line.startswith("BROKER_SERVER_NAME='")
    assert "is no host" in line


@pytest.mark.parametrize("name", ["rabbit.example", "::1", "10.0.0.1", "bücher.example", "rabbit_mq"])
def test_server_names(files: dict[str, str], name: str) -> None:
    assert Settings.from_env({**files, "BROKER_SERVER_NAME": name}).broker.server_name == name


@pytest.mark.parametrize("password", ["a\nb", "a\rb", "a\0b", "a\n\n"])
def test_a_password_is_one_line(files: dict[str, str], tmp_path: Path, password: str) -> None:
    (tmp_path / "password").write_text(password + "\n")
    (line,) = problems(files)
    assert line.startswith("BROKER_PASSWORD_FILE=")
    assert "on one line" in line
    del files["BROKER_PASSWORD_FILE"]
    (line,) = problems({**files, "BROKER_PASSWORD": password})
    assert line.startswith("BROKER_PASSWORD holds")


def test_a_windows_newline_ends_a_password_file(files: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "password").write_bytes(b"word\r\n")
    assert Settings.from_env(files).broker.password == Secret("word")


def test_certificates_that_are_not_pem_are_named(files: dict[str, str], tmp_path: Path) -> None:
    for name in ("ca", "cert", "key"):
        (tmp_path / name).write_bytes(b"\x30\x82" + b"\0" * 70_000 + b"-----BEGIN")
    lines = problems({**files, "BROKER_CERT": str(tmp_path / "cert"), "BROKER_KEY": str(tmp_path / "key")})
    assert [line.partition("=")[0] for line in lines] == ["BROKER_CA", "BROKER_CERT", "BROKER_KEY"]
    assert all("is no PEM file" in line for line in lines)


def test_hosts_of_a_failover_list_and_ipv6(files: dict[str, str]) -> None:
    settings = Settings.from_env({**files, "BROKER_HOSTS": "a:1, b ,[fd00::1]:3"})
    assert settings.broker.hosts == (("a", 1), ("b", 5671), ("fd00::1", 3))
    assert settings.broker.url.count(";") == 2
    assert "[fd00::1]:3" in settings.broker.url


def test_secrets_compare_and_never_leak_into_a_traceback() -> None:
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    try:
        BrokerSettings(password=Secret("hunter2"), hosts=5)  # type: ignore[arg-type]
        raise RuntimeError(repr(Secret("hunter2")))
    except RuntimeError:
        assert "hunter2" not in traceback.format_exc().replace('Secret("hunter2")', "")
