"""Resizes one image: upright, in sRGB, in a format that can hold it, at bounded cost, written whole or not at all."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypedDict

from PIL import Image

from queues.errors import PermanentError, TransientError
from workers import codec, colour
from workers.imagespec import DEFAULT_LIMITS, ImageRejected, ImageSpec, Limits
from workers.storage import translate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from workers.storage import Storage

__all__ = ["DEFAULT_LIMITS", "ImageRejected", "ImageResult", "Limits", "process_image"]


class ImageResult(TypedDict):
    """What ``process_image`` returns: plain JSON values."""

    status: str
    path: str
    format: str
    width: int
    height: int
    bytes: int
    frames: int
    source: codec.Source
    elapsed_ms: dict[str, float]


def process_image(
    storage: Storage,
    image_path: str,
    size: int | Sequence[int] = (800, 600),
    *,
    mode: str = "fit",
    output: str | None = None,
    format: str | None = None,
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
        spec = ImageSpec.parse(
            storage,
            image_path,
            size,
            mode=mode,
            output=output,
            format=format,
            quality=quality,
            background=background,
            upscale=upscale,
        )
        return _process(storage, spec, limits)
    except ImageRejected:
        raise
    except PermanentError as error:
        raise ImageRejected(error.code, error.message) from error
    except MemoryError:
        raise TransientError(
            "memory", f"Memory ran out at {image_path!r}: raise the worker's memory limit or lower the pixel limits."
        ) from None


class _Laps:
    """Milliseconds of each phase."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._phases: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self._phases[phase] = round((now - self._last) * 1000, 1)
        self._last = now

    def result(self) -> dict[str, float]:
        return {**self._phases, "total": round((self._last - self._start) * 1000, 1)}


def _process(storage: Storage, spec: ImageSpec, limits: Limits) -> ImageResult:
    laps = _Laps()
    data = _read(storage, spec.key, limits)
    laps.lap("read")
    image, source, turn = codec.open_image(data, spec.key, limits)
    profile = image.info.get("icc_profile")
    target, box = spec.plan(source["width"], source["height"])
    if target[0] * target[1] > limits.pixels:
        raise ImageRejected("too_large", f"The result would have more than {limits.pixels} pixels: ask for less.")
    if turn >= 5:
        target, box = (target[1], target[0]), (box[1], box[0], box[3], box[2])
    box = codec.load(image, target, box, spec.key)
    laps.lap("decode")
    image = colour.resizable(image, spec.key).resize(target, Image.Resampling.LANCZOS, box=box, reducing_gap=1.5)
    laps.lap("resize")
    # On the small image these cost a thirtieth of what they cost on the source.
    if turn in codec.TRANSPOSE:
        image = image.transpose(codec.TRANSPOSE[turn])
    image = colour.srgb(image, profile)
    laps.lap("colour")
    format = spec.format or source["format"]
    encoded = codec.encode(image, format, quality=spec.quality, background=spec.background)
    laps.lap("encode")
    storage.write(spec.output, encoded)
    laps.lap("write")
    return ImageResult(
        status="success",
        path=spec.output,
        format=format,
        width=image.width,
        height=image.height,
        bytes=len(encoded),
        frames=1,
        source=source,
        elapsed_ms=laps.result(),
    )


def _read(storage: Storage, key: str, limits: Limits) -> bytes:
    # All of it before decoding: what fails later is the image's fault, never the disk's.
    with storage.open_read(key) as file:
        try:
            data = file.read(limits.file_bytes + 1)
        except OSError as error:
            raise translate(error, key) from error
    if len(data) > limits.file_bytes:
        raise ImageRejected("too_large", f"{key!r} is larger than {limits.file_bytes} bytes: send a smaller file.")
    if not data:
        raise ImageRejected("corrupt", f"{key!r} is empty: upload it again, and send the task after the upload.")
    return data
