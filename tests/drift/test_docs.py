"""What the documents say, against the code."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from ops.render import render_all

if TYPE_CHECKING:
    from pathlib import Path

READ = re.compile(r'reader\.(?:text|secret|file|pem|choice|number|flag|hosts)\(\s*"([A-Z_]+)"')
PREFIXED = re.compile(r'TlsFiles\.read\(reader, "([A-Z]+)"\)')
OTHER = re.compile(r'environ(?:\.get\(|\[)"([A-Z_]+)"')
#: No settings of ours: the shell's and WSGI's.
ELSEWHERE = {"PATH", "PATH_INFO", "HTTP_ACCEPT", "HTTP_ACCEPT_ENCODING", "HTTP_AUTHORIZATION"}


def sources(project: Path) -> str:
    paths = [path for folder in ("queues", "workers", "ops") for path in sorted((project / folder).glob("*.py"))]
    return "\n".join(path.read_text() for path in paths if path.name != "given.py")


def test_generated_files_are_up_to_date() -> None:
    assert render_all(write=False) == [], "run `make render`"


#: Values of settings, and what Celery alone reads.
NO_SETTINGS = {"EXTERNAL", "PLAIN", "BROKER_URL", "CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"}


def test_every_setting_is_in_the_docs_and_no_other(project: Path) -> None:
    code = sources(project)
    names = set(READ.findall(code)) | set(OTHER.findall(code)) - ELSEWHERE
    names |= {f"{prefix}_{part}" for prefix in PREFIXED.findall(code) for part in ("CA", "CERT", "KEY")}
    names |= {f"{name}_FILE" for name in re.findall(r'reader\.secret\("([A-Z_]+)"', code)}
    documented = set(re.findall(r"`([A-Z]+_[A-Z_]+|TIMEZONE)`", (project / "docs" / "settings.md").read_text()))
    assert names - documented == set(), "add them to docs/settings.md"
    assert documented - names - NO_SETTINGS == set(), "remove them from docs/settings.md"


def test_the_readmes_example_is_the_example_file(project: Path) -> None:
    readme = (project / "README.md").read_text()
    block = re.search(r"<!-- example: (\S+) -->\n```python\n(.*?)```", readme, re.DOTALL)
    assert block is not None
    assert (project / block[1]).read_text() == block[2], f"README.md and {block[1]} differ"


@pytest.mark.parametrize("document", ["README.md", "CHANGELOG.md", "docs"])
def test_links_between_documents_lead_somewhere(project: Path, document: str) -> None:
    path = project / document
    for page in sorted(path.glob("*.md")) if path.is_dir() else [path]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_make_target_of_the_readme_exists(project: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (project / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z-]+)", (project / "README.md").read_text())) <= targets
