"""Dark images with a bright part that the centre of the first frame does not show.

With `FakeEncoder` and `FakeHead` the bright part scores near 1, the rest near 0.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from io import BytesIO
from typing import Any, Final, NamedTuple

from PIL import Image

from nsfw_spark.decode import DecodedImage, decode
from tests.conftest import encoded
from tests.fakes import card

SIZE: Final = (60, 40)
HOW: Final = card().preprocessing


class Hidden(NamedTuple):
    """One file, and where its bright part is."""

    content: bytes
    view: str
    num_frames: int = 1


def plain(colour: str | tuple[int, ...], size: tuple[int, int] = SIZE, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, size, colour)


def frames(colours: list[str], image_format: str, size: tuple[int, int] = SIZE, **options: Any) -> bytes:  # noqa: ANN401
    """Return a file of several frames, each of one colour with a different corner pixel."""
    images = [plain(colour, size) for colour in colours]
    for i, image in enumerate(images):  # else Pillow joins those that are alike
        image.putpixel((0, 0), (i, 2 * i, 3 * i))
    return encoded(images[0], image_format, save_all=True, append_images=images[1:], **options)


def partly(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """Return a black image with a white box."""
    image = plain("black", size)
    image.paste("white", box)
    return image


def exif_with_thumbnail(thumbnail: bytes) -> bytes:
    """Return EXIF with a second directory, which points at a thumbnail behind it."""
    empty = struct.pack("<HL", 0, 14)  # no entries; the next directory begins at byte 14
    fields = struct.pack("<HHLLHHLL", 0x0201, 4, 1, 44, 0x0202, 4, 1, len(thumbnail))
    exif = b"II*\0" + struct.pack("<L", 8) + empty + struct.pack("<H", 2) + fields + bytes(4)
    assert len(exif) == 44
    return exif + thumbnail


def with_exif_thumbnail(image: Image.Image, thumbnail: bytes) -> bytes:
    """Return a JPEG with a thumbnail."""
    return encoded(image, "JPEG", exif=b"Exif\0\0" + exif_with_thumbnail(thumbnail))


def mpo(pictures: Sequence[bytes], *, sizes_of: int | None = None) -> bytes:
    """Return an MPO of JPEGs; it claims that each has `sizes_of` bytes, if given.

    Pillow writes wrong offsets for more than two pictures.
    """
    count, first = len(pictures), pictures[0]
    fields = struct.pack("<HHHL4s", 3, 0xB000, 7, 4, b"0100") + struct.pack("<HHLL", 0xB001, 4, 1, count)
    fields += struct.pack("<HHLL", 0xB002, 7, 16 * count, 50)
    header = b"MPF\0II*\0" + struct.pack("<L", 8) + fields + bytes(4)
    length = len(header) + 16 * count
    end, entries = len(first) + 4 + length, []
    for i, picture in enumerate(pictures):
        offset = end - 10 if i else 0  # from `II`
        size = len(picture) if sizes_of is None else sizes_of
        entries.append(struct.pack("<LLLHH", 0 if i else 0x030000, size, offset, 0, 0))
        end += len(picture) if i else 0
    segment = b"\xff\xe2" + struct.pack(">H", length + 2) + header + b"".join(entries)
    return b"".join([first[:2], segment, first[2:], *pictures[1:]])


def with_photoshop_thumbnail(image: Image.Image, thumbnail: bytes) -> bytes:
    """Return a JPEG with a thumbnail among Photoshop's resources."""
    resource = bytes(28) + thumbnail
    data = b"Photoshop 3.0\0" + b"8BIM" + struct.pack(">HHL", 0x040C, 0, len(resource)) + resource
    content = encoded(image, "JPEG")
    return content[:2] + b"\xff\xed" + struct.pack(">H", len(data) + 2) + data + content[2:]


def turned(image: Image.Image) -> bytes:
    """Return a JPEG that is stored on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(image.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif)


def animated_panorama() -> bytes:
    images = [plain("black", (200, 40)) for _ in range(3)]
    images[1].paste("white", (0, 0, 40, 40))
    return encoded(images[0], "PNG", save_all=True, append_images=images[1:])


def transparent_panorama() -> bytes:
    """Black, and at its left end transparent."""
    image = plain((0, 0, 0, 255), (200, 40), "RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 40, 40))
    return encoded(image, "PNG")


def palette() -> bytes:
    """Return a PNG with a palette, all of whose pixels are transparent."""
    image = plain("black").quantize(2)
    return encoded(image, "PNG", transparency=image.getpixel((0, 0)))


_FIVE = ["black"] * 4 + ["white"] + ["black"]
_JPEGS = [encoded(plain(colour), "JPEG") for colour in ("black", "black", "white")]
_THUMBNAIL = encoded(plain("white", (16, 12)), "JPEG")

HIDDEN: Final[dict[str, Hidden]] = {
    "animated.gif": Hidden(frames(_FIVE, "GIF"), "frame 5", 6),
    "animated.png": Hidden(frames(_FIVE, "PNG"), "frame 5", 6),
    "animated.webp": Hidden(frames(_FIVE, "WEBP", lossless=True), "frame 5", 6),
    "animated.avif": Hidden(frames(_FIVE, "AVIF", speed=10), "frame 5", 6),
    "panorama.png": Hidden(encoded(partly((240, 40), (0, 0, 40, 40)), "PNG"), "tile 1 of 6"),
    "strip.png": Hidden(encoded(partly((40, 240), (0, 200, 40, 240)), "PNG"), "tile 6 of 6"),
    "turned.jpg": Hidden(turned(partly((240, 40), (0, 0, 40, 40))), "tile 6 of 6"),
    "ribbon.png": Hidden(encoded(partly((1600, 40), (0, 0, 200, 40)), "PNG"), "tile 1 of 8"),
    "on-white.png": Hidden(encoded(plain((0, 0, 0, 0), mode="RGBA"), "PNG"), "on white"),
    "on-white-grey.png": Hidden(encoded(plain((0, 0), mode="LA"), "PNG"), "on white"),
    "on-white-palette.png": Hidden(palette(), "on white"),
    "on-white-colour.png": Hidden(encoded(plain("black"), "PNG", transparency=(0, 0, 0)), "on white"),
    "on-white.webp": Hidden(encoded(plain((0, 0, 0, 0), mode="RGBA"), "WEBP", lossless=True), "on white"),
    "on-white.tif": Hidden(encoded(plain((0, 0, 0, 0), mode="RGBA"), "TIFF"), "on white"),
    "pages.tif": Hidden(frames(["black", "white", "black"], "TIFF"), "page 2", 3),
    "pictures.mpo": Hidden(frames(["black", "white"], "MPO"), "page 2", 2),
    "lying-sizes.mpo": Hidden(mpo(_JPEGS, sizes_of=0), "page 3", 3),
    "exif.jpg": Hidden(with_exif_thumbnail(plain("black"), _THUMBNAIL), "thumbnail"),
    "photoshop.jpg": Hidden(with_photoshop_thumbnail(plain("black"), _THUMBNAIL), "thumbnail"),
    "animated-panorama.png": Hidden(animated_panorama(), "frame 2, tile 1 of 5", 3),
    "transparent-panorama.png": Hidden(transparent_panorama(), "on white, tile 1 of 5"),
}
"""By file name; the extension is the format."""


def heic() -> Hidden:
    """Return a HEIC of two images; needs the extra `heic`."""
    import pillow_heif

    file = pillow_heif.from_pillow(plain("black"))
    file.add_from_pillow(plain("white"))
    buffer = BytesIO()
    file.save(buffer, quality=90)
    return Hidden(buffer.getvalue(), "page 2", 2)


def strictly(content: bytes, **options: int) -> DecodedImage:
    return decode(content, HOW, strict=True, **options)


def names(content: bytes, **options: int) -> list[str]:
    return [view.name for view in strictly(content, **options).views]
