"""Resizes images: upright, in sRGB, in a format that can hold them, at bounded cost, written whole or not at all."""

from __future__ import annotations

import io
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypedDict

from queues.errors import PermanentError
from workers import colour
from workers.imagerequest import parse_all
from workers.imagesource import Source, SourceImage, out_of_memory, read_whole
from workers.imagespec import DEFAULT_LIMITS, ImageRejected, Limits
from workers.imagework import Nobody, Rendition, Watch, Work

if TYPE_CHECKING:
    from collections.abc import Sequence

    from workers.storage import Storage

__all__ = [
    "DEFAULT_LIMITS",
    "ImageFacts",
    "ImageRejected",
    "ImageResult",
    "Limits",
    "Rendition",
    "Watch",
    "inspect_image",
    "process_image",
]


class _Several(TypedDict, total=False):
    renditions: list[Rendition]


class ImageResult(Rendition, _Several):
    """What ``process_image`` returns, plain JSON values; of several renditions, the first is also the result's own."""

    status: str
    source: Source
    elapsed_ms: dict[str, float]


class ImageFacts(Source):
    """What ``inspect_image`` returns."""

    status: str
    path: str
    mode: str
    transparent: bool
    animated: bool
    profile: str | None
    sha256: str


def process_image(
    storage: Storage,
    image_path: str,
    size: int | Sequence[int] = (800, 600),
    *,
    mode: str = "fit",
    output: str | None = None,
    format: str | None = None,
    quality: int | None = None,
    gravity: str | Sequence[float] = "center",
    background: str = "#ffffff",
    upscale: bool = False,
    keep_metadata: str = "none",
    color: str = "srgb",
    animated: str = "first",
    overwrite: bool = False,
    renditions: Sequence[Any] | None = None,
    limits: Limits = DEFAULT_LIMITS,
    watch: Watch | None = None,
) -> ImageResult:
    """Resize an image and store the result, or several results of one decoding.

    Args:
        storage: Where source and results live.
        image_path: Key of the source.
        size: ``[width, height]`` of the box, 0 for "whatever the shape gives"; one number is a square box.
        mode: ``fit`` keeps the whole image inside the box; ``fill`` covers the box and cuts what is over; ``pad`` is
            fit, and the rest of the box in the background's colour; ``stretch`` gives up the image's shape.
        output: Key of the result, or a folder, which ends in ``/``; beside the source unless given. Where it is no
            key, the name is derived: ``processed_<name>-<box>-<mode>-<fingerprint>.<format>``.
        format: Format of the result; by the result's name unless given, else by the source's.
        quality: 1 to 100 for JPEG, WebP and AVIF; lossless formats ignore it.
        gravity: What ``fill`` keeps and where ``pad`` puts the image: ``center``, ``north``, ``northeast`` and so on,
            or a point ``[x, y]`` of the image, from 0 to 1, that ``fill`` keeps as near to the middle as it can.
        background: Colour around a padded image, and under transparent parts where the format has no transparency.
        upscale: Let the image have more pixels than the source; otherwise the box shrinks, keeping its shape.
        keep_metadata: ``none``, ``copyright`` (EXIF artist and copyright), or ``all`` (with place and camera).
        color: ``srgb`` converts; ``keep`` writes the source's profile into the result.
        animated: ``first`` frame of an animation, or ``all`` where the format can hold them.
        overwrite: Make the result again, also where the same one is stored.
        renditions: Several results: each a size, or an object with the options above in which it differs.
        limits: What the task may cost.
        watch: Is told how the work goes.

    Raises:
        ImageRejected: The image or an argument can never work.
        TransientError: The storage (``storage``) or the memory (``memory``) failed.
    """
    options = {
        "size": size,
        "mode": mode,
        "output": output,
        "format": format,
        "quality": quality,
        "gravity": gravity,
        "background": background,
        "upscale": upscale,
        "keep_metadata": keep_metadata,
        "color": color,
        "animated": animated,
        "overwrite": overwrite,
    }
    try:
        key, specs = parse_all(storage, image_path, renditions, options)
        results, source, elapsed = Work(storage, key, specs, limits, watch or Nobody()).run()
    except ImageRejected:
        raise
    except PermanentError as error:
        raise ImageRejected(error.code, error.message) from error
    except MemoryError:
        raise out_of_memory(image_path) from None
    several: _Several = {} if renditions is None else {"renditions": results}
    return ImageResult(status="success", **results[0], source=source, elapsed_ms=elapsed, **several)


def inspect_image(storage: Storage, image_path: str, *, limits: Limits = DEFAULT_LIMITS) -> ImageFacts:
    """Tell what an image is by its headers, without decoding it: damaged pixels are not found.

    Returns:
        Facts of the source as ``process_image`` has them, and Pillow's mode of the pixels, whether parts may be
        transparent and whether it moves, the colour profile's name, and the SHA-256 of the file.

    Raises:
        ImageRejected: The image or an argument can never work.
        TransientError: The storage (``storage``) or the memory (``memory``) failed.
    """
    try:
        if not isinstance(image_path, str):
            raise ImageRejected("bad_argument", "image_path must be a string: a key of the storage.")
        key = storage.key(image_path)
        with storage.open_read(key) as file:
            data = read_whole(file, storage.stat(key).size, key, limits)
        source = SourceImage(io.BytesIO(data), len(data), key, limits)
    except ImageRejected:
        raise
    except PermanentError as error:
        raise ImageRejected(error.code, error.message) from error
    except MemoryError:
        raise out_of_memory(image_path) from None
    return ImageFacts(
        status="success",
        path=key,
        **source.facts,
        mode=source.image.mode,
        transparent=source.transparent,
        animated=source.frames > 1,
        profile=colour.profile_name(source.image.info.get("icc_profile")),
        sha256=sha256(data).hexdigest(),
    )
