"""Two versions of the project side by side: a commit of this clone's own history, and the working tree."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

#: The oldest release that is still taken to the present one and back.
BASE = "97a27fa"
PROJECT = Path(__file__).parents[3]
#: Environments of older packages are kept for the next run.
ENVIRONMENTS = PROJECT / ".warren" / "upgrade"

#: Each version adds the queue `faults` to a copy of itself: it knows where its own table stands.
_COPY = """\
import sys
from pathlib import Path
from tests.faults import deployment
deployment.copy(Path(sys.argv[1]), Path(sys.argv[2]))
"""
_PIN = re.compile(r"^([A-Za-z0-9][^\s\\]*==.*?)\s*\\?$", re.MULTILINE)


class VersionError(Exception):
    """A version cannot be had; the message states the remedy."""


@dataclass(frozen=True, slots=True)
class Version:
    """A copy of the project that runs.

    Attributes:
        name: `base` or `head`.
        commit: what it is of.
        root: its folder.
        python: an interpreter with its packages.
    """

    name: str
    commit: str
    root: Path
    python: str

    def command(self, *words: str) -> tuple[str, ...]:
        """A command in this version's folder, whatever the caller's is: Celery looks there first."""
        return ("env", "-C", str(self.root), self.python, *words)

    @property
    def environment(self) -> dict[str, str]:
        """Where its code is; an installed project of another version must not be found before it."""
        return {"PYTHONPATH": str(self.root)}


def base(folder: Path, commit: str = BASE) -> Version:
    """The old version, from the clone's history.

    Raises:
        VersionError: this clone does not hold it, or its packages cannot be installed.
    """
    full = found(commit)
    source = folder / "base-source"
    source.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", full], cwd=PROJECT, capture_output=True, check=True)
    subprocess.run(["tar", "-x"], cwd=source, input=archive.stdout, check=True)
    # What is copied is what git would track.
    subprocess.run(["git", "init", "--quiet"], cwd=source, check=True, capture_output=True)
    python = interpreter(source / "requirements.txt")
    return Version("base", full[:7], with_queue(source, folder / "base", python), python)


def head(folder: Path) -> Version:
    """The working tree as it is."""
    commit = git("rev-parse", "--short=7", "HEAD")
    changed = "+" if git("status", "--porcelain", "--", ".", ":!docs", ":!tests/faults/results") else ""
    return Version("head", commit + changed, with_queue(PROJECT, folder / "head", sys.executable), sys.executable)


def found(commit: str) -> str:
    """The commit's full name.

    Raises:
        VersionError: it is not in this clone.
    """
    try:
        return git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{commit}^{{commit}}")
    except (subprocess.CalledProcessError, FileNotFoundError):
        pass
    raise VersionError(
        f"the version to begin with, {commit}, is not in this clone: fetch its history "
        "(`git fetch --unshallow`), or name another commit by BASE="
    )


def git(*words: str) -> str:
    """What git answers in the project."""
    return subprocess.run(["git", *words], cwd=PROJECT, capture_output=True, text=True, check=True).stdout.strip()


def with_queue(source: Path, target: Path, python: str) -> Path:
    """A copy with the queue `faults`, whose tasks write down that they ran.

    Raises:
        VersionError: that version cannot do it.
    """
    command = [python, "-c", _COPY, str(source), str(target)]
    done = subprocess.run(command, cwd=source, env={"PYTHONPATH": str(source)}, capture_output=True, text=True)
    if done.returncode:
        raise VersionError(f"{source.name} cannot be given a queue more: {done.stderr.strip().splitlines()[-1]}")
    return target


def interpreter(requirements: Path) -> str:
    """An interpreter with these packages: the running one where it has them, else an environment of their own.

    Raises:
        VersionError: they cannot be installed.
    """
    pins = requirements.read_text(encoding="utf-8")
    if not missing(pins):
        return sys.executable
    folder = ENVIRONMENTS / hashlib.sha256(pins.encode() + sys.version.encode()).hexdigest()[:12]
    python, done = folder / "bin" / "python", folder / "complete"
    if not done.exists():
        print(f"installing the old version's packages into {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"]
        if subprocess.run([*install, str(requirements)]).returncode:
            raise VersionError(f"the packages of {requirements} cannot be installed: see above, and try again")
        done.touch()
    return str(python)


def missing(pins: str) -> list[str]:
    """The pins that the running interpreter does not have."""
    wanted = [Requirement(line) for line in _PIN.findall(pins)]
    return [
        str(one)
        for one in wanted
        if (one.marker is None or one.marker.evaluate()) and not one.specifier.contains(installed(one.name))
    ]


def installed(name: str) -> str:
    """The version that is installed; none has number 0."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "0"
