"""Image files: told apart by their first bytes, decoded at bounded cost, encoded."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib
from typing import TYPE_CHECKING, Any, TypedDict

# Pillow loads plugins when it first needs them: here they are loaded before the pool forks, once for all children.
from PIL import (
    AvifImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from workers.imagespec import SUFFIXES, ImageRejected, Limits
from workers.storage import translate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from workers.imagespec import Box

_PLUGINS = (GifImagePlugin, JpegImagePlugin, MpoImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin)
Image.preinit()
# Every child of the pool decodes: a thread per core in each would only make them wait for one another.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1

#: What turns an image upright, by its EXIF orientation.
TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_TAG = 0x0112
#: What Pillow raises for damaged files. Not Exception: the time limit of a task arrives as one, at any line.
DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


class Source(TypedDict):
    """The image as it was given; width and height as a viewer shows it."""

    format: str
    width: int
    height: int
    bytes: int
    orientation: int
    frames: int


def open_image(data: bytes, key: str, limits: Limits) -> tuple[Image.Image, Source, int]:
    """Return the image, what it is, and the orientation still to apply. JPEG is not decoded yet."""
    format = _sniff(data)
    if format is None:
        raise ImageRejected("unsupported_format", f"{key!r} is none of {', '.join(SUFFIXES)}: convert it first.")
    with _damage(key):
        image = Image.open(io.BytesIO(data), formats=(format,))
        width, height = image.size
        if width * height > limits.of(format):
            raise ImageRejected(
                "too_large", f"{key!r} has {width}x{height} pixels, {format} may have {limits.of(format)}: shrink it."
            )
        frames = _frames(image, data)
        given = _orientation(image) if format in {"JPEG", "TIFF"} else 1
        if format != "JPEG":
            image.load()
        # Pillow itself turns TIFF while loading; PNG may tell its orientation only after the pixels.
        turn = _orientation(image)
        width, height = image.size[::-1] if turn >= 5 else image.size
    source = Source(
        format=format, width=width, height=height, bytes=len(data), orientation=max(given, turn), frames=frames
    )
    return image, source, turn


def load(image: Image.Image, target: tuple[int, int], box: Box, key: str) -> Box:
    """Decode no more of a JPEG than the target needs, and return the box in the pixels that there are now."""
    left, top, right, bottom = box
    width, height = image.size
    # libjpeg decodes at 1/2, 1/4 or 1/8 several times faster; 1.25 leaves the resize enough to look the same.
    wanted = 1.25 * target[0] * width / (right - left), 1.25 * target[1] * height / (bottom - top)
    with _damage(key):
        drafted = image.draft(None, (max(1, int(wanted[0])), max(1, int(wanted[1]))))
        image.load()
    if not drafted:
        return box
    x, y = drafted[1][2] / width, drafted[1][3] / height
    return left * x, top * y, min(right * x, image.width), min(bottom * y, image.height)


def encode(image: Image.Image, format: str, *, quality: int | None, background: tuple[int, ...]) -> bytes:
    """Return the file of an image; a quality of None is the format's default."""
    options: dict[str, Any] = {}
    if format == "JPEG":
        if image.mode in {"LA", "RGBA"}:
            image = image.convert("RGBA")
            canvas = Image.new("RGB", image.size, background)
            canvas.paste(image, mask=image)
            image = canvas
        options = {"quality": quality or 80, "optimize": True, "progressive": True}
    elif format == "PNG":
        # A third of the time of the default level for 7 % more bytes.
        options = {"compress_level": 3}
    elif format == "WEBP":
        options = {"quality": quality or 80, "method": 4}
    elif format == "AVIF":
        options = {"quality": quality or 63, "speed": 8, "max_threads": 1}
    elif format == "TIFF":
        options = {"compression": "tiff_adobe_deflate"}
    elif image.mode == "LA":
        # Pillow's GIF writer drops the transparency of grey images.
        image = image.convert("RGBA")
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _sniff(data: bytes) -> str | None:
    """Tell the format by its first bytes: names lie, and Pillow would try decoders that nobody asked for."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        end = min(int.from_bytes(data[:4], "big"), 256)
        if any(data[at : at + 4] in {b"avif", b"avis"} for at in range(8, end, 4)):
            return "AVIF"
    return None


@contextlib.contextmanager
def _damage(key: str) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            # Odd metadata is no reason to refuse pixels; too many pixels are, at half of what Pillow refuses.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageRejected("too_large", f"{key!r} has too many pixels: send a smaller image.") from None
    except OSError as error:
        # Only the operating system sets errno; decoders raise OSError without.
        if error.errno is not None:
            raise translate(error, key) from error
        raise _corrupt(key, error) from error
    except DAMAGE as error:
        raise _corrupt(key, error) from error


def _corrupt(key: str, error: Exception) -> ImageRejected:
    reason = "unreadable header" if isinstance(error, UnidentifiedImageError) else str(error)[:200]
    return ImageRejected("corrupt", f"{key!r} is damaged or incomplete ({reason}): upload it again.")


def _frames(image: Image.Image, data: bytes) -> int:
    if image.format != "TIFF":
        return getattr(image, "n_frames", 1)
    # Counting pages reads them all: a damaged second page must not spoil the first.
    with contextlib.suppress(OSError, *DAMAGE), Image.open(io.BytesIO(data), formats=("TIFF",)) as pages:
        return getattr(pages, "n_frames", 1)
    return 1


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG)
    except (OSError, *DAMAGE):
        return 1
    return value if isinstance(value, int) and value in TRANSPOSE else 1
