"""The image queue's task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers import imaging
from workers.settings import image_root
from workers.storage import LocalStorage
from workers.task import register

if TYPE_CHECKING:
    from collections.abc import Sequence

storage = LocalStorage(image_root())


@register("image.process_image")
def process_image(
    image_path: str,
    size: int | Sequence[int] = (800, 600),
    *,
    mode: str = "fit",
    output: str | None = None,
    format: str | None = None,
    quality: int | None = None,
    background: str = "#ffffff",
    upscale: bool = False,
    raise_on_error: bool = True,
) -> imaging.ImageResult:
    """Resize one image of the image root."""
    return imaging.process_image(
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
