"""The image worker against the guide's task, Pillow's `thumbnail()` and libvips, on photographs that Debian ships.

Run by `make bench-image`. All contenders run in turn, each in a process of its own; figures are CPU time, since the
machine may be doing other work, as the median of the rounds with quartiles. Raw figures go to `results/image.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
import venv
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from PIL import Image

from tests.benchmarks.image_broker import end_to_end
from tests.benchmarks.image_photos import KINDS, photographs
from tests.unit.image.pictures import psnr

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results" / "image.json"
CONTENDERS = ("guide", "thumbnail", "pyvips", "warren")
SIZES = ((800, 600), (256, 256))
LADDER = [1600, 800, 400, 200, 100]
LADDERS: dict[str, dict[str, Any]] = {
    "five": {"renditions": LADDER, "output": "ladder/", "format": "jpeg"},
    "largest": {},
}
END_TO_END = (("12", "jpeg"), ("24", "jpeg"), ("12", "webp"))
#: What the issue asks for: CPU time of the guide's task over ours, by kind and box, JPEG out.
ASKED_GUIDE = {
    ("12", "jpeg", 800): 3.5,
    ("12", "jpeg", 256): 5.0,
    **{(megapixels, "progressive", side): 1.6 for megapixels in ("12", "24") for side in (800, 256)},
    **{(mp, kind, side): 1.2 for mp in ("12", "24") for kind in ("png", "webp", "avif") for side in (800, 256)},
}
ASKED_VIPS = {
    **{(megapixels, "jpeg", side): 0.97 for megapixels in ("12", "24") for side in (800, 256)},
    **{(megapixels, "avif", side): 2.5 for megapixels in ("12", "24") for side in (800, 256)},
}


class Contender:
    """A contender's process."""

    def __init__(self, name: str, python: Path, folder: Path) -> None:
        self._process = subprocess.Popen(
            [python, Path(__file__).with_name("image_contender.py"), name, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "VIPS_CONCURRENCY": "1"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        self._process.communicate()

    def run(
        self, source: str, size: tuple[int, int], output: str, options: dict[str, Any] | None = None
    ) -> dict[str, float]:
        """One image: CPU and wall milliseconds, MiB."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        job = {"source": source, "size": size, "output": output, "options": options or {}}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer: dict[str, float] = json.loads(self._process.stdout.readline())
        return answer


def pyvips_python(folder: Path) -> Path:
    """An environment with libvips, apart from the project's."""
    python = folder / "pyvips" / "bin" / "python"
    if not python.exists():
        venv.create(folder / "pyvips", with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "pyvips", "pyvips-binary"], check=True)
    return python


def spread(values: list[float]) -> str:
    """The median, and the quartiles where there are enough values."""
    if len(values) < 3:
        return f"{statistics.median(values):.1f}"
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.1f} ({low:.1f} to {high:.1f})"


def speed(photos: dict[tuple[str, str], str], pythons: dict[str, Path], folder: Path, rounds: int) -> dict[str, Any]:
    """CPU milliseconds of every contender, JPEG out and, as the guide's task has it, in the source's format."""
    times: dict[str, dict[str, list[float]]] = {}
    opened = {name: Contender(name, python, folder) for name, python in pythons.items()}
    try:
        for round_number in range(rounds + 1):
            for (megapixels, kind), source in photos.items():
                for size in SIZES:
                    for suffix in dict.fromkeys((".jpg", Path(source).suffix)):
                        key = f"{megapixels} {kind} {size[0]} {suffix}"
                        for name, contender in opened.items():
                            answer = contender.run(source, size, f"out-{name}{suffix}")
                            if round_number:  # the first warms up
                                times.setdefault(key, {}).setdefault(name, []).append(answer["cpu_ms"])
                if kind in {"jpeg", "progressive"}:
                    key, warren = f"{megapixels} {kind} renditions", opened["warren"]
                    for name, options in LADDERS.items():
                        answer = warren.run(source, (LADDER[0], LADDER[0]), "largest.jpg", options)
                        if round_number:
                            times.setdefault(key, {}).setdefault(name, []).append(answer["cpu_ms"])
            print(f"round {round_number} of {rounds}, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    finally:
        for contender in opened.values():
            contender.__exit__()
    return times


def peaks(photos: dict[tuple[str, str], str], pythons: dict[str, Path], folder: Path) -> dict[str, dict[str, float]]:
    """MiB of a fresh process at most, above what it held idle, to 800x600 JPEG."""
    found: dict[str, dict[str, float]] = {}
    for (megapixels, kind), source in photos.items():
        for name, python in pythons.items():
            with Contender(name, python, folder) as contender:
                answer = contender.run(source, SIZES[0], f"out-{name}.jpg")
            found.setdefault(f"{megapixels} {kind}", {})[name] = round(answer["above_idle_mib"], 1)
    return found


def quality(photos: dict[tuple[str, str], str], pythons: dict[str, Path], folder: Path) -> dict[str, dict[str, float]]:
    """PSNR in dB to LANCZOS of all pixels, before any lossy encoding."""
    found: dict[str, dict[str, float]] = {}
    opened = {name: Contender(name, python, folder) for name, python in pythons.items()}
    try:
        for (megapixels, kind), source in photos.items():
            with Image.open(folder / source) as image:
                image.load()
                for side in (800, 600, 400, 256, 128):
                    for name, contender in opened.items():
                        contender.run(source, (side, side * image.height // image.width), f"psnr-{name}.png")
                        with Image.open(folder / f"psnr-{name}.png") as small:
                            careful = image.resize(small.size, Image.Resampling.LANCZOS)
                            key = f"{megapixels} {kind} {side}"
                            found.setdefault(key, {})[name] = round(psnr(careful, small), 1)
    finally:
        for contender in opened.values():
            contender.__exit__()
    return found


def quality_of_renditions(photos: dict[tuple[str, str], str], folder: Path) -> dict[str, dict[str, float]]:
    """PSNR in dB by width of each of several renditions, of which all but the first are made from the one before."""
    found: dict[str, dict[str, float]] = {}
    outputs = {side: f"rendition-{side}.png" for side in LADDER}
    options = {"renditions": [{"size": side, "output": output} for side, output in outputs.items()]}
    with Contender("warren", Path(sys.executable), folder) as contender:
        for (megapixels, kind), source in photos.items():
            if kind not in {"jpeg", "progressive"}:
                continue
            contender.run(source, (LADDER[0], LADDER[0]), "renditions/", options)
            decibels = found[f"{megapixels} {kind}"] = {}
            with Image.open(folder / source) as image:
                for side, output in outputs.items():
                    with Image.open(folder / output) as small:
                        careful = image.resize(small.size, Image.Resampling.LANCZOS)
                        decibels[str(side)] = round(psnr(careful, small), 1)
    return found


def verdict(ratio: float, asked: float | None) -> str:
    """A ratio, and what was asked where something was."""
    return f"{ratio:.2f}" if asked is None else f"{ratio:.2f} ({'≥' if ratio >= asked else '**<**'} {asked})"


def table(found: dict[str, Any]) -> str:
    """Markdown for docs/image.md and the issue."""
    lines = ["| source → box, JPEG out | guide | thumbnail() | pyvips | Warren | × guide | × pyvips | peak MiB | dB |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    own = ["| source → box, same format out | guide | pyvips | Warren | × guide | × pyvips |"]
    own.append("| --- | --- | --- | --- | --- | --- |")
    for key, times in found["cpu_ms"].items():
        megapixels, kind, side, *suffix = key.split()
        if side == "renditions":
            continue
        box = "800×600" if side == "800" else "256×256"
        middle = {name: statistics.median(values) for name, values in times.items()}
        guide, vips = middle["guide"] / middle["warren"], middle.get("pyvips", math.nan) / middle["warren"]
        if suffix == [".jpg"]:
            asked = (megapixels, kind, int(side))
            memory = found["peak_mib"][f"{megapixels} {kind}"]["warren"] if side == "800" else ""
            shown = [spread(times[name]) if name in times else "none" for name in CONTENDERS]
            decibels = found["psnr_db"][f"{megapixels} {kind} {side}"]["warren"]
            lines.append(
                f"| {megapixels} MP {kind} → {box} | {' | '.join(shown)} | {verdict(guide, ASKED_GUIDE.get(asked))} "
                f"| {verdict(vips, ASKED_VIPS.get(asked))} | {memory} | {decibels} |"
            )
        else:
            shown = [spread(times[name]) if name in times else "none" for name in ("guide", "pyvips", "warren")]
            own.append(f"| {megapixels} MP {kind} → {box} | {' | '.join(shown)} | {guide:.2f} | {vips:.2f} |")
    more = ["| five renditions, 1600 to 100 | largest alone | all five | ratio (asked ≤ 1.3) | dB, at least |"]
    more.append("| --- " * 5 + "|")
    for key, times in found["cpu_ms"].items():
        if key.endswith("renditions"):
            ratio = statistics.median(times["five"]) / statistics.median(times["largest"])
            megapixels, kind, _ = key.split()
            shown = [spread(times["largest"]), spread(times["five"])]
            least = min(found["renditions_db"][f"{megapixels} {kind}"].values())
            more.append(f"| {megapixels} MP {kind} | {' | '.join(shown)} | {ratio:.2f} | {least} |")
    broker = ["| end to end | | pure function | Celery alone | Warren | ratio (asked ≥ 0.92) |", "| --- " * 6 + "|"]
    for name, seen in found.get("end_to_end", {}).items():
        rates = [seen["pure"], seen["stock"], seen["warren"]]
        costs = [seen["pure_cpu_ms"]]
        for variant in ("stock", "warren"):
            parts = (seen[f"{variant}_{part}_cpu_ms"] for part in ("worker", "rabbitmq", "results"))
            costs.append([sum(each) for each in zip(*parts, strict=True)])
        ratio = statistics.median(rates[2]) / statistics.median(rates[0])
        broker.append(f"| {name} | images/s | {' | '.join(map(spread, rates))} | {ratio:.2f} |")
        ratio = statistics.median(costs[0]) / statistics.median(costs[2])
        broker.append(f"| | CPU ms an image | {' | '.join(map(spread, costs))} | {ratio:.2f} |")
    return "\n".join([*lines, "", *own, "", *more, "", *broker])


def main() -> None:
    """Measure, keep, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=ROOT / ".warren" / "bench-image", help="photographs and pyvips")
    parser.add_argument("--only", choices=("function", "broker", "table"), help="one half, or the last table again")
    options = parser.parse_args()
    folder = options.folder.resolve()
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if options.only != "table":
        folder.mkdir(parents=True, exist_ok=True)
        photos = photographs(folder)
        found |= {"at": time.strftime("%Y-%m-%d %H:%M"), "load_before": os.getloadavg(), "cores": os.cpu_count()}
        found |= {"machine": platform.machine(), "python": platform.python_version(), "pillow": version("pillow")}
    if options.only in {None, "function"}:
        pythons = {name: Path(sys.executable) for name in CONTENDERS}
        try:
            pythons["pyvips"] = pyvips_python(folder)
        except subprocess.CalledProcessError:
            print("pyvips cannot be installed here: the other contenders run without it", file=sys.stderr)
            del pythons["pyvips"]
        found["cpu_ms"] = speed(photos, pythons, folder, options.rounds)
        found["peak_mib"] = peaks(photos, pythons, folder)
        found["psnr_db"] = quality(photos, pythons, folder)
        found["renditions_db"] = quality_of_renditions(photos, folder)
    if options.only in {None, "broker"}:
        sources = {Path(name).stem: folder / name for name in (photos[each] for each in END_TO_END)}
        found["end_to_end"] = end_to_end(sources, options.rounds)
    if options.only != "table":
        found["load_after"] = os.getloadavg()
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))
    print(f"\nKinds: {', '.join(KINDS)}. CPU ms, median and quartiles of {options.rounds} rounds. Raw: {RESULTS.name}")


if __name__ == "__main__":
    main()
