"""Animations, pages and stereo photographs."""

from __future__ import annotations

import io
import struct
import time
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image, ImageDraw

from tests.unit.image.pictures import (
    BLUE,
    GREEN,
    RED,
    WHITE,
    assert_close,
    assert_upright,
    at,
    corners,
    encoded,
    oriented,
    refusal,
)
from workers.imaging import Limits

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.image.pictures import Process

COLOURS = (RED, GREEN, BLUE, WHITE)
DURATIONS = [100, 250, 40, 1000]
MOVING = ["GIF", "WEBP", "PNG", "AVIF"]


def moving(path: Path, format: str, mode: str = "RGB", **options: Any) -> None:
    """Four frames of known colours and durations; with alpha, a disc that moves over nothing."""
    frames = []
    for index, colour in enumerate(COLOURS):
        frame = Image.new(mode, (80, 60), colour if mode == "RGB" else (0, 0, 0, 0))
        if mode == "RGBA":
            ImageDraw.Draw(frame).ellipse((index * 20, 20, index * 20 + 19, 39), fill=(*colour, 255))
        frames.append(frame)
    extra: dict[str, Any] = {"duration": DURATIONS, **options}
    if format == "GIF" and mode == "RGBA":
        extra["disposal"] = 2
    if format == "WEBP":
        extra["lossless"] = True
    frames[0].save(path, format, save_all=True, append_images=frames[1:], **extra)


def shown(path: Path) -> list[tuple[int, Image.Image]]:
    """Each frame with its duration, as a viewer sees it."""
    with Image.open(path) as image:
        seen = []
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            image.load()
            seen.append((round(image.info.get("duration", 0)), image.convert("RGBA")))
        return seen


@pytest.mark.parametrize("source", MOVING)
@pytest.mark.parametrize("target", MOVING)
def test_every_frame_is_resized_and_shown_as_long(tmp_path: Path, process: Process, source: str, target: str) -> None:
    moving(tmp_path / "moving", source)
    result = process("moving", [40, 30], animated="all", format=target, quality=95)
    seen = shown(tmp_path / result["path"])
    assert (result["frames"], result["source"]["frames"], len(seen)) == (4, 4, 4)
    assert [duration for duration, _ in seen] == DURATIONS
    for (_, frame), colour in zip(seen, COLOURS, strict=True):
        assert frame.size == (40, 30)
        assert_close(at(frame, 20, 15), (*colour, 255), 25)


@pytest.mark.parametrize("source", MOVING)
@pytest.mark.parametrize("target", MOVING)
def test_what_is_transparent_stays_so_in_every_frame(
    tmp_path: Path, process: Process, source: str, target: str
) -> None:
    moving(tmp_path / "moving", source, "RGBA")
    result = process("moving", [40, 30], animated="all", format=target, quality=95)
    seen = shown(tmp_path / result["path"])
    assert len(seen) == 4
    for index, (_, frame) in enumerate(seen):
        alphas = [at(frame, column * 10 + 5, 15)[3] for column in range(4)]
        assert [alpha > 127 for alpha in alphas] == [column == index for column in range(4)], (index, alphas)
        assert_close(at(frame, index * 10 + 5, 15)[:3], COLOURS[index], 40)


@pytest.mark.parametrize(
    ("source", "loop", "plays"),
    [("GIF", None, 1), ("GIF", 0, 0), ("GIF", 2, 3), ("WEBP", 0, 0), ("WEBP", 3, 3), ("PNG", 0, 0), ("PNG", 2, 2)],
)
@pytest.mark.parametrize("target", ["GIF", "WEBP", "PNG"])
def test_it_is_played_as_often(
    tmp_path: Path, process: Process, source: str, loop: int | None, plays: int, target: str
) -> None:
    """GIF counts repetitions, the others count plays; 0 is for ever in all."""
    extra: dict[str, Any] = {} if loop is None else {"loop": loop}
    moving(tmp_path / "moving", source, **extra)
    with Image.open(tmp_path / process("moving", 40, animated="all", format=target)["path"]) as image:
        image.load()
        found = image.info.get("loop")
    expected = plays if target != "GIF" else None if plays == 1 else 0 if plays == 0 else plays - 1
    assert found == expected


@pytest.mark.parametrize("target", ["GIF", "WEBP", "PNG"])
def test_frames_that_look_alike_last_as_long_together(tmp_path: Path, process: Process, target: str) -> None:
    frames = [Image.new("RGB", (80, 60), colour) for colour in (RED, RED, BLUE)]
    frames[0].save(tmp_path / "moving", "WEBP", save_all=True, append_images=frames[1:], duration=[100, 200, 300])
    result = process("moving", 40, animated="all", format=target)
    seen = shown(tmp_path / result["path"])
    assert result["frames"] == len(seen)
    assert sum(duration for duration, _ in seen) == 600


def test_animation_modes_and_renditions(tmp_path: Path, process: Process) -> None:
    moving(tmp_path / "moving.gif", "GIF")
    result = process(
        "moving.gif",
        [40, 40],
        animated="all",
        renditions=[
            {"mode": "fill"},
            {"mode": "pad", "background": "black", "format": "webp"},
            {"animated": "first", "format": "jpeg"},
        ],
    )
    first, second, third = result["renditions"]
    assert [one["frames"] for one in (first, second, third)] == [4, 4, 1]
    assert shown(tmp_path / first["path"])[2][1].size == (40, 40)
    _, padded = shown(tmp_path / second["path"])[1]
    assert_close(at(padded, 20, 1)[:3], (0, 0, 0), 25)
    assert_close(at(padded, 20, 20)[:3], GREEN, 25)
    assert_close(at(shown(tmp_path / third["path"])[0][1], 20, 15)[:3], RED)


# Pillow 13.0.0 crashes when it writes an AVIF sequence with an orientation; what a worker writes has none.
@pytest.mark.parametrize("format", ["WEBP", "PNG"])
def test_animation_that_lies_on_its_side(tmp_path: Path, process: Process, format: str) -> None:
    image, exif = oriented(6)
    image.save(tmp_path / "phone", format, save_all=True, append_images=[image.rotate(180)], exif=exif)
    result = process("phone", [80, 60], animated="all")
    seen = shown(tmp_path / result["path"])
    assert [frame.size for _, frame in seen] == [(80, 60)] * 2
    assert_upright(seen[0][1])


def test_first_picture_of_a_png_that_is_no_frame(tmp_path: Path, process: Process) -> None:
    """A picture for viewers that do not know animated PNG."""
    still = Image.new("RGB", (80, 60), (0, 0, 0))
    frames = [Image.new("RGB", (80, 60), colour) for colour in (RED, BLUE)]
    still.save(tmp_path / "a.png", save_all=True, append_images=frames, default_image=True, duration=[50, 60])
    result = process("a.png", 40, animated="all")
    seen = shown(tmp_path / result["path"])
    assert result["source"]["frames"] == len(seen) == 2
    assert_close(at(seen[0][1], 9, 9)[:3], RED)
    single = process("a.png", 40)
    assert_close(at(shown(tmp_path / single["path"])[0][1], 9, 9)[:3], (0, 0, 0))


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "AVIF", "TIFF"])
def test_animation_gives_its_first_frame_and_says_so(tmp_path: Path, opened: Any, format: str) -> None:
    frames = [Image.new("RGB", (64, 64), colour) for colour in (RED, GREEN, BLUE)]
    frames[0].save(tmp_path / "moving", format, save_all=True, append_images=frames[1:])
    result, small = opened("moving", 32)
    assert_close(small.convert("RGB").getpixel((9, 9)), RED)
    assert (result["source"]["frames"], result["frames"]) == (3, 1)


def test_a_format_that_holds_one_frame_is_refused_for_all_of_an_animation(tmp_path: Path, process: Process) -> None:
    moving(tmp_path / "moving.gif", "GIF")
    assert refusal(process, "moving.gif", animated="all", format="jpeg") == "bad_argument"
    corners().save(tmp_path / "still.gif")
    assert process("still.gif", animated="all", format="jpeg")["frames"] == 1


@pytest.mark.parametrize("format", ["MPO", "TIFF"])
def test_views_and_pages_are_no_animation(tmp_path: Path, opened: Any, format: str) -> None:
    corners().save(tmp_path / "two", format, save_all=True, append_images=[Image.new("RGB", (400, 300))])
    result, small = opened("two", 80, animated="all", format="png")
    assert (result["source"]["frames"], result["frames"]) == (2, 1)
    assert_upright(small)


@pytest.mark.parametrize("format", MOVING)
def test_limits_of_frames(tmp_path: Path, process: Process, format: str) -> None:
    moving(tmp_path / "moving", format)
    assert refusal(process, "moving", limits=Limits(frames=3)) == "too_large"
    assert process("moving", limits=Limits(frames=4))["source"]["frames"] == 4
    limits = Limits(total_pixels=4 * 80 * 60)
    assert process("moving", animated="all", limits=limits)["frames"] == 4
    limits = Limits(total_pixels=4 * 80 * 60 - 1)
    assert refusal(process, "moving", size=79, animated="all", limits=limits) == "too_large"


def test_frames_are_counted_in_a_blink(tmp_path: Path, process: Process) -> None:
    """Pillow's own count of these pages takes 3 s for each 20 000, growing with the square."""
    tags = ((256, 4), (257, 4), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 4), (279, 16))
    values = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    directories = (struct.pack("<H", 9) + values + struct.pack("<I", 8 + 114 * (page + 1)) for page in range(100_000))
    (tmp_path / "pages.tif").write_bytes(b"II*\0" + struct.pack("<I", 8) + b"".join(directories))
    frame = b",\0\0\0\0\1\0\1\0\0\2\2D\1\0"
    (tmp_path / "frames.gif").write_bytes(b"GIF89a\1\0\1\0\0\0\0" + frame * 2_000_000 + b";")
    before = time.process_time()
    assert refusal(process, "frames.gif") == "too_large"
    assert refusal(process, "pages.tif") == "too_large"
    assert time.process_time() - before < 5


def test_damaged_second_page_does_not_spoil_the_first(tmp_path: Path, opened: Any) -> None:
    data = bytearray(encoded(corners(), "TIFF"))
    (directory,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, directory)
    for offset, extra in ((len(data), struct.pack("<HI", 0, 0)), (2**31, b"")):
        struct.pack_into("<I", data, directory + 2 + 12 * entries, offset)
        (tmp_path / "scan.tif").write_bytes(data + extra)
        result, small = opened("scan.tif", 80)
        assert result["source"]["frames"] == 1
        assert_upright(small)


def test_damage_in_a_later_frame(tmp_path: Path, process: Process) -> None:
    moving(tmp_path / "moving.png", "PNG")
    data = bytearray((tmp_path / "moving.png").read_bytes())
    start = data.rindex(b"fdAT") + 10
    data[start : start + 4] = b"\xff" * 4
    (tmp_path / "broken.png").write_bytes(data)
    assert refusal(process, "broken.png", animated="all") == "corrupt"
    assert process("broken.png")["frames"] == 1
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_mpo_is_a_jpeg(tmp_path: Path, opened: Any) -> None:
    corners().save(tmp_path / "stereo.jpg", "MPO", save_all=True, append_images=[corners()])
    result, small = opened("stereo.jpg", 80)
    assert (result["format"], result["source"]["format"], result["source"]["frames"]) == ("JPEG", "JPEG", 2)
    assert_upright(small)


def test_colours_of_a_real_gif(tmp_path: Path, process: Process) -> None:
    """Frames that change a part, with palettes of their own, as programs write them."""
    frames = [corners(80, 60) for _ in range(3)]
    for index, frame in enumerate(frames):
        ImageDraw.Draw(frame).rectangle((10 * index, 0, 10 * index + 9, 9), fill=(0, 0, 0))
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], optimize=True, duration=[70, 80, 90])
    (tmp_path / "a.gif").write_bytes(buffer.getvalue())
    result = process("a.gif", [80, 60], animated="all", format="webp", quality=100)
    for index, (_, frame) in enumerate(shown(tmp_path / result["path"])):
        assert_close(at(frame, 10 * index + 4, 4)[:3], (0, 0, 0), 30)
        assert_close(at(frame, 70, 50)[:3], WHITE, 30)


def test_frame_that_lasts_longer_than_a_format_can_say(tmp_path: Path, process: Process) -> None:
    moving(tmp_path / "moving.webp", "WEBP", duration=[100, 100, 100, 10_000_000])
    assert process("moving.webp", animated="all")["frames"] == 4
    assert refusal(process, "moving.webp", animated="all", format="gif") == "too_large"
