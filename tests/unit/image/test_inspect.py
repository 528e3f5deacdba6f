"""What an image is, by its headers."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from tests.unit.image.corpus import corpus
from tests.unit.image.pictures import BLUE, RED, SRGB, corners, encoded, oriented, png_header
from workers.imaging import ImageRejected, inspect_image
from workers.storage import LocalStorage

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF"])
def test_facts(tmp_path: Path, format: str) -> None:
    image, exif = oriented(6)
    options: dict[str, Any] = {} if format == "GIF" else {"exif": exif, "icc_profile": SRGB}
    image.save(tmp_path / "a", format, **options)
    facts = inspect_image(LocalStorage(tmp_path), "a")
    data = (tmp_path / "a").read_bytes()
    upright = format != "GIF"
    assert facts == {
        "status": "success",
        "path": "a",
        "format": format,
        "width": 400 if upright else 300,
        "height": 300 if upright else 400,
        "bytes": len(data),
        "orientation": 6 if upright else 1,
        "frames": 1,
        "mode": "P" if format == "GIF" else "RGB",
        "transparent": False,
        "animated": False,
        "profile": "sRGB built-in" if upright else None,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    assert json.loads(json.dumps(facts)) == facts


def test_exif_behind_the_pixels_of_a_png(tmp_path: Path) -> None:
    image, exif = oriented(6)
    data = encoded(image, "PNG", exif=exif)
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    (tmp_path / "a").write_bytes(data[:start] + data[end:-12] + data[start:end] + data[-12:])
    assert inspect_image(LocalStorage(tmp_path), "a")["orientation"] == 6


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "AVIF"])
def test_animation(tmp_path: Path, format: str) -> None:
    frames = [Image.new("RGB", (64, 64), colour) for colour in (RED, BLUE, RED)]
    frames[0].save(tmp_path / "a", format, save_all=True, append_images=frames[1:])
    facts = inspect_image(LocalStorage(tmp_path), "a")
    assert (facts["frames"], facts["animated"]) == (3, True)


def test_pages_do_not_move(tmp_path: Path) -> None:
    corners().save(tmp_path / "a", "TIFF", save_all=True, append_images=[corners()])
    facts = inspect_image(LocalStorage(tmp_path), "a")
    assert (facts["frames"], facts["animated"]) == (2, False)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("none", "not_found"),
        ("../a", "forbidden_path"),
        (3, "bad_argument"),
        ("text", "unsupported_format"),
        ("empty", "corrupt"),
        ("bomb", "too_large"),
        ("no palette", "corrupt"),
    ],
)
def test_refusals(tmp_path: Path, path: Any, code: str) -> None:
    (tmp_path / "text").write_bytes(b"just some text")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "bomb").write_bytes(png_header(20_000, 20_000))
    (tmp_path / "no palette").write_bytes(next(case.data for case in corpus() if case.name == "no-palette.png"))
    with pytest.raises(ImageRejected) as caught:
        inspect_image(LocalStorage(tmp_path), path)
    assert caught.value.code == code
