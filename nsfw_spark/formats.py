"""Finds the format of an input from its file names (`--format auto`), and reads globs as Spark does.

In: names of files. Out: `files`, `webdataset`, `parquet` or `npy`. Opens no file, and knows no Spark: `run`
and `peek` list the names, each in its own way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Final

from nsfw_spark.errors import ConfigError, InputError

NAMES_SEEN: Final = 1_000
"""File names that decide the format of an input."""

FILES: Final = "files"
SUFFIXES: Final[Mapping[str, tuple[str, ...]]] = {
    "webdataset": ("tar", "tar.gz", "tgz", "tar.bz2", "tbz2", "tar.xz", "txz"),
    "npy": ("npy",),
    "parquet": ("parquet",),
}
"""Format → suffixes of its files, in any case. Files with other suffixes are image files."""

# fmt: off
IMAGE_EXTENSIONS: Final = frozenset({
    "jpg", "jpeg", "jpe", "jfif", "pjpeg", "png", "apng", "webp", "gif", "bmp", "dib", "tif", "tiff", "avif",
    "heic", "heif", "hif", "jxl", "jp2", "j2k", "mpo", "ppm", "pgm", "pbm", "pnm", "ico", "psd", "svg", "tga",
})
# fmt: on
"""Extensions, in any case, of images; formats that are not decoded are `unsupported`."""

_OTHER: Final = "other"
_BESIDE: Final = {"webdataset": {"parquet", _OTHER}, "npy": {"parquet", _OTHER}}
"""Files that usually lie beside: img2dataset writes Parquet and JSON for each tar, clip-retrieval Parquet."""


def find_format(uri: str, names: Iterable[str], *, has_vectors: bool = False) -> str:
    """Return the format of an input: `files`, `webdataset`, `parquet` or `npy`.

    Args:
        uri: The input, for messages.
        names: Names or URIs of its files; the first 1,000 decide.
        has_vectors: Whether the user wants embeddings, so that images beside them are ignored.

    Raises:
        InputError: The names have several formats.
    """
    found: dict[str, list[str]] = {}  # by format: the files
    for name in islice(names, NAMES_SEEN):
        found.setdefault(_format_of(name), []).append(name)
    for main, beside in _BESIDE.items():
        if main in found:
            # Images are never skipped in silence, except when the user wants embeddings.
            ignored = beside | {FILES} if has_vectors else beside
            found = {format_: names for format_, names in found.items() if format_ not in ignored}
    if others := found.pop(_OTHER, []):
        found.setdefault(FILES, []).extend(others)  # their content may be images
    if len(found) > 1:
        raise InputError(_several_formats(uri, found))
    return next(iter(found), FILES)


def has_suffix(name: str, format_: str) -> bool:
    """Whether a file's name ends in a suffix of the format; any name fits `files`."""
    return format_ == FILES or name.lower().endswith(tuple(f".{suffix}" for suffix in SUFFIXES[format_]))


def _format_of(name: str) -> str:
    for format_ in SUFFIXES:
        if has_suffix(name, format_):
            return format_
    return FILES if name.lower().rpartition(".")[2] in IMAGE_EXTENSIONS else _OTHER


def _several_formats(uri: str, found: Mapping[str, list[str]]) -> str:
    usual, *odd = sorted(found.items(), key=lambda item: -len(item[1]))
    shown = f"{len(usual[1])} of {usual[0]}"
    shown += "".join(f" and {len(names)} of {format_}, such as {names[0]}" for format_, names in odd)
    return (
        f"input {uri} holds files of several formats: {shown} (only the first {NAMES_SEEN:,} names were "
        "looked at). Expected one format. Say which: --format"
    )


def glob_pattern(glob: str) -> re.Pattern[str]:
    """Return the regular expression of a glob, for `fullmatch` with a file's name.

    Raises:
        ConfigError: The glob is malformed.

    Source:
        `GlobPattern.set` in org.apache.hadoop.fs, Hadoop 3.4, which Spark's pathGlobFilter uses.
    """
    pattern, num_braces, in_set, before = "", 0, False, ""
    characters = iter(glob)
    for character in characters:
        piece = character if in_set and character != "\\" else re.escape(character)
        if character == "\\":
            piece = re.escape(next(characters, "\\"))
        elif character == "]":
            piece, in_set = "]" if in_set else r"\]", False
        elif in_set:
            piece = "^" if character == "!" and before == "[" else piece
        elif character in _WILDCARDS:
            piece, in_set = _WILDCARDS[character], character == "["
            num_braces += character == "{"
        elif num_braces and character in ",}":
            piece = "|" if character == "," else ")"
            num_braces -= character == "}"
        pattern, before = pattern + piece, character
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ConfigError(
            f"--glob: got {glob!r}, which is malformed ({error}); expected a pattern such as *.{{jpg,png}}"
        ) from None


_WILDCARDS: Final = {"*": ".*", "?": ".", "[": "[", "{": "(?:"}
