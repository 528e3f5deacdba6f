"""What of a source's metadata goes into a result: nothing, who made it, or all that describes it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from PIL import Image
from PIL.ExifTags import IFD, Base

from workers.imagesource import DAMAGE

_COPYRIGHT = (Base.Artist, Base.Copyright)
#: Not those that describe how pixels are stored: they are no longer true.
_DESCRIPTIVE = (
    Base.ImageDescription,
    Base.Make,
    Base.Model,
    Base.Software,
    Base.DateTime,
    Base.Artist,
    Base.HostComputer,
    Base.Rating,
    Base.Copyright,
)
#: Of the camera's own directory: sizes that are no longer true, offsets into it, and other directories.
_NO_LONGER_TRUE = (Base.ExifImageWidth, Base.ExifImageHeight, Base.ExifInteroperabilityOffset, Base.MakerNote)
#: Bytes of a JPEG segment that can be used.
_MOST = 64_000


@dataclass(frozen=True, slots=True)
class Metadata:
    """EXIF and XMP for a result; empty is none."""

    exif: bytes = b""
    xmp: bytes = b""


NOTHING = Metadata()


def metadata_of(image: Image.Image, keep: str, format: str) -> Metadata:
    """Return what is to be kept of an opened image's metadata: ``none``, ``copyright`` or ``all``.

    ``copyright`` is the EXIF's artist and copyright. ``all`` adds what describes the picture, the camera, the place and
    the XMP; never the orientation, which has been applied, and no thumbnail. What is damaged or too large is left out,
    and camera and place where the result's format is TIFF.
    """
    if keep == "none":
        return NOTHING
    exif, xmp = b"", b""
    with contextlib.suppress(OSError, *DAMAGE):
        given, kept = image.getexif(), Image.Exif()
        for tag in _COPYRIGHT if keep == "copyright" else _DESCRIPTIVE:
            if tag in given:
                kept[tag] = given[tag]
        # libtiff, which compresses, takes no directories from Pillow.
        if keep == "all" and format != "TIFF":
            camera = {tag: value for tag, value in given.get_ifd(IFD.Exif).items() if tag not in _NO_LONGER_TRUE}
            for directory, values in ((IFD.Exif, camera), (IFD.GPSInfo, dict(given.get_ifd(IFD.GPSInfo)))):
                if values:
                    kept[directory] = values
        exif = kept.tobytes() if len(kept) else b""
    if keep == "all":
        found = image.info.get("xmp") or b""
        xmp = _upright(found.encode() if isinstance(found, str) else bytes(found))
    return Metadata(exif if len(exif) <= _MOST else b"", xmp if len(xmp) <= _MOST else b"")


def _upright(xmp: bytes) -> bytes:
    for before, after in ((b'tiff:Orientation="', b'"'), (b"<tiff:Orientation>", b"</tiff:Orientation>")):
        start = xmp.find(before)
        if start >= 0:
            start += len(before)
            end = xmp.find(after, start)
            if end >= 0:
                xmp = xmp[:start] + b"1" + xmp[end:]
    return xmp
