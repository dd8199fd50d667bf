"""Makes the images of the benchmarks: JPEG photographs of the examples, cropped and scaled at random."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np
from PIL import Image

_PHOTOS = sorted((Path(__file__).parent.parent / "examples/images/photos").glob("*.jpg"))


def make_images(directory: Path, size: tuple[int, int], *, num_files: int, num_distinct: int) -> None:
    """Fill a directory with JPEG files; further files are hard links to the distinct ones.

    Args:
        directory: A new directory; an existing one stays as it is.
        size: Width and height in pixels.
        num_files: Number of all files.
        num_distinct: Number of files with different content.
    """
    if directory.exists():
        return
    partial = directory.with_name(directory.name + ".partial")
    partial.mkdir(parents=True)
    with ProcessPoolExecutor() as pool:
        list(pool.map(_make_image, range(num_distinct), repeat(partial), repeat(size), chunksize=32))
    for i in range(num_distinct, num_files):
        os.link(partial / f"{i % num_distinct:06}.jpg", partial / f"{i:06}.jpg")
    partial.rename(directory)


def _make_image(seed: int, directory: Path, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    photo = Image.open(_PHOTOS[seed % len(_PHOTOS)]).convert("RGB")
    margins = rng.uniform(0, 0.3, 4) * (photo.size * 2)
    box = (margins[0], margins[1], photo.width - margins[2], photo.height - margins[3])
    scaled = np.asarray(photo.resize(size, Image.Resampling.BICUBIC, box=box), np.int16)
    # Without grain, enlarged photographs decode too fast.
    grain = rng.normal(0, 4, scaled.shape).astype(np.int16)
    noisy = Image.fromarray(np.clip(scaled + grain, 0, 255).astype(np.uint8))
    noisy.save(directory / f"{seed:06}.jpg", quality=85)
