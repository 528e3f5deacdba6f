"""What is asked for: the arguments of one resize, checked, what it may cost, and the size that comes of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from PIL import ImageColor

from queues.errors import PermanentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from workers.storage import Storage

    #: Left, top, right and bottom of a part of an image.
    Box = tuple[float, float, float, float]

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
#: The formats, each with the suffix of its files.
SUFFIXES = {"AVIF": ".avif", "GIF": ".gif", "JPEG": ".jpg", "PNG": ".png", "TIFF": ".tiff", "WEBP": ".webp"}
_MODES = ("fit", "fill", "stretch")

#: WebP cannot hold a longer side, and no screen needs one.
MAX_SIDE = 16_383


class ImageRejected(PermanentError):
    """An image or an argument that can never work.

    Codes: ``not_found``, ``unsupported_format``, ``corrupt``, ``too_large``, ``bad_argument``, ``forbidden_path``.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one image may cost. Pillow needs 4 to 6 bytes a pixel for most formats, 9 to 15 for AVIF and WebP."""

    file_bytes: int = 64 * 1024 * 1024
    pixels: int = 50_000_000
    pixels_costly: int = 25_000_000

    def of(self, format: str) -> int:
        """Return the largest number of pixels of a format."""
        return self.pixels_costly if format in {"AVIF", "WEBP"} else self.pixels


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """The arguments, checked.

    Attributes:
        key: Of the source.
        output: Key of the result.
        format: Of the result; None is the source's.
        width: Of the box; 0 is whatever the shape gives.
        height: Of the box; 0 is whatever the shape gives.
        mode: ``fit``, ``fill`` or ``stretch``.
        quality: 1 to 100, or the format's default.
        background: Under transparent parts where the format has no transparency.
        upscale: Whether the result may have more pixels than the source.
    """

    key: str
    output: str
    format: str | None
    width: int
    height: int
    mode: str
    quality: int | None
    background: tuple[int, ...]
    upscale: bool

    @classmethod
    def parse(
        cls,
        storage: Storage,
        image_path: str,
        size: int | Sequence[int],
        *,
        mode: str,
        output: str | None,
        format: str | None,
        quality: int | None,
        background: str,
        upscale: bool,
    ) -> ImageSpec:
        """Check the arguments of ``workers.imaging.process_image``.

        Raises:
            ImageRejected: ``bad_argument``.
            PermanentError: The storage does not take a key.
        """
        if not isinstance(image_path, str) or not isinstance(output, (str, type(None))):
            raise _bad("image_path and output must be strings: keys of the storage.")
        if mode not in _MODES:
            raise _bad(f"mode must be one of {', '.join(_MODES)}.")
        if quality is not None and (type(quality) is not int or not 1 <= quality <= 100):
            raise _bad("quality must be a whole number from 1 to 100.")
        if not isinstance(upscale, bool):
            raise _bad("upscale must be true or false.")
        try:
            colour = ImageColor.getrgb(background)[:3]
        except (ValueError, AttributeError, TypeError):
            raise _bad("background must be a colour such as '#ffffff' or 'white'.") from None
        width, height = _sides(size)
        key = storage.key(image_path)
        result, chosen = _result_name(key, None if output is None else storage.key(output), format)
        return cls(key, result, chosen, width, height, mode, quality, colour, upscale)

    def plan(self, width: int, height: int) -> tuple[tuple[int, int], Box]:
        """Return the size of the result and the part of the upright source that it shows."""
        if self.mode == "fit" or 0 in (self.width, self.height):
            scale = min(wanted / given for wanted, given in ((self.width, width), (self.height, height)) if wanted)
            scale = scale if self.upscale else min(scale, 1)
            return (max(1, round(width * scale)), max(1, round(height * scale))), (0, 0, width, height)
        shrink = 1 if self.upscale else min(1, width / self.width, height / self.height)
        target = (max(1, round(self.width * shrink)), max(1, round(self.height * shrink)))
        if self.mode == "stretch":
            return target, (0, 0, width, height)
        scale = max(target[0] / width, target[1] / height)
        left, top = max(0, (width - target[0] / scale) / 2), max(0, (height - target[1] / scale) / 2)
        return target, (left, top, width - left, height - top)


def _sides(size: int | Sequence[int]) -> tuple[int, int]:
    sides = [size, size] if isinstance(size, int) else size
    if (
        not isinstance(sides, (list, tuple))
        or len(sides) != 2
        or any(type(side) is not int or not 0 <= side <= MAX_SIDE for side in sides)
        or not any(sides)
    ):
        raise _bad(f"size must be [width, height] or one number, whole, from 0 (automatic, one side) to {MAX_SIDE}.")
    return sides[0], sides[1]


def _result_name(key: str, output: str | None, format: str | None) -> tuple[str, str | None]:
    if format is not None:
        chosen = _EXTENSIONS.get(f".{format}".lower()) if isinstance(format, str) else None
        if chosen is None:
            raise _bad(f"format must be one of {', '.join(SUFFIXES)}.")
        format = chosen
    path = PurePosixPath(output or key)
    named = _EXTENSIONS.get(path.suffix.lower())
    if output is None:
        path = path.with_name(f"processed_{path.name}")
        if format and named != format:
            path = path.with_suffix(SUFFIXES[format]) if named else path.with_name(path.name + SUFFIXES[format])
    elif output == key:
        raise _bad("output must differ from image_path: a task may run twice, and would shrink its own result.")
    elif format and named and named != format:
        raise _bad(f"output is named as {named} but format is {format}: leave one of them out.")
    return str(path), format or named


def _bad(message: str) -> ImageRejected:
    return ImageRejected("bad_argument", message)
