"""Colours: modes that can be resized, and sRGB."""

from __future__ import annotations

import contextlib
import functools
import io

from PIL import Image, ImageCms

from workers.codec import DAMAGE
from workers.imagespec import ImageRejected


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
        return image.convert("LA" if transparent else "L")
    if image.mode in {"P", "PA", "RGB", "RGBX", "YCbCr", "RGBa"}:
        return image.convert("RGBA" if transparent else "RGB")
    if image.mode in {"CMYK", "LA", "RGBA"}:
        return image
    raise ImageRejected(
        "unsupported_format", f"{key!r} holds {image.mode} pixels: convert it to 8 or 16 bits of grey, RGB or CMYK."
    )


def srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return the image in sRGB, without alpha that hides nothing and without the source's metadata."""
    if profile:
        # A profile that is broken or made for another colour model leaves the pixels as they are.
        with contextlib.suppress(ImageCms.PyCMSError, OSError, *DAMAGE):
            if image.mode in {"L", "LA"}:
                grey = image.getchannel("L")
                grey = (ImageCms.applyTransform(grey, _transform(profile, "L", "RGB")) or grey).convert("L")
                image = Image.merge("LA", [grey, image.getchannel("A")]) if image.mode == "LA" else grey
            else:
                mode = "RGB" if image.mode == "CMYK" else image.mode
                image = ImageCms.applyTransform(image, _transform(profile, image.mode, mode)) or image
    if image.mode == "CMYK":
        image = image.convert("RGB")
    if image.mode in {"LA", "RGBA"} and image.getchannel("A").getextrema()[0] == 255:
        image = image.convert(image.mode[:-1])
    image.info.clear()
    return image


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
