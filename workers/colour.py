"""Colours: modes that can be resized, sRGB, and what lies under and around an image."""

from __future__ import annotations

import contextlib
import functools
import io

from PIL import Image, ImageCms, PngImagePlugin

from workers.imagesource import DAMAGE
from workers.imagespec import ImageRejected

_ALPHA = ("LA", "RGBA")
#: Bytes of a profile that Pillow still reads from a PNG.
_MOST_PNG_PROFILE = PngImagePlugin.MAX_TEXT_CHUNK


def resizable(image: Image.Image, key: str) -> Image.Image:
    """Return the image in a mode whose pixels may be mixed, with alpha where parts of it are transparent.

    Raises:
        ImageRejected: ``unsupported_format``.
    """
    transparent = image.has_transparency_data
    if image.mode.startswith("I;16"):
        # Conversion alone would clip every value above 255 to white.
        deep = image if image.mode == "I;16" else image.convert("I")
        return deep.point(lambda value: value * (1 / 257) + 0.5).convert("L")
    if image.mode in {"1", "L"}:
        return _converted(image, "LA" if transparent else "L")
    if image.mode in {"P", "PA", "RGB", "RGBX", "YCbCr", "RGBa"}:
        return _converted(image, "RGBA" if transparent else "RGB")
    if image.mode in {"CMYK", "LA", "RGBA"}:
        return image
    raise ImageRejected(
        "unsupported_format", f"{key!r} holds {image.mode} pixels: convert it to 8 or 16 bits of grey, RGB or CMYK."
    )


def srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return the image in sRGB; a profile that is broken or made for another colour model changes nothing."""
    if profile:
        with contextlib.suppress(ImageCms.PyCMSError, OSError, *DAMAGE):
            if image.mode in {"L", "LA"}:
                grey = image.getchannel("L")
                grey = (ImageCms.applyTransform(grey, _transform(profile, "L", "RGB")) or grey).convert("L")
                image = Image.merge("LA", [grey, image.getchannel("A")]) if image.mode == "LA" else grey
            else:
                mode = "RGB" if image.mode == "CMYK" else image.mode
                image = ImageCms.applyTransform(image, _transform(profile, image.mode, mode)) or image
    return image.convert("RGB") if image.mode == "CMYK" else image


def holds_profile(image: Image.Image, profile: bytes | None, format: str) -> bool:
    """Tell whether a format can hold the image's colours as they are, with a profile of their own."""
    if profile and (_opened(profile) is None or (format == "PNG" and len(profile) > _MOST_PNG_PROFILE)):
        return False
    return format in {"JPEG", "TIFF"} if image.mode == "CMYK" else format != "GIF"


def profile_name(profile: bytes | None) -> str | None:
    """Return what a profile calls itself; None where there is none, or it is broken."""
    opened = _opened(profile) if profile else None
    if opened is None:
        return None
    with contextlib.suppress(ImageCms.PyCMSError, OSError, *DAMAGE):
        return ImageCms.getProfileDescription(opened).strip() or None
    return None


def without_idle_alpha(image: Image.Image) -> Image.Image:
    """Return the image without alpha where that hides nothing."""
    if image.mode in _ALPHA and image.getchannel("A").getextrema()[0] == 255:
        return image.convert(image.mode[:-1])
    return image


def flattened(image: Image.Image, background: tuple[int, int, int, int]) -> Image.Image:
    """Return the image without alpha, on a background of which alpha is ignored."""
    if image.mode not in _ALPHA:
        return image
    canvas = Image.new("RGB", image.size, background[:3])
    image = _converted(image, "RGBA")
    canvas.paste(image, mask=image)
    return canvas


def padded(
    image: Image.Image, canvas: tuple[int, int], offset: tuple[int, int], background: tuple[int, int, int, int]
) -> Image.Image:
    """Return the image on a larger canvas; the image's own transparency stays."""
    if canvas == image.size:
        return image
    red, green, blue, alpha = background
    colour: tuple[int, ...] = background
    if image.mode == "CMYK":
        colour = Image.new("RGB", (1, 1), background[:3]).convert("CMYK").getpixel((0, 0))  # type: ignore[assignment]
    elif image.mode in _ALPHA or alpha < 255:
        image = _converted(image, "RGBA")
    elif image.mode == "L" and red == green == blue:
        colour = (red,)
    else:
        image, colour = _converted(image, "RGB"), (red, green, blue)
    result = Image.new(image.mode, canvas, colour if len(colour) > 1 else colour[0])
    result.paste(image, offset)
    return result


def _converted(image: Image.Image, mode: str) -> Image.Image:
    # convert() to the same mode is a copy.
    return image if image.mode == mode and "transparency" not in image.info else image.convert(mode)


def _opened(profile: bytes) -> ImageCms.ImageCmsProfile | None:
    with contextlib.suppress(ImageCms.PyCMSError, OSError, *DAMAGE):
        return ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return None


@functools.lru_cache(maxsize=16)
def _transform(profile: bytes, source: str, target: str) -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        source,
        target,
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
