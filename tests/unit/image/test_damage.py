"""Every reason to refuse an image, and what is not the image's fault."""

from __future__ import annotations

import errno
import io
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path
from typing import BinaryIO

import pytest
from PIL import Image, PngImagePlugin

from queues.errors import TransientError
from tests.unit.image.pictures import (
    Process,
    encoded,
    noise,
    png_header,
    refusal,
)
from workers.imaging import DEFAULT_LIMITS, ImageRejected, Limits, process_image
from workers.storage import LocalStorage


@pytest.mark.parametrize(
    "data",
    [
        b"just some text",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"%PDF-1.7",
        b"8BPS\0\1",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        encoded(Image.new("RGB", (4, 4)), "BMP"),
    ],
)
def test_unsupported_format(process: Process, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(data)
    assert refusal(process, "a.jpg") == "unsupported_format"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.9])
def test_truncated(process: Process, tmp_path: Path, format: str, part: float) -> None:
    data = encoded(noise(), format)
    (tmp_path / "a").write_bytes(data[: max(16, int(len(data) * part))])
    assert refusal(process) == "corrupt"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_damaged(process: Process, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    assert refusal(process) == "corrupt"
    png = bytearray(encoded(noise(), "PNG"))
    png[len(png) // 2] ^= 0xFF
    (tmp_path / "a").write_bytes(png)
    assert refusal(process) == "corrupt"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF"])
def test_random_damage_is_refused_or_survived(process: Process, tmp_path: Path, format: str) -> None:
    generator = random.Random(format)
    data = encoded(noise((24, 16)), format)
    for _ in range(60):
        broken = bytearray(data)
        for _ in range(generator.randint(1, 6)):
            broken[generator.randrange(12, len(broken))] = generator.randrange(256)
        (tmp_path / "a").write_bytes(broken)
        try:
            process("a", 8, output="b")
        except ImageRejected as error:
            assert error.code in {"corrupt", "too_large", "unsupported_format"}


@pytest.mark.parametrize("side", [20_000, 10_000, 7_200])
def test_bombs(process: Process, tmp_path: Path, side: int) -> None:
    """400 MP: Pillow's error. 100 MP: its warning. 52 MP: our limit."""
    (tmp_path / "a").write_bytes(png_header(side, side))
    assert refusal(process) == "too_large"


def test_pillows_own_limit_is_half_of_its_default(process: Process, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(png_header(10_000, 10_000))
    assert refusal(process, limits=Limits(pixels=10**9)) == "too_large"
    assert Image.MAX_IMAGE_PIXELS == 89_478_485


def test_limits(process: Process, tmp_path: Path) -> None:
    noise((100, 100)).save(tmp_path / "a", "PNG")
    noise((100, 100)).save(tmp_path / "w", "WEBP")
    assert refusal(process, limits=Limits(file_bytes=1000)) == "too_large"
    assert refusal(process, limits=Limits(pixels=9_999)) == "too_large"
    assert refusal(process, "w", limits=Limits(pixels_costly=9_999)) == "too_large"
    assert refusal(process, size=200, upscale=True, limits=Limits(pixels=39_999)) == "too_large"
    assert process("a", size=200, upscale=True, limits=Limits(pixels=40_000))["width"] == 200
    assert DEFAULT_LIMITS.of("WEBP") < DEFAULT_LIMITS.of("JPEG")


class FailingStorage(LocalStorage):
    """A disk that fails while it is read."""

    def open_read(self, key: str) -> BinaryIO:
        class Broken(io.BytesIO):
            def read(self, _size: int | None = -1, /) -> bytes:
                raise OSError(errno.EIO, "Input/output error")

        self.key(key)
        return Broken()


def test_failing_disk_is_transient(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(TransientError) as caught:
        process_image(FailingStorage(tmp_path), "a.jpg")
    assert caught.value.code == "storage"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ESTALE])
def test_error_with_errno_while_decoding_is_transient(
    process: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(_image: object) -> None:
        raise OSError(number, os.strerror(number))

    noise().save(tmp_path / "a.png")
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(TransientError) as caught:
        process("a.png")
    assert caught.value.code == "storage"


def test_no_memory_is_transient(process: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object, **_keywords: object) -> None:
        raise MemoryError

    noise().save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "resize", fail)
    with pytest.raises(TransientError) as caught:
        process("a.png")
    assert caught.value.code == "memory"


def test_time_limit_is_not_mistaken_for_damage(
    process: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SoftTimeLimitExceeded(Exception):
        """Derives from Exception, as Celery's does."""

    def fail(_image: object) -> None:
        raise SoftTimeLimitExceeded

    noise().save(tmp_path / "a.png")
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(SoftTimeLimitExceeded):
        process("a.png")


def test_warnings_of_the_caller_are_left_alone(process: Process, tmp_path: Path) -> None:
    noise().save(tmp_path / "a.png")
    before = list(warnings.filters)
    process("a.png")
    assert warnings.filters == before


def test_results_in_bytes_are_limited(process: Process, tmp_path: Path) -> None:
    noise((100, 100)).save(tmp_path / "a.png")
    assert refusal(process, "a.png", limits=Limits(result_bytes=10_000)) == "too_large"
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_sides_are_limited(process: Process, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(png_header(70_000, 10))
    assert refusal(process) == "too_large"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF"])
def test_memory_that_runs_out_is_no_damage(tmp_path: Path, format: str) -> None:
    """Under a limit, libwebp fails with the words that it has for damage."""
    Image.new("RGB", (3000, 3000)).save(tmp_path / "large", format)
    program = (
        "import resource, sys\n"
        "from queues.errors import TransientError\n"
        "from workers.imaging import process_image\n"
        "from workers.storage import LocalStorage\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 12_000_000,) * 2)\n"
        "try:\n"
        "    process_image(LocalStorage(sys.argv[1]), 'large', 2900)\n"
        "except TransientError as error:\n"
        "    print(error.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "memory", done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["large"]
