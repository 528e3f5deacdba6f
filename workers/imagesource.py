"""Image files as they come: told apart by their first bytes, measured, and only then decoded."""

from __future__ import annotations

import contextlib
import resource
import struct
import warnings
import zlib
from typing import TYPE_CHECKING, BinaryIO, TypedDict

# Pillow loads plugins when it first needs them: here they are loaded before the pool forks, once for all children.
from PIL import (
    AvifImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from queues.errors import TransientError
from workers import heap, imageframes
from workers.imagespec import SUFFIXES, ImageRejected, Limits
from workers.storage import translate

if TYPE_CHECKING:
    from collections.abc import Iterator

_PLUGINS = (GifImagePlugin, JpegImagePlugin, MpoImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin)
Image.preinit()
# Every child of the pool decodes: a thread per core in each would only make them wait for one another.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
heap.keep()

#: What turns an image upright, by its EXIF orientation.
TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_TAG = 0x0112
#: What Pillow raises for damaged files. Not Exception: the time limit of a task arrives as one, at any line.
DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
#: Scans of a progressive JPEG: encoders write ten, and each of some 60 bytes costs a walk over all coefficients.
_MOST_SCANS = 500
#: Bytes that tell a format.
HEAD = 256
#: Bytes of a JPEG that libjpeg takes at a time.
_PIECE = 256 * 1024
#: Bytes that must be free for a decoder's failure to be the file's.
_ROOM = 256 * 1024 * 1024


class Source(TypedDict):
    """The image as it was given; width and height as a viewer shows it."""

    format: str
    width: int
    height: int
    bytes: int
    orientation: int
    frames: int


class SourceImage:
    """An image file that is opened, measured and not decoded.

    Attributes:
        image: Pillow's image.
        facts: What the result says of the source.
        turn: The EXIF orientation that is still to be applied to decoded pixels.
        frames: How many frames an animation has; 1 for pages of a document and the views of a stereo photograph.
    """

    def __init__(self, file: BinaryIO, size: int, key: str, limits: Limits) -> None:
        """Read the headers of a file of that many bytes.

        Raises:
            ImageRejected: ``unsupported_format``, ``corrupt`` or ``too_large``.
            TransientError: The storage or the memory failed.
        """
        self.key, self._file = key, file
        with damage(key):
            format = sniff(file.read(HEAD), key)
            if imageframes.has_too_many_parts(file, format):
                raise ImageRejected("too_large", f"{key!r} consists of too many parts to be an image: save it anew.")
            frames = imageframes.count_unopened(file, format, limits.frames)
            if frames > limits.frames:
                raise _too_many_frames(key, limits)
            file.seek(0)
            self.image = Image.open(file, formats=(format,))
            self._check(format, limits)
            if format in {"WEBP", "AVIF"}:
                # Their decoded pixels lie in memory in one piece, and would be copied by 64 KiB.
                self.image.decodermaxblock = 4 * self.image.width * self.image.height
            elif format == "JPEG":
                # No more at a time: only between two pieces can a time limit end the decoding.
                self.image.decodermaxblock = _PIECE
            if format == "PNG" and "exif" not in self.image.info:
                # It may follow the pixels, and Pillow would decode them all to find it.
                exif = imageframes.png_exif(file)
                if exif:
                    self.image.info["exif"] = exif
            frames = frames or imageframes.count_opened(self.image)
            if frames > limits.frames:
                raise _too_many_frames(key, limits)
            file.seek(0)
            given = self._orientation()
        # Pillow itself turns TIFF while loading, and tells the size that comes of it.
        self.turn = 1 if format == "TIFF" else given
        width, height = self.image.size[::-1] if self.turn >= 5 else self.image.size
        self.frames = frames if format in {"AVIF", "GIF", "PNG", "WEBP"} else 1
        self.facts = Source(format=format, width=width, height=height, bytes=size, orientation=given, frames=frames)

    def load(self, wanted: tuple[float, float]) -> tuple[float, float]:
        """Decode, of a JPEG no more than is wanted.

        Args:
            wanted: Width and height that the stored image should still have, at least.

        Returns:
            How many pixels there are now for each stored one, across and down.
        """
        width, height = self.image.size
        with damage(self.key):
            if "progressive" in self.image.info and imageframes.jpeg_scans(self._file) > _MOST_SCANS:
                raise ImageRejected("too_large", f"{self.key!r} has more than {_MOST_SCANS} scans: save it anew.")
            # libjpeg decodes at 1/2, 1/4 or 1/8 several times faster.
            drafted = self.image.draft(None, (max(1, int(wanted[0])), max(1, int(wanted[1]))))
            self.image.load()
        return (drafted[1][2] / width, drafted[1][3] / height) if drafted else (1, 1)

    def seek(self, frame: int) -> int:
        """Decode one frame of an animation, and return how many milliseconds it is shown."""
        with damage(self.key):
            # The picture that stands for an animated PNG where it is not understood is no part of the animation.
            self.image.seek(frame + (1 if getattr(self.image, "default_image", False) else 0))
            self.image.load()
            return max(0, round(float(self.image.info.get("duration") or 0)))

    @property
    def plays(self) -> int:
        """How often an animation is played; 0 is for ever."""
        loop = self.image.info.get("loop")
        if self.facts["format"] != "GIF":
            return int(loop or 0)
        # GIF counts repetitions, and without the extension it is played once.
        return 1 if loop is None else int(loop) + 1 if loop else 0

    @property
    def transparent(self) -> bool:
        """Whether parts of the image may be transparent."""
        with damage(self.key):
            return bool(self.image.has_transparency_data)

    def _check(self, format: str, limits: Limits) -> None:
        width, height = self.image.size
        if width * height > limits.of(format) or max(width, height) > limits.side:
            raise ImageRejected(
                "too_large",
                f"{self.key!r} has {width}x{height} pixels, {format} may have {limits.of(format)}, "
                f"{limits.side} a side: shrink it.",
            )

    def _orientation(self) -> int:
        try:
            # Not the plugin's method, which decodes a whole PNG.
            value = Image.Image.getexif(self.image).get(_ORIENTATION_TAG)
        except (OSError, *DAMAGE):
            return 1
        return value if isinstance(value, int) and value in TRANSPOSE else 1


def read_bytes(file: BinaryIO, count: int, key: str) -> bytes:
    """Read up to so many bytes; an error of the disk is the storage's."""
    try:
        return file.read(count)
    except OSError as error:
        raise translate(error, key) from error


def read_whole(file: BinaryIO, size: int, key: str, limits: Limits) -> bytes:
    """Read a file of about that many bytes; it may be growing.

    Raises:
        ImageRejected: ``too_large``.
    """
    data = read_bytes(file, min(size, limits.file_bytes) + 1, key)
    if len(data) > size:
        data += read_bytes(file, max(0, limits.file_bytes + 1 - len(data)), key)
    if len(data) > limits.file_bytes:
        raise ImageRejected("too_large", f"{key!r} is larger than {limits.file_bytes} bytes: send a smaller file.")
    return data


def sniff(head: bytes, key: str) -> str:
    """Tell the format by a file's first bytes: names lie, and Pillow would try decoders that nobody asked for.

    Raises:
        ImageRejected: ``unsupported_format``, or ``corrupt`` where there are no bytes.
    """
    if not head:
        raise ImageRejected("corrupt", f"{key!r} is empty: upload it again, and send the task after the upload.")
    starts = {
        b"\xff\xd8\xff": "JPEG",
        b"\x89PNG\r\n\x1a\n": "PNG",
        b"GIF87a": "GIF",
        b"GIF89a": "GIF",
        b"II*\0": "TIFF",
        b"MM\0*": "TIFF",
        b"II+\0": "TIFF",
        b"MM\0+": "TIFF",
    }
    for start, format in starts.items():
        if head.startswith(start):
            return format
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        end = min(int.from_bytes(head[:4], "big"), HEAD)
        if any(head[at : at + 4] in {b"avif", b"avis"} for at in range(8, end, 4)):
            return "AVIF"
    raise ImageRejected("unsupported_format", f"{key!r} is none of {', '.join(SUFFIXES)}: convert it first.")


@contextlib.contextmanager
def damage(key: str) -> Iterator[None]:
    """Tell what a decoder raises apart: the file's fault, the storage's, or the memory's."""
    try:
        with warnings.catch_warnings():
            # Odd metadata is no reason to refuse pixels; too many pixels are, at half of what Pillow refuses.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageRejected("too_large", f"{key!r} has too many pixels: send a smaller image.") from None
    except OSError as error:
        # Only the operating system sets errno; decoders raise OSError without.
        if error.errno is not None:
            raise translate(error, key) from error
        if _memory_is_short():
            raise out_of_memory(key) from error
        raise _corrupt(key, error) from error
    except DAMAGE as error:
        if _memory_is_short():
            raise out_of_memory(key) from error
        raise _corrupt(key, error) from error


def out_of_memory(key: str) -> TransientError:
    """The error of a worker whose memory ran out."""
    return TransientError(
        "memory", f"Memory ran out at {key!r}: raise the worker's memory limit or lower the pixel limits."
    )


def _too_many_frames(key: str, limits: Limits) -> ImageRejected:
    return ImageRejected("too_large", f"{key!r} has more than {limits.frames} frames, or too many parts: send fewer.")


def _memory_is_short() -> bool:
    """Whether a decoder may have failed for want of memory: under a limit, libwebp and libavif do not say which."""
    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        return False
    try:
        bytearray(_ROOM)
    except MemoryError:
        return True
    return False


def _corrupt(key: str, error: Exception) -> ImageRejected:
    reason = "unreadable header" if isinstance(error, UnidentifiedImageError) else str(error)[:200]
    return ImageRejected("corrupt", f"{key!r} is damaged or incomplete ({reason}): upload it again.")
