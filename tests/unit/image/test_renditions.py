"""Many results of one decoding, and results that are there already."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image, ImageChops, ImageStat

from tests.unit.image.pictures import PHOTOS, RED, assert_close, assert_upright, corners, oriented, refusal
from workers.imaging import Limits, process_image
from workers.storage import LocalStorage

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.image.pictures import Process


def test_many_results_of_one_decoding(tmp_path: Path, process: Process) -> None:
    image, exif = oriented(6)
    image.resize((900, 1200)).save(tmp_path / "phone.jpg", exif=exif, quality=95)
    result = process(
        "phone.jpg",
        [640, 640],
        output="thumbs/",
        renditions=[
            320,
            [40, 30],
            {},
            {"mode": "fill", "size": [50, 100], "gravity": "west", "format": "png"},
            {"output": "exact.webp", "size": 160, "quality": 95},
            {"mode": "pad", "size": [100, 100], "background": "black", "format": "avif"},
        ],
    )
    made = result["renditions"]
    assert [(one["width"], one["height"]) for one in made] == [
        (320, 240),
        (40, 30),
        (640, 480),
        (50, 100),
        (160, 120),
        (100, 100),
    ]
    assert [one["format"] for one in made] == ["JPEG", "JPEG", "JPEG", "PNG", "WEBP", "AVIF"]
    assert made[4]["path"] == "exact.webp"
    assert all(one["path"].startswith("thumbs/processed_phone-") for one in made if one["path"] != "exact.webp")
    assert {name: result[name] for name in made[0]} == made[0]  # type: ignore[literal-required]
    for index, one in enumerate(made):
        with Image.open(tmp_path / one["path"]) as small:
            if index == 3:
                assert_close(small.getpixel((25, 25)), RED)
            elif index == 5:
                assert_close(small.getpixel((25, 25)), RED)
                assert_close(small.getpixel((50, 5)), (0, 0, 0))
            else:
                assert_upright(small)


def test_a_rendition_looks_as_if_it_had_been_made_alone(tmp_path: Path, process: Process) -> None:
    (tmp_path / "photo.jpg").write_bytes((PHOTOS / "dandelions.jpg").read_bytes())
    sizes = [1000, 500, 400, 250, 90]
    many = process("photo.jpg", output="many/", format="png", renditions=sizes)["renditions"]
    with Image.open(tmp_path / "photo.jpg") as image:
        for one in many:
            careful = image.resize((one["width"], one["height"]), Image.Resampling.LANCZOS)
            with Image.open(tmp_path / one["path"]) as small:
                worst = ImageStat.Stat(ImageChops.difference(careful, small)).rms
            assert max(worst) < 255 / 10 ** (38 / 20), one


def test_progress_is_told(tmp_path: Path) -> None:
    seen: list[tuple[float, ...]] = []

    class Watch:
        def begin(self, megapixels: float) -> None:
            seen.append((megapixels,))

        def step(self, done: int, total: int) -> None:
            seen.append((done, total))

    corners(1000, 1000).save(tmp_path / "a.png")
    process_image(LocalStorage(tmp_path), "a.png", renditions=[1000, 500], watch=Watch())
    assert seen == [(2.25,), (1, 2), (2, 2)]


@pytest.mark.parametrize(
    "renditions",
    [
        [],
        "all",
        {"size": 3},
        [0],
        [None],
        [{"width": 3}],
        [{"raise_on_error": False}],
        [{"size": 3, "renditions": [3]}],
        [{"output": "b.png"}, {"output": "./b.png"}],
        [3] * 33,
        [{"mode": "crop"}],
    ],
)
def test_renditions_that_can_never_work(tmp_path: Path, process: Process, renditions: Any) -> None:
    corners().save(tmp_path / "a.png")
    assert refusal(process, "a.png", renditions=renditions) == "bad_argument"
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_one_output_for_several_renditions_is_refused(tmp_path: Path, process: Process) -> None:
    corners().save(tmp_path / "a.png")
    assert refusal(process, "a.png", output="b.png", renditions=[10, 20]) == "bad_argument"


def test_all_results_together_are_limited(tmp_path: Path, process: Process) -> None:
    corners(100, 100).save(tmp_path / "a.png")
    limits = Limits(total_pixels=15_000)
    assert process("a.png", renditions=[100, 50], limits=limits)["width"] == 100
    assert refusal(process, "a.png", renditions=[99, 80], limits=limits) == "too_large"


@pytest.mark.parametrize("output", [None, "thumbs/", "exact.jpg"])
def test_the_same_task_delivered_twice_is_done_once(tmp_path: Path, process: Process, output: str | None) -> None:
    corners().save(tmp_path / "a.jpg")
    first = process("a.jpg", 80, output=output)
    made = (tmp_path / first["path"]).stat()
    again = process("a.jpg", 80, output=output)
    assert (first["cached"], again["cached"]) == (False, True)
    same = ("path", "format", "width", "height", "bytes", "frames", "source", "status")
    assert [first[name] for name in same] == [again[name] for name in same]  # type: ignore[literal-required]
    assert (tmp_path / first["path"]).stat().st_mtime_ns == made.st_mtime_ns
    assert again["elapsed_ms"]["decode"] == 0
    forced = process("a.jpg", 80, output=output, overwrite=True)
    assert (forced["cached"], forced["path"]) == (False, first["path"])
    assert (tmp_path / first["path"]).stat().st_ino != made.st_ino


def test_only_what_is_missing_is_made(tmp_path: Path, process: Process) -> None:
    corners().save(tmp_path / "a.jpg")
    process("a.jpg", 80)
    made = process("a.jpg", renditions=[100, 80, 60])["renditions"]
    assert [one["cached"] for one in made] == [False, True, False]
    assert [one["width"] for one in made] == [100, 80, 60]


@pytest.mark.parametrize(
    "other",
    [
        {"size": 81},
        {"mode": "fill"},
        {"quality": 79},
        {"gravity": "north"},
        {"background": "black"},
        {"upscale": True},
        {"keep_metadata": "all"},
        {"color": "keep"},
        {"animated": "all"},
        {"format": "png", "output": None},
    ],
)
@pytest.mark.parametrize("output", ["folder/", "exact"])
def test_other_arguments_are_another_result(
    tmp_path: Path, process: Process, other: dict[str, Any], output: str
) -> None:
    corners().save(tmp_path / "a.png")
    process("a.png", 80, output=output)
    assert process("a.png", **{"size": 80, "output": output, **other})["cached"] is False


@pytest.mark.parametrize("output", [None, "exact.jpg"])
def test_another_source_is_another_result(tmp_path: Path, process: Process, output: str | None) -> None:
    corners().save(tmp_path / "a.jpg")
    process("a.jpg", 80, output=output)
    before = (tmp_path / "a.jpg").stat()
    data = bytearray((tmp_path / "a.jpg").read_bytes())
    data[-3] ^= 1
    time.sleep(0.02)  # the kernel's clock of files ticks every 4 ms
    (tmp_path / "a.jpg").write_bytes(data)
    os.utime(tmp_path / "a.jpg", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert process("a.jpg", 80, output=output)["cached"] is False


def test_somebody_elses_file_under_the_name_is_replaced(tmp_path: Path, process: Process) -> None:
    corners().save(tmp_path / "a.jpg")
    made = process("a.jpg", 80)
    (tmp_path / made["path"]).write_bytes(b"half a fi")
    again = process("a.jpg", 80)
    assert again["cached"] is False
    with Image.open(tmp_path / again["path"]) as small:
        assert_upright(small)
