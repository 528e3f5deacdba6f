"""Keys that try to get out, and writes that fail half-way."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from queues.errors import PermanentError, TransientError
from workers.storage import LocalStorage, Storage, translate

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    return root


@pytest.fixture
def storage(root: Path) -> Storage:
    return LocalStorage(root)


def test_write_and_read(storage: Storage, root: Path) -> None:
    storage.write("a/b/c.bin", b"first")
    storage.write("a//./b/c.bin", b"second")
    with storage.open_read("a/b/c.bin") as file:
        assert file.read() == b"second"
    assert storage.exists("a/b/c.bin")
    assert not storage.exists("a/b/d.bin")
    assert storage.stat("a/b/c.bin").size == 6
    assert storage.stat("a/b/c.bin").modified > 0
    assert [path.name for path in (root / "a/b").iterdir()] == ["c.bin"]


def test_mode_does_not_depend_on_the_umask(storage: Storage, root: Path) -> None:
    before = os.umask(0o077)
    try:
        storage.write("x", b"")
    finally:
        os.umask(before)
    assert (root / "x").stat().st_mode & 0o777 == 0o644


def test_absolute_path_inside_is_a_key(storage: Storage, root: Path, tmp_path: Path) -> None:
    assert storage.key(str(root / "a/b.jpg")) == "a/b.jpg"
    (tmp_path / "link").symlink_to(root)
    linked = LocalStorage(tmp_path / "link")
    assert linked.key(str(tmp_path / "link/a.jpg")) == "a.jpg"
    assert linked.key(str(root / "a.jpg")) == "a.jpg"


@pytest.mark.parametrize("path", ["", ".", "/", "../x", "a/../x", "/etc/passwd", "//etc/passwd", "a\0b", "\ud800"])
@pytest.mark.parametrize("action", ["key", "open_read", "exists", "stat"])
def test_forbidden_path(storage: Storage, path: str, action: str) -> None:
    with pytest.raises(PermanentError) as caught:
        getattr(storage, action)(path)
    assert caught.value.code == "forbidden_path"


@pytest.mark.parametrize("action", ["open_read", "write"])
def test_links(storage: Storage, root: Path, tmp_path: Path, action: str) -> None:
    outside = tmp_path / "root-outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (root / "folder").symlink_to(outside)
    (root / "file").symlink_to(outside / "secret")
    arguments = (b"overwritten",) if action == "write" else ()
    for key in ("folder/secret", "file"):
        with pytest.raises(PermanentError) as caught:
            getattr(storage, action)(key, *arguments)
        assert caught.value.code == "forbidden_path"
    assert (outside / "secret").read_bytes() == b"secret"


def test_link_to_itself(storage: Storage, root: Path) -> None:
    (root / "loop").symlink_to("loop")
    for key, code in (("loop", "forbidden_path"), ("loop/x", "not_found")):
        with pytest.raises(PermanentError) as caught:
            storage.open_read(key)
        assert caught.value.code == code


def test_link_inside_is_followed(storage: Storage, root: Path) -> None:
    storage.write("real/photo", b"one")
    (root / "alias").symlink_to("real")
    storage.write("alias/photo", b"two")
    assert (root / "real/photo").read_bytes() == b"two"
    assert (root / "alias").is_symlink()


def test_link_swapped_in_after_the_check(storage: Storage, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "folder").symlink_to("/etc")
    monkeypatch.setattr(os.path, "realpath", str)
    with pytest.raises(PermanentError):
        storage.open_read("folder/passwd")


@pytest.mark.parametrize(
    ("key", "code"), [("none", "not_found"), ("file/none", "not_found"), ("x" * 300, "forbidden_path")]
)
def test_absent(storage: Storage, key: str, code: str) -> None:
    storage.write("file", b"")
    with pytest.raises(PermanentError) as caught:
        storage.open_read(key)
    assert caught.value.code == code


def test_only_regular_files(storage: Storage, root: Path) -> None:
    (root / "folder").mkdir()
    os.mkfifo(root / "pipe")
    for key in ("folder", "pipe"):
        with pytest.raises(PermanentError, match="regular"):
            storage.open_read(key)
        with pytest.raises(PermanentError, match="regular"):
            storage.stat(key)
    with pytest.raises(PermanentError) as caught:
        storage.write("folder", b"")
    assert caught.value.code == "forbidden_path"


def test_missing_root_is_transient(tmp_path: Path) -> None:
    with pytest.raises(TransientError, match="mount"):
        LocalStorage(tmp_path / "unmounted").open_read("x")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.ESTALE, errno.EMFILE, errno.EDQUOT, errno.EACCES])
@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_failing_disk(storage: Storage, root: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str) -> None:
    storage.write("x", b"old")

    def fail(*_arguments: Any, **_keywords: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        with pytest.raises(TransientError) as caught:
            storage.write("x", b"new")
    assert caught.value.code == "storage"
    assert errno.errorcode[number] in str(caught.value)
    assert [(path.name, path.read_bytes()) for path in root.iterdir()] == [("x", b"old")]


def test_fingerprint_says_what_a_file_was_made_from(storage: Storage, root: Path) -> None:
    storage.write("x", b"", "abc")
    assert storage.fingerprint("x") == "abc"
    storage.write("x", b"")
    (root / "foreign").write_bytes(b"")
    for key in ("x", "foreign", "none", "none/none"):
        assert storage.fingerprint(key) == ""
    with pytest.raises(PermanentError):
        storage.fingerprint("../x")


def test_file_system_without_attributes_or_nameless_files(
    storage: Storage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    opened = os.open

    def without_nameless(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "not supported")
        return opened(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "setxattr", refuse)
    monkeypatch.setattr(os, "open", without_nameless)
    storage.write("a/x", b"data", "abc")
    assert [(path.name, path.read_bytes()) for path in (root / "a").iterdir()] == [("x", b"data")]
    assert storage.fingerprint("a/x") == ""


def test_version_changes_with_the_content_even_when_the_time_is_set_back(storage: Storage, root: Path) -> None:
    storage.write("x", b"one")
    before, status = storage.stat("x").version, (root / "x").stat()
    assert storage.stat("x").version == before
    storage.write("x", b"two")
    os.utime(root / "x", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert storage.stat("x").version != before


def test_writer_that_is_killed_leaves_nothing(storage: Storage, root: Path) -> None:
    """Between any two steps of a write: the old file whole or the new one, and no other."""
    storage.write("x", b"old")
    program = (
        "import os, signal, sys\n"
        "from workers.storage import LocalStorage\n"
        "name, storage = sys.argv[2], LocalStorage(sys.argv[1])\n"
        "setattr(os, name, lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL))\n"
        "storage.write('x', b'new' * 100_000, 'abc')\n"
    )
    for step in ("fchmod", "setxattr", "fsync", "link"):
        killed = subprocess.run([sys.executable, "-c", program, str(root), step], check=False)
        assert killed.returncode == -signal.SIGKILL
        assert [(path.name, path.read_bytes()) for path in root.iterdir()] == [("x", b"old")]


def test_unknown_errors_are_transient() -> None:
    assert isinstance(translate(OSError("no number"), "x"), TransientError)
