"""A corpus of hostile and odd image files, made anew each time: nobody has to trust files in a repository.

`python -m tests.unit.image.corpus FOLDER` writes the files, to look at them or to feed them to another program.
"""

from __future__ import annotations

import functools
import gzip
import io
import random
import struct
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from tests.unit.image.pictures import BLUE, GREEN, RED, SRGB, chunk, corners, encoded, noise, oriented, png_header

PNG = b"\x89PNG\r\n\x1a\n"
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF")
#: The image can be used.
GOOD = "success"


@dataclass(frozen=True, slots=True)
class Case:
    """One file, and what must become of it: `success`, or a code of refusal."""

    name: str
    data: bytes
    outcome: str


@functools.cache
def corpus() -> tuple[Case, ...]:
    """Every case, by distinct names."""
    cases = (*odd(), *nothing(), *other_formats(), *truncated(), *lies(), *bombs(), *broken())
    names = [case.name for case in cases]
    assert len(set(names)) == len(names)
    return cases


def odd() -> list[Case]:
    """Unusual, and to be processed."""
    image, grey = corners(64, 48), Image.linear_gradient("L")
    deep = grey.convert("I").point(lambda value: value * 257).convert("I;16")
    frames = [Image.new("RGB", (32, 24), colour) for colour in (RED, GREEN, BLUE)]
    _, exif = oriented(9 % 8)
    exif[0x0112] = 9
    photo = encoded(image, "JPEG")
    noted = PngImagePlugin.PngInfo()
    noted.add_text("Comment", "x" * 100_000, zip=True)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("evil.sh", "echo evil")
    moving: dict[str, Any] = {"save_all": True, "append_images": frames[1:]}
    # One pixel, stored in the seven passes of an interlaced PNG.
    interlaced = PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 1))
    interlaced += chunk(b"IDAT", zlib.compress(b"\0\xff\0\0")) + chunk(b"IEND", b"")
    rgb48 = PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    rgb48 += chunk(b"IDAT", zlib.compress(b"\0" + b"\x12\x34" * 6)) + chunk(b"IEND", b"")
    return [
        Case("one-pixel.jpg", encoded(Image.new("RGB", (1, 1)), "JPEG"), GOOD),
        Case("one-pixel.png", encoded(Image.new("RGB", (1, 1)), "PNG"), GOOD),
        Case("one-pixel.gif", encoded(Image.new("P", (1, 1)), "GIF"), GOOD),
        Case("one-pixel.webp", encoded(Image.new("RGB", (1, 1)), "WEBP"), GOOD),
        Case("one-pixel.avif", encoded(Image.new("RGB", (1, 1)), "AVIF"), GOOD),
        Case("long-and-thin.png", encoded(Image.new("L", (40_000, 1)), "PNG"), GOOD),
        Case("grey.jpg", encoded(grey, "JPEG"), GOOD),
        Case("print-colours.jpg", encoded(image.convert("CMYK"), "JPEG"), GOOD),
        Case("progressive.jpg", encoded(image, "JPEG", progressive=True), GOOD),
        Case("restart-markers.jpg", encoded(image, "JPEG", restart_marker_rows=1), GOOD),
        Case("stereo.jpg", encoded(image, "MPO", save_all=True, append_images=[image]), GOOD),
        Case("no-extension", photo, GOOD),
        Case("really-jpeg.png", photo, GOOD),
        Case("really-png.jpg", encoded(image.convert("RGBA"), "PNG"), GOOD),
        Case("photo.jpg.exe", photo, GOOD),
        Case("semi;colon & space.jpg", photo, GOOD),
        Case("-rf.jpg", photo, GOOD),
        Case("\u202egpj.exe", photo, GOOD),
        Case("orientation-9.jpg", encoded(image, "JPEG", exif=exif), GOOD),
        Case("orientation-in-garbage.jpg", encoded(image, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\xff"), GOOD),
        Case("profile-is-garbage.jpg", encoded(image, "JPEG", icc_profile=b"garbage" * 99), GOOD),
        Case("profile-of-3-megabytes.jpg", encoded(image, "JPEG", icc_profile=SRGB + bytes(3_000_000)), GOOD),
        Case("profile-is-cut.png", encoded(image, "PNG", icc_profile=SRGB[:300]), GOOD),
        Case("jpeg-and-zip.jpg", photo + archive.getvalue(), GOOD),
        Case("jpeg-and-php.jpg", encoded(image, "JPEG", comment="<?php system($_GET['c']); ?>"), GOOD),
        Case("png-and-html.png", encoded(image, "PNG") + b"<script>alert(1)</script>", GOOD),
        Case("gif-and-javascript.gif", encoded(image, "GIF") + b"*/=1;alert(1)//", GOOD),
        Case("one-bit.png", encoded(image.convert("1"), "PNG"), GOOD),
        Case("palette-with-hole.png", encoded(image.quantize(8), "PNG", transparency=3), GOOD),
        Case("sixteen-bits.png", encoded(deep, "PNG"), GOOD),
        Case("forty-eight-bits.png", rgb48, GOOD),
        Case("interlaced.png", interlaced, GOOD),
        Case("long-comment.png", encoded(image, "PNG", pnginfo=noted), GOOD),
        Case("moving.gif", encoded(frames[0], "GIF", **moving), GOOD),
        Case("moving.png", encoded(frames[0], "PNG", **moving), GOOD),
        Case("moving.webp", encoded(frames[0], "WEBP", **moving), GOOD),
        Case("moving.avif", encoded(frames[0], "AVIF", **moving), GOOD),
        Case("lossless.webp", encoded(image.convert("RGBA"), "WEBP", lossless=True), GOOD),
        Case("pages.tif", encoded(image, "TIFF", **moving), GOOD),
        Case("fax.tif", encoded(image.convert("1"), "TIFF", compression="group4"), GOOD),
        Case("lzw.tif", encoded(image, "TIFF", compression="tiff_lzw"), GOOD),
        Case("jpeg-in.tif", encoded(image, "TIFF", compression="jpeg"), GOOD),
        Case("big.tif", encoded(image, "TIFF", big_tiff=True), GOOD),
        Case("print-colours.tif", encoded(image.convert("CMYK"), "TIFF"), GOOD),
    ]


def nothing() -> list[Case]:
    """No image at all."""
    chance = random.Random(6).randbytes(4096)
    return [
        Case("empty.jpg", b"", "corrupt"),
        Case("one-byte.jpg", b"\xff", "unsupported_format"),
        Case("zeros.jpg", bytes(4096), "unsupported_format"),
        Case("noise.jpg", chance, "unsupported_format"),
        Case("text.jpg", b"just some text", "unsupported_format"),
        Case("page.jpg", b"<!doctype html><img src=x onerror=alert(1)>", "unsupported_format"),
        Case("packed.jpg", gzip.compress(encoded(corners(), "JPEG")), "unsupported_format"),
        Case("jpeg-start-and-noise.jpg", b"\xff\xd8\xff\xe0" + chance, "corrupt"),
        Case("png-start-and-noise.png", PNG + chance, "corrupt"),
        Case("gif-start-and-noise.gif", b"GIF89a\x08\0\x08\0" + chance, "corrupt"),
        Case("webp-start-and-noise.webp", b"RIFF\xff\xff\0\0WEBPVP8 " + chance, "corrupt"),
        Case("avif-start-and-noise.avif", b"\0\0\0\x1cftypavif\0\0\0\0avifmif1" + chance, "corrupt"),
        Case("tiff-start-and-noise.tif", b"II*\0\x08\0\0\0" + chance, "corrupt"),
    ]


def other_formats() -> list[Case]:
    """Formats that Pillow, or Ghostscript behind it, would open, under an innocent name."""
    image = corners(16, 16)
    starts = {
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n",
        "pdf": b"%PDF-1.7\n1 0 obj<</OpenAction 2 0 R>>endobj",
        "photoshop": b"8BPS\0\1" + bytes(40),
        "stars": b"SIMPLE  =                    T" + b" " * 50,
        "vectors": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "phone": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        "film": b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
        "imagemagick": b"push graphic-context\nimage over 0,0 0,0 'https://127.0.0.1/'",
        "metafile": b"\xd7\xcd\xc6\x9a" + bytes(40),
        "jpeg2000": b"\0\0\0\x0cjP  \r\n\x87\n",
    }
    written = {"bmp": "BMP", "icon": "ICO", "portable": "PPM", "targa": "TGA", "silicon": "SGI", "textures": "DDS"}
    starts |= {name: encoded(image, format) for name, format in written.items()}
    return [Case(f"{name}.jpg", data, "unsupported_format") for name, data in starts.items()]


def truncated() -> list[Case]:
    """Uploads that broke off."""
    cases = []
    for format in FORMATS:
        data = encoded(noise((80, 60)), format)
        for part, length in (("start", 40), ("half", len(data) // 2), ("most", len(data) * 9 // 10)):
            cases.append(Case(f"{format.lower()}-{part}", data[:length], "corrupt"))
    return cases


def lies() -> list[Case]:
    """Headers that promise what is not there."""
    photo, picture = bytearray(encoded(corners(64, 48), "JPEG")), encoded(corners(64, 48), "PNG")
    start = photo.index(b"\xff\xc0")
    photo[start + 5 : start + 9] = struct.pack(">HH", 5000, 5000)
    header = struct.pack(">IIBBBBB", 64, 48, 8, 2, 0, 0, 0)
    palette = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 3, 0, 0, 0))
    no_crc = bytearray(picture)
    no_crc[29] ^= 0xFF
    flipped = bytearray(encoded(noise(), "PNG"))
    flipped[len(flipped) // 2] ^= 0xFF
    moving = PNG + chunk(b"IHDR", header) + chunk(b"acTL", struct.pack(">II", 2**31, 0)) + picture[33:]
    return [
        # Its end marker is there: to every decoder what is missing is grey.
        Case("larger-than-its-data.jpg", bytes(photo), GOOD),
        Case("larger-than-its-data.png", png_header(5000, 5000), "corrupt"),
        Case("no-width.png", png_header(0, 10), "corrupt"),
        Case(
            "no-palette.png",
            PNG + palette + chunk(b"IDAT", zlib.compress(bytes(5 * 4))) + chunk(b"IEND", b""),
            "corrupt",
        ),
        Case("no-data.png", PNG + chunk(b"IHDR", header) + chunk(b"IEND", b""), "corrupt"),
        Case("no-header.png", PNG + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b""), "corrupt"),
        Case("wrong-checksum.png", bytes(no_crc), "corrupt"),
        Case("flipped-byte.png", bytes(flipped), "corrupt"),
        Case("length-of-4-gigabytes.png", PNG + b"\xff\xff\xff\xffIHDR" + header, "corrupt"),
        Case("two-billion-frames.png", moving, "too_large"),
        Case("frame-larger-than-its-screen.gif", gif_with_frame(1, 1, 60_000, 60_000), "too_large"),
        Case("riff-of-4-gigabytes.webp", b"RIFF\xff\xff\xff\xffWEBP" + encoded(corners(), "WEBP")[12:], "corrupt"),
        Case("brand-and-nothing.avif", b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf", "corrupt"),
    ]


def bombs() -> list[Case]:
    """Small files, large costs."""
    wide = bytearray(encoded(corners(64, 48), "JPEG"))
    start = wide.index(b"\xff\xc0")
    wide[start + 5 : start + 9] = struct.pack(">HH", 20_000, 20_000)
    size = struct.pack("<I", 16_382)[:3]
    vp8x = b"VP8X" + struct.pack("<I", 10) + bytes(4) + size + size
    webp = b"RIFF" + struct.pack("<I", 4 + len(vp8x) + 8) + b"WEBP" + vp8x + b"VP8L" + bytes(4)
    avif = encoded(corners(64, 48), "AVIF")
    where = avif.index(b"ispe") + 8
    text = PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 48, 8, 2, 0, 0, 0))
    text += chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100_000_000), 9))
    profile = PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 48, 8, 2, 0, 0, 0))
    profile += chunk(b"iCCP", b"sRGB\0\0" + zlib.compress(bytes(100_000_000), 9))
    passes = encoded(Image.new("L", (1000, 1000)), "JPEG", progressive=True)
    scan = passes[passes.rindex(b"\xff\xda") : -2]
    frame = b",\0\0\0\0\1\0\1\0\0\2\2D\1\0"
    return [
        Case("400-megapixels.png", png_header(20_000, 20_000), "too_large"),
        Case("100-megapixels.png", png_header(10_000, 10_000), "too_large"),
        Case("400-megapixels.jpg", bytes(wide), "too_large"),
        Case("4000-megapixels.gif", gif_with_frame(65_535, 65_535, 65_535, 65_535), "too_large"),
        Case("400-megapixels.tif", tiff(20_000, 20_000), "too_large"),
        Case("268-megapixels.webp", webp, "too_large"),
        Case("400-megapixels.avif", avif[:where] + struct.pack(">II", 20_000, 20_000) + avif[where + 8 :], "corrupt"),
        Case("side-of-two-billion.png", png_header(2**31 - 1, 1), "too_large"),
        Case("side-of-four-billion.tif", tiff(2**32 - 1, 1), "too_large"),
        Case("100-megabytes-of-text.png", text + encoded(corners(64, 48), "PNG")[33:], "corrupt"),
        Case("100-megabytes-of-profile.png", profile + encoded(corners(64, 48), "PNG")[33:], "corrupt"),
        Case("half-a-million-segments.jpg", passes[:2] + b"\xff\xe1\0\2" * 500_000 + passes[2:], "too_large"),
        Case("a-million-fill-bytes.jpg", passes[:2] + b"\xff" * 1_000_000 + passes[2:], "too_large"),
        Case("half-a-million-comments.gif", gif_with_frame(8, 8, 8, 8)[:19] + b"!\xfe\1x\0" * 500_000, "too_large"),
        Case("half-a-million-chunks.png", text[:33] + chunk(b"quUx", b"") * 500_000, "too_large"),
        Case("5000-scans.jpg", passes[:-2] + scan * 5000 + passes[-2:], "too_large"),
        Case("tile-of-4000-megapixels.tif", tiled_tiff(65_520), "corrupt"),
        Case("5000-frames.gif", b"GIF89a\1\0\1\0\0\0\0" + frame * 5000 + b";", "too_large"),
        Case("5000-pages.tif", tiff_pages(5000), "too_large"),
    ]


def broken() -> list[Case]:
    """Structures that lead in circles or out of the file."""
    looped = bytearray(encoded(corners(64, 48), "TIFF"))
    (directory,) = struct.unpack_from("<I", looped, 4)
    (entries,) = struct.unpack_from("<H", looped, directory)
    struct.pack_into("<I", looped, directory + 2 + 12 * entries, directory)
    return [
        Case("directory-is-its-own-successor.tif", bytes(looped), GOOD),
        Case("directory-outside.tif", b"II*\0\xff\xff\xff\x7f", "corrupt"),
        Case("strip-outside.tif", tiff(64, 48, offset=2**31), "corrupt"),
        Case("65535-samples.tif", tiff(64, 48, samples=65_535), "corrupt"),
        Case("floating-point.tif", encoded(Image.new("F", (8, 8)), "TIFF"), "unsupported_format"),
        Case("huge-code-size.gif", gif_with_frame(8, 8, 8, 8).replace(b"\0\2\2D", b"\0\xff\2D"), "corrupt"),
        Case("blocks-without-end.gif", b"GIF89a\x08\0\x08\0\0\0\0!\xfe" + b"\x01x" * 5000, "corrupt"),
    ]


def gif_with_frame(width: int, height: int, frame_width: int, frame_height: int) -> bytes:
    """A GIF of one frame without pixels."""
    screen = b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0" + bytes(6)
    return screen + b"," + struct.pack("<HHHH", 0, 0, frame_width, frame_height) + b"\0\2\2D\1\0;"


def tiff(width: int, height: int, *, samples: int = 3, offset: int = 8) -> bytes:
    """A TIFF of one strip that is not there."""
    tags = ((256, width), (257, height), (258, 8), (259, 1), (262, 2), (273, offset), (277, samples), (278, height))
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in (*tags, (279, 99)))
    return b"II*\0" + struct.pack("<IH", 8, len(tags) + 1) + body + bytes(4)


def tiled_tiff(side: int) -> bytes:
    """A TIFF of eight by eight pixels in one deflated tile of another size."""
    tile = zlib.compress(bytes(1000))
    tags = ((256, 8), (257, 8), (258, 8), (259, 8), (262, 1), (277, 1), (322, side), (323, side))
    start = 8 + 2 + 12 * (len(tags) + 2) + 4
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in (*tags, (324, start), (325, len(tile))))
    return b"II*\0" + struct.pack("<IH", 8, len(tags) + 2) + body + bytes(4) + tile


def tiff_pages(count: int) -> bytes:
    """A picture, and pages of one tag each after it."""
    data = bytearray(encoded(corners(64, 48), "TIFF"))
    (directory,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, directory)
    start = len(data)
    struct.pack_into("<I", data, directory + 2 + 12 * entries, start)
    for page in range(count):
        data += struct.pack("<HHHIII", 1, 256, 4, 1, 1, start + 18 * (page + 1))
    return bytes(data)


if __name__ == "__main__":
    for case in corpus():
        (Path(sys.argv[1]) / case.name).write_bytes(case.data)
        print(f"{case.outcome:20} {len(case.data):9} {case.name}")
