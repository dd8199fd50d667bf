"""Build the demo's pictures in ``examples/images``.

All photographs are in the public domain or CC0. They come from three Python packages: the installed
scikit-image, matplotlib (``grace_hopper.jpg``) and scipy 1.9.3 (``face.dat`` and ``ascent.dat``).
``examples/images/README.md`` names the subject and author of each file, and says how to get the last
three files out of their packages. Then run::

    python examples/make_images.py --matplotlib-data DIR --scipy-data DIR

Nothing is random: with the same version of Pillow, every run writes the same bytes.
"""

from __future__ import annotations

import argparse
import bz2
import importlib.resources
import pickletools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

SCIKIT_IMAGE_FILES = {
    "astronaut": "astronaut.png",
    "brick": "brick.png",
    "camera": "camera.png",
    "cat": "chelsea.png",
    "clock": "clock_motion.png",
    "coffee": "coffee.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "hubble": "hubble_deep_field.jpg",
    "retina": "retina.jpg",
}

# Options for each format. AVIF gets one thread: with more, the encoder may split the work differently
# on another machine, and write other files.
SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    ".avif": {"quality": 70, "max_threads": 1},
    ".bmp": {},
    ".jpg": {"quality": 84, "optimize": True},
    ".png": {"optimize": True},
    ".tiff": {"compression": "tiff_lzw"},
    ".webp": {"quality": 82, "method": 6},
}


class Photo(NamedTuple):
    """One photograph of the demo: a crop of a source picture, scaled down if `size` says so."""

    file: str
    source: str
    box: tuple[int, int, int, int] | None = None  # left, top, right, bottom; None keeps the whole picture
    size: tuple[int, int] | None = None  # width, height; None does not scale


PHOTOS = (
    Photo("astronaut.jpg", "astronaut"),
    Photo("astronaut-face.jpg", "astronaut", box=(135, 0, 316, 197)),
    Photo("astronaut-portrait.jpg", "astronaut", box=(40, 0, 373, 500)),
    Photo("brick-wall.jpg", "brick", size=(400, 400)),
    Photo("cat.jpg", "cat"),
    Photo("cat-eyes.webp", "cat", box=(110, 75, 411, 186)),
    Photo("clock-blurred.bmp", "clock", size=(240, 180)),
    Photo("coffee.jpg", "coffee"),
    Photo("coffee-portrait.avif", "coffee", box=(165, 0, 432, 400)),
    Photo("deep-field.jpg", "hubble", size=(500, 436)),
    Photo("deep-field-panorama.jpg", "hubble", box=(0, 400, 1000, 700), size=(640, 192)),
    Photo("grace-hopper.jpg", "hopper"),
    Photo("grass.tiff", "grass", box=(0, 0, 241, 241)),
    Photo("gravel.png", "gravel", box=(100, 100, 357, 357)),
    Photo("photographer.jpg", "camera"),
    Photo("photographer-head.jpg", "camera", box=(120, 40, 333, 253)),
    Photo("raccoon.jpg", "raccoon", size=(640, 480)),
    Photo("raccoon-panorama.jpg", "raccoon", box=(0, 200, 1024, 541), size=(640, 213)),
    Photo("raccoon-portrait.webp", "raccoon", box=(440, 0, 951, 768), size=(333, 500)),
    Photo("retina.jpg", "retina", size=(480, 480)),
    Photo("retina-vessels.jpg", "retina", box=(80, 400, 680, 900), size=(360, 300)),
    Photo("space-shuttle-model.png", "astronaut", box=(345, 0, 470, 241)),
    Photo("stairs.jpg", "stairs"),
    Photo("stairs-portrait.jpg", "stairs", box=(0, 0, 341, 512), size=(333, 500)),
)


def without_metadata(image: Image.Image) -> Image.Image:
    """Return the pixels alone, without comment, profile and resolution."""
    return Image.fromarray(np.asarray(image))


def load_raccoon(path: Path) -> Image.Image:
    """Read scipy's ``face.dat``: 768 rows of 1024 RGB pixels, compressed with bzip2."""
    pixels = np.frombuffer(bz2.decompress(path.read_bytes()), dtype=np.uint8)
    return Image.fromarray(pixels.reshape(768, 1024, 3))


def load_stairs(path: Path) -> Image.Image:
    """Read scipy's ``ascent.dat``: a pickled list of 512 rows of 512 grey values.

    Unpickling a file may run code that is hidden in it. Every pixel is a one-byte integer of the
    pickle, so listing the pickle's opcodes is enough, and runs nothing.
    """
    opcodes = pickletools.genops(path.read_bytes())
    pixels = [value for opcode, value, _ in opcodes if opcode.name == "BININT1"]
    return Image.fromarray(np.array(pixels, dtype=np.uint8).reshape(512, 512))


def load_sources(matplotlib_data: Path, scipy_data: Path) -> dict[str, Image.Image]:
    """Read every source picture; return them by the name that `PHOTOS` uses."""
    # The functions of skimage.data may look for a download cache. The files in the package suffice.
    package = importlib.resources.files("skimage.data")
    sources = {}
    for name, file in SCIKIT_IMAGE_FILES.items():
        with importlib.resources.as_file(package / file) as path, Image.open(path) as image:
            sources[name] = without_metadata(image)
    with Image.open(matplotlib_data / "grace_hopper.jpg") as image:
        sources["hopper"] = without_metadata(image)
    sources["raccoon"] = load_raccoon(scipy_data / "face.dat")
    sources["stairs"] = load_stairs(scipy_data / "ascent.dat")
    return sources


def write_photos(sources: dict[str, Image.Image], folder: Path) -> None:
    """Write the ordinary photographs, in several formats and shapes."""
    folder.mkdir(parents=True, exist_ok=True)
    for photo in PHOTOS:
        image = sources[photo.source].crop(photo.box)
        if photo.size:
            image = image.resize(photo.size, Image.Resampling.LANCZOS)
        path = folder / photo.file
        image.save(path, **SAVE_OPTIONS[path.suffix])


def write_corrupt(sources: dict[str, Image.Image], folder: Path) -> None:
    """Write files with names of photographs that cannot be decoded."""
    folder.mkdir(parents=True, exist_ok=True)

    # Its header is intact, so opening the file works and reading the pixels fails.
    truncated = folder / "truncated.jpg"
    sources["coffee"].resize((450, 300)).save(truncated, **SAVE_OPTIONS[".jpg"])
    whole = truncated.read_bytes()
    truncated.write_bytes(whole[: len(whole) // 2])

    text = "This is plain text. Only the file's name says that it is a photograph.\n"
    (folder / "not-an-image.jpg").write_text(text, encoding="utf-8", newline="\n")
    (folder / "empty.jpg").write_bytes(b"")


def write_cmyk(image: Image.Image, path: Path) -> None:
    """Write a CMYK JPEG; Pillow adds the Adobe marker and inverts the inks."""
    image.resize((300, 200)).convert("CMYK").save(path, **SAVE_OPTIONS[".jpg"])


def write_palette_transparent(image: Image.Image, path: Path) -> None:
    """Write a PNG with a palette; its last colour is transparent and surrounds an ellipse."""
    small = image.resize((301, 200))
    outside = Image.new("L", small.size, 255)
    ImageDraw.Draw(outside).ellipse((0, 0, small.width - 1, small.height - 1), fill=0)
    colours = 64
    indexed = small.quantize(colours)
    # The photograph uses the indices below `colours`, so the index `colours` is free for transparency.
    # It needs a palette entry: a pixel with an index beyond the palette makes the PNG invalid.
    palette = (indexed.getpalette() or [])[: 3 * colours]
    indexed.putpalette([*palette, 255, 255, 255])
    indexed.paste(colours, mask=outside)
    indexed.save(path, transparency=colours, optimize=True)


def write_16_bit(image: Image.Image, path: Path) -> None:
    """Write a greyscale PNG with 16 bits a pixel."""
    # Scaling down in floating point gives shades between the 256 of the source. So the lower byte holds
    # real detail, as in the file of a camera or a scanner.
    small = image.convert("F").resize((180, 180), Image.Resampling.BOX)
    Image.fromarray((np.asarray(small) * 257).astype(np.uint16)).save(path, optimize=True)


def write_animated(image: Image.Image, path: Path) -> None:
    """Write a GIF of three frames that pan over the photograph from left to right."""
    lefts = (0, 200, 400)
    frames = [image.crop((x, 60, x + 624, 528)).resize((160, 120)).quantize(64) for x in lefts]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=500, loop=0)


def write_exif_rotated(image: Image.Image, path: Path) -> None:
    """Write a JPEG like an upright camera: pixels on their side, with the EXIF orientation to turn them."""
    # Orientation 6 tells the viewer to turn the image clockwise by 90 degrees, so the stored pixels are
    # turned anticlockwise, which is Pillow's direction.
    sideways = image.resize((320, 375)).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways.save(path, exif=exif, **SAVE_OPTIONS[".jpg"])


def write_variants(sources: dict[str, Image.Image], folder: Path) -> None:
    """Write sound files in less common forms."""
    folder.mkdir(parents=True, exist_ok=True)
    write_cmyk(sources["coffee"], folder / "cmyk.jpg")
    write_palette_transparent(sources["cat"], folder / "palette-transparent.png")
    write_16_bit(sources["camera"], folder / "16-bit.png")
    write_animated(sources["raccoon"], folder / "animated.gif")
    write_exif_rotated(sources["hopper"], folder / "exif-rotated.jpg")


def main() -> None:
    """Read the command line and write every picture."""
    parser = argparse.ArgumentParser(description="Build the demo's pictures.")
    parser.add_argument("--matplotlib-data", type=Path, required=True, help="folder with grace_hopper.jpg")
    parser.add_argument("--scipy-data", type=Path, required=True, help="folder with face.dat and ascent.dat")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).resolve().parent / "images",
        help="folder to write to (default: the folder images beside this script)",
    )
    arguments = parser.parse_args()

    sources = load_sources(arguments.matplotlib_data, arguments.scipy_data)
    write_photos(sources, arguments.out / "photos")
    write_corrupt(sources, arguments.out / "corrupt")
    write_variants(sources, arguments.out / "variants")


if __name__ == "__main__":
    main()
