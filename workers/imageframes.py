"""How many frames, pages and parts a file has, at bounded cost, and where a PNG keeps what a camera wrote.

Pillow counts by reading every frame, without an upper bound; of a TIFF with many pages in quadratic time. Of every part
of a file that is no pixels it keeps an object or more: 64 MiB of empty ones are gigabytes.
"""

from __future__ import annotations

import contextlib
import os
import struct
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from PIL import Image

#: Segments of a JPEG, chunks of a PNG or blocks of a GIF; encoders write some hundreds.
_MOST_PARTS = 100_000
#: Bytes that are looked at together.
_BLOCK = 1024 * 1024
#: EXIF is no larger in any format.
_MOST_EXIF = 64 * 1024


def count_unopened(file: BinaryIO, format: str, most: int) -> int:
    """Return the number of frames of a GIF or pages of a TIFF, else 0; one more than ``most`` is any number above.

    A GIF of too many parts has any number above, too.
    """
    if format == "GIF":
        return max(1, _gif(file, most))
    return max(1, _tiff(file, most)) if format == "TIFF" else 0


def count_opened(image: Image.Image) -> int:
    """Return the number of frames that Pillow knows without reading them: of any other format."""
    frames = int(getattr(image, "n_frames", 1))
    return frames - 1 if getattr(image, "default_image", False) else frames


def has_too_many_parts(file: BinaryIO, format: str) -> bool:
    """Tell whether a JPEG or PNG has more parts than any encoder writes."""
    start, skip = {"JPEG": (2, _skip_segment), "PNG": (8, _skip_chunk)}.get(format, (0, None))
    file.seek(start)
    return skip is not None and all(skip(file) for _ in range(_MOST_PARTS))


def jpeg_scans(file: BinaryIO) -> int:
    """Return the number of scans of a JPEG, with those of every picture in it."""
    file.seek(0)
    scans, last = 0, b""
    while block := file.read(_BLOCK):
        # Compressed data never holds the marker.
        scans += (last + block).count(b"\xff\xda")
        last = block[-1:]
    return scans


def png_exif(file: BinaryIO) -> bytes | None:
    """Return the EXIF of a PNG as JPEG has it, also where it follows the pixels."""
    file.seek(8)
    for _ in range(_MOST_PARTS):
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            return None
        length = int.from_bytes(head[:4], "big")
        if head[4:] == b"eXIf":
            return b"Exif\0\0" + file.read(length) if length <= _MOST_EXIF else None
        file.seek(length + 4, os.SEEK_CUR)
    return None


def _skip_segment(file: BinaryIO) -> bool:
    """Pass over a part of what comes before a JPEG's pixels; False where they begin, or the file ends."""
    marker = file.read(2)
    if len(marker) < 2 or marker == b"\xff\xda":
        return False
    if marker[0] != 0xFF or marker[1] in {0, 0xFF}:
        # Pillow reads filling and what stands between segments byte by byte.
        file.seek(-1, os.SEEK_CUR)
    elif not (0xD0 <= marker[1] <= 0xD9 or marker[1] == 1):
        file.seek(max(2, int.from_bytes(file.read(2), "big")) - 2, os.SEEK_CUR)
    return True


def _skip_chunk(file: BinaryIO) -> bool:
    head = file.read(8)
    if len(head) == 8:
        file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
    return len(head) == 8


def _gif(file: BinaryIO, most: int) -> int:
    """Walk over the blocks without decoding any."""
    file.seek(10)
    _skip_table(file, file.read(3)[:1])
    frames = 0
    for _ in range(_MOST_PARTS):
        if frames > most:
            return frames
        kind = file.read(1)
        if kind == b",":
            _skip_table(file, file.read(9)[8:])
            frames += 1
        elif kind != b"!":
            return frames
        file.read(1)  # the extension's label, or the code size of the pixels
        while (length := file.read(1)) not in (b"", b"\0"):
            file.seek(length[0], os.SEEK_CUR)
    return most + 1


def _skip_table(file: BinaryIO, flags: bytes) -> None:
    if flags and flags[0] & 0x80:
        file.seek(3 << ((flags[0] & 7) + 1), os.SEEK_CUR)


def _tiff(file: BinaryIO, most: int) -> int:
    """Follow the directories; a chain that bites its tail, or leads out of the file, ends there."""
    file.seek(0)
    head = file.read(16)
    order = "<" if head.startswith(b"II") else ">"
    big = b"+" in head[2:4]
    offset_form, count_form, entry = (f"{order}Q", f"{order}Q", 20) if big else (f"{order}I", f"{order}H", 12)
    seen: set[int] = set()
    # Whatever is wrong with a later page is no reason to refuse the first.
    with contextlib.suppress(struct.error, OverflowError, OSError, ValueError):
        (offset,) = struct.unpack_from(offset_form, head, 8 if big else 4)
        while offset and offset not in seen and len(seen) <= most:
            file.seek(offset)
            (entries,) = struct.unpack(count_form, file.read(struct.calcsize(count_form)))
            file.seek(offset + struct.calcsize(count_form) + entries * entry)
            following = file.read(struct.calcsize(offset_form))
            if not entries:
                break
            seen.add(offset)
            (offset,) = struct.unpack(offset_form, following)
    return len(seen)
