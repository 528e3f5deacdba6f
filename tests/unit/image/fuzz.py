"""Mutated image files against the image worker's code, in forked processes as the worker's pool has them.

    python -m tests.unit.image.fuzz --files 5000 --seed 1

The same seed makes the same files. A process that dies, a file outside the root, a half file, an error without a stable
code: each is a failure, and the file that did it is kept in `.warren/fuzz-failures`.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from queues.errors import TransientError
from tests.unit.image.corpus import GOOD, PNG, corpus
from workers.imaging import ImageRejected, process_image
from workers.storage import LocalStorage

if TYPE_CHECKING:
    from collections.abc import Iterator

CODES = frozenset({"not_found", "unsupported_format", "corrupt", "too_large", "bad_argument", "forbidden_path"})
#: Seconds that one file may take; on its own it takes milliseconds.
PATIENCE = 30
#: Files of one process; the worker replaces its own as well.
BATCH = 100
#: Numbers at which programs break.
EDGES = (
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\0\0\0\1",
    b"\1\0\0\0",
)


def mutated(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """One to eight changes of different kinds; most near the start, where headers are."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        if not changed:
            break
        reach = len(changed) if chance.random() < 0.5 else min(len(changed), 200)
        at, length = chance.randrange(reach), chance.choice((1, 2, 4, 16, 300))
        # Flips and edges get past the first check more often than cuts do.
        kind = chance.choice((0, 0, 0, 0, 1, 2, 2, 2, 3, 4, 5, 6, 7))
        if kind == 0:
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            changed[at : at + length] = chance.randbytes(length)
        elif kind == 2:
            edge = chance.choice(EDGES)
            changed[at : at + len(edge)] = edge
        elif kind == 3:
            del changed[at : at + length]
        elif kind == 4:
            changed[at:at] = changed[at : at + length] * chance.choice((1, 1, 30))
        elif kind == 5:
            other = chance.choice(others)
            start = chance.randrange(len(other))
            changed[at : at + length] = other[start : start + length]
        elif kind == 6:
            del changed[at + 1 :]
        else:
            other = chance.choice(others)
            changed[at:] = other[chance.randrange(len(other)) :]
    # With a wrong checksum nothing of a PNG is looked at.
    return with_checksums(changed) if chance.random() < 0.7 else bytes(changed)


def with_checksums(data: bytearray) -> bytes:
    """A PNG whose chunks have the checksums that belong to them; anything else as it is."""
    at = len(PNG)
    while data.startswith(PNG) and at + 8 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 <= len(data):
            data[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(data)


def files(count: int, seed: int) -> Iterator[tuple[int, bytes, dict[str, Any]]]:
    """Each file with the arguments that it is to be processed with."""
    chance = random.Random(seed)
    cases = [case for case in corpus() if 0 < len(case.data) < 100_000]
    good = [case.data for case in cases if case.outcome == GOOD]
    everything = [case.data for case in cases]
    for number in range(count):
        data = mutated(chance.choice(good if chance.random() < 0.8 else everything), everything, chance)
        keywords = {
            "mode": chance.choice(("fit", "fill", "pad", "stretch")),
            "format": chance.choice((None, "jpeg", "png", "webp", "gif", "avif")),
            "animated": chance.choice(("first", "first", "all")),
            "keep_metadata": chance.choice(("none", "copyright", "all")),
            "color": chance.choice(("srgb", "keep")),
            "upscale": chance.random() < 0.2,
            "renditions": chance.choice((None, None, [40, [20, 0]])),
        }
        yield number, data, keywords


def outcome(root: Path, data: bytes, keywords: dict[str, Any]) -> str:
    """Process one file and look at what is there afterwards; a text with a colon is a failure."""
    (root / "file").write_bytes(data)
    found, results = "", []
    try:
        made = process_image(LocalStorage(root), "file", 48, output="results/", **keywords)
        found = "success"
        results = [one["path"] for one in made.get("renditions", [made])]
    except ImageRejected as error:
        found = error.code if error.code in CODES else f"code: {error.code}"
    except TransientError as error:
        found = f"transient: {error}"
    except Exception as error:  # noqa: BLE001 - what it is, is what is looked for
        found = f"exception: {type(error).__name__}: {error}"
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_dir() or name == "file":
            continue
        if name not in results:
            found = f"left over: {name} after {found}"
        else:
            try:
                with Image.open(path) as image:
                    image.load()
            except Exception as error:  # noqa: BLE001 - whatever it is, the result is no image
                found = f"half a file: {name}: {error}"
        path.unlink()
    (root / "file").unlink()
    return found


def batch(root: Path, work: list[tuple[int, bytes, dict[str, Any]]], report: int) -> None:
    """What a child does: a line for each file, before and after."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # libtiff speaks to standard error of each of them.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    with os.fdopen(report, "w", buffering=1) as lines:
        for number, data, keywords in work:
            lines.write(json.dumps([number, None]) + "\n")
            signal.alarm(PATIENCE)
            found = outcome(root, data, keywords)
            signal.alarm(0)
            lines.write(json.dumps([number, found]) + "\n")


def run(work: list[tuple[int, bytes, dict[str, Any]]], root: Path) -> tuple[dict[int, str], int]:
    """Process a batch in a child, and in another one what follows a file that killed it.

    Returns:
        What became of each file by its number, and the memory of the largest child in KiB.
    """
    outcomes: dict[int, str] = {}
    peak = 0
    while work:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            try:
                batch(root, work, writing)
                os._exit(0)
            finally:
                os._exit(1)
        os.close(writing)
        current = work[0][0]
        with os.fdopen(reading) as lines:
            for line in lines:
                current, found = json.loads(line)
                if found is not None:
                    outcomes[current] = found
        _, status, usage = os.wait4(child, 0)
        peak = max(peak, usage.ru_maxrss)
        if status:
            signalled = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            name = signal.Signals(signalled).name if signalled else f"exit {os.waitstatus_to_exitcode(status)}"
            outcomes[current] = f"death: {name}"
        work = [item for item in work if item[0] not in outcomes]
    return outcomes, peak


def main() -> int:
    """Run and tell; 0 where nothing failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where to write the counts")
    options = parser.parse_args()
    counts: collections.Counter[str] = collections.Counter()
    failures: dict[int, str] = {}
    peak, started = 0, time.monotonic()
    work: list[tuple[int, bytes, dict[str, Any]]] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        root.mkdir()
        for item in [*files(options.files, options.seed), None]:
            if item is not None:
                work.append(item)
            if len(work) == BATCH or item is None:
                found, used = run(work, root)
                peak = max(peak, used)
                for number, data, keywords in work:
                    counts[found[number].partition(":")[0]] += 1
                    if ":" in found[number]:
                        failures[number] = found[number]
                        kept = Path(".warren/fuzz-failures")
                        kept.mkdir(parents=True, exist_ok=True)
                        (kept / f"{options.seed}-{number}").write_bytes(data)
                        print(f"file {number}: {found[number]} with {keywords}")
                work = []
        outside = [path.name for path in Path(folder).iterdir() if path.name != "root"]
    took = time.monotonic() - started
    summary = {
        "files": options.files,
        "seed": options.seed,
        "outcomes": dict(sorted(counts.items())),
        "outside_the_root": outside,
        "failures": failures,
        "seconds": round(took, 1),
        "largest_process_mib": round(peak / 1024),
    }
    print(json.dumps(summary, indent=1))
    if options.json:
        options.json.write_text(json.dumps(summary, indent=1) + "\n")
    return 1 if failures or outside else 0


if __name__ == "__main__":
    sys.exit(main())
