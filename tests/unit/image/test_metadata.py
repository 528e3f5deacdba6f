"""What of a source's metadata and profile reaches a result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image, PngImagePlugin
from PIL.ExifTags import GPS, IFD, Base

from tests.unit.image.pictures import GREEN, RED, SRGB, SWAPPED, assert_close, corners, noise, oriented

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.image.pictures import Process

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" secret="yes"/></x:xmpmeta>'
HOLD_EXIF = ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"]


def full_exif() -> Image.Exif:
    _, exif = oriented(6)
    exif[Base.Artist] = "Ada"
    exif[Base.Copyright] = "Ada 2026"
    exif[Base.Make] = "Camera"
    exif[IFD.Exif] = {Base.FNumber: 2.5, Base.ExifImageWidth: 9999, Base.MakerNote: b"maker"}
    exif[IFD.GPSInfo] = {GPS.GPSLatitudeRef: "N"}
    return exif


def test_no_metadata_of_the_source_is_written(tmp_path: Path, opened: Any) -> None:
    exif = Image.Exif()
    exif[0x010E] = "secret"
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", "secret")
    noise().save(tmp_path / "a.jpg", exif=exif, comment="secret", dpi=(300, 300), icc_profile=SRGB, xmp=XMP)
    noise().save(tmp_path / "a.png", exif=exif, pnginfo=texts)
    for name in ("a.jpg", "a.png"):
        for format in ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "GIF"):
            result, _ = opened(name, 50, format=format)
            assert b"secret" not in (tmp_path / result["path"]).read_bytes()


@pytest.mark.parametrize("source", HOLD_EXIF)
@pytest.mark.parametrize("target", HOLD_EXIF)
def test_copyright(tmp_path: Path, process: Process, source: str, target: str) -> None:
    image, _ = oriented(6)
    image.save(tmp_path / "a", source, exif=full_exif().tobytes())
    with Image.open(tmp_path / process("a", 80, format=target, keep_metadata="copyright")["path"]) as small:
        exif = small.getexif()
        assert (exif[Base.Artist], exif[Base.Copyright]) == ("Ada", "Ada 2026")
        assert Base.Make not in exif
        assert not exif.get_ifd(IFD.GPSInfo)
        assert exif.get(Base.Orientation, 1) == 1


@pytest.mark.parametrize("source", HOLD_EXIF)
@pytest.mark.parametrize("target", HOLD_EXIF)
def test_all_but_what_is_no_longer_true(tmp_path: Path, process: Process, source: str, target: str) -> None:
    image, _ = oriented(6)
    image.save(tmp_path / "a", source, exif=full_exif().tobytes())
    with Image.open(tmp_path / process("a", [80, 60], format=target, keep_metadata="all")["path"]) as small:
        exif = small.getexif()
        assert (exif[Base.Artist], exif[Base.Make]) == ("Ada", "Camera")
        assert exif.get(Base.Orientation, 1) == 1
        assert small.size == (80, 60)
        camera = exif.get_ifd(IFD.Exif)
        assert camera.get(Base.FNumber) == (None if target == "TIFF" else 2.5)
        assert Base.ExifImageWidth not in camera
        assert Base.MakerNote not in camera
        assert exif.get_ifd(IFD.GPSInfo).get(GPS.GPSLatitudeRef) == (None if target == "TIFF" else "N")


@pytest.mark.parametrize("target", HOLD_EXIF)
def test_xmp_without_its_orientation(tmp_path: Path, opened: Any, target: str) -> None:
    image, exif = oriented(6)
    image.save(tmp_path / "a.jpg", exif=exif, xmp=XMP)
    result, small = opened("a.jpg", 80, format=target, keep_metadata="all")
    data = (tmp_path / result["path"]).read_bytes()
    assert b'secret="yes"' in data
    assert b'tiff:Orientation="1"' in data
    assert small.getexif().get(Base.Orientation, 1) == 1


def test_metadata_that_is_broken_or_too_large_is_left_out(tmp_path: Path, opened: Any) -> None:
    corners().save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    opened("a.jpg", 80, keep_metadata="all")
    exif = Image.Exif()
    exif[Base.Artist] = "A" * 100_000
    corners().save(tmp_path / "b.png", exif=exif)
    _, small = opened("b.png", 80, keep_metadata="all", format="jpeg")
    assert Base.Artist not in small.getexif()


@pytest.mark.parametrize("format", HOLD_EXIF)
def test_profile_is_kept_when_asked(tmp_path: Path, opened: Any, format: str) -> None:
    Image.new("RGB", (64, 64), RED).save(tmp_path / "wide", format, icc_profile=SWAPPED, exif=full_exif().tobytes())
    _, small = opened("wide", 32, color="keep")
    assert_close(small.convert("RGB").getpixel((9, 9)), RED)
    assert small.info["icc_profile"] == SWAPPED


def test_profile_that_a_format_cannot_hold_is_applied(tmp_path: Path, opened: Any) -> None:
    Image.new("RGB", (64, 64), RED).save(tmp_path / "wide.png", icc_profile=SWAPPED)
    _, small = opened("wide.png", 32, color="keep", format="gif")
    assert_close(small.convert("RGB").getpixel((9, 9)), GREEN)


@pytest.mark.parametrize(("target", "mode"), [("JPEG", "CMYK"), ("TIFF", "CMYK"), ("PNG", "RGB"), ("WEBP", "RGB")])
def test_print_colours_are_kept_where_they_can_be(tmp_path: Path, opened: Any, target: str, mode: str) -> None:
    Image.new("CMYK", (64, 64), (0, 255, 255, 0)).save(tmp_path / "print.jpg")
    _, small = opened("print.jpg", [90, 30], color="keep", format=target, mode="pad", background="white")
    assert small.mode == mode
    assert_close(small.convert("RGB").getpixel((45, 15)), RED)
    assert_close(small.convert("RGB").getpixel((3, 15)), (255, 255, 255))
