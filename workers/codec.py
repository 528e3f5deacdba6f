"""Encodes results: the settings of each format, and animations."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from PIL import PngImagePlugin, TiffImagePlugin

from workers import colour
from workers.imagemetadata import NOTHING, Metadata
from workers.imagespec import ANIMATED, ImageRejected

if TYPE_CHECKING:
    from PIL import Image

#: Milliseconds of a frame that says nothing, as browsers show it.
_DEFAULT_DURATION = 100
#: The transparent one of a palette's 256 colours.
_HOLE = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How a result is written.

    Attributes:
        format: Of the result.
        quality: 1 to 100; None is the format's default. Lossless formats ignore it.
        background: Under transparent parts where the format has no transparency.
        profile: ICC profile, where the colours are not sRGB.
        metadata: EXIF and XMP.
        durations: Milliseconds of each frame of an animation.
        plays: How often an animation is played; 0 is for ever.
    """

    format: str
    quality: int | None
    background: tuple[int, int, int, int]
    profile: bytes | None = None
    metadata: Metadata = NOTHING
    durations: list[int] = field(default_factory=list)
    plays: int = 0


def encode(frames: list[Image.Image], how: Encoding) -> bytes:
    """Return the file of an image, or of an animation where there are several frames and the format holds them.

    Raises:
        ImageRejected: ``too_large``: times that the format's numbers cannot hold.
    """
    frames = frames if how.format in ANIMATED else frames[:1]
    if how.format == "JPEG":
        frames = [colour.flattened(frames[0], how.background)]
    elif frames[0].mode == "CMYK" and how.format != "TIFF":
        frames = [frame.convert("RGB") for frame in frames]
    elif len(frames) > 1:
        # Frames of one file share a mode.
        mode = "RGBA" if any(frame.mode in {"LA", "RGBA"} for frame in frames) else "RGB"
        frames = [frame if frame.mode == mode else frame.convert(mode) for frame in frames]
    options = {**_settings(how), **_extras(how)}
    if len(frames) > 1:
        options |= {"save_all": True, "append_images": frames[1:], **_timing(frames, how)}
    for frame in frames:
        # Writers would take the source's metadata from here.
        frame.info.clear()
    if how.format == "GIF":
        frames = [_with_hole(frame) if frame.mode in {"LA", "RGBA"} else frame for frame in frames]
    buffer = io.BytesIO()
    try:
        frames[0].save(buffer, how.format, **options)
    except (OverflowError, ValueError, struct.error) as error:
        raise ImageRejected(
            "too_large", f"The result does not fit into a {how.format} file ({error}): ask for less, or another format."
        ) from error
    return buffer.getvalue()


def _settings(how: Encoding) -> dict[str, Any]:
    """What was chosen by measuring: docs/image.md."""
    if how.format == "JPEG":
        # Optimized tables would save 2 % of the bytes for twice the time, progressive 6 % for five times.
        return {"quality": how.quality or 80}
    if how.format == "PNG":
        # A third of the time of the default level for 7 % more bytes.
        return {"compress_level": 3}
    if how.format == "WEBP":
        return {"quality": how.quality or 80, "method": 4}
    if how.format == "AVIF":
        return {"quality": how.quality or 63, "speed": 8, "max_threads": 1}
    return {"compression": "tiff_adobe_deflate"} if how.format == "TIFF" else {}


def _extras(how: Encoding) -> dict[str, Any]:
    """Profile and metadata, as each format's writer takes them."""
    extras: dict[str, Any] = {}
    exif, xmp = how.metadata.exif, how.metadata.xmp
    if how.format == "GIF":
        return extras
    if how.profile:
        extras["icc_profile"] = how.profile
    if exif:
        extras["exif"] = exif
    if xmp and how.format == "PNG":
        texts = PngImagePlugin.PngInfo()
        texts.add_itxt("XML:com.adobe.xmp", xmp.decode(errors="replace"))
        extras["pnginfo"] = texts
    elif xmp and how.format == "TIFF":
        extras["tiffinfo"] = {TiffImagePlugin.XMP: xmp}
    elif xmp:
        extras["xmp"] = xmp
    return extras


def _timing(frames: list[Image.Image], how: Encoding) -> dict[str, Any]:
    durations = how.durations or [_DEFAULT_DURATION] * len(frames)
    if how.format == "AVIF":
        return {"duration": durations}
    if how.format == "GIF":
        # A frame with holes must not show the one before through them.
        holes = {"disposal": 2} if frames[0].mode in {"LA", "RGBA"} else {}
        repeats = {} if how.plays == 1 else {"loop": max(0, how.plays - 1)}
        return {"duration": durations, **holes, **repeats}
    return {"duration": durations, "loop": how.plays}


def _with_hole(image: Image.Image) -> Image.Image:
    """Return a palette image of which the last colour is transparent: Pillow's own has one only by chance."""
    image = image.convert("RGBA")
    palette = image.convert("RGB").quantize(_HOLE)
    palette.paste(_HOLE, mask=image.getchannel("A").point(lambda alpha: 255 if alpha < 128 else 0))
    palette.info["transparency"] = _HOLE
    return palette
