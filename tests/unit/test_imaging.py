"""Every input that makes ``Image.open().resize().save()`` wrong, and every reason to refuse one."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import pytest
from PIL import Image, ImageCms, ImageStat, PngImagePlugin

from queues.errors import TransientError
from workers.imaging import DEFAULT_LIMITS, ImageRejected, ImageResult, Limits, process_image
from workers.storage import LocalStorage

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
#: sRGB in which the first channel is green and the second red: nobody can overlook whether it was applied.
SWAPPED = SRGB.replace(b"rXYZ", b"free").replace(b"gXYZ", b"rXYZ").replace(b"free", b"gXYZ")


class Process(Protocol):
    def __call__(self, image_path: str, *arguments: Any, **keywords: Any) -> ImageResult: ...


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


def corners(width: int = 400, height: int = 300) -> Image.Image:
    """Upper left red, upper right green, lower left blue, lower right white."""
    image = Image.new("RGB", (2, 2))
    for position, colour in zip(((0, 0), (1, 0), (0, 1), (1, 1)), (RED, GREEN, BLUE, WHITE), strict=True):
        image.putpixel(position, colour)
    return image.resize((width, height), Image.Resampling.NEAREST)


def assert_upright(image: Image.Image) -> None:
    width, height = image.size
    rgb = image.convert("RGB")
    for x, y, colour in ((0.25, 0.25, RED), (0.75, 0.25, GREEN), (0.25, 0.75, BLUE), (0.75, 0.75, WHITE)):
        assert_close(rgb.getpixel((int(width * x), int(height * y))), colour)


def assert_close(actual: Any, expected: tuple[int, ...], tolerance: int = 12) -> None:
    assert max(abs(a - e) for a, e in zip(actual, expected, strict=True)) <= tolerance, f"{actual} is not {expected}"


def oriented(orientation: int) -> tuple[Image.Image, Image.Exif]:
    """The corners, stored so that a viewer who obeys the tag sees them upright."""
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
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


def test_guides_call(tmp_path: Path, opened: Any) -> None:
    (tmp_path / "in").mkdir()
    corners().save(tmp_path / "in/photo.jpg")
    result, image = opened(str(tmp_path / "in/photo.jpg"), (100, 100))
    assert result["status"] == "success"
    assert result["path"] == "in/processed_photo.jpg"
    assert image.size == (100, 75)
    assert result["source"] == {
        "format": "JPEG",
        "width": 400,
        "height": 300,
        "bytes": (tmp_path / "in/photo.jpg").stat().st_size,
        "orientation": 1,
        "frames": 1,
    }
    assert set(result["elapsed_ms"]) == {"read", "decode", "resize", "colour", "encode", "write", "total"}
    assert json.loads(json.dumps(result)) == result
    assert_upright(image)
    assert image.info.get("progressive")


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


def test_no_metadata_of_the_source_is_written(tmp_path: Path, opened: Any) -> None:
    exif = Image.Exif()
    exif[0x010E] = "secret"
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", "secret")
    noise().save(tmp_path / "a.jpg", exif=exif, comment="secret", dpi=(300, 300), icc_profile=SRGB)
    noise().save(tmp_path / "a.png", exif=exif, pnginfo=texts)
    for name in ("a.jpg", "a.png"):
        for format in ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "GIF"):
            result, _ = opened(name, 50, format=format)
            assert b"secret" not in (tmp_path / result["path"]).read_bytes()


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "AVIF", "TIFF"])
def test_animation_gives_its_first_frame_and_says_so(tmp_path: Path, opened: Any, format: str) -> None:
    frames = [Image.new("RGB", (64, 64), colour) for colour in (RED, GREEN, BLUE)]
    frames[0].save(tmp_path / "moving", format, save_all=True, append_images=frames[1:])
    result, small = opened("moving", 32)
    assert_close(small.convert("RGB").getpixel((9, 9)), RED)
    assert (result["source"]["frames"], result["frames"]) == (3, 1)


def test_damaged_second_page_does_not_spoil_the_first(tmp_path: Path, opened: Any) -> None:
    data = bytearray(encoded(corners(), "TIFF"))
    (directory,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, directory)
    struct.pack_into("<I", data, directory + 2 + 12 * entries, len(data))
    (tmp_path / "scan.tif").write_bytes(data + struct.pack("<HI", 0, 0))
    result, small = opened("scan.tif", 80)
    assert result["source"]["frames"] == 1
    assert_upright(small)


def test_mpo_is_a_jpeg(tmp_path: Path, opened: Any) -> None:
    corners().save(tmp_path / "stereo.jpg", "MPO", save_all=True, append_images=[corners()])
    result, small = opened("stereo.jpg", 80)
    assert (result["format"], result["source"]["format"], result["source"]["frames"]) == ("JPEG", "JPEG", 2)
    assert_upright(small)


@pytest.mark.parametrize(
    ("name", "content", "keywords", "path", "format"),
    [
        ("photo", "JPEG", {}, "processed_photo", "JPEG"),
        ("photo.bin", "PNG", {}, "processed_photo.bin", "PNG"),
        ("photo.jpg", "PNG", {}, "processed_photo.jpg", "JPEG"),
        ("photo.JPEG", "JPEG", {"format": "jpg"}, "processed_photo.JPEG", "JPEG"),
        ("photo.jpg", "JPEG", {"format": "webp"}, "processed_photo.webp", "WEBP"),
        ("photo.bin", "JPEG", {"format": "PNG"}, "processed_photo.bin.png", "PNG"),
        ("photo", "JPEG", {"format": "tiff"}, "processed_photo.tiff", "TIFF"),
        ("photo.png", "PNG", {"output": "thumbs/new/x.avif"}, "thumbs/new/x.avif", "AVIF"),
        ("photo.png", "PNG", {"output": "x", "format": "gif"}, "x", "GIF"),
        ("photo.png", "PNG", {"output": "x"}, "x", "PNG"),
    ],
)
def test_names(
    tmp_path: Path, opened: Any, name: str, content: str, keywords: dict[str, Any], path: str, format: str
) -> None:
    corners().save(tmp_path / name, content)
    result, image = opened(name, 80, **keywords)
    assert (result["path"], result["format"]) == (path, format)
    assert_upright(image)


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "AVIF"])
def test_quality(tmp_path: Path, process: Process, format: str) -> None:
    noise().save(tmp_path / "a.png")
    small, default, large = (process("a.png", format=format, quality=q)["bytes"] for q in (10, None, 95))
    assert small < default < large


def test_largest_progressive_jpeg_is_written(tmp_path: Path, process: Process) -> None:
    noise((1000, 700)).save(tmp_path / "a.png", compress_level=0)
    assert process("a.png", 1000, format="jpeg", quality=100)["bytes"] > 500_000


@pytest.mark.parametrize(
    "keywords",
    [
        {"size": size}
        for size in (0, -1, True, "800x600", None, [0, 0], [800], [1, 2, 3], [-1, 5], [1.5, 2], [True, 2], [99999, 1])
    ]
    + [{"quality": quality} for quality in (0, 101, "80", 80.0, True)]
    + [{"format": format} for format in ("BMP", "", "EPS", 3)]
    + [{"background": background} for background in ("no colour", "#12", None, 7)]
    + [
        {"mode": "crop"},
        {"mode": None},
        {"upscale": "yes"},
        {"output": "a.png"},
        {"output": "./a.png"},
        {"output": 3},
        {"output": "b.png", "format": "jpeg"},
        {"image_path": None},
    ],
)
def test_bad_argument(process: Process, tmp_path: Path, keywords: dict[str, Any]) -> None:
    noise((8, 8)).save(tmp_path / "a.png")
    assert refusal(process, **{"image_path": "a.png", **keywords}) == "bad_argument"


def refusal(process: Process, image_path: str = "a", **keywords: Any) -> str:
    with pytest.raises(ImageRejected) as caught:
        process(image_path, **keywords)
    return caught.value.code


def test_paths(process: Process, tmp_path: Path) -> None:
    noise((8, 8)).save(tmp_path / "a.png")
    assert refusal(process, "none.png") == "not_found"
    assert refusal(process, "../a.png") == "forbidden_path"
    assert refusal(process, "/etc/passwd") == "forbidden_path"
    assert refusal(process, "a.png", output="../b.png") == "forbidden_path"


@pytest.mark.parametrize(
    "data",
    [
        b"just some text",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"%PDF-1.7",
        b"8BPS\0\1",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        encoded(Image.new("RGB", (4, 4)), "BMP"),
    ],
)
def test_unsupported_format(process: Process, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(data)
    assert refusal(process, "a.jpg") == "unsupported_format"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.9])
def test_truncated(process: Process, tmp_path: Path, format: str, part: float) -> None:
    data = encoded(noise(), format)
    (tmp_path / "a").write_bytes(data[: max(16, int(len(data) * part))])
    assert refusal(process) == "corrupt"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_damaged(process: Process, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    assert refusal(process) == "corrupt"
    png = bytearray(encoded(noise(), "PNG"))
    png[len(png) // 2] ^= 0xFF
    (tmp_path / "a").write_bytes(png)
    assert refusal(process) == "corrupt"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF"])
def test_random_damage_is_refused_or_survived(process: Process, tmp_path: Path, format: str) -> None:
    generator = random.Random(format)
    data = encoded(noise((24, 16)), format)
    for _ in range(60):
        broken = bytearray(data)
        for _ in range(generator.randint(1, 6)):
            broken[generator.randrange(12, len(broken))] = generator.randrange(256)
        (tmp_path / "a").write_bytes(broken)
        try:
            process("a", 8, output="b")
        except ImageRejected as error:
            assert error.code in {"corrupt", "too_large", "unsupported_format"}


@pytest.mark.parametrize("side", [20_000, 10_000, 7_200])
def test_bombs(process: Process, tmp_path: Path, side: int) -> None:
    """400 MP: Pillow's error. 100 MP: its warning. 52 MP: our limit."""
    (tmp_path / "a").write_bytes(png_header(side, side))
    assert refusal(process) == "too_large"


def test_pillows_own_limit_is_half_of_its_default(process: Process, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(png_header(10_000, 10_000))
    assert refusal(process, limits=Limits(pixels=10**9)) == "too_large"
    assert Image.MAX_IMAGE_PIXELS == 89_478_485


def test_limits(process: Process, tmp_path: Path) -> None:
    noise((100, 100)).save(tmp_path / "a", "PNG")
    noise((100, 100)).save(tmp_path / "w", "WEBP")
    assert refusal(process, limits=Limits(file_bytes=1000)) == "too_large"
    assert refusal(process, limits=Limits(pixels=9_999)) == "too_large"
    assert refusal(process, "w", limits=Limits(pixels_costly=9_999)) == "too_large"
    assert refusal(process, size=200, upscale=True, limits=Limits(pixels=39_999)) == "too_large"
    assert process("a", size=200, upscale=True, limits=Limits(pixels=40_000))["width"] == 200
    assert DEFAULT_LIMITS.of("WEBP") < DEFAULT_LIMITS.of("JPEG")


class FailingStorage(LocalStorage):
    """A disk that fails while it is read."""

    def open_read(self, key: str) -> BinaryIO:
        class Broken(io.BytesIO):
            def read(self, _size: int | None = -1, /) -> bytes:
                raise OSError(errno.EIO, "Input/output error")

        self.key(key)
        return Broken()


def test_failing_disk_is_transient(tmp_path: Path) -> None:
    with pytest.raises(TransientError) as caught:
        process_image(FailingStorage(tmp_path), "a.jpg")
    assert caught.value.code == "storage"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ESTALE])
def test_error_with_errno_while_decoding_is_transient(
    process: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(_image: object) -> None:
        raise OSError(number, os.strerror(number))

    noise().save(tmp_path / "a.png")
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(TransientError) as caught:
        process("a.png")
    assert caught.value.code == "storage"


def test_no_memory_is_transient(process: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object, **_keywords: object) -> None:
        raise MemoryError

    noise().save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "resize", fail)
    with pytest.raises(TransientError) as caught:
        process("a.png")
    assert caught.value.code == "memory"


def test_time_limit_is_not_mistaken_for_damage(
    process: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SoftTimeLimitExceeded(Exception):
        """Derives from Exception, as Celery's does."""

    def fail(_image: object) -> None:
        raise SoftTimeLimitExceeded

    noise().save(tmp_path / "a.png")
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(SoftTimeLimitExceeded):
        process("a.png")


def test_warnings_of_the_caller_are_left_alone(process: Process, tmp_path: Path) -> None:
    noise().save(tmp_path / "a.png")
    before = list(warnings.filters)
    process("a.png")
    assert warnings.filters == before


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
