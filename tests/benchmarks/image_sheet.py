"""The contact sheet of docs/image.md: what goes in beside what the worker makes of it. Run by `make contact-sheet`."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image, ImageCms, ImageDraw, ImageFont, ImageOps

from tests.unit.image.pictures import LAID
from workers.imaging import process_image
from workers.storage import LocalStorage

ROOT = Path(__file__).parents[2]
PHOTOS = ROOT / "examples" / "photos"
SHEET = ROOT / "docs" / "images" / "contact-sheet.png"

WIDTH, MARGIN, GAP = 1200, 40, 16
PAPER, INK, FAINT, ACCENT = (250, 248, 243), (45, 42, 38), (140, 134, 124), (178, 84, 52)
POINTS = ("northwest", "north", "northeast", "west", "center", "east", "southwest", "south", "southeast")


def font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own, so that the sheet looks the same everywhere."""
    found = ImageFont.load_default(size)
    assert isinstance(found, ImageFont.FreeTypeFont)
    return found


class Tile:
    """A picture with a line under it, perhaps in a box that it need not fill."""

    def __init__(
        self, image: Image.Image, caption: str, *, box: tuple[int, int] | None = None, source: bool = False
    ) -> None:
        self.image, self.caption, self.source = image.convert("RGBA"), caption, source
        self.size = box or image.size

    def draw(self, sheet: Image.Image, x: int, y: int) -> None:
        """Draw at the upper left corner; transparent parts show a board."""
        pen = ImageDraw.Draw(sheet)
        width, height = self.size
        left, top = x + (width - self.image.width) // 2, y + (height - self.image.height) // 2
        if self.image.getchannel("A").histogram()[255] < self.image.width * self.image.height:
            sheet.paste(board(self.image.size), (left, top))
        sheet.paste(self.image, (left, top), self.image)
        if self.size != self.image.size:
            pen.rectangle((x, y, x + width - 1, y + height - 1), outline=(205, 198, 186))
        colour = FAINT if self.source else INK
        for number, line in enumerate(self.caption.split("\n")):
            pen.text((x, y + height + 6 + 17 * number), line, fill=colour, font=font(13))

    @property
    def height(self) -> int:
        """With its caption."""
        return self.size[1] + 8 + 17 * len(self.caption.split("\n"))


class Sheet:
    """Rows from top to bottom."""

    def __init__(self) -> None:
        self._image = Image.new("RGB", (WIDTH, 6000), PAPER)
        self._y = MARGIN

    def title(self, text: str, line: str) -> None:
        """The head of the page."""
        pen = ImageDraw.Draw(self._image)
        pen.text((MARGIN, self._y), text, fill=INK, font=font(34))
        pen.text((MARGIN, self._y + 46), line, fill=FAINT, font=font(15))
        self._y += 84

    def section(self, text: str, line: str) -> None:
        """A rule, a name, and what to look at."""
        pen = ImageDraw.Draw(self._image)
        pen.line((MARGIN, self._y + 8, WIDTH - MARGIN, self._y + 8), fill=(222, 216, 205))
        pen.text((MARGIN, self._y + 20), text, fill=ACCENT, font=font(20))
        offset = MARGIN + round(font(20).getlength(text)) + 16
        pen.text((offset, self._y + 25), line, fill=FAINT, font=font(14))
        self._y += 60

    def row(self, tiles: list[Tile], gap: int = GAP, indent: int = 0) -> None:
        """Tiles from left to right, their feet on one line."""
        x, foot = MARGIN + indent, max(tile.size[1] for tile in tiles)
        for tile in tiles:
            tile.draw(self._image, x, self._y + foot - tile.size[1])
            x += tile.size[0] + gap
        assert x - gap <= WIDTH - MARGIN, f"{x - gap - WIDTH + MARGIN} pixels too wide"
        self._y += foot + max(tile.height - tile.size[1] for tile in tiles) + 14

    def finished(self) -> Image.Image:
        """What has been drawn."""
        return self._image.crop((0, 0, WIDTH, self._y + MARGIN - 14))


def board(size: tuple[int, int]) -> Image.Image:
    """What picture editors show under transparent parts."""
    image = Image.new("RGB", size, (255, 255, 255))
    pen = ImageDraw.Draw(image)
    for y in range(0, size[1], 10):
        for x in range(y % 20, size[0], 20):
            pen.rectangle((x, y, x + 9, y + 9), fill=(226, 222, 214))
    return image


class Desk:
    """A storage with photographs, and calls of the worker on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.storage = LocalStorage(folder)

    def put(self, name: str, image: Image.Image, **settings: Any) -> None:
        """Store a source."""
        image.save(self.folder / name, **settings)

    def made(self, name: str, size: Any, **options: Any) -> tuple[Image.Image, dict[str, Any]]:
        """A result, and what the task returned."""
        result = process_image(self.storage, name, size, output="made/", **options)
        with Image.open(self.folder / result["path"]) as image:
            image.load()
            return image.copy(), dict(result)

    def guides(self, name: str, size: tuple[int, int]) -> Image.Image:
        """What the guide's three lines make of it."""
        with Image.open(self.folder / name) as image:
            small = image.resize(size)
            buffer = io.BytesIO()
            small.save(buffer, image.format)
        with Image.open(buffer) as written:
            # As a viewer shows it that does not know profiles, which the guide's lines drop from a JPEG.
            return written.convert("RGB")

    def small(self, name: str, size: tuple[int, int]) -> Image.Image:
        """A source as a viewer shows it."""
        with Image.open(self.folder / name) as image:
            upright = ImageOps.exif_transpose(image)
            return ImageOps.contain(upright.convert("RGBA"), size, Image.Resampling.LANCZOS)


def modes(sheet: Sheet, desk: Desk) -> None:
    """Every mode, of a wide and a tall photograph."""
    sheet.section("Modes", "a box of 200 by 200, drawn where the result is smaller")
    for name, background in (("dandelions.jpg", "#33443a"), ("dogs.jpg", "#d9cdb8")):
        tiles = [Tile(desk.small(name, (200, 200)), f"source: {name}", box=(200, 200), source=True)]
        for mode in ("fit", "fill", "pad", "stretch"):
            image, _ = desk.made(name, [200, 200], mode=mode, background=background)
            tiles.append(Tile(image, f'mode="{mode}"', box=(200, 200)))
        sheet.row(tiles, gap=28)


def gravity(sheet: Sheet, desk: Desk) -> None:
    """Nine points and a focal point."""
    sheet.section("Gravity", "what fill keeps of a wide photograph, and where pad puts a small one")
    tiles = [Tile(desk.small("dandelions.jpg", (260, 150)), "source: dandelions.jpg", source=True)]
    for point in ("west", "center", "east"):
        image, _ = desk.made("dandelions.jpg", [110, 150], mode="fill", gravity=point)
        tiles.append(Tile(image, f'fill, "{point}"'))
    image, _ = desk.made("dandelions.jpg", [110, 150], mode="fill", gravity=[0.62, 0.4])
    tiles.append(Tile(image, "fill, [0.62, 0.4]"))
    sheet.row([*tiles])
    tiles = []
    for point in POINTS:
        image, _ = desk.made("cup.png", [110, 110], mode="pad", gravity=point, background="#e8dfce", format="jpeg")
        tiles.append(Tile(image, f'"{point}"'))
    sheet.row(tiles, gap=16)


def formats(sheet: Sheet, desk: Desk) -> None:
    """Every format out, with and without transparency, and every format in."""
    sheet.section(
        "Formats",
        "out: the same picture in each, transparency where a format has it; in: every kind of file, and a JPEG of it",
    )
    for name, source in (("coffee.png", "source: PNG, soft edges"), ("mountains.webp", "source: WebP")):
        tiles = [Tile(desk.small(name, (142, 134)), source, box=(142, 134), source=True)]
        for format in ("jpeg", "png", "webp", "avif", "gif", "tiff"):
            image, result = desk.made(name, [142, 134], format=format, background="#e8dfce")
            tiles.append(Tile(image, f"{result['format']}, {result['bytes'] / 1000:.1f} kB", box=(142, 134)))
        sheet.row(tiles, gap=20)
    photo = desk.small("dandelions.jpg", (700, 400)).convert("RGB")
    above, below = [], []
    for format in ("JPEG", "CMYK JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF"):
        stored, name = photo.convert("CMYK") if "CMYK" in format else photo, f"format.{format.split()[-1].lower()}"
        desk.put(name, stored, format=format.split()[-1])
        above.append(Tile(desk.small(name, (142, 142)), f"source: {format}", source=True))
        image, result = desk.made(name, [142, 142], format="jpeg")
        below.append(Tile(image, f"{result['format']}, {result['bytes'] / 1000:.1f} kB"))
    sheet.row(above, gap=20)
    sheet.row(below, gap=20)


def orientations(sheet: Sheet, desk: Desk) -> None:
    """Every way in which a camera may lie."""
    sheet.section("Orientation", "above, pixels as they are stored, with the EXIF number; below, the results")
    photo = desk.small("dogs.jpg", (240, 320)).convert("RGB")
    above, below = [], []
    for orientation, laid in LAID.items():
        stored, exif = photo if laid is None else photo.transpose(laid), Image.Exif()
        exif[0x0112] = orientation
        desk.put(f"phone-{orientation}.jpg", stored, quality=92, exif=exif)
        shown = ImageOps.contain(stored, (118, 118), Image.Resampling.LANCZOS)
        above.append(Tile(shown, f"stored as {orientation}", box=(126, 126), source=True))
        image, _ = desk.made(f"phone-{orientation}.jpg", [126, 126])
        below.append(Tile(image, "upright", box=(126, 126)))
    sheet.row(above)
    sheet.row(below)


def difficult(sheet: Sheet, desk: Desk) -> None:
    """What the guide's three lines get wrong."""
    sheet.section("Where three lines go wrong", "above, Image.open().resize().save(); below, the worker")
    photo = desk.small("dandelions.jpg", (1200, 800)).convert("RGB")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = profile.replace(b"rXYZ", b"free").replace(b"gXYZ", b"rXYZ").replace(b"free", b"gXYZ")
    red, green, blue = photo.split()
    desk.put("profile.jpg", Image.merge("RGB", (green, red, blue)), quality=92, icc_profile=swapped)
    desk.put("palette.png", photo.quantize(24))
    deep = photo.convert("L").convert("I").point(lambda value: value * 257).convert("I;16")
    desk.put("deep.png", deep)
    cases = (
        ("dogs.jpg", "EXIF 6, another shape", (172, 172)),
        ("profile.jpg", "colours by a profile", (172, 97)),
        ("palette.png", "a palette of 24 colours", (172, 97)),
        ("deep.png", "16 bits of grey to JPEG", (172, 97)),
        ("moving.gif", 'GIF, animated="all"', (172, 97)),
    )
    above, below = [], []
    for name, words, size in cases:
        if name == "deep.png":
            with Image.open(desk.folder / name) as image:
                wrong = image.resize(size).convert("L")
            made, _ = desk.made(name, list(size), format="jpeg")
        else:
            wrong = desk.guides(name, size)
            made, _ = desk.made(name, list(size), format="png" if name == "palette.png" else None)
        if name == "moving.gif":
            made, wrong = strip(desk, size), first_of_four(wrong)
        above.append(Tile(wrong, words, box=(wrong.width, 172) if name == "dogs.jpg" else None, source=True))
        below.append(Tile(made, "", box=(172, 172) if name == "dogs.jpg" else None))
    sheet.row(above, gap=20)
    sheet.row(below, gap=20)


def moving(desk: Desk) -> None:
    """An animation of real pixels: a look around the mountains."""
    wide = desk.small("mountains.webp", (900, 675)).convert("RGB")
    frames = [wide.crop((100 * step, 140, 100 * step + 560, 455)) for step in range(4)]
    desk.put("moving.gif", frames[0], save_all=True, append_images=frames[1:], duration=[400, 300, 200, 900], loop=0)


def strip(desk: Desk, size: tuple[int, int]) -> Image.Image:
    """The frames of a result, two by two, each with its milliseconds."""
    result = process_image(desk.storage, "moving.gif", list(size), output="made/", animated="all", format="webp")
    sheet = Image.new("RGB", (size[0] * 2 + 4, size[1] * 2 + 4), PAPER)
    with Image.open(desk.folder / result["path"]) as image:
        for index in range(result["frames"]):
            image.seek(index)
            frame = image.convert("RGB")
            pen = ImageDraw.Draw(frame)
            words = f"{image.info['duration']} ms"
            pen.rectangle((0, 0, font(13).getlength(words) + 13, 21), fill=INK)
            pen.text((7, 4), words, fill=PAPER, font=font(13))
            sheet.paste(frame, (index % 2 * (size[0] + 4), index // 2 * (size[1] + 4)))
    return sheet


def first_of_four(image: Image.Image) -> Image.Image:
    """One frame where there were four."""
    sheet = Image.new("RGB", (image.width * 2 + 4, image.height), PAPER)
    sheet.paste(image, (0, 0))
    return sheet


def renditions(sheet: Sheet, desk: Desk) -> None:
    """Many results of one decoding."""
    sheet.section("Renditions", "renditions=[400, 280, 180, 110, 60]: one task, one decoding")
    result = process_image(
        desk.storage, "mountains.webp", output="made/", format="jpeg", renditions=[400, 280, 180, 110, 60]
    )
    tiles = []
    for one in result["renditions"]:
        with Image.open(desk.folder / one["path"]) as image:
            tiles.append(Tile(image.copy(), f"{one['width']} by {one['height']}"))
    sheet.row(tiles, gap=17)


def main() -> None:
    """Draw the sheet and store it as the worker stores any image."""
    with tempfile.TemporaryDirectory() as folder:
        desk = Desk(Path(folder))
        for photo in PHOTOS.iterdir():
            (desk.folder / photo.name).write_bytes(photo.read_bytes())
        cup = ImageOps.contain(Image.open(PHOTOS / "coffee.png").convert("RGBA"), (64, 64), Image.Resampling.LANCZOS)
        desk.put("cup.png", cup)
        moving(desk)
        sheet = Sheet()
        sheet.title(
            "What the image worker makes",
            "Grey captions: what went in. Black captions: what came out, pixel for pixel.",
        )
        for part in (modes, gravity, formats, orientations, difficult, renditions):
            part(sheet, desk)
        drawn = sheet.finished()
        desk.put("sheet.png", drawn)
        result = process_image(desk.storage, "sheet.png", list(drawn.size), output="contact-sheet.png")
        SHEET.parent.mkdir(exist_ok=True)
        SHEET.write_bytes((desk.folder / result["path"]).read_bytes())
    print(f"{SHEET.relative_to(ROOT)}: {drawn.width}x{drawn.height}, {SHEET.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
