"""Every input that makes ``Image.open().resize().save()`` wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageStat

from tests.unit.image.pictures import (
    BLUE,
    PHOTOS,
    RED,
    SRGB,
    Process,
    assert_close,
    assert_upright,
    corners,
    noise,
    psnr,
)


def test_guides_call(tmp_path: Path, opened: Any) -> None:
    (tmp_path / "in").mkdir()
    corners().save(tmp_path / "in/photo.jpg")
    result, image = opened(str(tmp_path / "in/photo.jpg"), (100, 100))
    assert result["status"] == "success"
    assert re.fullmatch(r"in/processed_photo-100x100-fit-[0-9a-f]{16}\.jpg", result["path"])
    assert image.size == (100, 75)
    assert result["source"] == {
        "format": "JPEG",
        "width": 400,
        "height": 300,
        "bytes": (tmp_path / "in/photo.jpg").stat().st_size,
        "orientation": 1,
        "frames": 1,
    }
    assert list(result["elapsed_ms"]) == ["fetch", "decode", "resize", "encode", "store", "total"]
    assert result["cached"] is False
    assert json.loads(json.dumps(result)) == result
    assert_upright(image)


@pytest.mark.parametrize(
    ("size", "keywords", "expected"),
    [
        ([200, 200], {}, (200, 150)),
        (200, {}, (200, 150)),
        ([200, 0], {}, (200, 150)),
        ([0, 30], {}, (40, 30)),
        ([1000, 1000], {}, (400, 300)),
        ([800, 800], {"upscale": True}, (800, 600)),
        ([1, 1], {}, (1, 1)),
        ([200, 200], {"mode": "stretch"}, (200, 200)),
        ([800, 600], {"mode": "stretch"}, (400, 300)),
        ([800, 300], {"mode": "stretch", "upscale": True}, (800, 300)),
        ([100, 0], {"mode": "stretch"}, (100, 75)),
        ([100, 100], {"mode": "fill"}, (100, 100)),
        ([600, 600], {"mode": "fill"}, (300, 300)),
        ([600, 600], {"mode": "fill", "upscale": True}, (600, 600)),
        ([0, 30], {"mode": "fill"}, (40, 30)),
    ],
)
def test_size(tmp_path: Path, opened: Any, size: Any, keywords: Any, expected: tuple[int, int]) -> None:
    corners().save(tmp_path / "a.png")
    _, image = opened("a.png", size, **keywords)
    assert image.size == expected
    if min(expected) > 1:
        assert_upright(image)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_fill_cuts_evenly(tmp_path: Path, opened: Any, format: str) -> None:
    """A red middle between blue sides: only the middle is left, drafted or not."""
    image = Image.new("RGB", (1200, 300), BLUE)
    image.paste(RED, (448, 0, 752, 300))
    image.save(tmp_path / "wide", format, quality=95)
    _, filled = opened("wide", [60, 60], mode="fill")
    for position in ((1, 1), (58, 58), (30, 30)):
        assert_close(filled.getpixel(position), RED)


@pytest.mark.parametrize(
    ("name", "content", "keywords", "path", "format"),
    [
        ("photo", "JPEG", {}, r"processed_photo-80x80-fit-\w{16}\.jpg", "JPEG"),
        ("photo.bin", "PNG", {}, r"processed_photo\.bin-80x80-fit-\w{16}\.png", "PNG"),
        ("photo.jpg", "PNG", {}, r"processed_photo-80x80-fit-\w{16}\.jpg", "JPEG"),
        ("photo.JPEG", "JPEG", {"format": "jpg"}, r"processed_photo-80x80-fit-\w{16}\.JPEG", "JPEG"),
        ("a/b/photo.jpg", "JPEG", {"mode": "fill"}, r"a/b/processed_photo-80x80-fill-\w{16}\.jpg", "JPEG"),
        ("a/photo.jpg", "JPEG", {"size": [80, 0], "format": "webp"}, r"a/processed_photo-80x-fit-\w{16}\.webp", "WEBP"),
        ("photo.v2", "JPEG", {"format": "tiff"}, r"processed_photo\.v2-80x80-fit-\w{16}\.tiff", "TIFF"),
        ("photo.png", "PNG", {"output": "thumbs/"}, r"thumbs/processed_photo-80x80-fit-\w{16}\.png", "PNG"),
        ("photo.png", "PNG", {"output": "thumbs/new/x.avif"}, r"thumbs/new/x\.avif", "AVIF"),
        ("photo.png", "PNG", {"output": "x", "format": "gif"}, "x", "GIF"),
        ("photo.png", "PNG", {"output": "x"}, "x", "PNG"),
        ("ü" * 120 + ".png", "PNG", {}, r"processed_ü{100,}-80x80-fit-\w{16}\.png", "PNG"),
    ],
)
def test_names(
    tmp_path: Path, opened: Any, name: str, content: str, keywords: dict[str, Any], path: str, format: str
) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    corners().save(tmp_path / name, content)
    result, image = opened(name, **{"size": 80, **keywords})
    assert re.fullmatch(path, result["path"])
    assert result["format"] == format
    assert_upright(image)


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "AVIF"])
def test_quality(tmp_path: Path, process: Process, format: str) -> None:
    noise().save(tmp_path / "a.png")
    small, default, large = (process("a.png", format=format, quality=q)["bytes"] for q in (10, None, 95))
    assert small < default < large


def test_largest_progressive_jpeg_is_written(tmp_path: Path, process: Process) -> None:
    noise((1000, 700)).save(tmp_path / "a.png", compress_level=0)
    assert process("a.png", 1000, format="jpeg", quality=100)["bytes"] > 500_000


@pytest.mark.parametrize("name", ["dogs.jpg", "coffee.png", "mountains.webp", "dandelions.jpg"])
def test_real_photographs(tmp_path: Path, opened: Any, name: str) -> None:
    """A drafted, reduced result must look like a careful one: peak signal-to-noise ratio against plain LANCZOS."""
    (tmp_path / name).write_bytes((PHOTOS / name).read_bytes())
    result, small = opened(name, [160, 160], format="PNG")
    with Image.open(PHOTOS / name) as image:
        reference = image.convert(small.mode)
    if result["source"]["orientation"] == 6:
        reference = reference.transpose(Image.Transpose.ROTATE_270)
        assert small.height > small.width
    difference = Image.frombytes(
        "L",
        (len(small.tobytes()), 1),
        bytes(
            abs(a - b)
            for a, b in zip(
                small.tobytes(), reference.resize(small.size, Image.Resampling.LANCZOS).tobytes(), strict=True
            )
        ),
    )
    assert ImageStat.Stat(difference).rms[0] < 255 / 10 ** (35 / 20)


# Just above one of JPEG's steps it is 42 dB, hence not 280 there.
@pytest.mark.parametrize(("format", "size"), [("JPEG", 320), ("PNG", 280)])
def test_a_quick_result_is_within_45_db_of_a_careful_one(
    tmp_path: Path, process: Process, format: str, size: int
) -> None:
    """Of every class of sizes, of its own and as the next of several renditions."""
    with Image.open(PHOTOS / "mountains.webp") as photo:
        photo.convert("RGB").resize((1400, 1050), Image.Resampling.BICUBIC).save(tmp_path / "a", format, quality=95)
    with Image.open(tmp_path / "a") as image:
        image.load()
    sizes = [350, size, 175, 125, 105, 70]
    paths = [process("a", side, format="png", output=f"{side}.png")["path"] for side in sizes]
    several = process("a", renditions=sizes, format="png", output="renditions/")["renditions"]
    for path in [*paths, *(one["path"] for one in several)]:
        with Image.open(tmp_path / path) as small:
            careful = image.resize(small.size, Image.Resampling.LANCZOS)
            assert psnr(careful, small) > 45, path


def test_nothing_is_imported_by_the_first_image(tmp_path: Path) -> None:
    """What a child imports after the fork, every child imports again."""
    for number, format in enumerate(("JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF")):
        corners(16, 16).save(tmp_path / f"{number}", format, icc_profile=SRGB)
    script = (
        "import sys; from workers.imaging import process_image; from workers.storage import LocalStorage\n"
        "assert 'celery' not in sys.modules\n"
        "before = {name for name in sys.modules if name.startswith('PIL')}\n"
        "for number in range(6): process_image(LocalStorage(sys.argv[1]), str(number), 8)\n"
        "print({name for name in sys.modules if name.startswith('PIL')} - before)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
