"""Resizes one image: upright, in sRGB, in a format that can hold it, at bounded cost, written whole or not at all."""

from __future__ import annotations

import contextlib
import functools
import io
import struct
import time
import warnings
import zlib
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, TypedDict

# Pillow loads plugins when it first needs them: here they are loaded before the pool forks, once for all children.
from PIL import (
    AvifImagePlugin,
    GifImagePlugin,
    Image,
    ImageCms,
    ImageColor,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from queues.errors import PermanentError, TransientError
from workers.storage import translate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from workers.storage import Storage

_PLUGINS = (GifImagePlugin, JpegImagePlugin, MpoImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin)
Image.preinit()
# Every child of the pool decodes: a thread per core in each would only make them wait for one another.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1

_EXTENSIONS = {
    ".avif": "AVIF",
    ".gif": "GIF",
    ".jfif": "JPEG",
    ".jpe": "JPEG",
    ".jpeg": "JPEG",
    ".jpg": "JPEG",
    ".png": "PNG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}
_SUFFIXES = {"AVIF": ".avif", "GIF": ".gif", "JPEG": ".jpg", "PNG": ".png", "TIFF": ".tiff", "WEBP": ".webp"}
_MODES = ("fit", "fill", "stretch")
_TRANSPOSE = {
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
_DAMAGE = (
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

#: WebP cannot hold a longer side, and no screen needs one.
MAX_SIDE = 16_383


class ImageRejected(PermanentError):  # noqa: N818 - named for what happened to the image
    """An image or an argument that can never work.

    Codes: ``not_found``, ``unsupported_format``, ``corrupt``, ``too_large``, ``bad_argument``, ``forbidden_path``.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one image may cost. Pillow needs 4 to 6 bytes a pixel for most formats, 9 to 15 for AVIF and WebP."""

    file_bytes: int = 64 * 1024 * 1024
    pixels: int = 50_000_000
    pixels_costly: int = 25_000_000

    def of(self, format: str) -> int:  # noqa: A002 - the word of Pillow and of the task
        """Return the largest number of pixels of a format."""
        return self.pixels_costly if format in {"AVIF", "WEBP"} else self.pixels


DEFAULT_LIMITS = Limits()


class Source(TypedDict):
    """The image as it was given; width and height as a viewer shows it."""

    format: str
    width: int
    height: int
    bytes: int
    orientation: int
    frames: int


class ImageResult(TypedDict):
    """What ``process_image`` returns: plain JSON values."""

    status: str
    path: str
    format: str
    width: int
    height: int
    bytes: int
    frames: int
    source: Source
    elapsed_ms: dict[str, float]


def process_image(
    storage: Storage,
    image_path: str,
    size: int | Sequence[int] = (800, 600),
    *,
    mode: str = "fit",
    output: str | None = None,
    format: str | None = None,  # noqa: A002 - the task's parameter is named so
    quality: int | None = None,
    background: str = "#ffffff",
    upscale: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> ImageResult:
    """Resize an image and store the result; of an animation, the first frame.

    Args:
        storage: Where source and result live.
        image_path: Key of the source.
        size: ``[width, height]`` of the box, 0 for "whatever the shape gives"; one number is a square box.
        mode: ``fit`` keeps the whole image inside the box; ``fill`` covers the box and cuts what is over, evenly;
            ``stretch`` gives up the image's shape for the box's.
        output: Key of the result; ``processed_<name>`` beside the source unless given.
        format: Format of the result; by the result's name unless given, else the source's.
        quality: 1 to 100 for JPEG, WebP and AVIF; lossless formats ignore it.
        background: Colour under transparent parts where the format has no transparency.
        upscale: Let the result have more pixels than the source; otherwise the box shrinks, keeping its shape.
        limits: What one image may cost.

    Raises:
        ImageRejected: The image or an argument can never work.
        TransientError: The storage (``storage``) or the memory (``memory``) failed.
    """
    try:
        return _process(storage, image_path, size, mode, output, format, quality, background, upscale, limits)
    except ImageRejected:
        raise
    except PermanentError as error:
        raise ImageRejected(error.code, error.message) from error
    except MemoryError:
        raise TransientError(
            "memory", f"Memory ran out at {image_path!r}: raise the worker's memory limit or lower the pixel limits."
        ) from None
