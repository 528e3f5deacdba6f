"""Modes, gravity and padding: pixels at places where a mistake would show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from tests.unit.image.pictures import BLUE, GREEN, RED, WHITE, assert_close, assert_upright, corners, oriented, refusal

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.image.pictures import Process

#: Where the red square of the target picture lies, by the gravity that keeps it.
NINE = {
    "northwest": (0, 0),
    "north": (1, 0),
    "northeast": (2, 0),
    "west": (0, 1),
    "center": (1, 1),
    "east": (2, 1),
    "southwest": (0, 2),
    "south": (1, 2),
    "southeast": (2, 2),
}


def target(column: int, row: int) -> Image.Image:
    """A blue field of nine squares, one of them red."""
    image = Image.new("RGB", (360, 360), BLUE)
    image.paste(RED, (column * 120, row * 120, column * 120 + 120, row * 120 + 120))
    return image


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("gravity", "side"), [("west", "left"), ("east", "right"), ("north", "top"), ("south", "bottom")]
)
def test_fill_keeps_the_side_that_a_viewer_sees(
    tmp_path: Path, opened: Any, orientation: int, gravity: str, side: str
) -> None:
    """However the pixels are stored."""
    image, exif = oriented(orientation)
    image.save(tmp_path / "phone.jpg", exif=exif, quality=95)
    # Half the picture is kept: the colours of that half tell which.
    box = [75, 150] if side in {"left", "right"} else [200, 75]
    _, filled = opened("phone.jpg", box, mode="fill", gravity=gravity, format="png")
    first, second = (0.25, 0.25), (0.75, 0.75)
    seen = [filled.getpixel((int(box[0] * x), int(box[1] * y))) for x, y in (first, second)]
    expected = {"left": (RED, BLUE), "right": (GREEN, WHITE), "top": (RED, GREEN), "bottom": (BLUE, WHITE)}[side]
    for pixel, colour in zip(seen, expected, strict=True):
        assert_close(pixel, colour)


@pytest.mark.parametrize("gravity", NINE)
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_nine_points_of_a_wide_and_a_tall_box(tmp_path: Path, opened: Any, gravity: str, format: str) -> None:
    column, row = NINE[gravity]
    target(column, row).save(tmp_path / "field", format, quality=95)
    _, wide = opened("field", [90, 30], mode="fill", gravity=gravity)
    assert_close(wide.convert("RGB").getpixel((15 + 30 * column, 15)), RED)
    _, tall = opened("field", [30, 90], mode="fill", gravity=gravity)
    assert_close(tall.convert("RGB").getpixel((15, 15 + 30 * row)), RED)


@pytest.mark.parametrize(("point", "expected"), [((0.5, 0.5), 0.5), ((0.9, 0.5), 0.9), ((0, 0), 0.05), ((1, 1), 0.95)])
def test_focal_point_stays_in_the_picture(
    tmp_path: Path, opened: Any, point: tuple[float, float], expected: float
) -> None:
    """A ramp from black to white: the middle of the result tells where it was cut."""
    Image.linear_gradient("L").rotate(90).resize((1000, 100)).save(tmp_path / "ramp.png")
    _, cut = opened("ramp.png", [100, 100], mode="fill", gravity=list(point))
    assert abs(cut.getpixel((50, 50)) / 255 - expected) < 0.02


@pytest.mark.parametrize("gravity", NINE)
def test_pad_puts_the_image_where_gravity_says(tmp_path: Path, opened: Any, gravity: str) -> None:
    Image.new("RGB", (100, 100), RED).save(tmp_path / "red.png")
    column, row = NINE[gravity]
    _, wide = opened("red.png", [90, 30], mode="pad", gravity=gravity, background="blue")
    assert wide.size == (90, 30)
    assert [wide.getpixel((x, 15)) for x in (15, 45, 75)] == [RED if place == column else BLUE for place in range(3)]
    _, tall = opened("red.png", [30, 90], mode="pad", gravity=gravity, background="#00f")
    assert [tall.getpixel((15, y)) for y in (15, 45, 75)] == [RED if place == row else BLUE for place in range(3)]


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.avif", "a.gif"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "CMYK"])
def test_pad_in_every_mode(tmp_path: Path, opened: Any, name: str, mode: str) -> None:
    Image.new("RGB", (60, 60), (128, 128, 128)).convert(mode).save(tmp_path / "grey.tif")
    _, small = opened("grey.tif", [90, 30], mode="pad", background="#ff8000", output=name, quality=95)
    rgb = small.convert("RGB")
    assert_close(rgb.getpixel((5, 15)), (255, 128, 0), 14)
    assert_close(rgb.getpixel((45, 15)), (128, 128, 128), 14)


def test_pad_keeps_transparency_and_may_be_transparent(tmp_path: Path, opened: Any) -> None:
    Image.new("RGBA", (60, 60), (255, 0, 0, 0)).save(tmp_path / "hole.png")
    _, white = opened("hole.png", [90, 30], mode="pad")
    assert (white.getpixel((5, 15)), white.getpixel((45, 15))[3]) == ((255, 255, 255, 255), 0)
    corners().save(tmp_path / "opaque.png")
    _, clear = opened("opaque.png", [90, 30], mode="pad", background="transparent")
    assert (clear.getpixel((5, 15))[3], clear.getpixel((45, 15))[3]) == (0, 255)
    _, half = opened("opaque.png", [90, 30], mode="pad", background="#11223380")
    assert half.getpixel((5, 15)) == (17, 34, 51, 128)
    _, flat = opened("opaque.png", [90, 30], mode="pad", background="#11223380", format="jpeg")
    assert_close(flat.getpixel((5, 15)), (17, 34, 51), 3)


@pytest.mark.parametrize(
    ("size", "keywords", "expected"),
    [
        ([800, 600], {}, (800, 600)),
        ([600, 600], {}, (600, 600)),
        ([600, 600], {"upscale": True}, (600, 600)),
        ([600, 0], {}, (600, 300)),
        ([600, 0], {"upscale": True}, (600, 450)),
    ],
)
def test_pad_does_not_enlarge_the_image(
    tmp_path: Path, opened: Any, size: list[int], keywords: dict[str, Any], expected: tuple[int, int]
) -> None:
    corners().save(tmp_path / "a.png")
    _, padded = opened("a.png", size, mode="pad", background="black", **keywords)
    assert padded.size == expected
    assert_close(padded.getpixel((padded.width // 2 - 20, padded.height // 2 - 20)), RED)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 4000), (4000, 1), (1, 65_000), (65_000, 2)])
@pytest.mark.parametrize("mode", ["fit", "fill", "pad", "stretch"])
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_narrow_sides(tmp_path: Path, opened: Any, width: int, height: int, mode: str, format: str) -> None:
    Image.new("RGB", (width, height), RED).save(tmp_path / "line", format, quality=95)
    _, small = opened("line", [60, 40], mode=mode, background="red")
    assert min(small.size) >= 1
    assert_close(small.getpixel((small.width // 2, small.height // 2)), RED)


def test_panorama(tmp_path: Path, opened: Any) -> None:
    corners(20_000, 500).save(tmp_path / "pano.jpg", quality=90)
    _, fitted = opened("pano.jpg", [800, 600])
    assert fitted.size == (800, 20)
    assert_upright(fitted)
    _, filled = opened("pano.jpg", [200, 200], mode="fill", gravity="east")
    assert_close(filled.getpixel((100, 50)), GREEN)
    _, tall = opened("pano.jpg", [0, 100])
    assert tall.size == (4000, 100)


def test_result_with_a_side_that_no_format_holds_is_refused(tmp_path: Path, process: Process) -> None:
    corners(10, 4000).save(tmp_path / "a.png")
    assert refusal(process, "a.png", size=[100, 0], upscale=True) == "too_large"
