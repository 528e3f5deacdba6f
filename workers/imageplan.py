"""The geometry of one result: how large it is, which part of the source it shows, and where."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workers.imagespec import ImageSpec

    #: Left, top, right and bottom of a part of an image.
    Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of a source of known size.

    Attributes:
        size: Width and height of the resized part.
        box: The part of the source that is resized.
        canvas: Width and height of the result.
        offset: Where the resized part lies in the result.
    """

    size: tuple[int, int]
    box: Box
    canvas: tuple[int, int]
    offset: tuple[int, int]

    @property
    def scale(self) -> float:
        """Pixels of the result for each of the source, the larger of across and down."""
        left, top, right, bottom = self.box
        return max(self.size[0] / (right - left), self.size[1] / (bottom - top))

    @property
    def pixels(self) -> int:
        """Pixels of the result, those outside the image included."""
        return self.canvas[0] * self.canvas[1]

    def as_stored(self, turn: int, width: int, height: int) -> Plan:
        """Return size and box for the pixels as they are stored, before they are turned upright.

        Args:
            turn: The EXIF orientation.
            width: Of the upright source.
            height: Of the upright source.
        """
        left, top, right, bottom = self.box
        if turn in {2, 3, 7, 6}:
            left, right = width - right, width - left
        if turn in {3, 4, 7, 8}:
            top, bottom = height - bottom, height - top
        if turn >= 5:
            return replace(self, size=self.size[::-1], box=(top, left, bottom, right))
        return replace(self, box=(left, top, right, bottom))


def plan(spec: ImageSpec, width: int, height: int) -> Plan:
    """Return the geometry of a result.

    Args:
        spec: What is asked for.
        width: Of the upright source.
        height: Of the upright source.
    """
    whole = (0.0, 0.0, float(width), float(height))
    if spec.mode in {"fit", "pad"} or 0 in (spec.width, spec.height):
        scale = min(wanted / given for wanted, given in ((spec.width, width), (spec.height, height)) if wanted)
        scale = scale if spec.upscale else min(scale, 1)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        if spec.mode != "pad":
            return Plan(size, whole, size, (0, 0))
        # A side that is automatic leaves nothing to fill.
        canvas = spec.width or size[0], spec.height or size[1]
        size = min(size[0], canvas[0]), min(size[1], canvas[1])
        across, down = spec.gravity
        return Plan(size, whole, canvas, (round((canvas[0] - size[0]) * across), round((canvas[1] - size[1]) * down)))
    shrink = 1 if spec.upscale else min(1, width / spec.width, height / spec.height)
    size = max(1, round(spec.width * shrink)), max(1, round(spec.height * shrink))
    if spec.mode == "stretch":
        return Plan(size, whole, size, (0, 0))
    scale = max(size[0] / width, size[1] / height)
    left, right = _kept(width, min(width, size[0] / scale), spec.gravity[0], focal=spec.focal)
    top, bottom = _kept(height, min(height, size[1] / scale), spec.gravity[1], focal=spec.focal)
    return Plan(size, (left, top, right, bottom), size, (0, 0))


def _kept(side: float, kept: float, point: float, *, focal: bool) -> tuple[float, float]:
    """Return begin and end of the part that stays: around a focal point, or towards an edge."""
    over = side - kept
    begin = min(max(0.0, side * point - kept / 2), over) if focal else over * point
    return begin, begin + kept
