"""The operator's commands without a broker."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from ops import __main__, cli, session
from ops.cli import looks_like_image
from ops.errors import OpsError
from queues.errors import BrokerUnavailableError, ConfigurationError, PublishRefusedError, PublishUnknownError

if TYPE_CHECKING:
    from pathlib import Path


class FakeApp:
    """Confirms some tasks, then raises."""

    def __init__(self, confirmed: int = 1000, error: BaseException | None = None) -> None:
        self.left, self.error = confirmed, error
        self.ids: list[str] = []

    def send_task(self, *_: object, task_id: str, **__: object) -> FakeApp:
        self.id = task_id
        self.ids.append(task_id)
        if not self.left and self.error:
            raise self.error
        self.left -= 1
        return self


def enqueue(monkeypatch: pytest.MonkeyPatch, app: FakeApp, *options: str) -> Any:
    monkeypatch.setattr(session, "app", lambda _role: app)
    return CliRunner().invoke(cli.cli, ["enqueue", "math.add", "--args", "[1, 2]", *options])


def test_ctrl_c_tells_what_was_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    app = FakeApp(3, KeyboardInterrupt())
    done = enqueue(monkeypatch, app, "--count", "9")
    assert done.exit_code == 130
    assert f"3 confirmed, last id {app.ids[2]}; {app.ids[3]} may have been sent: `--id {app.ids[3]}`" in done.stderr


def test_an_unknown_outcome_names_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    app = FakeApp(0, PublishUnknownError("unknown"))
    done = enqueue(monkeypatch, app, "--json")
    assert isinstance(done.exception, PublishUnknownError)
    assert json.loads(done.stdout) == {"task": "math.add", "count": 0, "ids": [], "uncertain": app.ids[0]}


def test_a_refusal_leaves_nothing_uncertain(monkeypatch: pytest.MonkeyPatch) -> None:
    done = enqueue(monkeypatch, app := FakeApp(2, PublishRefusedError("refused")), "--count", "5")
    assert isinstance(done.exception, PublishRefusedError)
    assert done.stderr.strip() == f"2 confirmed, last id {app.ids[1]}"


def test_the_id_may_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert enqueue(monkeypatch, FakeApp(), "--id", "again").stdout.strip() == "again"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--id", "x", "--count", "2"), "--id names one task"),
        (("--id", ""), "--id names one task"),
        (("--countdown", "nan"), "is no delay"),
        (("--countdown", "inf"), "is no delay"),
        (("--countdown", "-1"), "is no delay"),
        (("--args", "[NaN, 1]"), "NaN is no number in JSON"),
        (("--args", "[-Infinity, 1]"), "-Infinity is no number in JSON"),
        (("--args", "[1e999, 1]"), "1e999 is no number in JSON"),
        (("--args", "[" * 100_000), "nested too deeply"),
    ],
)
def test_a_wrong_option_is_a_sentence(monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], words: str) -> None:
    app = FakeApp()
    done = enqueue(monkeypatch, app, *options)
    assert done.exit_code == 2
    assert words in done.stderr
    assert not app.ids


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (BrokerUnavailableError("no broker answers"), 4, "no broker answers\n"),
        (PublishRefusedError("refused"), 1, "refused\n"),
        (ConfigurationError("BROKER_HOSTS is missing"), 2, "BROKER_HOSTS is missing\n"),
        (OSError(28, "No space left"), 1, "OSError: [Errno 28] No space left (set WARREN_DEBUG=1 for the traceback)\n"),
        (ValueError("two\nlines"), 1, "ValueError: two lines (set WARREN_DEBUG=1 for the traceback)\n"),
        (RecursionError(), 1, "RecursionError (set WARREN_DEBUG=1 for the traceback)\n"),
    ],
)
def test_an_error_is_a_sentence_and_a_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, code: int, words: str
) -> None:
    def fail(**_options: object) -> None:
        raise error

    monkeypatch.setattr(cli, "cli", fail)
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert ended.value.code == code
    assert capsys.readouterr().err == words
    monkeypatch.setenv("WARREN_DEBUG", "1")
    with pytest.raises(type(error)):
        __main__.main()


def test_a_folder_without_certificates_is_a_sentence(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.cli, ["certs", "--folder", str(tmp_path)])
    assert done.exit_code == 1
    assert "holds no certificates" in done.stderr


@pytest.mark.parametrize("content", ["", '{"BROKER', "[]"])
def test_a_damaged_environment_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.setenv("WARREN_HOME", str(tmp_path))
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "producer.json").write_text(content)
    with pytest.raises(OpsError, match="is damaged"):
        session.environment("producer")


@pytest.mark.parametrize(
    "start",
    [
        b"\xff\xd8\xff\xe0",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"RIFF\0\0\0\0WEBPVP8 ",
        b"II*\0",
        b"MM\0*",
        b"\0\0\0\x20ftypavif\0\0\0\0",
        b"\0\0\0\x1cftypmif1\0\0\0\0mif1avif",
    ],
)
def test_images_are_known_by_their_beginning(start: bytes) -> None:
    assert looks_like_image(start + bytes(100))


@pytest.mark.parametrize("data", [b"", b"hello", b"RIFF\0\0\0\0WAVEfmt ", b"\0\0\0\x18ftypisom\0\0\0\0isommp42avif"])
def test_other_files_are_not(data: bytes) -> None:
    assert not looks_like_image(data)


def put(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(session, "environment", lambda _role: {"IMAGE_ROOT": str(tmp_path)})
    return CliRunner().invoke(cli.cli, ["put", str(file)])


def test_put_takes_images_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, large, fifo = (tmp_path / name for name in ("note.jpg", "large.jpg", "fifo.jpg"))
    text.write_text("no image")
    with large.open("wb") as file:
        file.write(b"\xff\xd8\xff")
        file.truncate(cli.MAX_IMAGE_BYTES + 1)
    os.mkfifo(fifo)
    for path, words in ((text, "is no image"), (large, "more than 64 MiB"), (fifo, "is no regular file")):
        done = put(path, tmp_path, monkeypatch)
        assert isinstance(done.exception, OpsError)
        assert words in str(done.exception)


def test_settings_survive_an_apostrophe(tmp_path: Path) -> None:
    from ops.certs import Authority
    from ops.local import Stack
    from ops.node import Ports

    folder = tmp_path / "it's $HOME"
    stack = Stack(folder)
    (folder / "env").mkdir(parents=True)
    stack.ports = {"exporter": 1, "smtp": 2}
    stack.broker = type("Broker", (), {"ports": Ports(3, 4, 5)})()
    stack._write_environment("producer", Authority.ensure(folder / "certs"))
    line = f'. {shlex.quote(str(folder / "env" / "producer.sh"))}; printf %s "$IMAGE_ROOT"'
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout == str(folder / "images")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"exporter": "x"}', '{"exporter": 99999, "smtp": []}'])
def test_damaged_ports_are_chosen_anew(tmp_path: Path, content: str) -> None:
    from ops.local import Stack
    from ops.node import Ports
    from ops.ports import RANGE

    stack = Stack(tmp_path)
    stack.broker = type("Broker", (), {"ports": Ports(20_000, 20_001, 20_002)})()
    (tmp_path / "ports.json").write_text(content)
    ports = stack._choose_ports()
    assert set(ports) == {"exporter", "smtp"}
    assert all(port in RANGE for port in ports.values())
    assert stack._choose_ports() == ports
