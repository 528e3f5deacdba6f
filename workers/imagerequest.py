"""What one task asks for: a source, and one result of it or several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workers.imagespec import ImageSpec, bad_argument

if TYPE_CHECKING:
    from collections.abc import Mapping

    from workers.storage import Storage

#: Results of one task.
MAX_RENDITIONS = 32
#: What a rendition may set of its own.
OPTIONS = frozenset(
    {
        "size",
        "mode",
        "output",
        "format",
        "quality",
        "gravity",
        "background",
        "upscale",
        "keep_metadata",
        "color",
        "animated",
        "overwrite",
    }
)


def parse_all(
    storage: Storage, image_path: str, renditions: Any, options: Mapping[str, Any]
) -> tuple[str, list[ImageSpec]]:
    """Return the source's key and what is to be made of it.

    Args:
        storage: Where source and results live.
        image_path: As it was given.
        renditions: None, or a list; each is a size, or an object with the options in which it differs.
        options: The task's own options, which hold for every rendition that does not set them.

    Raises:
        ImageRejected: ``bad_argument``.
        PermanentError: The storage does not take a key.
    """
    if not isinstance(image_path, str):
        raise bad_argument("image_path must be a string: a key of the storage.")
    key = storage.key(image_path)
    if renditions is None:
        return key, [ImageSpec.parse(storage, key, options)]
    if not isinstance(renditions, (list, tuple)) or not 1 <= len(renditions) <= MAX_RENDITIONS:
        raise bad_argument(f"renditions must be a list of 1 to {MAX_RENDITIONS} sizes or objects.")
    specs = []
    for rendition in renditions:
        own = rendition if isinstance(rendition, dict) else {"size": rendition}
        unknown = sorted(str(name) for name in own if name not in OPTIONS)
        if unknown:
            raise bad_argument(f"A rendition cannot set {', '.join(unknown)}: it may set {', '.join(sorted(OPTIONS))}.")
        specs.append(ImageSpec.parse(storage, key, {**options, **own}))
    outputs = [spec.output for spec in specs if spec.output is not None]
    if len(set(outputs)) < len(outputs):
        raise bad_argument("Two renditions have the same output: give each its own, or a folder, which ends in '/'.")
    return key, specs
