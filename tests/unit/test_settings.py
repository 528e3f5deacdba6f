from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any

import pytest

from queues.errors import ConfigurationError
from queues.settings import BrokerSettings, Secret, Settings

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    for name in ("ca", "cert", "key"):
        (tmp_path / name).write_text("pem")
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


def test_librabbitmq_is_refused_with_tls_and_in_a_worker(files: dict[str, str]) -> None:
    assert "BROKER_DRIVER=librabbitmq has no TLS" in problems({**files, "BROKER_DRIVER": "librabbitmq"})[0]
    plain = {
        "BROKER_PASSWORD_FILE": files["BROKER_PASSWORD_FILE"],
        "BROKER_PLAINTEXT": "1",
        "BROKER_DRIVER": "librabbitmq",
        "RESULT_BACKEND": "db+sqlite:////tmp/x",
    }
    assert "refused in a worker" in problems(plain, worker=True)[0]
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
    assert "RESULT_BACKEND=rpc" in problems({**files, "RESULT_BACKEND": "rpc://"})[0]
    assert "clear text" in problems({**files, "RESULT_BACKEND": "redis://valkey:6379/0"})[0]
    assert "RESULT_CA is missing" in problems({**files, "RESULT_BACKEND": "rediss://valkey:6379/0"})[0]


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
