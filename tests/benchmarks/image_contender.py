"""One contender of the image benchmark as a process of its own: `python image_contender.py NAME ROOT`.

Reads a JSON line `{"source", "size", "output", ...}` and answers with CPU and wall milliseconds, and MiB above what the
process held before. Imports nothing of the others, so that none profits from another's settings.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    Contender = Callable[[dict[str, Any]], Any]


def guide(root: Path) -> Contender:
    """The guide's task, to the letter."""
    from PIL import Image

    def process_image(job: dict[str, Any]) -> None:
        image: Image.Image = Image.open(root / job["source"])
        image = image.resize(tuple(job["size"]))
        image.save(root / job["output"])

    return process_image


def thumbnail(root: Path) -> Contender:
    """What Pillow's documentation says instead."""
    from PIL import Image

    def process_image(job: dict[str, Any]) -> None:
        with Image.open(root / job["source"]) as image:
            image.thumbnail(tuple(job["size"]))
            image.save(root / job["output"])

    return process_image


def pyvips(root: Path) -> Contender:
    """libvips: one thread (VIPS_CONCURRENCY), no cache."""
    import pyvips as vips  # type: ignore[import-not-found]

    vips.cache_set_max(0)

    def process_image(job: dict[str, Any]) -> None:
        width, height = job["size"]
        image = vips.Image.thumbnail(str(root / job["source"]), width, height=height, size="down")
        settings = {"Q": 75} if job["output"].endswith(".jpg") else {}
        image.write_to_file(str(root / job["output"]), **settings)

    return process_image


def warren(root: Path) -> Contender:
    """This project's, storage and all."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from workers.imaging import process_image as process
    from workers.storage import LocalStorage

    storage = LocalStorage(root)

    def process_image(job: dict[str, Any]) -> object:
        quality = 75 if job["output"].endswith(".jpg") else None
        options = {"output": job["output"], "overwrite": True, "quality": quality, **job["options"]}
        return process(storage, job["source"], job["size"], **options)

    return process_image


def memory() -> dict[str, float]:
    """MiB held now, and at most since it was last reset."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM")}


def main() -> None:
    """Answer line by line until standard input ends."""
    contender = {"guide": guide, "thumbnail": thumbnail, "pyvips": pyvips, "warren": warren}[sys.argv[1]](
        Path(sys.argv[2])
    )
    for line in sys.stdin:
        job = json.loads(line)
        idle = memory()["VmRSS"]
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        cpu, wall = time.process_time(), time.perf_counter()
        contender(job)
        answer = {
            "cpu_ms": (time.process_time() - cpu) * 1000,
            "wall_ms": (time.perf_counter() - wall) * 1000,
            "above_idle_mib": memory()["VmHWM"] - idle,
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
