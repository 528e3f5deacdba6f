"""What settings are read with: a reader that collects every problem, secrets that hide, and host names.

Every wrong variable is reported in one error that names it and the remedy. Secrets come from files (`*_FILE`) or, where
there is no file, from the variable itself, and never show in a `repr`.
"""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from queues.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

MASK = "********"
#: How much of a file is searched for PEM: authorities' bundles may start with comments.
PEM_HEAD = 64 * 1024
#: What DNS allows; Python's IDNA codec takes quadratic time, so the length comes first.
LONGEST_HOST = 253
#: What would end the host within a URL, or start another one.
NOT_IN_A_HOST = re.compile(r"[;?#/@\s\x00-\x1f\x7f-\x9f\[\]]")


class Secret:
    """A string that hides itself: `repr` and `str` show a mask, `reveal()` gives it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The secret itself."""
        return self._value

    def __repr__(self) -> str:
        return f"Secret({MASK!r})"

    def __str__(self) -> str:
        return MASK

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __bool__(self) -> bool:
        return bool(self._value)


class Reader:
    """Reads variables and collects what is wrong with them; `check()` raises it all at once."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.problems: list[str] = []

    def problem(self, text: str) -> None:
        """Note something wrong; the text names the variable and the remedy."""
        self.problems.append(text)

    def check(self) -> None:
        """Raise what was noted.

        Raises:
            ConfigurationError: one line for each problem.
        """
        if self.problems:
            raise ConfigurationError("\n".join(self.problems))

    def text(self, name: str, default: str = "") -> str:
        """A variable with surrounding space removed; empty counts as absent."""
        return self.environ.get(name, "").strip() or default

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        """One of the choices, the first being the default."""
        value = self.text(name, choices[0])
        if value not in choices:
            self.problem(f"{name}={value!r} is unknown: set it to one of {', '.join(choices)}")
            return choices[0]
        return value

    def flag(self, name: str, *, default: bool = False) -> bool:
        """A switch, 1 or 0."""
        return self.choice(name, ("1", "0") if default else ("0", "1")) == "1"

    def number(self, name: str, default: float, *, low: float, high: float) -> float:
        """A number within bounds."""
        value = self.text(name, str(default))
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not low <= number <= high:
            self.problem(f"{name}={value!r} is out of range: set it to a number from {low:g} to {high:g}")
            return default
        return number

    def file(self, name: str) -> Path | None:
        """A path that must be readable, or None where the variable is absent."""
        value = self.text(name)
        if not value:
            return None
        path = Path(value)
        if not path.is_file() or not os.access(path, os.R_OK):
            self.problem(f"{name}={value!r} cannot be read: give the path of a file that this user may read")
        return path

    def pem(self, name: str) -> Path | None:
        """The path of a readable file that holds PEM, or None where the variable is absent."""
        path = self.file(name)
        try:
            if path is None or not path.is_file():
                return path
            with path.open("rb") as stream:
                head = stream.read(PEM_HEAD)
        except OSError:
            return path  # `file` has said so
        if b"-----BEGIN" not in head:
            self.problem(f"{name}={str(path)!r} is no PEM file: give one that holds -----BEGIN, or convert it from DER")
        return path

    def secret(self, name: str) -> Secret | None:
        """The content of the file in `<name>_FILE`, or the variable itself, or None."""
        path = self.text(f"{name}_FILE")
        value = self.environ.get(name, "")
        if path and value:
            self.problem(f"{name} and {name}_FILE are both set: keep {name}_FILE and remove {name}")
        if path:
            try:
                value = Path(path).read_text(encoding="utf-8").removesuffix("\n")
            except (OSError, UnicodeDecodeError) as exc:
                reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8 text"
                self.problem(f"{name}_FILE={path!r} cannot be read ({reason}): give the path of a readable secret file")
                return None
        # What a peer takes as the end of a password makes every login fail without a word about the reason.
        if any(character in value for character in "\0\r\n"):
            source = f"{name}_FILE={path!r}" if path else name
            self.problem(f"{source} holds a NUL or more than one line: write the password alone, on one line")
        return Secret(value) if path or value else None

    def hosts(self, name: str, default: str, port: int) -> tuple[tuple[str, int], ...]:
        """`host[:port]` pairs separated by commas; an IPv6 address stands in brackets."""
        found = []
        for item in self.text(name, default).split(","):
            try:
                found.append(split_address(item.strip(), port))
            except ValueError as exc:
                self.problem(f"{name}={shown(item.strip())} {exc}")
        return tuple(found)


def split_address(address: str, port: int) -> tuple[str, int]:
    """Host and port of `host[:port]` or `[IPv6][:port]`.

    Raises:
        ValueError: what is wrong and the remedy, to stand after the address.
    """
    if is_ipv6(address):
        raise ValueError(f"is an IPv6 address without brackets: write [{address}] or [ADDRESS]:PORT")
    if address.startswith("["):
        host, closed, rest = address[1:].partition("]")
        separator, number = rest[:1], rest[1:]
        sound = bool(closed) and is_ipv6(host) and separator in ("", ":")
    else:
        host, separator, number = address.partition(":")
        sound = bool(host)
    if not separator:
        number = str(port)
    if not sound or not re.fullmatch("[0-9]{1,5}", number) or not 0 < int(number) < 65536:
        raise ValueError("is no address: write host, host:port or [IPv6]:port, several with commas between")
    check_host(host)
    return host, int(number)


def check_host(host: str) -> None:
    """Refuse what is neither an IP address, without brackets, nor a host name that can be looked up.

    Raises:
        ValueError: what is wrong and the remedy, to stand after the host.
    """
    # A scope may hold anything, so that an address is not exempt.
    if not host or NOT_IN_A_HOST.search(host) or (":" in host and not is_ipv6(host)):
        raise ValueError("is no host: write a host name or an IP address, without scheme, user, path or space")
    if len(host) > LONGEST_HOST:
        raise ValueError(f"is no host: a name has at most {LONGEST_HOST} characters; shorten it")
    if ":" in host:
        return
    try:
        host.encode("idna")
    except UnicodeError:
        raise ValueError(
            "is no host: each part between dots has 1 to 63 characters that IDNA can encode; correct the name"
        ) from None


def shown(host: str) -> str:
    """A host as an error shows it: cut to one line's length, and without what may be a password before an @."""
    login, at, rest = host.rpartition("@")
    text = f"{MASK}@{rest}" if login and at else host
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


def is_ipv6(host: str) -> bool:
    """Whether this is an IPv6 address, without brackets."""
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bracket(host: str) -> str:
    """An IPv6 address in brackets, any other host as it is."""
    return f"[{host}]" if ":" in host else host
