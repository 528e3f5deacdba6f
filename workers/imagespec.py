"""What is asked for: the arguments of one result, checked, and what it may cost."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from PIL import ImageColor

from queues.errors import PermanentError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from workers.storage import Storage

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
#: Formats that hold animations.
ANIMATED = ("AVIF", "GIF", "PNG", "WEBP")
MODES = ("fit", "fill", "pad", "stretch")
#: What is kept when there is too much, as the point across and down from 0 to 1.
GRAVITIES = {
    "center": (0.5, 0.5),
    "north": (0.5, 0.0),
    "northeast": (1.0, 0.0),
    "east": (1.0, 0.5),
    "southeast": (1.0, 1.0),
    "south": (0.5, 1.0),
    "southwest": (0.0, 1.0),
    "west": (0.0, 0.5),
    "northwest": (0.0, 0.0),
}
_CHOICES = {
    "mode": MODES,
    "keep_metadata": ("none", "copyright", "all"),
    "color": ("srgb", "keep"),
    "animated": ("first", "all"),
}

#: WebP cannot hold a longer side, and no screen needs one.
MAX_SIDE = 16_383
#: Another number whenever the same arguments give other pixels: results of an older recipe are made again.
_RECIPE = 2
#: Bytes of a file's name.
_NAME_MAX = 255


class ImageRejected(PermanentError):
    """An image or an argument that can never work.

    Codes: ``not_found``, ``unsupported_format``, ``corrupt``, ``too_large``, ``bad_argument``, ``forbidden_path``.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one task may cost. Pillow needs 4 to 6 bytes a pixel for most formats, 9 to 15 for AVIF and WebP.

    Attributes:
        file_bytes: Of the source.
        result_bytes: Of one result.
        pixels: Of a source or a result.
        pixels_costly: Of a source in a format that needs more memory.
        side: Pixels of the longer side of a source.
        frames: Of an animation, or pages.
        total_pixels: Of all frames that are decoded, and of all frames of all results.
    """

    file_bytes: int = 64 * 1024 * 1024
    result_bytes: int = 64 * 1024 * 1024
    pixels: int = 50_000_000
    pixels_costly: int = 25_000_000
    side: int = 65_535
    frames: int = 1_000
    total_pixels: int = 100_000_000

    def of(self, format: str) -> int:
        """Return the largest number of pixels of a format."""
        return self.pixels_costly if format in {"AVIF", "WEBP"} else self.pixels


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """The arguments of one result, checked.

    Attributes:
        width: Of the box; 0 is whatever the shape gives.
        height: Of the box; 0 is whatever the shape gives.
        mode: ``fit``, ``fill``, ``pad`` or ``stretch``.
        output: Key of the result, or None: its name is derived from content and arguments.
        folder: Of a derived name.
        format: Of the result; None is the source's.
        quality: 1 to 100, or the format's default.
        gravity: The point that ``fill`` keeps and ``pad`` moves to, across and down from 0 to 1.
        focal: Whether that point is one of the image, and not an edge.
        background: Red, green, blue and alpha.
        upscale: Whether the result may have more pixels than the source.
        keep_metadata: ``none``, ``copyright`` or ``all``.
        color: ``srgb`` or ``keep``.
        animated: ``first`` or ``all``.
        overwrite: Whether a stored result is made again.
    """

    width: int
    height: int
    mode: str
    output: str | None
    folder: str
    format: str | None
    quality: int | None
    gravity: tuple[float, float]
    focal: bool
    background: tuple[int, int, int, int]
    upscale: bool
    keep_metadata: str
    color: str
    animated: str
    overwrite: bool

    @classmethod
    def parse(cls, storage: Storage, key: str, options: Mapping[str, Any]) -> ImageSpec:
        """Check the arguments of one result of ``workers.imaging.process_image``, all of them given.

        Raises:
            ImageRejected: ``bad_argument``.
            PermanentError: The storage does not take a key.
        """
        for name, choices in _CHOICES.items():
            if options[name] not in choices:
                raise bad_argument(f"{name} must be one of {', '.join(choices)}.")
        for name in ("upscale", "overwrite"):
            if not isinstance(options[name], bool):
                raise bad_argument(f"{name} must be true or false.")
        quality = options["quality"]
        if quality is not None and (type(quality) is not int or not 1 <= quality <= 100):
            raise bad_argument("quality must be a whole number from 1 to 100.")
        width, height = _sides(options["size"])
        gravity, focal = _gravity(options["gravity"])
        output, folder, format = _place(storage, key, options["output"], options["format"])
        return cls(
            width=width,
            height=height,
            mode=options["mode"],
            output=output,
            folder=folder,
            format=format,
            quality=quality,
            gravity=gravity,
            focal=focal,
            background=_background(options["background"]),
            upscale=options["upscale"],
            keep_metadata=options["keep_metadata"],
            color=options["color"],
            animated=options["animated"],
            overwrite=options["overwrite"],
        )

    def fingerprint(self, key: str, version: str, format: str) -> str:
        """Return what tells a result from every other: the source's key and version, and all that makes a difference.

        Args:
            key: Of the source.
            version: Of the source's content.
            format: Of the result.
        """
        made_from = [_RECIPE, key, version, format, self.width, self.height, self.mode, self.quality, self.gravity]
        made_from += [self.focal, self.background, self.upscale, self.keep_metadata, self.color, self.animated]
        return sha256(json.dumps(made_from).encode()).hexdigest()[:16]

    def name(self, key: str, format: str, fingerprint: str) -> str:
        """Return the key of the result."""
        if self.output is not None:
            return self.output
        source = PurePosixPath(key)
        stem = source.stem if source.suffix.lower() in _EXTENSIONS else source.name
        suffix = source.suffix if _EXTENSIONS.get(source.suffix.lower()) == format else SUFFIXES[format]
        rest = f"-{self.width or ''}x{self.height or ''}-{self.mode}-{fingerprint}{suffix}"
        room = _NAME_MAX - len(f"processed_{rest}".encode())
        stem = stem.encode()[:room].decode(errors="ignore")
        return str(PurePosixPath(self.folder) / f"processed_{stem}{rest}")


def _sides(size: Any) -> tuple[int, int]:
    sides = [size, size] if isinstance(size, int) else size
    if (
        not isinstance(sides, (list, tuple))
        or len(sides) != 2
        or any(type(side) is not int or not 0 <= side <= MAX_SIDE for side in sides)
        or not any(sides)
    ):
        raise bad_argument(
            f"size must be [width, height] or one number, whole, from 0 (automatic, one side) to {MAX_SIDE}."
        )
    return sides[0], sides[1]


def _gravity(value: Any) -> tuple[tuple[float, float], bool]:
    if isinstance(value, str) and value in GRAVITIES:
        return GRAVITIES[value], False
    if (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and all(type(part) in {int, float} and 0 <= part <= 1 for part in value)
    ):
        return (float(value[0]), float(value[1])), True
    raise bad_argument(
        f"gravity must be one of {', '.join(GRAVITIES)}, or a point [x, y] of the image, each from 0 to 1."
    )


def _background(value: Any) -> tuple[int, int, int, int]:
    if value == "transparent":
        return (255, 255, 255, 0)
    try:
        colour = ImageColor.getrgb(value)
    except (ValueError, AttributeError, TypeError):
        raise bad_argument(
            "background must be a colour such as '#ffffff', '#ffffff80', 'white' or 'transparent'."
        ) from None
    red, green, blue, *alpha = (min(part, 255) for part in colour)
    return (red, green, blue, alpha[0] if alpha else 255)


def _place(storage: Storage, key: str, output: Any, format: Any) -> tuple[str | None, str, str | None]:
    """Return the key of the result or None, the folder of a derived name, and the format or None."""
    if not isinstance(output, (str, type(None))):
        raise bad_argument("output must be a string: a key of the storage, or a folder, which ends in '/'.")
    if format is not None:
        chosen = _EXTENSIONS.get(f".{format}".lower()) if isinstance(format, str) else None
        if chosen is None:
            raise bad_argument(f"format must be one of {', '.join(SUFFIXES)}.")
        format = chosen
    if output is None or output.endswith("/"):
        folder = str(PurePosixPath(key).parent) if output is None else storage.key(output)
        return None, folder, format or _EXTENSIONS.get(PurePosixPath(key).suffix.lower())
    output = storage.key(output)
    named = _EXTENSIONS.get(PurePosixPath(output).suffix.lower())
    if output == key:
        raise bad_argument("output must differ from image_path: a task may run twice, and would shrink its own result.")
    if format and named and named != format:
        raise bad_argument(f"output is named as {named} but format is {format}: leave one of them out.")
    return output, "", format or named


def bad_argument(message: str) -> ImageRejected:
    """The error of an argument that can never work; the message says what may be given."""
    return ImageRejected("bad_argument", message)
