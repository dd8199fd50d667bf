"""The columns of images that go into shards, and the names that the images have there."""

from __future__ import annotations

from typing import Final

import pyarrow as pa

from nsfw_spark.readers.webdataset import IMAGE_EXTENSIONS

SHARD: Final = "shard_number"
KEY: Final = "image_key"
NOT_METADATA: Final = (SHARD, KEY, "format", "content")
"""Columns of the images that are not written as what they are: all others are."""

_EXTENSIONS: Final = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}  # else the format's own name


def file_names(images: pa.RecordBatch) -> list[str]:
    """Return `KEY.EXTENSION` of each image."""
    columns = (images.column(name).to_pylist() for name in (KEY, "format", "image_id"))
    return [f"{key}.{_extension(*said)}" for key, *said in zip(*columns, strict=True)]


def _extension(format_: str | None, image_id: str) -> str:
    """Return the extension of an image's format; where that is not known, the one that it had."""
    if format_ is not None:
        return _EXTENSIONS.get(format_, format_.lower())
    extension = image_id.rpartition(".")[2].lower()
    return extension if extension in IMAGE_EXTENSIONS else "img"
