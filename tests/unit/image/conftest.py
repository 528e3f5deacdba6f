"""A storage, and calls on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.unit.image.pictures import Process
from workers.imaging import ImageResult, process_image
from workers.storage import LocalStorage


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path)


@pytest.fixture
def process(storage: LocalStorage) -> Process:
    def call(image_path: str, *arguments: Any, **keywords: Any) -> ImageResult:
        return process_image(storage, image_path, *arguments, **keywords)

    return call


@pytest.fixture
def opened(tmp_path: Path, process: Process) -> Any:
    """Processes and returns result and picture."""

    def call(image_path: str, *arguments: Any, **keywords: Any) -> tuple[ImageResult, Image.Image]:
        result = process(image_path, *arguments, **keywords)
        with Image.open(tmp_path / result["path"]) as image:
            image.load()
        assert image.size == (result["width"], result["height"])
        assert image.format == result["format"]
        assert result["bytes"] == (tmp_path / result["path"]).stat().st_size
        return result, image

    return call
