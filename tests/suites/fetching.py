"""Celery's source distribution of the release that is locked, and an environment with what its tests need besides."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

from tests.faults.deployment import PROJECT

#: What Celery's tests import and Warren's own do not.
EXTRA = ("pytest-timeout", "tblib", "freezegun", "psutil", "pydantic", "django")
#: Seconds for one call of pip.
PATIENCE = 600


def cache() -> Path:
    """Where the download is kept for the next time."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "warren" / "suites"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def locked() -> tuple[str, str]:
    """Celery's release in requirements.txt, and its requirement with the hashes."""
    text = (PROJECT / "requirements.txt").read_text()
    found = re.search(r"^celery==(\S+).*?(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        sys.exit("requirements.txt names no celery==: run `make requirements`")
    return found[1], found[0]


def pip(python: str, *words: str | Path) -> None:
    """Run pip; its failure ends the run with what it said."""
    command = [python, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check", *map(str, words)]
    if subprocess.run(command, stdin=subprocess.DEVNULL, timeout=PATIENCE).returncode:
        sys.exit("Celery's tests could not be set up: check the network (or pip's index), then try again")


def fetch(target: Path) -> Path:
    """Celery's tests, unpacked; pip compares the download with its hash in requirements.txt."""
    version, requirement = locked()
    archive = cache() / f"celery-{version}.tar.gz"
    if not archive.exists():
        wanted = target / "celery.txt"
        wanted.write_text(requirement)
        print(f"downloading {archive.name} to {archive.parent}", flush=True)
        pip(
            sys.executable,
            *("download", "--no-deps", "--no-build-isolation", "--no-binary", "celery", "--require-hashes"),
            *("--requirement", wanted, "--dest", target),
        )
        shutil.copy2(target / archive.name, archive.with_suffix(".part"))
        archive.with_suffix(".part").rename(archive)
    with tarfile.open(archive) as packed:
        packed.extractall(target, filter="data")
    return target / f"celery-{version}" / "t"


def environment(folder: Path) -> str:
    """An environment to throw away: all that this one has, and what the tests need besides; gives its Python."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=PATIENCE)
    python = str(folder / "bin" / "python")
    place = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=60,
    ).stdout.strip()
    (Path(place) / "project.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    # Some of the tests start it by its name.
    script = folder / "bin" / "celery"
    script.write_text(f"#!{python}\nimport sys\n\nfrom celery.__main__ import main\n\nsys.exit(main())\n")
    script.chmod(0o755)
    pip(python, "install", *EXTRA)
    return python
