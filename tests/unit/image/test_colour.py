"""Modes, transparency and colour profiles."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageStat

from tests.unit.image.pictures import (
    GREEN,
    RED,
    SRGB,
    SWAPPED,
    WHITE,
    Process,
    assert_close,
    corners,
    encoded,
)
from workers.imaging import ImageRejected


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA", "RGB", "L"])
def test_transparency_saved_under_a_jpeg_name(tmp_path: Path, opened: Any, mode: str) -> None:
    """Half transparent, half black; the transparent half takes the background."""
    image = Image.new("RGBA", (100, 100), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (50, 0, 100, 100))
    options: dict[str, Any] = {}
    if mode in {"RGB", "L"}:
        image = Image.new(mode, (100, 100), "white")
        image.paste(Image.new(mode, (50, 100), "black"), (50, 0))
        options = {"transparency": (255, 255, 255) if mode == "RGB" else 255}
    elif mode == "P":
        image = image.quantize(4)
    else:
        image = image.convert(mode)
    image.save(tmp_path / "really-png.jpg", "TIFF" if mode == "PA" else "PNG", **options)
    _, small = opened("really-png.jpg", 50, background="#00ff00")
    assert small.mode == "RGB"
    assert_close(small.getpixel((5, 25)), GREEN)
    assert_close(small.getpixel((45, 25)), (0, 0, 0))


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.avif", "a.gif", "a.tiff"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_kept(tmp_path: Path, opened: Any, name: str, mode: str) -> None:
    image = Image.new("RGBA", (100, 100), (0, 0, 0, 0))
    image.paste((200, 200, 200, 255), (50, 0, 100, 100))
    image.convert(mode).save(tmp_path / "cut.png")
    _, small = opened("cut.png", 50, output=name)
    rgba = small.convert("RGBA")
    assert rgba.getpixel((5, 25))[3] == 0
    assert_close(rgba.getpixel((45, 25)), (200, 200, 200, 255))


def test_alpha_that_hides_nothing_is_dropped(tmp_path: Path, opened: Any) -> None:
    corners().convert("RGBA").save(tmp_path / "a.png")
    assert opened("a.png", 50)[1].mode == "RGB"


def test_no_dark_fringe_around_transparent_parts(tmp_path: Path, opened: Any) -> None:
    image = Image.new("RGBA", (100, 100), (0, 0, 0, 0))
    image.paste((255, 255, 255, 255), (50, 0, 100, 100))
    image.save(tmp_path / "a.png")
    _, small = opened("a.png", 33)
    edge = [small.getpixel((x, 10)) for x in range(33)]
    assert all(colour[:3] == WHITE for colour in edge if colour[3] > 8)


def test_palette_is_not_resized_by_the_nearest_neighbour(tmp_path: Path, opened: Any) -> None:
    stripes = Image.new("P", (256, 64))
    stripes.putpalette([0, 0, 0, 255, 255, 255])
    for x in range(0, 256, 2):
        stripes.paste(1, (x, 0, x + 1, 64))
    stripes.save(tmp_path / "a.png")
    _, small = opened("a.png", 64)
    assert_close(small.convert("RGB").getpixel((32, 8)), (128, 128, 128))


def test_one_bit_becomes_grey(tmp_path: Path, opened: Any) -> None:
    Image.effect_noise((64, 64), 200).convert("1").save(tmp_path / "fax.tif", compression="group4")
    _, small = opened("fax.tif", 8)
    assert small.mode == "L"
    assert 40 < ImageStat.Stat(small).mean[0] < 215


def big_endian_tiff(width: int, height: int) -> bytes:
    """A 16-bit grey ramp as other programs than Pillow write it."""
    count = width * height
    pixels = struct.pack(f">{count}H", *(index * 65535 // (count - 1) for index in range(count)))
    entries = ((256, width), (257, height), (258, 16), (259, 1), (262, 1), (273, 8), (277, 1), (278, height))
    tags = [struct.pack(">HHII", tag, 4, 1, value) for tag, value in (*entries, (279, len(pixels)))]
    directory = struct.pack(">H", len(tags)) + b"".join(tags) + b"\0\0\0\0"
    return struct.pack(">2sHI", b"MM", 42, 8 + len(pixels)) + pixels + directory


@pytest.mark.parametrize("kind", ["png", "little", "big"])
@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, opened: Any, kind: str, name: str) -> None:
    ramp = Image.linear_gradient("L").convert("I").point(lambda value: value * 257).convert("I;16")
    data = {
        "png": lambda: encoded(ramp, "PNG"),
        "little": lambda: encoded(ramp, "TIFF"),
        "big": lambda: big_endian_tiff(256, 256),
    }[kind]()
    (tmp_path / "deep").write_bytes(data)
    _, small = opened("deep", 64, output=name)
    assert small.mode == "L"
    assert abs(ImageStat.Stat(small).mean[0] - 127.5) < 1


def test_cmyk_becomes_rgb(tmp_path: Path, opened: Any) -> None:
    Image.new("CMYK", (64, 64), (0, 255, 255, 0)).save(tmp_path / "print.jpg")
    _, small = opened("print.jpg", 32)
    assert small.mode == "RGB"
    assert_close(small.getpixel((9, 9)), RED)


def test_other_pixels_are_refused(tmp_path: Path, process: Process) -> None:
    Image.new("F", (8, 8)).save(tmp_path / "science.tif")
    with pytest.raises(ImageRejected) as caught:
        process("science.tif")
    assert caught.value.code == "unsupported_format"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_profile_is_applied_and_not_written(tmp_path: Path, opened: Any, format: str) -> None:
    Image.new("RGB", (64, 64), RED).save(tmp_path / "wide", format, icc_profile=SWAPPED)
    _, small = opened("wide", 32)
    assert_close(small.convert("RGB").getpixel((9, 9)), GREEN)
    assert "icc_profile" not in small.info


def test_profile_leaves_alpha_alone(tmp_path: Path, opened: Any) -> None:
    Image.new("RGBA", (64, 64), (255, 0, 0, 100)).save(tmp_path / "a.png", icc_profile=SWAPPED)
    assert_close(opened("a.png", 32)[1].getpixel((9, 9)), (0, 255, 0, 100))


def grey_profile() -> bytes:
    """A linear grey profile: 55 is mid grey in sRGB."""
    d50 = struct.pack(">iii", 63190, 65536, 54061)
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"grey\0" + bytes(78),
        b"wtpt": b"XYZ " + bytes(4) + d50,
        b"kTRC": b"curv" + bytes(4) + struct.pack(">IH", 1, 256),
        b"cprt": b"text" + bytes(4) + b"none\0",
    }
    table, body, offset = b"", b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        table += struct.pack(">4sII", name, offset + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    header = struct.pack(">I4sI4s4s4s", offset + len(body), b"lcms", 0x02100000, b"mntr", b"GRAY", b"XYZ ")
    return header + bytes(12) + b"acsp" + bytes(28) + d50 + bytes(48) + struct.pack(">I", len(tags)) + table + body


@pytest.mark.parametrize(("mode", "colour", "expected"), [("L", 55, (128,)), ("LA", (55, 99), (128, 99))])
def test_grey_profile(tmp_path: Path, opened: Any, mode: str, colour: Any, expected: tuple[int, ...]) -> None:
    Image.new(mode, (64, 64), colour).save(tmp_path / "a.png", icc_profile=grey_profile())
    _, small = opened("a.png", 32)
    assert small.mode == mode
    pixel = small.getpixel((9, 9))
    assert_close(pixel if isinstance(pixel, tuple) else (pixel,), expected, 1)


@pytest.mark.parametrize(
    ("mode", "profile"),
    [(mode, profile) for mode in ("RGB", "L", "CMYK") for profile in (b"no profile", SRGB[:200])]
    + [("L", SWAPPED), ("CMYK", SWAPPED)],
)
def test_profile_that_does_not_fit_is_ignored(tmp_path: Path, opened: Any, mode: str, profile: bytes) -> None:
    Image.new(mode, (64, 64)).save(tmp_path / "a.jpg", icc_profile=profile)
    _, small = opened("a.jpg", 32)
    assert_close(small.convert("RGB").getpixel((9, 9)), WHITE if mode == "CMYK" else (0, 0, 0))


@pytest.mark.parametrize(
    ("profile", "name", "kept"),
    [
        (SRGB + bytes(2_000_000), "a.png", False),
        (SRGB + bytes(2_000_000), "a.jpg", True),
        (b"garbage" * 99, "a.png", False),
        (b"garbage" * 99, "a.jpg", False),
    ],
)
def test_a_profile_that_nobody_could_read_is_not_kept(
    tmp_path: Path, opened: Any, profile: bytes, name: str, kept: bool
) -> None:
    """Pillow refuses a PNG with a megabyte of profile."""
    corners().save(tmp_path / "source.jpg", icc_profile=profile)
    _, small = opened("source.jpg", 50, output=name, color="keep")
    assert ("icc_profile" in small.info) == kept
    assert_close(small.convert("RGB").getpixel((5, 5)), RED)
