"""Where images live: relative POSIX keys below one root. A key can never lead outside, a write is never half there."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, Protocol

from queues.errors import PermanentError, TransientError

if TYPE_CHECKING:
    from collections.abc import Iterator

_ABSENT = {errno.ENOENT, errno.ENOTDIR}
_UNUSABLE = {errno.ELOOP, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.ENXIO}
#: What file systems answer that know no file without a name.
_NO_NAMELESS = {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL}
#: Extended attribute that holds a file's fingerprint.
_FINGERPRINT = "user.warren.fingerprint"


@dataclass(frozen=True, slots=True)
class FileStat:
    """What is known of a file without reading it.

    Attributes:
        size: Bytes.
        modified: Seconds since the epoch.
        version: Another one whenever the content may be another.
    """

    size: int
    modified: float
    version: str


class Storage(Protocol):
    """What a task needs of a place for files."""

    def key(self, path: str) -> str:
        """Return the canonical key of a path."""
        ...

    def open_read(self, key: str) -> BinaryIO:
        """Open a file for reading."""
        ...

    def write(self, key: str, data: bytes, fingerprint: str = "") -> None:
        """Store all of the data under the key, or nothing; with it, what it was made from."""
        ...

    def fingerprint(self, key: str) -> str:
        """Return what a stored file was made from; empty where there is none, or no file."""
        ...

    def exists(self, key: str) -> bool:
        """Tell whether a file is stored under the key."""
        ...

    def stat(self, key: str) -> FileStat:
        """Return what is known without reading."""
        ...


def translate(error: OSError, key: str) -> PermanentError | TransientError:
    """Tell by its errno whether an error of the operating system is the key's fault or the storage's."""
    if error.errno in _ABSENT:
        return PermanentError("not_found", f"{key!r} does not exist: upload it before the task is sent.")
    if error.errno in _UNUSABLE:
        return PermanentError("forbidden_path", f"{key!r} cannot be used as a file ({error.strerror}): rename it.")
    name = errno.errorcode.get(error.errno or 0, "unknown error")
    return TransientError(
        "storage", f"The storage failed at {key!r} with {name} ({error.strerror}): check the volume's space and health."
    )


class LocalStorage:
    """A folder, usually a volume that producers and workers share.

    Directories are opened one by one without following links, after the whole path has been resolved and compared:
    a link that is put in place in between is refused by the kernel and not raced against.

    Raises:
        PermanentError: ``forbidden_path`` or ``not_found``.
        TransientError: ``storage``.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._root = Path(root).absolute()

    def key(self, path: str) -> str:
        """Return the canonical key of a relative path, or of an absolute path inside the root."""
        try:
            path.encode()
        except UnicodeEncodeError:
            raise _forbidden(path, "is not valid Unicode") from None
        pure = PurePosixPath(path)
        if "\0" in path or ".." in pure.parts:
            raise _forbidden(path, "contains '..' or NUL")
        if pure.is_absolute():
            for root in (self._root, self._real_root()):
                if pure.is_relative_to(root):
                    pure = pure.relative_to(root)
                    break
            else:
                raise _forbidden(path, "is outside the storage")
        if not pure.parts:
            raise _forbidden(path, "names no file")
        return str(pure)

    def open_read(self, key: str) -> BinaryIO:
        """Open a regular file for reading."""
        key = self.key(key)
        with _translated(key), self._folder(key) as (folder, name):
            # Without O_NONBLOCK a named pipe would hold the worker until somebody writes to it.
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.close(descriptor)
                raise _forbidden(key, "is not a regular file")
            return os.fdopen(descriptor, "rb")

    def write(self, key: str, data: bytes, fingerprint: str = "") -> None:
        """Store all of the data under the key, or nothing, even if the machine stops; missing folders are made."""
        key = self.key(key)
        with _translated(key), self._folder(key, create=True) as (folder, name):
            temporary = f".warren-{secrets.token_hex(8)}.tmp"
            try:
                with _new_file(folder, temporary) as file:
                    file.write(data)
                    file.flush()
                    # Another user reads what this one writes, whatever the umask.
                    os.fchmod(file.fileno(), 0o644)
                    _mark(file.fileno(), fingerprint)
                    os.fsync(file.fileno())
                    if not _is_named(file.fileno(), name, temporary, folder):
                        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=folder)
                raise
            os.fsync(folder)

    def fingerprint(self, key: str) -> str:
        """Return what a stored file was made from; empty where there is none, or the file system keeps none."""
        try:
            with self.open_read(key) as file:
                return os.getxattr(file.fileno(), _FINGERPRINT).decode(errors="replace")
        except OSError:
            return ""
        except PermanentError as error:
            if error.code == "not_found":
                return ""
            raise

    def exists(self, key: str) -> bool:
        """Tell whether a regular file is stored under the key."""
        try:
            self.stat(key)
        except PermanentError as error:
            if error.code == "not_found":
                return False
            raise
        return True

    def stat(self, key: str) -> FileStat:
        """Return what is known of a regular file without reading it."""
        key = self.key(key)
        with _translated(key), self._folder(key) as (folder, name):
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            raise _forbidden(key, "is not a regular file")
        # The change time too: whoever sets a modification time back cannot set this one.
        version = f"{status.st_size:x}-{status.st_mtime_ns:x}-{status.st_ctime_ns:x}"
        return FileStat(size=status.st_size, modified=status.st_mtime, version=version)

    def _real_root(self) -> str:
        return os.path.realpath(self._root)

    @contextlib.contextmanager
    def _folder(self, key: str, *, create: bool = False) -> Iterator[tuple[int, str]]:
        # Strings: paths as objects would take longer than all calls of the system.
        root = self._real_root()
        real, below = os.path.realpath(os.path.join(root, key)), root.rstrip("/") + "/"  # noqa: PTH118
        if real == root or not real.startswith(below):
            raise _forbidden(key, "leads outside the storage through a link")
        *parents, name = real.removeprefix(below).split("/")
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            folder = os.open(root, flags)
        except FileNotFoundError:
            # An unmounted volume must not turn every task of the queue into a dead letter.
            raise TransientError("storage", f"The storage {self._root} is missing: mount or create it.") from None
        try:
            for parent in parents:
                if create:
                    _make_folder(parent, folder)
                child = os.open(parent, flags, dir_fd=folder)
                os.close(folder)
                folder = child
            yield folder, name
        finally:
            os.close(folder)


def _new_file(folder: int, name: str) -> BinaryIO:
    """Open a file that has no name yet, so that a writer that is killed leaves nothing; or one of that name."""
    flags = os.O_WRONLY | os.O_CLOEXEC
    try:
        return os.fdopen(os.open(".", flags | os.O_TMPFILE, 0o600, dir_fd=folder), "wb")
    except OSError as error:
        if error.errno not in _NO_NAMELESS:
            raise
        return os.fdopen(os.open(name, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=folder), "wb")


def _is_named(descriptor: int, name: str, temporary: str, folder: int) -> bool:
    """Link a nameless file to its name.

    Returns:
        False where it is under the temporary name instead and must be renamed: the name was taken, or the file system
        knows no nameless files.
    """
    if os.fstat(descriptor).st_nlink:
        return False
    nameless = f"/proc/self/fd/{descriptor}"
    try:
        os.link(nameless, name, dst_dir_fd=folder, follow_symlinks=True)
    except FileExistsError:
        os.link(nameless, temporary, dst_dir_fd=folder, follow_symlinks=True)
        return False
    return True


def _mark(descriptor: int, fingerprint: str) -> None:
    if fingerprint:
        # Not every file system keeps attributes: without it the same work is done again, and nothing else.
        with contextlib.suppress(OSError):
            os.setxattr(descriptor, _FINGERPRINT, fingerprint.encode())


def _make_folder(name: str, parent: int) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o755, dir_fd=parent)
        os.fsync(parent)


@contextlib.contextmanager
def _translated(key: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise translate(error, key) from error


def _forbidden(path: str, reason: str) -> PermanentError:
    return PermanentError("forbidden_path", f"{path!r} {reason}: give a path relative to the storage's root.")
