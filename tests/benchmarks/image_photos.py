"""Photographs of 12 and 24 megapixels for the image benchmark, made from two that Debian packages ship.

Neither they nor what is made of them is in this repository: both licences ask that changes be passed on as they are.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps

if TYPE_CHECKING:
    from pathlib import Path

#: Debian package, photograph in it, and the size to which it is cut and scaled.
PHOTOS: dict[str, tuple[str, str, tuple[int, int]]] = {
    # "Bolly", 2018, CC BY-SA 4.0; 4224x3168
    "12": ("lomiri-wallpapers-16.04", "Dragonfly_by_Bolly.jpg", (4000, 3000)),
    # Lukas Baubkus, 2021, CC BY-SA 3.0; 6028x3391, enlarged by a sixth
    "24": ("lomiri-wallpapers-20.04", "Kleiber_by_Lukas_Baubkus.jpg", (6000, 4000)),
}
#: Name, format and settings of each kind of file.
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "jpeg": ("baseline.jpg", "JPEG", {"quality": 90}),
    "progressive": ("progressive.jpg", "JPEG", {"quality": 90, "progressive": True}),
    "png": ("photo.png", "PNG", {}),
    "webp": ("photo.webp", "WEBP", {"quality": 90}),
    "avif": ("photo.avif", "AVIF", {"quality": 80, "speed": 8}),
}


def photographs(folder: Path) -> dict[tuple[str, str], str]:
    """Make what is missing in a folder, and return each file's name by megapixels and kind.

    Raises:
        subprocess.CalledProcessError: the packages cannot be had; apt-get names the reason.
    """
    made: dict[tuple[str, str], str] = {}
    for megapixels, (package, photo, size) in PHOTOS.items():
        names = {kind: f"{megapixels}-{name}" for kind, (name, _, _) in KINDS.items()}
        made |= {(megapixels, kind): name for kind, name in names.items()}
        if all((folder / name).exists() for name in names.values()):
            continue
        with Image.open(original(folder, package, photo)) as image:
            upright = ImageOps.fit(image.convert("RGB"), size, Image.Resampling.LANCZOS)
        for kind, (_, format, settings) in KINDS.items():
            upright.save(folder / names[kind], format, **settings)
    return made


def original(folder: Path, package: str, photo: str) -> Path:
    """Fetch a package and return where its photograph is; nothing is installed."""
    unpacked = folder / package
    found = unpacked / "usr/share/backgrounds" / photo
    if not found.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-qq", package], cwd=folder, check=True, stderr=subprocess.DEVNULL)
        [archive] = folder.glob(f"{package}_*.deb")
        subprocess.run(["dpkg", "-x", archive, unpacked], check=True)
    return found
