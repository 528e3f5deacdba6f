"""Decoded pixels of a source, all of them or fewer, and the resizing of a part of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from workers.imageplan import Box, Plan

#: How many times the result's sides the cheap average leaves to the careful resize, by the result's pixels: the fewer
#: there are, the more of the difference shows, and the less the careful resize costs.
_GAPS = ((40_000, 3.0), (250_000, 1.45), (math.inf, 1.25))
#: How many more pixels another result must have for this one to be made from it.
_GAP_RESULTS = 1.25
#: Bicubic will do in place of LANCZOS, 46 to 52 dB of photographs for two thirds of the time, in results of so many
#: pixels made from so many times their sides: by whether those are a result, or what a decoder has already scaled.
_BICUBIC = {True: (100_000, 1.9, math.inf), False: (250_000, 1.75, 2.5)}
#: Pixels of a JPEG's results half as wide as another, whose pairs of columns are averaged before LANCZOS: 44 to 51 dB
#: of photographs for two thirds of what bicubic would take. Small type shows it: 25 dB instead of 34.
_PAIRS = 250_000
#: Parts of a pixel that calculation may lose.
_ROUNDING = 0.01


@dataclass(frozen=True, slots=True)
class Pixels:
    """Pixels of a part of the source as it is stored, before it is turned upright.

    Attributes:
        image: In a mode whose pixels may be mixed.
        scale: How many there are for each stored one, across and down.
        origin: Where the part begins, in stored pixels.
        duration: Milliseconds that they are shown, where they are a frame.
        careful: Whether they are themselves a result, and not as decoded.
        photo: Whether they come from a JPEG.
    """

    image: Image.Image
    scale: tuple[float, float]
    origin: tuple[float, float] = (0, 0)
    duration: int = 0
    careful: bool = False
    photo: bool = False

    def resized(self, stored: Plan) -> Pixels:
        """Return the part and size that a plan for stored pixels asks for."""
        left, top, right, bottom = self._box(stored)
        image = self.image
        box = max(0, left), max(0, top), min(right, image.width), min(bottom, image.height)
        pixels, gap = stored.size[0] * stored.size[1], self._gap(stored)
        kernel, reduced = Image.Resampling.LANCZOS, next(gap for most, gap in _GAPS if pixels < most)
        least, near, far = _BICUBIC[self.careful]
        aligned = box[0] % 2 == 0 and math.isclose(right - left, 2 * stored.size[0])
        if self.careful and self.photo and pixels >= _PAIRS and aligned and gap >= near:
            image, box = image.reduce((2, 1)), (box[0] / 2, box[1], box[2] / 2, box[3])
        elif (self.careful or self.scale != (1, 1)) and pixels >= least and near <= gap < far:
            kernel, reduced = Image.Resampling.BICUBIC, near
        image = image.resize(stored.size, kernel, box=box, reducing_gap=reduced)
        return replace(self, image=image, scale=_scale(stored), origin=stored.box[:2], careful=True)

    def enough_for(self, stored: Plan) -> bool:
        """Tell whether a result can be made from these pixels as well as from the source's own."""
        left, top, right, bottom = self._box(stored)
        return (
            self._gap(stored) >= _GAP_RESULTS
            and min(left, top) >= -_ROUNDING
            and right <= self.image.width + _ROUNDING
            and bottom <= self.image.height + _ROUNDING
        )

    def _gap(self, stored: Plan) -> float:
        wanted = _scale(stored)
        return min(self.scale[0] / wanted[0], self.scale[1] / wanted[1])

    def _box(self, stored: Plan) -> Box:
        (left, top, right, bottom), (across, down), (x, y) = stored.box, self.scale, self.origin
        return (left - x) * across, (top - y) * down, (right - x) * across, (bottom - y) * down


def _scale(stored: Plan) -> tuple[float, float]:
    left, top, right, bottom = stored.box
    return stored.size[0] / (right - left), stored.size[1] / (bottom - top)
