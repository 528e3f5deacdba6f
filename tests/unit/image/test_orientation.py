"""Photographs that lie on their side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.unit.image.pictures import (
    BLUE,
    RED,
    assert_close,
    assert_upright,
    corners,
    oriented,
)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
@pytest.mark.parametrize("mode", ["fit", "fill"])
def test_orientation(tmp_path: Path, opened: Any, orientation: int, format: str, mode: str) -> None:
    image, exif = oriented(orientation)
    image.save(tmp_path / "phone", format, exif=exif)
    result, small = opened("phone", [80, 60], mode=mode)
    assert small.size == (80, 60)
    assert_upright(small)
    assert result["source"]["orientation"] == orientation
    assert (result["source"]["width"], result["source"]["height"]) == (400, 300)
    assert small.getexif().get(0x0112, 1) == 1


def test_orientation_of_compressed_tiff(tmp_path: Path, opened: Any) -> None:
    image, exif = oriented(6)
    image.save(tmp_path / "scan.tif", exif=exif, compression="tiff_lzw")
    result, small = opened("scan.tif", [80, 60])
    assert result["source"]["orientation"] == 6
    assert_upright(small)


def test_fill_of_a_lying_photo_cuts_what_the_viewer_sees(tmp_path: Path, opened: Any) -> None:
    upright = Image.new("RGB", (300, 1200), BLUE)
    upright.paste(RED, (0, 448, 300, 752))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "tall.jpg", quality=95, exif=exif)
    _, filled = opened("tall.jpg", [60, 60], mode="fill")
    for position in ((1, 1), (58, 58)):
        assert_close(filled.getpixel(position), RED)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\0\xff"]
)
def test_broken_exif_is_no_reason_to_refuse(tmp_path: Path, opened: Any, exif: bytes) -> None:
    corners().save(tmp_path / "a.jpg", exif=exif)
    result, image = opened("a.jpg", 80)
    assert result["source"]["orientation"] == 1
    assert_upright(image)
