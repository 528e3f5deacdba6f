"""Every file of the corpus ends as it must: processed, or refused with a stable code, and nothing else happens."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.unit.image.corpus import GOOD, Case, corpus
from workers.imaging import ImageRejected, process_image
from workers.storage import LocalStorage

CASES = corpus()
DESCRIPTORS = Path("/proc/self/fd")


def outcome(root: Path, case: Case, **keywords: Any) -> str:
    """What becomes of a case, and that nothing is left but its result."""
    (root / case.name).write_bytes(case.data)
    before = {path.name for path in root.parent.iterdir()}
    try:
        result = process_image(LocalStorage(root), case.name, 32, output="results/", **keywords)
        found = result["status"]
        with Image.open(root / result["path"]) as small:
            small.load()
            assert max(small.size) <= 32
        left = {case.name, "results"}
    except ImageRejected as error:
        found, left = error.code, {case.name}
        assert len(error.message) < 500
    assert {path.name for path in root.iterdir()} == left
    assert {path.name for path in root.parent.iterdir()} == before
    return found


def test_the_corpus_has_sixty_files() -> None:
    assert len(CASES) >= 60
    assert {case.outcome for case in CASES} == {GOOD, "corrupt", "too_large", "unsupported_format"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("animated", ["first", "all"])
def test_case(tmp_path: Path, case: Case, animated: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    before, descriptors = time.process_time(), len(list(DESCRIPTORS.iterdir()))
    assert outcome(root, case, animated=animated, format="webp") == case.outcome
    assert time.process_time() - before < 10
    assert len(list(DESCRIPTORS.iterdir())) == descriptors
