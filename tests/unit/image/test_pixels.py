"""How near quick results are to LANCZOS over all pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from PIL import Image, ImageDraw, ImageFont

from tests.unit.image.pictures import PHOTOS, psnr
from workers.imagepixels import Pixels
from workers.imageplan import Plan

if TYPE_CHECKING:
    from workers.imageplan import Box

WHOLE: Box = (0, 0, 1400, 1050)
#: Where pairs of columns are exactly the result's.
PAIRS = (700, 525)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    with Image.open(PHOTOS / "mountains.webp") as image:
        return image.convert("RGB").resize((1400, 1050), Image.Resampling.BICUBIC)


# The photograph is sharp to the last pixel: pairs of columns, which large results of half the size are made from, show
# more there than in one from a camera.
@pytest.mark.parametrize(
    "wanted",
    [
        # Each half of the one before: pairs of columns, then bicubic, then small ones.
        [((1400, 1050), WHOLE), ((700, 525), WHOLE), ((350, 263), WHOLE), ((175, 131), WHOLE), ((88, 66), WHOLE)],
        # Not quite half: pairs would lie between the result's columns.
        [((1400, 1050), WHOLE), ((699, 524), WHOLE), ((349, 262), WHOLE)],
        [((1400, 1050), WHOLE), ((690, 518), WHOLE), ((525, 394), WHOLE), ((240, 180), WHOLE)],
        # Half, of a part that begins between two pairs.
        [((1400, 1050), WHOLE), ((500, 525), (1, 0, 1001, 1050)), ((625, 525), (75, 0, 1325, 1050))],
        [
            ((1250, 1000), (75, 25, 1325, 1025)),
            ((600, 500), (100, 25, 1300, 1025)),
            ((601, 500), (101, 25, 1303, 1025)),
        ],
    ],
)
def test_results_made_from_results_are_near_careful_ones(
    photo: Image.Image, wanted: list[tuple[tuple[int, int], Box]]
) -> None:
    decoded = pixels = Pixels(photo, (1, 1), photo=True)
    for size, box in wanted:
        stored = Plan(size, box, size, (0, 0))
        pixels = (pixels if pixels.enough_for(stored) else decoded).resized(stored)
        careful = photo.resize(size, Image.Resampling.LANCZOS, box=box)
        assert psnr(careful, pixels.image) > (43.5 if size == PAIRS else 45), (size, box)


def test_only_what_is_large_enough_serves_for_another(photo: Image.Image) -> None:
    half = Pixels(photo, (1, 1)).resized(Plan((700, 525), WHOLE, (700, 525), (0, 0)))
    assert half.enough_for(Plan((560, 420), WHOLE, (560, 420), (0, 0)))
    assert not half.enough_for(Plan((570, 427), WHOLE, (570, 427), (0, 0)))
    left = Pixels(photo, (1, 1)).resized(Plan((350, 525), (0, 0, 700, 1050), (350, 525), (0, 0)))
    assert not left.enough_for(Plan((100, 75), WHOLE, (100, 75), (0, 0)))


@pytest.mark.parametrize(("photo_like", "least"), [(False, 33), (True, 24)])
def test_only_of_photographs_pairs_of_columns_are_averaged(*, photo_like: bool, least: int) -> None:
    """Small type at half its size: bicubic from another result."""
    page = Image.new("RGB", (1600, 1200), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for y in range(0, 1200, 16):
        draw.text((5, y), "The quick brown fox jumps over the lazy dog 0123456789 " * 6, fill="black", font=font)
    whole = (0, 0, 1600, 1200)
    pixels = Pixels(page, (1, 1), photo=photo_like)
    for size in ((1600, 1200), (800, 600)):
        pixels = pixels.resized(Plan(size, whole, size, (0, 0)))
    careful = page.resize((800, 600), Image.Resampling.LANCZOS)
    assert least < psnr(careful, pixels.image) < least + 3


def test_what_no_decoder_scaled_is_resized_by_lanczos(photo: Image.Image) -> None:
    half = Pixels(photo, (1, 1)).resized(Plan((700, 525), WHOLE, (700, 525), (0, 0)))
    assert half.image.tobytes() == photo.resize((700, 525), Image.Resampling.LANCZOS).tobytes()
