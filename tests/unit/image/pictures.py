"""Pictures of which every corner is known, and what is done with them."""

from __future__ import annotations

import io
import math
import random
import struct
import zlib
from pathlib import Path
from typing import Any, Protocol

import pytest
from PIL import Image, ImageChops, ImageCms, ImageStat

from workers.imaging import ImageRejected, ImageResult

PHOTOS = Path(__file__).parents[3] / "examples" / "photos"
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
#: sRGB in which the first channel is green and the second red: nobody can overlook whether it was applied.
SWAPPED = SRGB.replace(b"rXYZ", b"free").replace(b"gXYZ", b"rXYZ").replace(b"free", b"gXYZ")


class Process(Protocol):
    def __call__(self, image_path: str, *arguments: Any, **keywords: Any) -> ImageResult: ...


def corners(width: int = 400, height: int = 300) -> Image.Image:
    """Upper left red, upper right green, lower left blue, lower right white."""
    image = Image.new("RGB", (2, 2))
    for position, colour in zip(((0, 0), (1, 0), (0, 1), (1, 1)), (RED, GREEN, BLUE, WHITE), strict=True):
        image.putpixel(position, colour)
    return image.resize((width, height), Image.Resampling.NEAREST)


def at(image: Image.Image, x: int, y: int) -> tuple[int, ...]:
    """The bands of one pixel."""
    pixel = image.getpixel((x, y))
    assert isinstance(pixel, tuple)
    return tuple(int(band) for band in pixel)


def assert_upright(image: Image.Image) -> None:
    width, height = image.size
    rgb = image.convert("RGB")
    for x, y, colour in ((0.25, 0.25, RED), (0.75, 0.25, GREEN), (0.25, 0.75, BLUE), (0.75, 0.75, WHITE)):
        assert_close(rgb.getpixel((int(width * x), int(height * y))), colour)


#: Undo what a viewer does for each EXIF orientation.
LAID = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def assert_close(actual: Any, expected: tuple[int, ...], tolerance: int = 12) -> None:
    assert max(abs(a - e) for a, e in zip(actual, expected, strict=True)) <= tolerance, f"{actual} is not {expected}"


def oriented(orientation: int) -> tuple[Image.Image, Image.Exif]:
    """The corners, stored so that a viewer who obeys the tag sees them upright."""
    undo = LAID[orientation]
    image, exif = corners(), Image.Exif()
    exif[0x0112] = orientation
    return (image if undo is None else image.transpose(undo)), exif


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise(size: tuple[int, int] = (200, 150)) -> Image.Image:
    return Image.frombytes("RGB", size, random.Random(1).randbytes(size[0] * size[1] * 3))


def refusal(process: Process, image_path: str = "a", **keywords: Any) -> str:
    with pytest.raises(ImageRejected) as caught:
        process(image_path, **keywords)
    return caught.value.code


def psnr(first: Image.Image, second: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB."""
    stat = ImageStat.Stat(ImageChops.difference(first.convert("RGB"), second.convert("RGB")))
    error = sum(stat.sum2) / (3 * first.width * first.height)
    return 10 * math.log10(255**2 / error) if error else math.inf
